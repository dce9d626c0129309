//! Boots the tests' Linux kernel and runs a command in it, for looking around.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use testbed::{Options, Vm};

use crate::suite;

/// What to boot, and what to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The largest packet between guest and host, in bytes.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,
    /// The guest's memory, in MiB.
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// Copy a file into the guest's /bin; may be repeated.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Do not set up soft-RoCE (rxe0) first.
    #[arg(long)]
    bare: bool,
    /// End the command after so many seconds.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The command, a shell script in one word or several.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command and passes on its output and its status.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    suite::meet_needs_of("kernel")?;
    let mut options = Options {
        memory_mib: arguments.memory,
        mtu: arguments.mtu,
        files: Vec::new(),
    };
    for file in &arguments.files {
        let Some(name) = file.file_name() else {
            bail!("{} is not a file", file.display())
        };
        options
            .files
            .push((file.clone(), format!("bin/{}", name.to_string_lossy())));
    }
    let vm = Vm::boot(&options)?;
    if !arguments.bare {
        vm.add_rxe()?;
    }
    let running = vm.spawn(
        &arguments.command.join(" "),
        Duration::from_secs(arguments.limit),
    )?;
    let output = running.follow(|text| {
        // Our reader may be gone; the command still runs to its end.
        let _ = io::stdout()
            .write_all(text.as_bytes())
            .and_then(|()| io::stdout().flush());
    })?;
    println!();
    Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
}
