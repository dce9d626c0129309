//! How long a cache line takes between the two cores: below 130 ns they share a cache, above they do not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cores::pin;
use crate::figure::Figure;

/// The word that goes to and fro, alone in its line and the line that is fetched with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// Sends a word to a thread on core `other` and back. The time is the median of batches, so that an interruption does not count.
pub(crate) fn measure(time: Duration, other: usize) -> Result<Figure> {
    let line = Line(AtomicU64::new(0));
    thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            let pinned = pin(other);
            let mut turn = 1;
            // Acquire and Release: each side's store is the other's turn; they carry nothing else.
            loop {
                match line.0.load(Ordering::Acquire) {
                    END => return pinned,
                    seen if seen == turn => {
                        line.0.store(turn + 1, Ordering::Release);
                        turn += 2;
                    }
                    _ => std::hint::spin_loop(),
                }
            }
        });
        let (start, mut turn, mut trips) = (Instant::now(), 1, Vec::with_capacity(1 << 16));
        while trips.is_empty() || start.elapsed() < time {
            let batch = Instant::now();
            for _ in 0..BATCH {
                line.0.store(turn, Ordering::Release);
                while line.0.load(Ordering::Acquire) != turn + 1 {
                    std::hint::spin_loop();
                }
                turn += 2;
            }
            trips.push(batch.elapsed().as_nanos() as u64 / BATCH);
        }
        line.0.store(END, Ordering::Release);
        echo.join().expect("the echo does not panic")?;
        Ok(Figure::of_round_trips(trips))
    })
}

const BATCH: u64 = 100;
const END: u64 = u64::MAX;
