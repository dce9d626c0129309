//! What this machine reaches without Ringmail: memory, a cache line between two cores, UDP, TCP.
//!
//! Each probe is the least that its mechanism needs, both sides spinning, one on each of two cores. Latencies are one way: half of
//! a round trip. `cargo xtask bench` runs them beside Ringmail and its alternatives; they also answer alone:
//!
//! ```text
//! cargo run --release -p ringmail-probe -- udp-stream --segment 4112
//! ```

mod copy;
mod cores;
mod figure;
mod line;
mod peer;
mod tcp;
mod udp;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use cores::Cores;
use figure::Figure;
use peer::Peer;

/// What this machine reaches without Ringmail.
#[derive(Parser)]
#[command(name = "ringmail-probe")]
struct Cli {
    /// Seconds to measure
    #[arg(long, default_value = "1", value_parser = seconds, global = true)]
    seconds: Duration,
    /// The cores of the two sides
    #[arg(long, default_value = "0,1", global = true)]
    cores: Cores,
    /// Print one JSON object instead
    #[arg(long, global = true)]
    json: bool,
    /// Be the other side of a probe
    #[arg(long, hide = true, global = true)]
    peer: bool,
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Subcommand)]
enum Probe {
    /// How long a cache line takes from one core to the other
    Line,
    /// How fast memory is copied
    Copy {
        /// Bytes of a copy
        #[arg(long, default_value_t = 1 << 20)]
        size: usize,
    },
    /// How long a datagram takes, one way
    UdpLatency {
        /// Bytes of a datagram
        #[arg(long, default_value_t = 64)]
        size: usize,
    },
    /// How much a UDP socket carries with segmentation offload and coalescing
    UdpStream {
        /// Bytes of a datagram
        #[arg(long, default_value_t = 4112)]
        segment: usize,
        /// Receive buffer asked of the system; 0 leaves its default
        #[arg(long, default_value_t = 4 << 20)]
        receive_buffer: usize,
    },
    /// How long a message over TCP takes, one way
    TcpLatency {
        /// Bytes of a message
        #[arg(long, default_value_t = 64)]
        size: usize,
    },
    /// How much a TCP stream carries
    TcpStream {
        /// Bytes of a write
        #[arg(long, default_value_t = 64 << 10)]
        size: usize,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.peer {
        cores::pin(cli.cores.second)?;
        return match cli.probe {
            Probe::UdpLatency { size } => udp::echo(size),
            Probe::UdpStream { receive_buffer, .. } => udp::sink(receive_buffer),
            Probe::TcpLatency { size } => tcp::echo(size),
            Probe::TcpStream { size } => tcp::sink(size),
            Probe::Line | Probe::Copy { .. } => anyhow::bail!("this probe has no other process"),
        };
    }
    cores::pin(cli.cores.first)?;
    let figure = measure(&cli.probe, cli.seconds, cli.cores)?;
    if cli.json {
        println!("{}", serde_json::to_string(&figure)?);
    } else {
        println!("{figure}");
    }
    Ok(())
}

fn measure(probe: &Probe, time: Duration, cores: Cores) -> Result<Figure> {
    match *probe {
        Probe::Line => line::measure(time, cores.second),
        Probe::Copy { size } => Ok(copy::measure(time, size)),
        Probe::UdpLatency { size } => udp::latency(Peer::start()?, time, size),
        Probe::UdpStream { segment, .. } => udp::stream(Peer::start()?, time, segment),
        Probe::TcpLatency { size } => tcp::latency(Peer::start()?, time, size),
        Probe::TcpStream { size } => tcp::stream(Peer::start()?, time, size),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=60.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("0 to 60 seconds".to_owned())
    }
}
