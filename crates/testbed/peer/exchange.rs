//! Runs every operation of a queue pair, as requester and as responder, and checks the data.
//!
//! The steps are those of `guest/exchange.c`, so that either side may be the kernel; between our own there are more.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use roce::verbs::{Access, Completion, CompletionKind, Mtu, Operation, QpType, Remote};
use roce::wire::Psn;

use crate::neighbour::{Hello, Neighbour};
use crate::nic::{Nic, QueuePair, Region};

/// One operation of the requester. Content is told by a seed, so that each side knows what to expect.
#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Send {
        seed: u32,
        length: u32,
        imm: Option<u32>,
    },
    SendWithInvalidate {
        seed: u32,
        length: u32,
    },
    Write {
        seed: u32,
        length: u32,
        at: u32,
        imm: Option<u32>,
    },
    Read {
        seed: u32,
        length: u32,
        at: u32,
    },
    FetchAdd {
        add: u64,
        before: u64,
    },
    CompareSwap {
        compare: u64,
        swap: u64,
        before: u64,
    },
}

use What::{CompareSwap, FetchAdd, Read, Send, SendWithInvalidate, Write};

/// Of every connected service.
const CONNECTED: &[Step] = &[
    step(
        "send",
        Send {
            seed: 1,
            length: 100,
            imm: None,
        },
    ),
    step(
        "send in several packets",
        Send {
            seed: 2,
            length: 10000,
            imm: None,
        },
    ),
    step(
        "empty send",
        Send {
            seed: 3,
            length: 0,
            imm: None,
        },
    ),
    step(
        "send with immediate",
        Send {
            seed: 4,
            length: 64,
            imm: Some(0x1234_5678),
        },
    ),
    step(
        "send with immediate in several packets",
        Send {
            seed: 5,
            length: 5001,
            imm: Some(0x9abc_def0),
        },
    ),
    step(
        "write",
        Write {
            seed: 6,
            length: 9,
            at: 4095,
            imm: None,
        },
    ),
    step(
        "write in several packets",
        Write {
            seed: 7,
            length: 10000,
            at: 5001,
            imm: None,
        },
    ),
    step(
        "write with immediate",
        Write {
            seed: 8,
            length: 256,
            at: 16384,
            imm: Some(0x0bad_cafe),
        },
    ),
    step(
        "write with immediate in several packets",
        Write {
            seed: 9,
            length: 3000,
            at: 20001,
            imm: Some(0xfeed_f00d),
        },
    ),
];

/// Of reliable connections only.
const RELIABLE: &[Step] = &[
    step(
        "read",
        Read {
            seed: 6,
            length: 9,
            at: 4095,
        },
    ),
    step(
        "read in several packets",
        Read {
            seed: 7,
            length: 10000,
            at: 5001,
        },
    ),
    step(
        "fetch and add",
        FetchAdd {
            add: 2,
            before: COUNTER_AT_FIRST,
        },
    ),
    step(
        "compare and swap that matches",
        CompareSwap {
            compare: 42,
            swap: COUNTER_AT_LAST,
            before: 42,
        },
    ),
    step(
        "compare and swap that does not match",
        CompareSwap {
            compare: 42,
            swap: 9,
            before: COUNTER_AT_LAST,
        },
    ),
];

/// Of reliable connections between our own: the kernel refuses to have an ordinary region invalidated.
const RELIABLE_BETWEEN_US: &[Step] = &[
    step(
        "send with invalidate in several packets",
        SendWithInvalidate {
            seed: 10,
            length: 5000,
        },
    ),
    step(
        "send with invalidate",
        SendWithInvalidate {
            seed: 11,
            length: 5,
        },
    ),
];

/// Of datagrams.
const DATAGRAMS: &[Step] = &[
    step(
        "datagram",
        Send {
            seed: 1,
            length: 100,
            imm: None,
        },
    ),
    step(
        "empty datagram",
        Send {
            seed: 2,
            length: 0,
            imm: None,
        },
    ),
    step(
        "datagram with immediate",
        Send {
            seed: 3,
            length: 255,
            imm: Some(0x1234_5678),
        },
    ),
];

const fn step(name: &'static str, what: What) -> Step {
    Step { name, what }
}

