//! What the application tells the connection manager.

use std::net::IpAddr;
use std::time::Duration;

use crate::verbs::{Mtu, QpType};
use crate::wire::cm::ServiceId;
use crate::wire::extension::{self, Offer};
use crate::wire::{Guid, Psn, Qpn};

/// The two addresses between which a datagram travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Ours.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
}

impl Route {
    /// The same with IPv4-mapped addresses as IPv4.
    pub(super) fn canonical(self) -> Self {
        Self {
            local: self.local.to_canonical(),
            remote: self.remote.to_canonical(),
        }
    }
}

/// Settings of a connection manager.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where identifiers come from: draw it at random, or fix it to replay.
    pub seed: u64,
    /// Our channel adapter. With an `offer`, one of [`extension::guid`].
    pub ca_guid: Guid,
    /// What we offer software peers; `None` when extensions are off.
    pub offer: Option<Offer>,
    /// The wait before a message is repeated for the first time; it doubles from there.
    pub first_repeat: Duration,
    /// The longest wait before a repetition, and what peers are told to wait for us: a code of 5 bits,
    /// 4.096 µs · 2^code.
    pub response_timeout: u8,
    /// Repetitions before a peer counts as gone, and requests for time before our application does, 0 to 15.
    pub retries: u8,
    /// The time that is asked for when our application is slow to answer: a code of 5 bits.
    pub service_timeout: u8,
    /// How long a connection is remembered after its end.
    pub timewait: Duration,
    /// Requests of peers that are remembered before they are connections.
    pub max_half_open: usize,
}

impl Config {
    /// The defaults: first repetition after 50 ms, then doubling to 4.3 s, 15 times; 17 s asked for when
    /// slow; a connection remembered for 1 s; 1024 requests at once; extensions with the smallest window.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ca_guid: extension::guid(seed as u32),
            offer: Some(Offer {
                version: extension::VERSION,
                flags: Offer::SACK,
                window: 0,
            }),
            first_repeat: Duration::from_millis(50),
            response_timeout: 20,
            retries: 15,
            service_timeout: 22,
            timewait: Duration::from_secs(1),
            max_half_open: 1024,
        }
    }

    /// The same without extensions, under a CA GUID of the caller's.
    #[must_use]
    pub fn without_extensions(self, ca_guid: Guid) -> Self {
        Self {
            ca_guid,
            offer: None,
            ..self
        }
    }
}

/// One end of a connection, as it describes itself to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its queue pair.
    pub qpn: Qpn,
    /// The PSN at which the *other* end is to start: the first that this one expects (IBA 12.7.31).
    pub psn: Psn,
    /// READs and atomics that it can answer at once.
    pub responder_resources: u8,
    /// READs and atomics that it wants to have outstanding.
    pub initiator_depth: u8,
    /// How often the other end is to try again when it is not ready, 0 to 7; 7 is for ever.
    pub rnr_retry_count: u8,
    /// It receives from a shared receive queue.
    pub srq: bool,
}

/// What to ask for.
#[derive(Debug, Clone)]
pub struct ConnectParams {
    /// From where to where.
    pub route: Route,
    /// Of what.
    pub service: ServiceId,
    /// The port that the peer is told we ask from, if the service is of the IP port spaces.
    pub source_port: u16,
    /// Our end.
    pub end: End,
    /// [`QpType::Rc`] or [`QpType::Uc`].
    pub transport: QpType,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// How often the peer's queue pair is to retry, 0 to 7.
    pub retry_count: u8,
    /// Local ACK timeout code that the peer's queue pair is to use, 0 to 31.
    pub ack_timeout: u8,
    /// For the peer's application: at most 56 bytes with the IP port spaces, else 92.
    pub private_data: Vec<u8>,
}

/// How to accept.
#[derive(Debug, Clone)]
pub struct AcceptParams {
    /// Our end. What it says of READs is cut to what the peer has asked for and can do.
    pub end: End,
    /// For the peer's application: at most 196 bytes, 188 of them if the peer is to learn of extensions.
    pub private_data: Vec<u8>,
}
