//! The command line.

use std::fmt;

use clap::{Args, Parser, Subcommand};

/// RDMA on every machine.
#[derive(Debug, Parser)]
#[command(name = "ringmail", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the help shows what every command takes, apart from its own options.
const SHARED: &str = "Options of every command";

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Use this provider instead of choosing one [env: RINGMAIL_PROVIDER]
    #[arg(long, global = true, help_heading = SHARED, value_name = "NAME")]
    pub(crate) provider: Option<String>,
    /// Inject packet faults, such as loss=2%,dup=1%,reorder=3%,corrupt=1%,delay=1ms,seed=1 [env: RINGMAIL_FAULTS]
    #[arg(long, global = true, help_heading = SHARED, value_name = "FAULTS")]
    pub(crate) faults: Option<String>,
    /// Capture packets to this pcapng file [env: RINGMAIL_CAPTURE]
    #[arg(long, global = true, help_heading = SHARED, value_name = "FILE")]
    pub(crate) capture: Option<String>,
    /// Set any setting that `ringmail info` lists; may be repeated
    #[arg(long = "set", global = true, help_heading = SHARED, value_name = "NAME=VALUE", value_parser = assignment)]
    pub(crate) settings: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Info(crate::info::Arguments),
    Ping(crate::ping::Arguments),
    Perf(crate::perf::Arguments),
    Serve(crate::serve::Arguments),
    Cp(crate::copy::Arguments),
    Trace(crate::trace::Arguments),
}

/// A command that makes no sense; ends the program with code 2, as clap's own errors do.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