const REGION: usize = 65536;
/// Where the requester's own data lies.
const SOURCE: u32 = 32768;
/// Where the word of the atomics lies.
const COUNTER: u32 = 32760;
const COUNTER_AT_FIRST: u64 = 40;
const COUNTER_AT_LAST: u64 = 7;
/// Room for each message received.
const MESSAGE: u32 = 16384;
/// Bytes of addressing in front of a datagram.
const GRH: u32 = 40;

/// Exchanges with `peer`, or with one that comes: who connects is the requester first.
pub(crate) fn run(kind: QpType, mtu: Mtu, peer: Option<IpAddr>, all: bool) -> Result<()> {
    let nic = Nic::open()?;
    let region = nic.region(REGION, Access::all())?;
    let qp = nic.queue_pair(kind)?;
    let mut neighbour = Neighbour::meet(nic.address(), peer)?;
    // Any will do, but one that is about to wrap shows more.
    let psn = Psn::new(0xFF_FFF0);
    let us = Hello {
        qpn: qp.number(),
        psn,
        address: nic.address(),
        region: region.remote(0),
    };
    let them = neighbour.introduce(&us)?;
    qp.connect(mtu, us.psn, &them)?;

    let mut steps = match kind {
        QpType::Ud => DATAGRAMS.to_vec(),
        QpType::Uc => CONNECTED.to_vec(),
        QpType::Rc => [CONNECTED, RELIABLE].concat(),
    };
    if all && kind == QpType::Rc {
        steps.extend(RELIABLE_BETWEEN_US);
    }
    let mut side = Side {
        kind,
        nic,
        region,
        qp,
        neighbour,
        them,
        steps,
    };
    if peer.is_some() {
        side.request()?;
        side.respond()
    } else {
        side.respond()?;
        side.request()
    }
}

/// One side of the exchange.
struct Side {
    kind: QpType,
    nic: Nic,
    region: Region,
    qp: QueuePair,
    neighbour: Neighbour,
    them: Hello,
    steps: Vec<Step>,
}

impl Side {
    /// Issues every step, one at a time.
    fn request(&mut self) -> Result<()> {
        self.neighbour.hear("ready")?;
        for step in &self.steps {
            self.issue(step.what)
                .with_context(|| format!("{} as requester", step.name))?;
        }
        self.neighbour.say("done")?;
        self.neighbour.hear("right")
    }

    fn issue(&self, what: What) -> Result<()> {
        let (operation, length) = match what {
            Send {
                length, imm: None, ..
            } => (Operation::Send, length),
            Send {
                length,
                imm: Some(imm),
                ..
            } => (Operation::SendWithImm(imm), length),
            SendWithInvalidate { length, .. } => {
                (Operation::SendWithInvalidate(self.them.region.rkey), length)
            }
            Write {
                length,
                at,
                imm: None,
                ..
            } => (Operation::Write(self.remote(at)), length),
            Write {
                length,
                at,
                imm: Some(imm),
                ..
            } => (Operation::WriteWithImm(self.remote(at), imm), length),
            Read { length, at, .. } => (Operation::Read(self.remote(at)), length),
            FetchAdd { add, .. } => (
                Operation::FetchAdd {
                    remote: self.remote(COUNTER),
                    add,
                },
                8,
            ),
            CompareSwap { compare, swap, .. } => (
                Operation::CompareSwap {
                    remote: self.remote(COUNTER),
                    compare,
                    swap,
                },
                8,
            ),
        };
        if let Send { seed, .. } | SendWithInvalidate { seed, .. } | Write { seed, .. } = what {
            self.region.put(SOURCE, &pattern(seed, length))?;
        }
        let datagram_to = (self.kind == QpType::Ud).then_some(&self.them);
        self.qp
            .run(operation, self.region.piece(SOURCE, length), datagram_to)?;
        match what {
            Read { seed, .. } => same(&self.region.bytes(SOURCE, length)?, &pattern(seed, length)),
            FetchAdd { before, .. } | CompareSwap { before, .. } => {
                same(&self.region.bytes(SOURCE, 8)?, &before.to_ne_bytes())
            }
            _ => Ok(()),
        }
    }

    fn remote(&self, at: u32) -> Remote {
        let Remote { addr, rkey } = self.them.region;
        Remote {
            addr: addr + u64::from(at),
            rkey,
        }
    }

