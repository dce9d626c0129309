//! What two peers tell each other before and between their operations: lines over TCP.
//!
//! First each says `hello QPN PSN ADDRESS REGION KEY`: its queue pair, the first PSN that it sends, its IP address as a
//! GID prints (`::ffff:10.9.0.1` for IPv4), and the virtual address and remote key of the region that it exposes. Then
//! the responder says `ready` once its receives are posted, the requester `done` after its last operation, and the
//! responder `right` once it has found everything in place. `guest/exchange.c` speaks the same.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roce::verbs::Remote;
use roce::wire::{Key, Psn, Qpn};

/// In a network of the test's own no port is taken.
const PORT: u16 = 18600;

/// Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(60);

/// The peer's queue pair and exposed region.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) qpn: Qpn,
    pub(crate) psn: Psn,
    pub(crate) address: IpAddr,
    pub(crate) region: Remote,
}

/// The other side of the TCP connection.
pub(crate) struct Neighbour(BufReader<TcpStream>);

impl Neighbour {
    /// Connects to `peer`, or waits for one at `here`.
    pub(crate) fn meet(here: IpAddr, peer: Option<IpAddr>) -> Result<Self> {
        let stream = match peer {
            Some(peer) => {
                TcpStream::connect((peer, PORT)).with_context(|| format!("connecting to {peer}"))?
            }
            None => {
                let listener = TcpListener::bind((here, PORT))?;
                println!("listening");
                listener.accept()?.0
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Says who we are and hears who the peer is.
    pub(crate) fn introduce(&mut self, us: &Hello) -> Result<Hello> {
        let gid = match us.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let Remote { addr, rkey } = us.region;
        self.say(&format!(
            "hello {} {} {gid} {addr} {}",
            us.qpn.value(),
            us.psn.value(),
            rkey.0
        ))?;
        let line = self.line()?;
        parse(&line).with_context(|| format!("the peer says {line:?}"))
    }

    /// Says a line.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    /// Hears the line that is due.
    pub(crate) fn hear(&mut self, due: &str) -> Result<()> {
        let line = self.line()?;
        ensure!(line == due, "the peer says {line:?}, not {due:?}");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0
            .read_line(&mut line)
            .context("the peer says nothing")?;
        ensure!(line.ends_with('\n'), "the peer is gone");
        Ok(line.trim_end().to_owned())
    }
}

fn parse(line: &str) -> Result<Hello> {
    let words: Vec<&str> = line.split(' ').collect();
    let &["hello", qpn, psn, gid, address, key] = words.as_slice() else {
        anyhow::bail!("no greeting")
    };
    let gid: Ipv6Addr = gid.parse()?;
    Ok(Hello {
        qpn: Qpn::new(qpn.parse()?),
        psn: Psn::new(psn.parse()?),
        address: IpAddr::from(gid).to_canonical(),
        region: Remote {
            addr: address.parse()?,
            rkey: Key(key.parse()?),
        },
    })
}
