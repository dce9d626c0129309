//! The connection manager: brings connections up and down, and resolves datagram services.
//!
//! IBA Vol. 1, 12.9 to 12.11, as `rdma_cm` uses it on IP: the active side asks (REQ), the passive side
//! replies (REP) or refuses (REJ), the active side is ready (RTU); either releases (DREQ, DREP).
//!
//! ```text
//! active                                       passive
//! connect      ReqSent       --REQ-->          ReqReceived    ConnectRequest
//!              RepReceived   <--REP--          RepSent        accept
//! establish    Established   --RTU-->          Established    Established
//! disconnect   DreqSent      --DREQ->          Timewait       Disconnected
//! Disconnected Timewait      <-DREP--
//! ```
//!
//! [`Cm`] owns all connections of one device. It has no socket, clock or randomness: the driver carries
//! management datagrams between it and queue pair 1, and moves queue pairs as the events say. Whether two
//! sides that ask each other at once keep one connection or two is for the layer above: here, each request
//! is a connection of its own. Load path and alternate path are not spoken, nor redirection.
//!
//! Whatever a peer sends costs at most one answer of the same size and one bounded record: requests that
//! wait for an answer are limited, and the oldest gives way.

mod active;
mod connection;
mod event;
mod params;
mod passive;
mod release;
mod sidr;

pub use event::{CmError, CmEvent, Failure, IncomingRequest, Peer};
pub use params::{AcceptParams, Config, ConnectParams, End, Route};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use connection::Connection;
use sidr::Sidr;

use crate::time::Instant;
use crate::wire::cm::{Answered, CommId, Message, Mra, Rej, RejectReason, ServiceId};
use crate::wire::extension;
use crate::wire::mad::MAD_LEN;
use crate::wire::{Guid, Qpn};

/// A whole management datagram.
pub type Mad = [u8; MAD_LEN];

/// What the connection manager has seen and done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CmCounters {
    /// Datagrams handed in.
    pub received: u64,
    /// Datagrams handed out.
    pub sent: u64,
    /// Received ones that are no message of the connection manager.
    pub malformed: u64,
    /// Received ones that fit no connection, or not its state.
    pub unexpected: u64,
    /// Received ones that had been received before.
    pub duplicates: u64,
    /// Sent ones that had been sent before.
    pub repeated: u64,
    /// Requests given up to make room for newer ones.
    pub evicted: u64,
    /// Datagrams not handed out because the driver did not fetch them.
    pub overflowed: u64,
}

/// All connections of one device.
///
/// Call [`Cm::handle_mad`] for every datagram that arrives on queue pair 1, [`Cm::handle_timeout`] when
/// [`Cm::poll_timeout`] is due, and after either, and after every command, drain [`Cm::poll_transmit`] and
/// [`Cm::poll_event`].
#[derive(Debug)]
pub struct Cm {
    config: Config,
    random: SplitMix,
    services: BTreeSet<ServiceId>,
    connections: BTreeMap<CommId, Connection>,
    /// The connection that a peer's request began, to know it when it comes again.
    by_request: BTreeMap<(IpAddr, Guid, CommId), CommId>,
    /// The connection to a peer's queue pair: there can be only one.
    by_queue_pair: BTreeMap<(IpAddr, Qpn), CommId>,
    /// Requests of peers that are not connections yet, oldest first.
    half_open: BTreeMap<u64, CommId>,
    arrivals: u64,
    sidr: BTreeMap<CommId, Sidr>,
    timers: BTreeSet<(Instant, CommId)>,
    outbox: Outbox,
    events: VecDeque<CmEvent>,
}

