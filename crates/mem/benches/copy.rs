//! Does copying exposed memory cost more than `memcpy`? Prints GB/s by size: `cargo bench -p ringmail-mem`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringmail_mem::Memory;

fn main() {
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>8}",
        "bytes", "memcpy", "in", "out", "out+crc"
    );
    for len in [16, 64, 256, 1024, 2048, 4096, 65_536, 1 << 20] {
        let memory = Memory::allocate(len);
        let source = vec![1; len];
        let mut target = vec![0; len];
        let memcpy = rate(len, || {
            black_box(&mut target).copy_from_slice(black_box(&source))
        });
        let copy_in = rate(len, || {
            memory.copy_in(0, black_box(&source)).expect("in bounds")
        });
        let copy_out = rate(len, || {
            memory
                .copy_out(0, black_box(&mut target))
                .expect("in bounds")
        });
        let fused = rate(len, || {
            let mut crc = crc32fast::Hasher::new();
            memory
                .copy_out_crc(0, black_box(&mut target), &mut crc)
                .expect("in bounds");
            black_box(crc.finalize());
        });
        println!("{len:>8} {memcpy:>8.1} {copy_in:>8.1} {copy_out:>8.1} {fused:>8.1}");
    }
}

/// GB/s of the best of several short runs.
fn rate(len: usize, mut run: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    let count = (4 << 20) / len.max(64);
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..count {
            run();
        }
        best = best.min(start.elapsed());
    }
    (len * count) as f64 / best.as_nanos() as f64
}
