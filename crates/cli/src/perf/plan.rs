//! One case: what is measured, as the client chooses it and both sides carry it out, and where its memory lies.
//!
//! Both sides lay out one region each in the same way, so that an offset says all:
//!
//! ```text
//! heartbeat | of each lane: told (the peer says that it has ended), tell (what is written there) | in | out
//! ```
//!
//! `in` is what the peer writes to, reads from or works on; messages are received there. `out` is what is sent and written
//! from, and where reads and the old values of atomics go. A lane is one connection.

use clap::ValueEnum;
use fabric::{Capabilities, Operations};
use serde::{Deserialize, Serialize};

/// What is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    Send,
    Write,
    Read,
    WriteImm,
    FetchAdd,
    CompareSwap,
}

/// What is measured of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// How long one takes
    Latency,
    /// How many there are in a second
    Bandwidth,
}

/// What the target of one-sided operations does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    /// It polls its completion queue; writes are answered by writes
    Poll,
    /// It looks at its memory and calls nothing
    Spin,
    /// It sleeps
    Sleep,
}

/// How both sides wait for what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Waiting {
    Poll,
    Yield,
    Block,
}

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) operation: Operation,
    pub(super) mode: Mode,
    /// Bytes of a message.
    pub(super) size: usize,
    /// Most outstanding on a lane.
    pub(super) depth: usize,
    /// Lanes, of all threads.
    pub(super) qps: usize,
    /// On each side.
    pub(super) threads: usize,
    /// The server does as the client does.
    pub(super) both: bool,
    /// One of so many is reported.
    pub(super) signal_every: usize,
    /// Contents are checked.
    pub(super) verify: bool,
    pub(super) target: Target,
    pub(super) waiting: Waiting,
}

/// Longest message in bytes.
pub(super) const MAX_SIZE: usize = 64 << 20;
pub(super) const MAX_QPS: usize = 4096;
pub(super) const MAX_THREADS: usize = 256;
/// Most memory of one side of a case in bytes.
const MAX_MEMORY: usize = 8 << 30;

impl Operation {
    pub(super) const ALL: [Self; 6] = [
        Self::Send,
        Self::Write,
        Self::Read,
        Self::WriteImm,
        Self::FetchAdd,
        Self::CompareSwap,
    ];

    /// As users name it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Write => "write",
            Self::Read => "read",
            Self::WriteImm => "write_imm",
            Self::FetchAdd => "fetch_add",
            Self::CompareSwap => "compare_swap",
        }
    }

    pub(super) const fn is_atomic(self) -> bool {
        matches!(self, Self::FetchAdd | Self::CompareSwap)
    }

    /// Whether each takes a receive of the peer's.
    pub(super) const fn consumes_receives(self) -> bool {
        matches!(self, Self::Send | Self::WriteImm)
    }

    const fn needs(self) -> Operations {
        match self {
            Self::Send => Operations::SEND,
            Self::Write => Operations::WRITE,
            Self::Read => Operations::READ,
            Self::WriteImm => Operations::WRITE.union(Operations::IMMEDIATE),
            Self::FetchAdd | Self::CompareSwap => Operations::ATOMIC,
        }
    }
}

impl Mode {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
        }
    }
}

impl Plan {
    /// Whether each message is answered by one: then half a round trip is its latency.
    pub(super) const fn is_ping_pong(&self) -> bool {
        matches!(self.mode, Mode::Latency)
            && match self.operation {
                Operation::Send | Operation::WriteImm => true,
                Operation::Write => matches!(self.target, Target::Poll),
                _ => false,
            }
    }

    /// Whether a message is seen in memory, not by a completion.
    pub(super) const fn arrives_in_memory(&self) -> bool {
        self.is_ping_pong() && matches!(self.operation, Operation::Write)
    }

    /// Most that an endpoint has outstanding.
    pub(super) const fn send_depth(&self) -> usize {
        // The answer to a ping may be here before its completion is.
        if self.is_ping_pong() {
            PING_PONG_DEPTH
        } else {
            self.depth
        }
    }

    /// Receives that are kept posted.
    pub(super) const fn recv_depth(&self) -> usize {
        if !self.operation.consumes_receives() {
            0
        } else if self.is_ping_pong() {
            PING_PONG_DEPTH
        } else if self.depth > 8 {
            2 * self.depth
        } else {
            self.depth + 8
        }
    }

    /// Completions that a thread's queue must have room for.
    pub(super) const fn queue_depth(&self) -> usize {
        // One more of each lane: that it has ended.
        self.qps.div_ceil(self.threads) * (self.send_depth() + 1 + self.recv_depth())
    }

    /// Places for messages of a lane. Where contents do not matter all messages have the same place, as with other programs
    /// of this kind; otherwise each outstanding one has its own.
    pub(super) const fn slots(&self) -> usize {
        if !self.verify || self.is_ping_pong() {
            1
        } else if self.recv_depth() > 0 {
            self.recv_depth()
        } else {
            self.depth
        }
    }

