//! `ringmail perf`: latency, bandwidth, message rate and processor time of any provider, between two processes or two hosts.
//!
//! A case is one operation of one size, measured in one way ([`plan`]). Client and server agree on it over a connection of
//! its own ([`control`]); then each runs threads ([`case`]), which drive their share of the queue pairs ([`team`], [`lane`]) in
//! one of two ways:
//!
//! - [`latency`]: one outstanding. Messages are answered by messages, and half a round trip is one's latency; with the rest,
//!   and with writes whose target does not poll, it is the time from post to completion.
//! - [`bandwidth`]: many outstanding, kept up by completions.
//!
//! After the warm-up nothing in these loops allocates, and they read the clock as rarely as they can.

mod bandwidth;
mod case;
mod client;
mod control;
mod cpu;
mod lane;
mod latency;
mod options;
mod pattern;
mod peer;
mod plan;
mod report;
mod server;
mod table;
mod team;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::anyhow;
use fabric::{Address, Domain, Hints};

pub(crate) use options::Arguments;

use crate::args::{Common, Usage};
use crate::protocol::Token;
use crate::{child, device, url};
use client::Client;
use peer::Peer;
use report::Row;
use server::Server;
use table::Table;

pub(crate) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    if let Some(pins) = arguments.pin {
        // Before the device starts threads of its own.
        pins.own.pin()?;
    }
    if arguments.for_parent {
        return serve_parent(common);
    }
    if let Some(listen) = &arguments.listen {
        return serve(listen.as_deref(), common);
    }
    let plans = arguments.plans()?;
    let registry = ringmail::registry();
    let mut config = device::config(&registry, common)?;
    let host = arguments.connect.as_deref().map(url::with_port);
    if let Some(host) = &host {
        device::place_towards(&mut config, &registry, host)?;
    }
    let domain = device::open(&registry, &config, &Hints::default())?;
    for plan in &plans {
        plan.check_device(domain.capabilities())
            .map_err(|reason| anyhow!("{}: {reason}", domain.info().provider))?;
    }
    let cores = arguments.pin.and_then(|pins| pins.peer);
    let mut peer = match host {
        Some(_) if cores.is_some() => {
            let reason =
                "the cores of another host's process are chosen there: --listen --pin CORES";
            return Err(Usage(reason.to_owned()).into());
        }
        Some(host) => Peer::elsewhere(host),
        None => Peer::start(&config, &domain, cores)?,
    };
    let scene = scene(&domain, &peer);
    let mut client = Client::connect(&domain, &mut peer)?;
    let mut output = Output::new(arguments, scene);
    for plan in plans {
        let measured = client.measure(plan, arguments.limit(), arguments.warm_up())?;
        let row = Row::new(domain.info().provider, &measured, arguments.histogram);
        match output.print(row) {
            // Whoever reads has enough: nothing more is measured.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            printed => printed?,
        }
    }
    match output.finish() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What is printed, in the form that was asked for.
struct Output<'a> {
    arguments: &'a Arguments,
    scene: String,
    table: Table,
    rows: Vec<Row>,
}

impl<'a> Output<'a> {
    fn new(arguments: &'a Arguments, scene: String) -> Self {
        Self {
            arguments,
            scene,
            table: Table::new(arguments.verbose, arguments.histogram),
            rows: Vec::new(),
        }
    }

    fn print(&mut self, row: Row) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let is_first = self.rows.is_empty();
        if self.arguments.csv {
            if is_first {
                writeln!(out, "{}", Row::CSV_HEADER)?;
            }
            writeln!(out, "{}", row.csv())?;
        } else if !self.arguments.json {
            if is_first {
                writeln!(out, "{}", self.scene)?;
            }
            self.table.print(&mut out, &row)?;
        }
        out.flush()?;
        self.rows.push(row);
        Ok(())
    }

    /// Prints what is printed as a whole.
    fn finish(self) -> io::Result<()> {
        if !self.arguments.json {
            return Ok(());
        }
        let rows = self.rows.iter().map(serde_json::to_string);
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        writeln!(io::stdout().lock(), "[\n{}\n]", rows.join(",\n"))
    }
}

/// Who is measured.
fn scene(domain: &Domain, peer: &Peer) -> String {
    let info = domain.info();
    let with = if peer.is_process() {
        "two processes of this machine".to_owned()
    } else if peer.token != Token::default() {
        "two threads of this process".to_owned()
    } else {
        format!("with {}", peer.address)
    };
    format!("{}/{}, {with}", info.provider, info.device)
}

fn serve(listen: Option<&str>, common: &Common) -> anyhow::Result<ExitCode> {
    let registry = ringmail::registry();
    let mut config = device::config(&registry, common)?;
    let listen = match listen {
        Some(host) => device::place_at(&mut config, &registry, &url::with_port(host))?,
        None => Address::ANY,
    };
    let domain = device::open(&registry, &config, &Hints::default())?;
    let server = Server::open(&domain, &listen, Token::default())?;
    println!("answering at {}", server.address());
    io::stdout().flush()?;
    server.serve_all()
}

fn serve_parent(common: &Common) -> anyhow::Result<ExitCode> {
    let token = child::follow_parent()?;
    let open = || {
        let registry = ringmail::registry();
        let config = device::config(&registry, common)?;
        let domain = device::open(&registry, &config, &Hints::default())?;
        Server::open(&domain, &Address::ANY, token)
    };
    match open() {
        Ok(server) => {
            child::answer_parent(&Ok(server.address()))?;
            server.serve_all()
        }
        Err(error) => {
            child::answer_parent(&Err(error))?;
            Ok(ExitCode::FAILURE)
        }
    }
}
