//! A program on the software RNIC that tests run in a namespace, against itself or against the kernel's soft-RoCE.
//!
//! The device listens on `RINGMAIL_ADDRESS`; faults, capture and extensions are set as for every program. A role ends
//! with status 0 only if every operation completed and every byte was right.

#![forbid(unsafe_code)]

mod connection;
mod exchange;
mod neighbour;
mod nic;
mod rping;

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use roce::verbs::{Mtu, QpType};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Every operation of a queue pair, as requester and as responder.
    Exchange(Exchange),
    /// The protocol of `rping`: a connection by CM, then SEND, READ and WRITE with checked data.
    Rping(Rping),
}

/// What to exchange, and with whom.
#[derive(clap::Args)]
struct Exchange {
    /// The service of the queue pairs.
    kind: Kind,
    /// Bytes of a packet's payload.
    #[arg(value_parser = path_mtu)]
    mtu: Mtu,
    /// The peer to connect to; without it, one is waited for.
    peer: Option<IpAddr>,
    /// The peer is of our kind: also use operations that `exchange.c` has not.
    #[arg(long)]
    all: bool,
}

/// Which side of `rping` to be.
#[derive(clap::Args)]
struct Rping {
    /// How many rounds.
    rounds: u32,
    /// The server to connect to; without it, a client is waited for.
    server: Option<IpAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Rc,
    Uc,
    Ud,
}

impl From<Kind> for QpType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Rc => Self::Rc,
            Kind::Uc => Self::Uc,
            Kind::Ud => Self::Ud,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().role) {
        Ok(()) => {
            println!("all right");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> Result<()> {
    match role {
        Role::Exchange(Exchange {
            kind,
            mtu,
            peer,
            all,
        }) => exchange::run(kind.into(), mtu, peer, all),
        Role::Rping(Rping {
            rounds,
            server: Some(server),
        }) => rping::client(server, rounds),
        Role::Rping(Rping {
            rounds,
            server: None,
        }) => rping::server(rounds),
    }
}

fn path_mtu(text: &str) -> Result<Mtu, String> {
    let mtu = Mtu::ALL
        .into_iter()
        .find(|mtu| mtu.bytes().to_string() == text);
    mtu.ok_or_else(|| "256, 512, 1024, 2048 or 4096".into())
}