    /// Whether this can be measured, with any device.
    ///
    /// # Errors
    /// What is wrong, with what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        let name = self.operation.name();
        let positive = self.size > 0 && self.depth > 0 && self.qps > 0 && self.threads > 0;
        if !positive || self.signal_every == 0 {
            return Err("sizes, depths and numbers are at least 1".to_owned());
        }
        if self.size > MAX_SIZE || self.qps > MAX_QPS || self.threads > MAX_THREADS {
            return Err(format!(
                "at most 64 MiB a message, {MAX_QPS} queue pairs and {MAX_THREADS} threads"
            ));
        }
        if self.operation.is_atomic() && self.size != 8 {
            return Err(format!("{name} is of 8 bytes: leave --size out"));
        }
        if !self.qps.is_multiple_of(self.threads) {
            return Err(format!(
                "--qps {} cannot be divided among --threads {}: use a multiple",
                self.qps, self.threads
            ));
        }
        if self.signal_every > self.depth {
            return Err(format!(
                "--signal-every {} is more than the {} outstanding, which would wait for ever: raise --depth",
                self.signal_every, self.depth
            ));
        }
        if self.mode == Mode::Latency {
            if self.depth != 1 {
                return Err(
                    "latency is measured with one outstanding: --depth 1, or --mode bandwidth"
                        .to_owned(),
                );
            }
            if self.qps != self.threads {
                return Err("latency is measured on one queue pair a thread: raise --threads, or use --mode bandwidth".to_owned());
            }
            if self.both {
                return Err(
                    "--both measures bandwidth: a ping-pong goes both ways anyway".to_owned(),
                );
            }
        }
        if self.target != Target::Poll && (self.operation.consumes_receives() || self.both) {
            return Err(format!(
                "the target of {} must poll: --target is for write, read and atomics in one direction",
                if self.both { "--both" } else { name }
            ));
        }
        if self.arrives_in_memory() && self.waiting == Waiting::Block {
            return Err("nothing wakes whoever waits for a write: use --op send or write_imm with --wait, or --target sleep".to_owned());
        }
        if self.memory() > MAX_MEMORY {
            return Err(format!(
                "{} queue pairs with {} messages of {} bytes take more than 8 GiB: use fewer{}",
                self.qps,
                self.slots(),
                self.size,
                if self.verify { ", or no --verify" } else { "" }
            ));
        }
        Ok(())
    }

    /// Whether a device can do it.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) fn check_device(&self, capabilities: &Capabilities) -> Result<(), String> {
        let needs = self.operation.needs() | Operations::SEND | Operations::WRITE;
        if !capabilities.operations.contains(needs) {
            return Err(format!("there is no {} here", self.operation.name()));
        }
        if self.arrives_in_memory() && !capabilities.ordered_placement {
            return Err("bytes may be placed in any order here, so memory cannot be polled: use --target sleep, or write_imm".to_owned());
        }
        let limits = [
            ("a message", "size", self.size, capabilities.max_message),
            (
                "the depth",
                "depth",
                self.send_depth() + 1,
                capabilities.max_depth,
            ),
            (
                "the receive depth",
                "depth",
                self.recv_depth(),
                capabilities.max_depth,
            ),
            (
                "a completion queue",
                "depth or --qps",
                self.queue_depth(),
                capabilities.max_depth,
            ),
        ];
        for (what, option, asked, limit) in limits {
            if asked > limit {
                return Err(format!(
                    "{what} is at most {limit} here, and this takes {asked}: lower --{option}"
                ));
            }
        }
        Ok(())
    }

    /// Bytes between two messages.
    pub(super) const fn stride(&self) -> usize {
        self.size.next_multiple_of(LINE)
    }

    const fn area(&self) -> usize {
        self.qps * self.slots() * self.stride()
    }

    /// Bytes of the region.
    pub(super) const fn memory(&self) -> usize {
        self.place_out(0, 0) + self.area()
    }

    /// Where the peer's count of `lane` arrives when it has ended.
    pub(super) const fn told(lane: usize) -> usize {
        LINE + 2 * lane * LINE
    }

    /// Where our own is written from.
    pub(super) const fn tell(lane: usize) -> usize {
        Self::told(lane) + LINE
    }

    pub(super) const fn place_in(&self, lane: usize, slot: usize) -> usize {
        Self::told(self.qps).next_multiple_of(PAGE) + (lane * self.slots() + slot) * self.stride()
    }

    pub(super) const fn place_out(&self, lane: usize, slot: usize) -> usize {
        self.place_in(lane, slot) + self.area().next_multiple_of(PAGE)
    }
}

/// Where heartbeats arrive and are written from.
pub(super) const HEARTBEAT: usize = 0;

const PING_PONG_DEPTH: usize = 64;
/// Words of different use are this far apart: a pair of cache lines, which processors fetch together.
const LINE: usize = 128;
const PAGE: usize = 4096;
