//! What the two sides say to each other besides what they measure: JSON messages over a connection of its own.
//!
//! ```text
//! client                                   server
//! connect: hello, 0                ----->  a session
//!                                  <-----  its number
//! Prepare: the plan, a region      ----->  memory, queues
//!                                  <-----  Prepared: its region
//! connect: hello, 1, number, lane  ----->  (once a lane)
//!                                  <-----  Ready
//! Run                              ----->  threads
//!                                  <-----  Running
//! ...                              =====>  ...
//!                                  <-----  Ran: what it cost there
//! Prepare ...
//! ```
//!
//! Each side writes to the other's region now and then while nothing else shows that it lives.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use fabric::{
    Buf, CompletionQueue, Domain, Endpoint, EndpointKind, Event, MemoryRegion, RemoteRegion, Work,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::plan::{HEARTBEAT, Plan};
use crate::device;
use crate::protocol::{Counter, Hello, Service, Token};

/// What the client asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Prepare { plan: Plan, region: RemoteRegion },
    Run,
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Prepared { region: RemoteRegion },
    Ready,
    Running,
    Ran(Account),
    Failed(String),
}

/// What a run cost one side.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Account {
    /// Processor time in nanoseconds; none where the process is the client's.
    pub(super) cpu: Option<u64>,
    /// What it sent itself, and in how many nanoseconds.
    pub(super) messages: u64,
    pub(super) elapsed: u64,
    /// What its device counted meanwhile.
    pub(super) counted: Vec<(String, u64)>,
}

/// Why a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Control,
    Lane { session: u64, lane: u32 },
}

impl Purpose {
    const LEN: usize = Hello::LEN + 13;

    pub(super) fn to_bytes(self, token: Token) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..Hello::LEN].copy_from_slice(&Hello::new(Service::Perf, token).to_bytes());
        if let Self::Lane { session, lane } = self {
            let rest = &mut bytes[Hello::LEN..];
            rest[0] = 1;
            rest[1..9].copy_from_slice(&session.to_be_bytes());
            rest[9..].copy_from_slice(&lane.to_be_bytes());
        }
        bytes
    }

    /// Reads what someone who knows `token` wants.
    ///
    /// # Errors
    /// The reason to reject.
    pub(super) fn parse(bytes: &[u8], token: Token) -> Result<Self, &'static str> {
        Hello::check(bytes, Service::Perf, token)?;
        let rest: &[u8; 13] = bytes
            .get(Hello::LEN..)
            .and_then(|rest| rest.first_chunk())
            .ok_or("the request is cut short")?;
        let (session, lane) = rest[1..].split_at(8);
        match rest[0] {
            0 => Ok(Self::Control),
            1 => Ok(Self::Lane {
                session: u64::from_be_bytes(session.try_into().expect("eight bytes")),
                lane: u32::from_be_bytes(lane.try_into().expect("four bytes")),
            }),
            _ => Err("the request is unknown"),
        }
    }
}

/// The connection.
pub(super) struct Control {
    domain: Domain,
    endpoint: Endpoint,
    cq: CompletionQueue,
    /// The next message, if it came while something else was waited for.
    received: Option<Buf>,
    /// Work that was posted and not reported.
    sending: usize,
}

