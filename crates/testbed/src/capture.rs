//! Captures what passes an interface, from outside of the program that is tested: `tcpdump` on a packet socket.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;

/// A running capture of the RoCEv2 packets, of both directions, on one interface. Dropping it discards it.
#[derive(Debug)]
pub struct Capture<'namespace> {
    namespace: &'namespace Namespace,
    interface: String,
    tcpdump: Child,
    captured: Receiver<Vec<u8>>,
}

impl<'namespace> Capture<'namespace> {
    /// Starts to capture; from the return on no packet is missed.
    ///
    /// # Errors
    /// No such interface, or no `tcpdump` (package tcpdump).
    pub fn start(namespace: &'namespace Namespace, interface: &str) -> Result<Self> {
        let mut tcpdump = namespace
            .command("tcpdump")
            // Into the pipe at once, unshortened, through a buffer of 32 MiB for bursts.
            .args([
                "-i",
                interface,
                "-w",
                "-",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "32768",
            ])
            .arg(format!("udp port 4791 or udp dst port {MARK_PORT}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut errors = BufReader::new(tcpdump.stderr.take().expect("piped above"));
        let output = tcpdump.stdout.take().expect("piped above");
        let (sender, captured) = mpsc::channel();
        let capture = Self {
            namespace,
            interface: interface.to_owned(),
            tcpdump,
            captured,
        };
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            if errors.read_line(&mut line)? == 0 {
                bail!("tcpdump does not start (package tcpdump)");
            }
        }
        thread::spawn(move || {
            // Nobody listens to a capture that was dropped.
            let _ = until_mark(output).map(|packets| sender.send(packets));
            // Whatever else it says must not block it.
            let _ = errors.read_to_end(&mut Vec::new());
        });
        Ok(capture)
    }

    /// Ends the capture, with everything in it that has passed so far, and returns the pcap file: it lives as long as the
    /// namespace. For that it sends a packet to `peer`, a neighbour on the interface.
    ///
    /// # Errors
    /// That packet is not seen within a minute.
    pub fn stop(self, peer: IpAddr) -> Result<PathBuf> {
        let send = format!("printf {MARK} >/dev/udp/{peer}/{MARK_PORT}");
        self.namespace
            .run("bash", &["-c", &send], LIMIT)?
            .succeeded()?;
        let packets = self.captured.recv_timeout(LIMIT);
        let packets =
            packets.with_context(|| format!("nothing for {peer} passes {}", self.interface))?;
        let file = self
            .namespace
            .directory()
            .join(format!("{}.pcap", self.interface));
        fs::write(&file, packets)?;
        Ok(file)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // One that has ended already is no error.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// The packet behind the last: packets are captured in the order in which they pass. The port is "discard".
const MARK: &str = "end-of-the-capture";
const MARK_PORT: u16 = 9;

/// Reads a pcap stream up to the packet with the mark.
fn until_mark(mut stream: impl Read) -> std::io::Result<Vec<u8>> {
    let mut file = vec![0; 24];
    stream.read_exact(&mut file)?;
    loop {
        let mut record = [0; 16];
        stream.read_exact(&mut record)?;
        let length = u32::from_le_bytes([record[8], record[9], record[10], record[11]]);
        let mut frame = vec![0; length as usize];
        stream.read_exact(&mut frame)?;
        if frame.ends_with(MARK.as_bytes()) {
            return Ok(file);
        }
        file.extend_from_slice(&record);
        file.extend_from_slice(&frame);
    }
}
