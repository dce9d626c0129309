//! Coverage-guided fuzzing of the protocol engine.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The target: `packets` for arbitrary packets to one queue pair, `operations` for arbitrary operations on two.
    #[arg(value_parser = ["packets", "operations"])]
    target: String,
    /// Seconds to run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the fuzzer; what it finds lies under `fuzz/artifacts`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let there = Command::new("cargo").args(["fuzz", "--version"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        bail!("cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`");
    }
    let status = Command::new("cargo")
        .args(["fuzz", "run", "--sanitizer=none", &arguments.target, "--"])
        .arg(format!("-max_total_time={}", arguments.seconds))
        .args(["-max_len=4096", "-timeout=20", "-print_final_stats=1"])
        // The fuzzer's instrumentation is not stable; the code under test is the same.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .context("cargo fuzz")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
