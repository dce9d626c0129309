//! `ringmail ping`: how long a round trip takes, between two processes or two hosts.
//!
//! The client connects with a [`Wish`] as private data: a hello, what to measure, and how many bytes. The responder accepts with
//! its [`fabric::RemoteRegion`] of so many bytes. Then
//!
//! - `send`: the client sends a message, and the responder sends it back;
//! - `write`, `read`: the client writes to the region or reads it, and the responder's device answers without the responder.

mod client;
mod responder;

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use fabric::{Address, Config, Domain, Hints, Reach};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::Common;
use crate::child::{self, Responder};
use crate::protocol::{Hello, Service, Token};
use crate::{device, url};
use responder::Echo;

/// Measure round trips to another process, or to `ringmail ping --listen` elsewhere
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Who answers; a process started for this if not given
    #[arg(value_name = "HOST[:PORT]", conflicts_with = "listen")]
    host: Option<String>,
    /// Answer others at this address, until interrupted
    #[arg(long, value_name = "HOST[:PORT]")]
    listen: Option<String>,
    /// Round trips
    #[arg(short, long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Bytes each way
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_SIZE)))]
    size: u32,
    /// Milliseconds between round trips
    #[arg(short, long, default_value_t = 0, value_name = "MS")]
    interval: u64,
    /// What makes the round trip
    #[arg(short, long, value_enum, default_value_t = Operation::Send)]
    operation: Operation,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
    /// Answer the parent process
    #[arg(long, hide = true)]
    for_parent: bool,
}

/// What makes a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    /// A message and its echo
    Send,
    /// A remote write and its acknowledgement
    Write,
    /// A remote read
    Read,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    if arguments.for_parent {
        return answer_parent(common);
    }
    let registry = ringmail::registry();
    let mut config = device::config(&registry, common)?;
    if let Some(listen) = &arguments.listen {
        let listen = device::place_at(&mut config, &registry, &url::with_port(listen))?;
        let domain = device::open(&registry, &config, &Hints::default())?;
        let echo = Echo::open(&domain, &listen, Token::default())?;
        println!("answering at {}", echo.address());
        io::stdout().flush()?;
        return echo.answer_all();
    }
    let host = arguments.host.as_deref().map(url::with_port);
    if let Some(host) = &host {
        device::place_towards(&mut config, &registry, host)?;
    }
    let domain = device::open(&registry, &config, &Hints::default())?;
    let (server, token, _responder) = match host {
        Some(host) => (host, Token::default(), Other::Elsewhere),
        None => Other::start(&config, &domain)?,
    };
    let wish = Wish {
        token,
        operation: arguments.operation,
        size: arguments.size,
    };
    let interval = Duration::from_millis(arguments.interval);
    let trips = client::measure(&domain, &server, wish, arguments.count, interval)?;
    let report = Report::new(&domain, &wish, &trips);
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        writeln!(out, "{report}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn answer_parent(common: &Common) -> anyhow::Result<ExitCode> {
    let token = child::follow_parent()?;
    let open = || {
        let registry = ringmail::registry();
        let config = device::config(&registry, common)?;
        let domain = device::open(&registry, &config, &Hints::default())?;
        Echo::open(&domain, &Address::ANY, token)
    };
    match open() {
        Ok(echo) => {
            child::answer_parent(&Ok(echo.address()))?;
            echo.answer_all()
        }
        Err(error) => {
            child::answer_parent(&Err(error))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Who answers.
enum Other {
    Elsewhere,
    Process {
        _responder: Responder,
    },
    /// For devices that reach no other process. It ends with this one.
    Thread,
}

impl Other {
    fn start(config: &Config, domain: &Domain) -> anyhow::Result<(Address, Token, Self)> {
        if domain.capabilities().reach == Reach::Process {
            let token = Token::random();
            let echo = Echo::open(domain, &Address::ANY, token)?;
            let address = echo.address();
            thread::Builder::new()
                .name("responder".to_owned())
                .spawn(move || echo.answer_all())
                .context("cannot start a thread")?;
            return Ok((address, token, Self::Thread));
        }
        let arguments = ["ping".into(), "--for-parent".into()];
        let responder = Responder::start(&arguments, config, domain)?;
        let (address, token) = (responder.address.clone(), responder.token);
        Ok((
            address,
            token,
            Self::Process {
                _responder: responder,
            },
        ))
    }
}

/// What a client wants measured.
///
/// ```text
/// hello (28)  operation (1)  bytes (4)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    token: Token,
    operation: Operation,
    size: u32,
}

impl Wish {
    const LEN: usize = Hello::LEN + 5;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..Hello::LEN].copy_from_slice(&Hello::new(Service::Ping, self.token).to_bytes());
        bytes[Hello::LEN] = match self.operation {
            Operation::Send => 1,
            Operation::Write => 2,
            Operation::Read => 3,
        };
        bytes[Hello::LEN + 1..].copy_from_slice(&self.size.to_be_bytes());
        bytes
    }

    /// Reads a wish of someone who knows `token`.
    ///
    /// # Errors
    /// The reason to reject.
    fn parse(bytes: &[u8], token: Token) -> Result<Self, &'static str> {
        Hello::check(bytes, Service::Ping, token)?;
        let rest = bytes
            .get(Hello::LEN..Self::LEN)
            .ok_or("the request is cut short")?;
        let operation = match rest[0] {
            1 => Operation::Send,
            2 => Operation::Write,
            3 => Operation::Read,
            _ => return Err("the operation is unknown"),
        };
        let size = u32::from_be_bytes(rest[1..].try_into().expect("five bytes without the first"));
        if size > MAX_SIZE {
            return Err("so many bytes are too many");
        }
        Ok(Self {
            token,
            operation,
            size,
        })
    }
}

