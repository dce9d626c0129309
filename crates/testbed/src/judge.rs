//! What others say of a capture: Wireshark's dissector names the operations and finds malformed packets, and a checker
//! that knows only the specification verifies every ICRC.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{icrc, pcap};

/// One RoCEv2 packet as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The address that sent it.
    pub source: String,
    /// The operation in Wireshark's words, such as `RC RDMA Write First` or `CM: ConnectRequest`.
    pub operation: String,
    /// Why Wireshark could not dissect it.
    pub malformed: Option<String>,
    /// Whether its ICRC is what the specification says.
    pub icrc_is_right: bool,
}

/// The RoCEv2 packets of a capture, in order.
#[derive(Clone, Debug)]
pub struct Judgement(pub Vec<Packet>);

impl Judgement {
    /// Judges a capture file, of any format that Wireshark reads.
    ///
    /// # Errors
    /// No `tshark` (package tshark), or no such capture. A bad packet is no error.
    pub fn of(capture: &Path) -> Result<Self> {
        let lines = tshark(capture, &fields())?;
        let lines = String::from_utf8(lines).context("tshark prints text")?;
        // The same packets once more, as bytes.
        let bytes = tshark(capture, &["-F", "pcap", "-w", "-"])?;
        let bytes = pcap::packets(&bytes)?;
        if lines.lines().count() != bytes.len() {
            bail!(
                "tshark sees {} packets, and writes {}",
                lines.lines().count(),
                bytes.len()
            );
        }
        let packets = lines
            .lines()
            .zip(bytes)
            .map(|(line, bytes)| packet(line, &bytes));
        Ok(Self(packets.collect::<Result<_>>()?))
    }

    /// How many packets of each operation there are.
    pub fn operations(&self) -> BTreeMap<&str, usize> {
        let mut operations = BTreeMap::new();
        for packet in &self.0 {
            *operations.entry(packet.operation.as_str()).or_default() += 1;
        }
        operations
    }

    /// Checks that there are packets, that none is malformed, and that every ICRC is right.
    ///
    /// # Errors
    /// What is wrong with which packets.
    pub fn is_sound(&self) -> Result<()> {
        if self.0.is_empty() {
            bail!("no packet was captured");
        }
        let bad = |packet: &&Packet| packet.malformed.is_some() || !packet.icrc_is_right;
        let bad: Vec<String> = self.0.iter().filter(bad).map(Packet::to_string).collect();
        if !bad.is_empty() {
            bail!(
                "{} of {} packets are bad:\n{}",
                bad.len(),
                self.0.len(),
                bad.join("\n")
            );
        }
        Ok(())
    }
}

/// One line a packet.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|packet| writeln!(f, "{packet}"))
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.operation, self.source)?;
        if let Some(reason) = &self.malformed {
            write!(f, ", {reason}")?;
        }
        if !self.icrc_is_right {
            f.write_str(", wrong ICRC")?;
        }
        Ok(())
    }
}

/// Dissectors that guess at what a program sends; for a guess that fails they call the packet malformed.
const GUESSES: &[&str] = &[
    "fcoib",
    "infiniband.eoib",
    "infiniband_sdp",
    "iser",
    "lnet",
    "nvme-rdma",
    "rpcordma",
    "smb_direct",
    "smc",
];

fn fields() -> Vec<&'static str> {
    let mut arguments = vec!["-T", "fields"];
    for field in ["ip.src", "ipv6.src", "_ws.malformed", "_ws.col.Info"] {
        arguments.extend(["-e", field]);
    }
    arguments
}

fn packet(line: &str, bytes: &[u8]) -> Result<Packet> {
    let fields: Vec<&str> = line.split('\t').collect();
    let &[ipv4, ipv6, malformed, info] = fields.as_slice() else {
        bail!("tshark prints {line:?}")
    };
    Ok(Packet {
        source: format!("{ipv4}{ipv6}"),
        // "RC Send Only QP=0x000012 ", and for one operation no space before "QP".
        operation: info.split("QP=").next().unwrap_or(info).trim().to_owned(),
        malformed: (!malformed.is_empty()).then(|| malformed.to_owned()),
        icrc_is_right: icrc::is_right(bytes)?,
    })
}

/// Runs tshark over the RoCEv2 packets of a capture and returns what it prints.
fn tshark(capture: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("timeout");
    command
        .args(["300", "tshark", "-n", "-Y", "udp.port == 4791", "-r"])
        .arg(capture);
    for guess in GUESSES {
        command.args(["--disable-protocol", guess]);
    }
    let output = command
        .args(arguments)
        .output()
        .context("cannot start timeout (package coreutils)")?;
    if !output.status.success() {
        bail!(
            "tshark (package tshark) fails: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
