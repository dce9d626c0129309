//! The benchmarks: what memory, wire formats and two processes on this machine reach.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::runner::cargo;

/// Every benchmark: its package, its name, and the question that it answers.
const BENCHES: &[(&str, &str, &str)] = &[
    (
        "ringmail-mem",
        "copy",
        "how much slower than memcpy are copies of exposed memory?",
    ),
    (
        "ringmail-roce",
        "wire",
        "what do headers and checksums cost a packet?",
    ),
    (
        "ringmail-rnic",
        "two_processes",
        "how close does the device come to the sockets beneath it?",
    ),
];

/// Which benchmarks to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this one.
    #[arg(value_parser = BENCHES.iter().map(|bench| bench.1).collect::<Vec<_>>())]
    bench: Option<String>,
}

/// Runs the benchmarks, one after the other: each wants the machine for itself.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    for (package, bench, question) in BENCHES {
        if arguments
            .bench
            .as_deref()
            .is_some_and(|only| only != *bench)
        {
            continue;
        }
        println!("\n== {bench}: {question}");
        let status = cargo(&["bench", "--package", package, "--bench", bench])
            .status()
            .context("cargo bench")?;
        if !status.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
