//! Everything a developer of Ringmail repeats, as one command: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod need;
mod runner;
mod suite;
mod tally;

use std::process::ExitCode;

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
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Test(selection) => suite::run(&selection),
        Task::Ci => suite::run(&suite::Selection::default()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
