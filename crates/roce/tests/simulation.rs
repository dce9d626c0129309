//! Random work over faulty links, thousands of seeds: every piece completes exactly once and memory equals the model.
//!
//! `RINGMAIL_SIM_SEED=n` replays one seed, `RINGMAIL_SIM_SEEDS=n` sets how many each test runs; with
//! `RINGMAIL_SIM_SECONDS=n` each runs seeds that nobody has run yet for so long.

use std::time::{Duration, Instant, SystemTime};

use ringmail_roce::sim::script;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
    })
}

fn for_each_seed(run: impl Fn(u64)) {
    if let Some(seed) = setting("RINGMAIL_SIM_SEED") {
        return run(seed);
    }
    if let Some(seconds) = setting("RINGMAIL_SIM_SECONDS") {
        let end = Instant::now() + Duration::from_secs(seconds);
        let since_1970 = SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("the clock is right");
        let first = since_1970.as_nanos() as u64;
        let count = (first..)
            .take_while(|_| Instant::now() < end)
            .inspect(|&seed| attempt(&run, seed))
            .count();
        println!("{count} seeds from {first}");
        return;
    }
    for seed in 0..setting("RINGMAIL_SIM_SEEDS").unwrap_or(3_000) {
        attempt(&run, seed);
    }
}

/// Runs one seed and names it if it fails.
fn attempt(run: &impl Fn(u64), seed: u64) {
    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed))) {
        eprintln!("replay with RINGMAIL_SIM_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn go_back_n_delivers_everything_over_a_link_with_faults_up_to_5_percent() {
    for_each_seed(|seed| script::run(seed, false, true, 0.05));
}

#[test]
fn selective_repeat_delivers_everything_over_a_link_with_faults_up_to_5_percent() {
    for_each_seed(|seed| script::run(seed, true, true, 0.05));
}

#[test]
fn go_back_n_fails_only_as_permitted_with_faults_up_to_20_percent() {
    for_each_seed(|seed| script::run(seed, false, false, 0.20));
}

#[test]
fn selective_repeat_fails_only_as_permitted_with_faults_up_to_20_percent() {
    for_each_seed(|seed| script::run(seed, true, false, 0.20));
}