/// What was measured; times in microseconds.
#[derive(Debug, Serialize)]
struct Report {
    provider: &'static str,
    operation: Operation,
    size: u32,
    count: u64,
    min_us: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

impl Report {
    fn new(domain: &Domain, wish: &Wish, trips: &Histogram<u64>) -> Self {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        Self {
            provider: domain.info().provider,
            operation: wish.operation,
            size: wish.size,
            count: trips.len(),
            min_us: microseconds(trips.min()),
            p50_us: microseconds(trips.value_at_quantile(0.5)),
            p99_us: microseconds(trips.value_at_quantile(0.99)),
            max_us: microseconds(trips.max()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.operation {
            Operation::Send => "send and echo",
            Operation::Write => "remote write",
            Operation::Read => "remote read",
        };
        write!(
            f,
            "{} round trips of {} bytes by {operation} over {}: min {:.1} µs, p50 {:.1} µs, p99 {:.1} µs, max {:.1} µs",
            self.count,
            self.size,
            self.provider,
            self.min_us,
            self.p50_us,
            self.p99_us,
            self.max_us
        )
    }
}

/// Most bytes of a round trip.
const MAX_SIZE: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wish_survives_the_zeros_behind_it_and_nothing_less() {
        let token = Token::random();
        for operation in [Operation::Send, Operation::Write, Operation::Read] {
            let wish = Wish {
                token,
                operation,
                size: MAX_SIZE,
            };
            let mut bytes = wish.to_bytes().to_vec();
            bytes.extend([0; 10]);
            assert_eq!(Wish::parse(&bytes, token), Ok(wish));
            assert!(Wish::parse(&bytes[..Wish::LEN - 1], token).is_err());
            let large = Wish {
                size: MAX_SIZE + 1,
                ..wish
            };
            assert!(
                Wish::parse(&large.to_bytes(), token)
                    .unwrap_err()
                    .contains("too many")
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_wish_panic(tail in proptest::collection::vec(any::<u8>(), 0..20)) {
            let hello = Hello::new(Service::Ping, Token::default()).to_bytes();
            let _ = Wish::parse(&[&hello[..], &tail].concat(), Token::default());
            let _ = Wish::parse(&tail, Token::default());
        }
    }
}
