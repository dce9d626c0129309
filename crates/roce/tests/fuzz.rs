//! The fuzzing harnesses on random bytes, so that every run of the tests exercises them.

use ringmail_roce::sim::{Rng, fuzz};

fn feed(harness: impl Fn(&[u8]), seeds: u64, longest: u64) {
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let bytes: Vec<u8> = (0..rng.below(longest))
            .map(|_| rng.next_u64() as u8)
            .collect();
        if let Err(panic) =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| harness(&bytes)))
        {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn arbitrary_packets_touch_only_what_was_exposed() {
    feed(fuzz::packets, 4_000, 4_000);
}

#[test]
fn arbitrary_operations_come_to_an_end() {
    feed(fuzz::operations, 4_000, 400);
}