impl Cm {
    /// A connection manager with nothing to do.
    pub fn new(config: Config) -> Self {
        Self {
            random: SplitMix(config.seed),
            config,
            services: BTreeSet::new(),
            connections: BTreeMap::new(),
            by_request: BTreeMap::new(),
            by_queue_pair: BTreeMap::new(),
            half_open: BTreeMap::new(),
            arrivals: 0,
            sidr: BTreeMap::new(),
            timers: BTreeSet::new(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
        }
    }

    /// Takes requests for `service` from now on.
    ///
    /// # Errors
    /// [`CmError::InUse`] when they are taken already.
    pub fn listen(&mut self, service: ServiceId) -> Result<(), CmError> {
        if self.services.insert(service) {
            Ok(())
        } else {
            Err(CmError::InUse(service))
        }
    }

    /// Refuses requests for `service` from now on; those that have been reported stay.
    pub fn unlisten(&mut self, service: ServiceId) {
        self.services.remove(&service);
    }

    /// What has been seen and done so far.
    pub fn counters(&self) -> CmCounters {
        self.outbox.counters
    }

    /// Connections and resolutions remembered, for tests and reports.
    pub fn len(&self) -> usize {
        self.connections.len() + self.sidr.len()
    }

    /// Is nothing remembered?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A datagram arrived on queue pair 1. Bytes that are no message are counted and ignored.
    pub fn handle_mad(&mut self, now: Instant, route: Route, mad: &[u8]) {
        let route = route.canonical();
        self.outbox.counters.received += 1;
        let Ok((transaction, message)) = Message::parse(mad) else {
            self.outbox.counters.malformed += 1;
            return;
        };
        match message {
            Message::Req(req) => self.on_req(now, route, transaction, &req),
            Message::Mra(mra) => self.on_mra(now, route, &mra),
            Message::Rej(rej) => self.on_rej(now, route, &rej),
            Message::Rep(rep) => self.on_rep(now, route, transaction, &rep),
            Message::Rtu(rtu) => self.on_rtu(now, route, &rtu),
            Message::Dreq(dreq) => self.on_dreq(now, route, transaction, &dreq),
            Message::Drep(drep) => self.on_drep(now, route, &drep),
            Message::SidrReq(req) => self.on_sidr_req(now, route, transaction, &req),
            Message::SidrRep(rep) => self.on_sidr_rep(now, route, &rep),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            if self.connections.contains_key(&id) {
                self.on_connection_timeout(now, id);
            } else {
                self.on_sidr_timeout(now, id);
            }
        }
    }

    /// The next datagram to send from queue pair 1, and its way.
    pub fn poll_transmit(&mut self) -> Option<(Route, Mad)> {
        self.outbox.queue.pop_front()
    }

    /// The next thing to tell the application.
    pub fn poll_event(&mut self) -> Option<CmEvent> {
        self.events.pop_front()
    }

    /// When [`Cm::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// An identifier that nothing has, and not zero: zero means "none" on the wire.
    fn new_id(&mut self) -> CommId {
        loop {
            let id = CommId(self.random.next() as u32);
            if id.0 != 0 && !self.connections.contains_key(&id) && !self.sidr.contains_key(&id) {
                return id;
            }
        }
    }

    /// The version of the extensions that the peer with this GUID speaks and we do too.
    fn extensions_of(&self, peer: Guid) -> Option<u8> {
        self.config.offer?;
        extension::version_of(peer).map(|version| version.min(extension::VERSION))
    }

    /// How often the peer is asked for time while our application is slow.
    fn application_patience(&self) -> Patience {
        Patience::new(
            &self.config,
            self.config.retries,
            timeout(self.config.service_timeout),
        )
    }

    /// Refuses a message without remembering anything.
    fn refuse(
        &mut self,
        route: Route,
        transaction: u64,
        answered: Answered,
        (local, remote): (CommId, CommId),
        reason: RejectReason,
    ) {
        let rej = reject_message(local, remote, answered, reason, &[]);
        self.outbox.send(route, transaction, &Message::Rej(rej));
    }
}

/// What is to be sent, and the counters of it all.
#[derive(Debug, Default)]
struct Outbox {
    queue: VecDeque<(Route, Mad)>,
    counters: CmCounters,
}

impl Outbox {
    /// Datagrams kept for a driver that does not fetch them: more are lost, as the network loses some.
    const LIMIT: usize = 4096;

    /// Sends a message; returns its bytes, for it may have to be repeated.
    fn send(&mut self, route: Route, transaction: u64, message: &Message) -> Mad {
        let mut mad = [0; MAD_LEN];
        message.emit(transaction, &mut mad);
        self.push(route, mad);
        mad
    }

    /// Sends a message again.
    fn repeat(&mut self, route: Route, mad: &Mad) {
        self.counters.repeated += 1;
        self.push(route, *mad);
    }

    fn push(&mut self, route: Route, mad: Mad) {
        if self.queue.len() < Self::LIMIT {
            self.counters.sent += 1;
            self.queue.push_back((route, mad));
        } else {
            self.counters.overflowed += 1;
        }
    }
}

/// How often and how fast a message is repeated.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Repetitions left.
    tries: u8,
    /// The wait before the next.
    interval: Duration,
    /// Waits double up to this.
    longest: Duration,
}

impl Patience {
    fn new(config: &Config, tries: u8, longest: Duration) -> Self {
        let longest = longest.max(config.first_repeat);
        Self {
            tries,
            interval: config.first_repeat,
            longest,
        }
    }

    /// The wait before the next repetition, which it takes; `None` when there are none left.
    fn next(&mut self) -> Option<Duration> {
        self.tries = self.tries.checked_sub(1)?;
        self.interval = (self.interval * 2).min(self.longest);
        Some(self.interval)
    }
}

/// The time of a 5-bit timeout code, no longer than a minute whatever a peer asks for.
fn timeout(code: u8) -> Duration {
    Duration::from_nanos(4_096 << (code & 31)).min(Duration::from_secs(60))
}

fn reject_message(
    local: CommId,
    remote: CommId,
    answered: Answered,
    reason: RejectReason,
    private_data: &[u8],
) -> Rej {
    Rej {
        local,
        remote,
        answered,
        reason,
        info_length: 0,
        info: [0; 72],
        private_data: crate::wire::cm::private_data(private_data),
    }
}

fn mra_message(local: CommId, remote: CommId, answered: Answered, service_timeout: u8) -> Mra {
    Mra {
        local,
        remote,
        answered,
        service_timeout,
        private_data: [0; 222],
    }
}

/// Refuses private data that does not fit its message.
fn fits(private_data: &[u8], most: usize) -> Result<(), CmError> {
    if private_data.len() > most {
        return Err(CmError::PrivateDataTooLong {
            most,
            got: private_data.len(),
        });
    }
    Ok(())
}

/// The generator of identifiers: SplitMix64. Not for secrets.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}
