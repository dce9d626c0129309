//! Does copying exposed memory cost more than `memcpy`? Prints GB/s by size (nanoseconds below 64 bytes), each as the best of
//! several runs that alternate: `cargo bench -p ringmail-mem`.
//!
//! `in` and `out` are between a slice and memory that another process could have mapped, `to peer` and `from peer` between
//! private memory and such a mapping, as one-sided work over shared memory does it. `memcpy` is between the same two kinds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringmail_mem::{Buf, Memory};

fn main() {
    let names = ["memcpy", "in", "out", "to peer", "from peer", "out+crc"];
    print!("{:>9}", "bytes");
    names.iter().for_each(|name| print!(" {name:>9}"));
    println!();
    let sizes = [8, 64, 256, 1024, 2048, 4096, 16_384, 65_536, 1 << 18];
    for len in sizes
        .into_iter()
        .chain((20..=26).step_by(2).map(|bits| 1 << bits))
    {
        print!("{len:>9}");
        for best in rates(len) {
            if len < 64 {
                print!(" {:>7.1}ns", best.as_nanos() as f64 / count(len) as f64);
            } else {
                let rate = (len * count(len)) as f64 / best.as_nanos() as f64;
                print!(" {rate:>9.1}");
            }
        }
        println!();
    }
}

fn count(len: usize) -> usize {
    ((8 << 20) / len.max(64)).max(1)
}

/// The shortest times.
fn rates(len: usize) -> [Duration; 6] {
    let (memory, peer) = shared(len);
    let mut source = Buf::from(&vec![1; len][..]);
    let target = vec![1; len];
    let private = Buf::from(&vec![1; len][..]).into_memory();
    let base = memory.iovec_mut(0, len).expect("in bounds").0;
    let mut runs: [&mut dyn FnMut(); 6] = [
        &mut || {
            // SAFETY: two allocations of `len` bytes, of which no other reference is used meanwhile.
            unsafe { std::ptr::copy_nonoverlapping(black_box(source.as_mut_ptr()), base, len) };
            black_box(base);
        },
        &mut || memory.copy_in(0, black_box(&target)).expect("in bounds"),
        &mut {
            let mut target = vec![1; len];
            let memory = memory.clone();
            move || {
                memory
                    .copy_out(0, black_box(&mut target))
                    .expect("in bounds")
            }
        },
        &mut || peer.copy_from(0, &private, 0, len).expect("in bounds"),
        &mut || private.copy_from(0, &peer, 0, len).expect("in bounds"),
        &mut {
            let memory = memory.clone();
            let mut into = vec![1; len];
            move || {
                let mut crc = crc32fast::Hasher::new();
                memory
                    .copy_out_crc(0, black_box(&mut into), &mut crc)
                    .expect("in bounds");
                black_box(crc.finalize());
            }
        },
    ];
    let mut best = [Duration::MAX; 6];
    for _ in 0..10 {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let start = Instant::now();
            for _ in 0..count(len) {
                run();
            }
            *best = start.elapsed().min(*best);
        }
    }
    best
}

/// Memory that peers can map, and a peer's mapping of it; the same memory where there are no such files.
fn shared(len: usize) -> (Memory, Memory) {
    let mut memory = Memory::allocate(len);
    #[cfg(target_os = "linux")]
    {
        memory.share().expect("shared");
        let (file, backing) = memory.descriptor().expect("shared");
        let file = file.try_clone().expect("duplicated");
        let peer = Memory::map(file, len as u64, true, backing).expect("mapped");
        (memory, peer)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let peer = memory.clone();
        (memory, peer)
    }
}
