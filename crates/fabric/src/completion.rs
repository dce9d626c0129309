//! What is reported: the end of one work, with its buffers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Buf, EndpointId, Peer, Segment, Segments};

/// The end of one posted work.
#[derive(Debug)]
pub struct Completion {
    /// From the work.
    pub context: u64,
    /// How it ended. Unless it is [`Status::Success`], only `context`, `opcode`, `endpoint`, `peer`
    /// and `local` mean anything.
    pub status: Status,
    /// What it was. A receive that failed is [`Opcode::Recv`].
    pub opcode: Opcode,
    /// Bytes received (also those that a write with immediate put elsewhere), read, sent or written.
    pub len: usize,
    /// The sender's immediate value, for a receive.
    pub immediate: Option<u32>,
    /// The key that the sender had revoked, for a receive.
    pub invalidated: Option<u64>,
    /// The endpoint it was posted to, or that received it.
    pub endpoint: EndpointId,
    /// The sender, for a receive on a datagram endpoint; the peer of the work, for others.
    pub peer: Option<Peer>,
    /// The work's local memory.
    pub local: Segments,
}

/// How a work ended. The names are those of the InfiniBand specification (vol. 1, 11.6.2) without "error".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Status {
    /// Done; all data is visible.
    Success,
    /// The message did not fit into the receive.
    LocalLength,
    /// The local device could not do it in the endpoint's state.
    LocalOperation,
    /// The local memory was not registered, revoked, or its file truncated.
    LocalProtection,
    /// The endpoint failed or was closed before the work was done; it may or may not have been.
    Flushed,
    /// The peer's answer made no sense.
    BadResponse,
    /// A message arrived but its access to local memory was refused.
    LocalAccess,
    /// The peer's receive was too small, or it does not know the operation.
    RemoteInvalidRequest,
    /// The peer's memory region refused: wrong key, out of bounds, a right missing, unaligned, revoked.
    RemoteAccess,
    /// The peer could not carry it out.
    RemoteOperation,
    /// The peer did not answer.
    RetryExceeded,
    /// The peer had no receive posted for too long.
    RnrRetryExceeded,
    /// Anything else, by the provider's number.
    Other(u32),
}

impl Status {
    /// Whether the work was done.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Success
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::LocalLength => "message is longer than the receive",
            Self::LocalOperation => "local endpoint could not carry out the work",
            Self::LocalProtection => "local memory could not be accessed",
            Self::Flushed => "flushed because the endpoint failed or closed",
            Self::BadResponse => "peer answered nonsense",
            Self::LocalAccess => "local memory region refused the access",
            Self::RemoteInvalidRequest => "peer could not take the message",
            Self::RemoteAccess => "remote memory region refused the access",
            Self::RemoteOperation => "peer could not carry out the work",
            Self::RetryExceeded => "peer does not answer",
            Self::RnrRetryExceeded => "peer has no receive posted",
            Self::Other(code) => return write!(f, "failed with the provider's code {code}"),
        })
    }
}

/// An operation without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opcode {
    /// A message sent.
    Send,
    /// A message received.
    Recv,
    /// The notice of a peer's write with immediate; the receive's memory is untouched.
    RecvWrite,
    /// A remote write.
    Write,
    /// A remote read.
    Read,
    /// A remote fetch-and-add.
    FetchAdd,
    /// A remote compare-and-swap.
    CompareSwap,
}

impl Opcode {
    /// Whether it ends a receive.
    #[must_use]
    pub fn is_receive(self) -> bool {
        matches!(self, Self::Recv | Self::RecvWrite)
    }
}

/// A completion that is no success, given back whole.
#[derive(Debug, thiserror::Error)]
#[error("{:?} with context {} failed: {}", .0.opcode, .0.context, .0.status)]
pub struct CompletionError(pub Box<Completion>);

impl Completion {
    /// The completion if it is a success.
    ///
    /// # Errors
    /// [`CompletionError`] with the completion otherwise.
    pub fn ok(self) -> Result<Self, CompletionError> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(CompletionError(Box::new(self)))
    }

    /// The bytes that arrived in the first local segment, if that is a [`Buf`].
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self.local.first() {
            Some(Segment::Buf(buf)) => &buf[..self.len.min(buf.len())],
            _ => &[],
        }
    }

    /// The old value that an atomic operation fetched into a [`Buf`].
    #[must_use]
    pub fn fetched(&self) -> Option<u64> {
        let bytes = self.data().first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    }

    /// The first local segment, if it is a [`Buf`].
    #[must_use]
    pub fn into_buf(self) -> Option<Buf> {
        self.local.into_iter().find_map(Segment::into_buf)
    }
}