    /// Receives what the steps send, then looks whether everything they write is there.
    fn respond(&mut self) -> Result<()> {
        self.region.put(0, &[0; SOURCE as usize])?;
        self.region.put(COUNTER, &COUNTER_AT_FIRST.to_ne_bytes())?;
        let steps = self.steps.clone();
        let received: Vec<&Step> = steps
            .iter()
            .filter(|step| step.what.is_received())
            .collect();
        let messages = self
            .nic
            .region(received.len() * MESSAGE as usize, Access::LOCAL_WRITE)?;
        for slot in 0..received.len() as u32 {
            self.qp
                .post_receive(slot.into(), messages.piece(slot * MESSAGE, MESSAGE))?;
        }
        self.neighbour.say("ready")?;
        for (step, slot) in received.iter().zip(0..) {
            let completion = self.qp.received()?;
            let check = || -> Result<()> {
                ensure!(
                    completion.wr_id == slot,
                    "receive {} was taken, not {slot}",
                    completion.wr_id
                );
                self.check_received(step.what, &completion, &messages, slot as u32 * MESSAGE)
            };
            check().with_context(|| format!("{} as responder", step.name))?;
        }
        self.neighbour.hear("done")?;
        for step in &self.steps {
            if let Write {
                seed, length, at, ..
            } = step.what
            {
                same(&self.region.bytes(at, length)?, &pattern(seed, length))
                    .with_context(|| format!("{}: what was written", step.name))?;
            }
        }
        let counter = if self.kind == QpType::Rc {
            COUNTER_AT_LAST
        } else {
            COUNTER_AT_FIRST
        };
        same(&self.region.bytes(COUNTER, 8)?, &counter.to_ne_bytes()).context("the counter")?;
        self.neighbour.say("right")
    }

    fn check_received(
        &self,
        what: What,
        completion: &Completion,
        messages: &Region,
        at: u32,
    ) -> Result<()> {
        let (seed, length, imm) = match what {
            Send { seed, length, imm } => (Some(seed), length, imm),
            SendWithInvalidate { seed, length } => (Some(seed), length, None),
            Write { length, imm, .. } => (None, length, imm),
            Read { .. } | FetchAdd { .. } | CompareSwap { .. } => {
                unreachable!("they take no receive")
            }
        };
        let front = if self.kind == QpType::Ud { GRH } else { 0 };
        let kind = if seed.is_some() {
            CompletionKind::Recv
        } else {
            CompletionKind::RecvWriteWithImm
        };
        ensure!(
            completion.kind == kind,
            "{:?}, not {kind:?}",
            completion.kind
        );
        ensure!(
            completion.byte_len == front + length,
            "{} bytes, not {}",
            completion.byte_len,
            front + length
        );
        ensure!(
            completion.imm == imm,
            "immediate {:x?}, not {imm:x?}",
            completion.imm
        );
        let invalidated =
            matches!(what, SendWithInvalidate { .. }).then_some(self.region.remote(0).rkey);
        ensure!(
            completion.invalidated == invalidated,
            "{:?} was invalidated",
            completion.invalidated
        );
        match seed {
            Some(seed) => same(&messages.bytes(at + front, length)?, &pattern(seed, length)),
            None => Ok(()),
        }
    }
}

impl What {
    /// Whether it takes one of the responder's receives.
    const fn is_received(self) -> bool {
        matches!(
            self,
            Send { .. } | SendWithInvalidate { .. } | Write { imm: Some(_), .. }
        )
    }
}

/// The bytes that a seed stands for.
fn pattern(seed: u32, length: u32) -> Vec<u8> {
    (0..length)
        .map(|at| (seed * 101 + at * 7 + (at >> 8)) as u8)
        .collect()
}

fn same(bytes: &[u8], expected: &[u8]) -> Result<()> {
    let differ = bytes
        .iter()
        .zip(expected)
        .position(|(byte, expected)| byte != expected);
    if let Some(at) = differ {
        anyhow::bail!(
            "byte {at} of {} is {:02x}, not {:02x}",
            expected.len(),
            bytes[at],
            expected[at]
        );
    }
    ensure!(
        bytes.len() == expected.len(),
        "{} bytes, not {}",
        bytes.len(),
        expected.len()
    );
    Ok(())
}
