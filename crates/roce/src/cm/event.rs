//! What the connection manager tells the application.

use crate::verbs::{Mtu, QpType};
use crate::wire::cm::{CommId, IpCm, RejectReason, ServiceId, SidrStatus};
use crate::wire::extension::Offer;
use crate::wire::{Guid, Qpn};

use super::{End, Route};

/// Something happened to a connection or resolution. Private data is as long as the message has room: an
/// application knows how much of it it has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CmEvent {
    /// A peer asks for a connection: answer with `accept` or `reject`.
    ConnectRequest {
        /// Names the connection from now on.
        id: CommId,
        /// What is asked.
        request: Box<IncomingRequest>,
    },
    /// The peer accepts: move the queue pair to RTS, then call `establish`, or `reject`.
    ConnectReply {
        /// The connection.
        id: CommId,
        /// The peer's end.
        peer: Peer,
        /// From the peer's application.
        private_data: Vec<u8>,
    },
    /// The connection is up, on either side.
    Established {
        /// The connection.
        id: CommId,
        /// What a software peer has told of itself; a passive side that learns by data that it is connected
        /// has only the version in the peer's GUID to go by.
        offer: Option<Offer>,
    },
    /// The peer refuses or has given up. The id is forgotten.
    Rejected {
        /// The connection.
        id: CommId,
        /// Why.
        reason: RejectReason,
        /// From the peer's application.
        private_data: Vec<u8>,
    },
    /// No connection came of it. The id is forgotten.
    Failed {
        /// The connection.
        id: CommId,
        /// Why.
        why: Failure,
    },
    /// The connection is over, whoever ended it: move the queue pair to error. Its number must not be used
    /// for another connection until `Closed`.
    Disconnected {
        /// The connection.
        id: CommId,
    },
    /// Stray packets of the connection have died out. The id is forgotten.
    Closed {
        /// The connection.
        id: CommId,
    },
    /// A peer asks which queue pair serves datagrams: answer with `resolve_reply`.
    ResolveRequest {
        /// Names the request.
        id: CommId,
        /// Who asks, and where.
        route: Route,
        /// What is asked for.
        service: ServiceId,
        /// The addresses that the peer gives, if the service is of the IP port spaces.
        ip: Option<IpCm>,
        /// From the peer's application.
        private_data: Vec<u8>,
    },
    /// The peer names the queue pair that serves datagrams. The id is forgotten.
    Resolved {
        /// The resolution.
        id: CommId,
        /// Where to send to.
        qpn: Qpn,
        /// The key that lets datagrams in.
        qkey: u32,
        /// From the peer's application.
        private_data: Vec<u8>,
    },
    /// The peer does not serve datagrams. The id is forgotten.
    ResolveRefused {
        /// The resolution.
        id: CommId,
        /// Why.
        status: SidrStatus,
        /// From the peer's application.
        private_data: Vec<u8>,
    },
}

/// A request for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRequest {
    /// Between which addresses.
    pub route: Route,
    /// What is asked for.
    pub service: ServiceId,
    /// The addresses that the peer gives, if the service is of the IP port spaces.
    pub ip: Option<IpCm>,
    /// The peer's end.
    pub peer: Peer,
    /// Reliable or unreliable connection.
    pub transport: QpType,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// How often our queue pair is to retry, 0 to 7.
    pub retry_count: u8,
    /// Local ACK timeout code that our queue pair is to use, 0 to 31.
    pub ack_timeout: u8,
    /// From the peer's application.
    pub private_data: Vec<u8>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// As it describes itself.
    pub end: End,
    /// Its channel adapter.
    pub ca_guid: Guid,
    /// The version of the extensions that it speaks, and we do: of a replying peer, only with an offer.
    pub extensions: Option<u8>,
}

/// Why no connection came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// No answer to any of the repetitions.
    #[error("the peer does not answer")]
    Unreachable,
    /// Our application has not answered in all the time that the peer was asked for.
    #[error("the application did not answer in time")]
    TooSlow,
    /// A peer's request was given up because there were too many.
    #[error("given up in favour of newer requests")]
    Evicted,
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CmError {
    /// Another listener has the service.
    #[error("service {0} is already listened on")]
    InUse(ServiceId),
    /// No such connection, or not any more.
    #[error("no connection {0}")]
    Unknown(CommId),
    /// The connection is not in a state that has this command.
    #[error("connection {0} is not in a state for this")]
    WrongState(CommId),
    /// More than the message has room for.
    #[error("private data of {got} bytes, at most {most} fit")]
    PrivateDataTooLong {
        /// What fits.
        most: usize,
        /// What was given.
        got: usize,
    },
    /// The two addresses of a route are of different families.
    #[error("source and destination are of different address families")]
    MixedFamilies,
    /// Datagram queue pairs are resolved, not connected.
    #[error("datagram queue pairs are not connected")]
    NotConnected,
}
