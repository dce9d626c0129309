//! Everything a developer of Ringmail repeats, as one command: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod bench;
mod fuzz;
mod need;
mod runner;
mod suite;
mod tally;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything a developer of Ringmail repeats.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the tests, having set up what they need.
    #[command(after_help = suite::table())]
    Test(suite::Selection),
    /// Run what every change must pass: all suites.
    Ci,
    /// Run the benchmarks, raw probes of the machine beside them.
    Bench(bench::Arguments),
    /// Fuzz the protocol engine.
    Fuzz(fuzz::Arguments),
    /// Boot the tests' Linux kernel and run a command in it.
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Test(selection) => suite::run(&selection),
        Task::Ci => suite::run(&suite::Selection::default()),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Vm(arguments) => vm::run(&arguments),
    }
}
