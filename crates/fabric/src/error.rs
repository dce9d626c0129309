//! What can be refused: set-up calls answer [`Error`], posts answer [`PostError`] and leave the work with the caller.

use std::io;

use crate::{Address, ConfigError, Verdict, Work};

/// A set-up call that was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No provider of this name is registered.
    #[error("no provider is called {name}: there are {known}")]
    UnknownProvider {
        /// The name asked for.
        name: String,
        /// Those there are, in one line.
        known: String,
    },
    /// No provider meets the hints; each verdict says what one lacks.
    #[error("no provider fits: {}", Verdict::list(.0))]
    NoProvider(Vec<Verdict>),
    /// The provider is there but its device or library is not.
    #[error("{provider} is not available here: {reason}")]
    Absent {
        /// The provider's name.
        provider: String,
        /// What is missing.
        reason: String,
    },
    /// The provider does not have this.
    #[error("{provider} does not support {what}")]
    Unsupported {
        /// The provider's name.
        provider: String,
        /// What was asked for.
        what: String,
    },
    /// A value outside its range.
    #[error("{what} is at most {limit}, not {asked}")]
    Limit {
        /// What was limited.
        what: &'static str,
        /// The largest value.
        limit: usize,
        /// The value asked for.
        asked: usize,
    },
    /// An address that this provider cannot read.
    #[error("cannot use the address {address}: {reason}")]
    BadAddress {
        /// As given.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody already listens there.
    #[error("{0} is in use")]
    AddressInUse(Address),
    /// Nobody answers there, or nobody listens.
    #[error("{0} cannot be reached")]
    Unreachable(Address),
    /// The peer rejected the connection.
    #[error("the peer rejected the connection")]
    Rejected {
        /// What it said.
        private_data: Vec<u8>,
    },
    /// The call does not fit the endpoint's state: connecting twice, accepting on a connected one.
    #[error("{0}")]
    WrongState(&'static str),
    /// The object belongs to another domain or another provider.
    #[error("{0} belongs to another domain")]
    OtherDomain(&'static str),
    /// Remote writes were asked of memory that is mapped read-only.
    #[error("memory is mapped read-only")]
    ReadOnly,
    /// Nothing happened in the time given.
    #[error("timed out")]
    TimedOut,
    /// The connection ended.
    #[error("disconnected")]
    Disconnected,
    /// A setting that cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refused.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// An operating system's error with what was being done.
    #[must_use]
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}

/// Why the first work left in the vector was not accepted. Nothing of it has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// As much work is outstanding as the endpoint or its completion queue can report: poll, then post again.
    #[error("the queue is full")]
    QueueFull,
    /// A connected endpoint that is not connected yet. (One that no longer is accepts work, and flushes it.)
    #[error("the endpoint is not connected")]
    NotConnected,
    /// The provider does not have this operation, or this kind of endpoint does not.
    #[error("the operation is not supported")]
    Unsupported,
    /// More segments than the endpoint takes.
    #[error("too many segments")]
    TooManySegments,
    /// More bytes than a message (a datagram) may have.
    #[error("the message is too long")]
    MessageTooLong,
    /// More inline bytes than the endpoint takes.
    #[error("too many bytes for inline work")]
    InlineTooLong,
    /// An atomic operation whose local memory is not eight bytes.
    #[error("an atomic operation needs one local segment of eight bytes")]
    AtomicLength,
    /// A datagram operation without [`Work::to`], or with a peer that is not in the endpoint's address vector.
    #[error("the work names no peer, or one that is not in the endpoint's address vector")]
    NoPeer,
    /// Bytes would be placed in memory that is mapped read-only.
    #[error("local memory is mapped read-only")]
    ReadOnly,
    /// A local segment of a region that was revoked.
    #[error("local memory was revoked")]
    Revoked,
    /// A local segment that is not registered with this endpoint's domain; see [`crate::Domain::adopt`].
    #[error("local memory belongs to another domain")]
    OtherDomain,
    /// A receive on an endpoint that takes its receives from a [`crate::SharedReceive`], or other work on that.
    #[error("receives of this endpoint are shared")]
    SharedReceive,
    /// The device is gone, or this is a forked child.
    #[error("the device is gone")]
    DeviceLost,
}

/// One refused work, given back with its buffers.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    pub error: PostError,
    /// What was to be posted.
    pub work: Box<Work>,
}
