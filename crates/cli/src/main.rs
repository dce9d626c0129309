//! The `ringmail` program: what is here, how fast it answers, and files moved by one-sided reads.
//!
//! Each command is a module. What they share: [`device`] opens what the registry offers, [`protocol`] is what two of these
//! programs say to each other, [`child`] starts the other end on this machine. No command names a provider.

#![forbid(unsafe_code)]

mod args;
mod child;
mod copy;
mod device;
mod info;
mod perf;
mod ping;
mod protocol;
mod serve;
mod trace;
mod url;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be reading, which is no reason to panic.
            let _ = writeln!(io::stderr(), "ringmail: {error:#}");
            if error.is::<args::Usage>() {
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Info(info) => info::run(info, &arguments.common),
        Command::Ping(ping) => ping::run(ping, &arguments.common),
        Command::Perf(perf) => perf::run(perf, &arguments.common),
        Command::Serve(serve) => serve::run(serve, &arguments.common),
        Command::Cp(cp) => copy::run(cp, &arguments.common),
        Command::Trace(trace) => trace::run(trace),
    }
}

/// Writes what `RINGMAIL_LOG` asks for to standard error: `debug`, `ringmail=trace`, … Nothing asked: warnings.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("RINGMAIL_LOG")
        .with_default_directive(tracing::level_filters::LevelFilter::WARN.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
