//! How fast one core copies memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::figure::Figure;

/// Copies `size` bytes again and again. The rate is the median of batches, so that an interruption does not count.
pub(crate) fn measure(time: Duration, size: usize) -> Figure {
    let size = size.max(1);
    let (from, mut to) = (vec![7u8; size], vec![0u8; size]);
    let batch = (BATCH_BYTES / size).max(1);
    let (start, mut times) = (Instant::now(), Vec::with_capacity(1 << 16));
    while times.is_empty() || start.elapsed() < time {
        let begun = Instant::now();
        for _ in 0..batch {
            black_box(&mut to).copy_from_slice(black_box(&from));
        }
        times.push(begun.elapsed().as_nanos().max(1) as u64);
    }
    times.sort_unstable();
    let seconds = times[times.len() / 2] as f64 / 1e9;
    Figure {
        gbit_per_s: Some((batch * size) as f64 * 8.0 / 1e9 / seconds),
        mmsg_per_s: Some(batch as f64 / 1e6 / seconds),
        ..Figure::default()
    }
}

/// Enough for the clock not to count.
const BATCH_BYTES: usize = 4 << 20;