impl Control {
    /// An end that is not connected.
    ///
    /// # Errors
    /// What the device answers.
    pub(super) fn new(domain: &Domain) -> anyhow::Result<Self> {
        let cq = domain.completion_queue(2 * DEPTH)?;
        let endpoint = domain
            .endpoint(EndpointKind::Msg, &cq)
            .send_depth(DEPTH)
            .recv_depth(DEPTH)
            .rnr_retries(Some(6))
            .open()?;
        for _ in 0..DEPTH {
            let receive = Work::recv(0, domain.buf(LONGEST)?);
            endpoint
                .post_one(receive)
                .map_err(|refused| device::refused(domain, &refused))?;
        }
        Ok(Self {
            domain: domain.clone(),
            endpoint,
            cq,
            received: None,
            sending: 0,
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a message.
    ///
    /// # Errors
    /// That it cannot be sent, or that the peer does not answer.
    pub(super) fn say(&mut self, message: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_vec(message).context("cannot write JSON")?;
        let buf = self.domain.buf_from(&text)?;
        self.post(Work::send(0, buf))?;
        self.settle()
    }

    /// The next message, if it comes within `timeout`.
    ///
    /// # Errors
    /// That the connection has ended, or that the message makes no sense.
    pub(super) fn hear<M: DeserializeOwned>(
        &mut self,
        timeout: Duration,
    ) -> anyhow::Result<Option<M>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(buf) = self.received.take() {
                let message = serde_json::from_slice(&buf)
                    .context("the peer says what this version does not understand")?;
                let mut buf = buf;
                buf.set_len(buf.capacity());
                self.post(Work::recv(0, buf))?;
                return Ok(Some(message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.take(left)?;
        }
    }

    /// Writes to the peer's memory, to learn whether it is there.
    ///
    /// # Errors
    /// That it is not.
    pub(super) fn beat(&mut self, from: &MemoryRegion, to: RemoteRegion) -> anyhow::Result<()> {
        let local = from.slice(HEARTBEAT..HEARTBEAT + 8)?;
        self.post(Work::write(0, local, to.at(HEARTBEAT as u64)))?;
        self.settle()
    }

    fn post(&mut self, work: Work) -> anyhow::Result<()> {
        let is_receive = work.op == fabric::Op::Recv;
        self.endpoint.post_one(work).map_err(|_| gone())?;
        self.sending += usize::from(!is_receive);
        Ok(())
    }

    /// Waits for the end of what was posted.
    fn settle(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE;
        while self.sending > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(gone());
            }
            self.take(left)?;
        }
        Ok(())
    }

    /// Takes one completion, or waits a little.
    fn take(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let Some(completion) = self.cq.poll_one() else {
            while let Some(event) = self.endpoint.events().poll() {
                if matches!(event, Event::Disconnected { .. }) {
                    return Err(gone());
                }
            }
            self.cq.wait(timeout.min(GLANCE))?;
            return Ok(());
        };
        if !completion.status.is_success() {
            return Err(gone());
        }
        if !completion.opcode.is_receive() {
            self.sending = self.sending.saturating_sub(1);
            return Ok(());
        }
        let len = completion.len;
        let mut buf = completion
            .into_buf()
            .ok_or_else(|| anyhow!("a receive ended without its buffer"))?;
        if self.received.is_some() {
            bail!("the peer speaks out of turn");
        }
        buf.set_len(len);
        self.received = Some(buf);
        Ok(())
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the peer is gone: it has ended, or does not answer")
}

/// What a device has counted.
pub(super) fn counted(domain: &Domain) -> Vec<Counter> {
    device::counters(domain)
}

/// What it has counted since `before`.
pub(super) fn counted_since(domain: &Domain, before: &[Counter]) -> Vec<(String, u64)> {
    let earlier = |name: &str| {
        let found = before.iter().find(|counter| counter.name == name);
        found.map_or(0, |counter| counter.value)
    };
    counted(domain)
        .into_iter()
        .map(|now| {
            let since = now.value.saturating_sub(earlier(&now.name));
            (now.name, since)
        })
        .collect()
}

/// Messages under way at once, one of them and a heartbeat at most, with room to spare.
const DEPTH: usize = 4;
const LONGEST: usize = 8192;
/// How long a message may be under way.
const SETTLE: Duration = Duration::from_secs(10);
/// How often the end of the connection is looked for.
const GLANCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_purpose_survives_the_zeros_behind_it_and_nothing_less() {
        let token = Token::random();
        let lane = Purpose::Lane {
            session: u64::MAX - 1,
            lane: 7,
        };
        for purpose in [Purpose::Control, lane] {
            let mut bytes = purpose.to_bytes(token).to_vec();
            bytes.extend([0; 10]);
            assert_eq!(Purpose::parse(&bytes, token), Ok(purpose));
            assert!(Purpose::parse(&bytes[..Purpose::LEN - 1], token).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_purpose_panic(tail in proptest::collection::vec(any::<u8>(), 0..20)) {
            let hello = Hello::new(Service::Perf, Token::default()).to_bytes();
            let _ = Purpose::parse(&[&hello[..], &tail].concat(), Token::default());
            let _ = Purpose::parse(&tail, Token::default());
        }
    }
}
