//! What a copy says at its end.
//!
//! Packets are counted on both sides while the copy ran: most of those that carry a file are sent by the server's device. A server
//! with other clients counts theirs too.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use fabric::Domain;
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;

use super::session::{Lost, Session};
use super::tree::Done;
use crate::device;
use crate::protocol::Counter;

/// The result of a copy.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    provider: &'static str,
    /// Of all files that were copied.
    bytes: u64,
    /// What of them an interrupted copy had brought before.
    bytes_resumed: u64,
    files: u64,
    /// What could not be copied.
    pub(super) failed: u64,
    seconds: f64,
    /// Of the bytes that this copy brought.
    gbit_per_s: f64,
    rdma_reads: u64,
    /// None where the device does not count packets.
    packets_sent: Option<u64>,
    packets_dropped: Option<u64>,
    packets_retransmitted: Option<u64>,
    /// Of all files, one after the other, in the order of their names.
    crc32c: String,
}

impl Report {
    pub(super) fn new(domain: &Domain, done: &Done, took: Duration, packets: &Packets) -> Self {
        let seconds = took.as_secs_f64();
        let brought = done.total - done.resumed;
        Self {
            provider: domain.info().provider,
            bytes: done.total,
            bytes_resumed: done.resumed,
            files: done.files,
            failed: done.failed,
            seconds,
            gbit_per_s: brought as f64 * 8.0 / 1e9 / seconds.max(1e-9),
            rdma_reads: done.reads,
            packets_sent: packets.counted("packets_sent"),
            packets_dropped: packets.counted("packets_dropped"),
            packets_retransmitted: packets.counted("packets_retransmitted"),
            crc32c: format!("{:08x}", done.crc32c),
        }
    }

    /// Prints it, as JSON or for humans.
    ///
    /// # Errors
    /// What standard output answers.
    pub(super) fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            let object =
                serde_json::to_string(self).expect("numbers and text can be written as JSON");
            return writeln!(out, "{object}");
        }
        let files = match self.files {
            1 => String::new(),
            files => format!("{} files, ", HumanCount(files)),
        };
        write!(
            out,
            "{files}{} in {:.2} s, {:.1} Gbit/s over {}, {} RDMA {}, crc32c {}",
            BinaryBytes(self.bytes),
            self.seconds,
            self.gbit_per_s,
            self.provider,
            HumanCount(self.rdma_reads),
            if self.rdma_reads == 1 {
                "read"
            } else {
                "reads"
            },
            self.crc32c
        )?;
        if self.bytes_resumed > 0 {
            write!(
                out,
                ", {} were there before",
                BinaryBytes(self.bytes_resumed)
            )?;
        }
        if let Some(again) = self.packets_retransmitted.filter(|&again| again > 0) {
            write!(out, ", {} packets were sent again", HumanCount(again))?;
        }
        writeln!(out)?;
        if self.failed > 0 {
            out.flush()?;
            eprintln!("ringmail: {} could not be copied", HumanCount(self.failed));
        }
        Ok(())
    }
}

/// What both devices have counted during a copy.
#[derive(Debug)]
pub(super) struct Packets {
    before: BTreeMap<String, u64>,
    after: BTreeMap<String, u64>,
    /// Both sides are one device.
    is_shared: bool,
}

impl Packets {
    /// Notes what was counted before.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn begin(session: &mut Session, is_shared: bool) -> Result<Self, Lost> {
        let before = both(session, is_shared)?;
        Ok(Self {
            before,
            after: BTreeMap::new(),
            is_shared,
        })
    }

    /// Notes what was counted after; nothing if the server is gone: everything is copied all the same.
    pub(super) fn end(&mut self, session: &mut Session) {
        self.after = both(session, self.is_shared).unwrap_or_default();
    }

    fn counted(&self, name: &str) -> Option<u64> {
        let before = self.before.get(name).copied().unwrap_or(0);
        Some(self.after.get(name)?.saturating_sub(before))
    }
}

fn both(session: &mut Session, is_shared: bool) -> Result<BTreeMap<String, u64>, Lost> {
    let mut sum = BTreeMap::new();
    let mut count = |counters: Vec<Counter>| {
        for Counter { name, value } in counters {
            let total: &mut u64 = sum.entry(name).or_default();
            *total = total.saturating_add(value);
        }
    };
    count(device::counters(session.domain()));
    if !is_shared {
        count(session.counters()?);
    }
    Ok(sum)
}
