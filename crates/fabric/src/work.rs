//! What is posted: an operation with its local memory, as plain data that can be logged, delayed and replayed.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::{Opcode, Peer, RemoteAddr, Segment, Segments};

/// One operation to carry out. Made by the constructors, refined by the rest:
///
/// ```
/// # use ringmail_fabric::{Buf, RemoteRegion, Work};
/// # let remote = RemoteRegion { addr: 0, len: 8, key: 1 };
/// let work = Work::write(7, Buf::from(&b"data"[..]), remote).with_immediate(1).fenced();
/// ```
#[derive(Debug)]
pub struct Work {
    /// Comes back in the completion; means nothing to the provider.
    pub context: u64,
    /// What to do, with its arguments.
    pub op: Op,
    /// Where bytes are gathered from (send, write) or scattered to (recv, read, and the old value of an atomic).
    pub local: Segments,
    /// Whom to do it with: required by datagram endpoints (except for recv), unused by connected ones.
    pub peer: Option<Peer>,
    /// How.
    pub flags: WorkFlags,
}

/// The operation and its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Sends a message, which consumes one receive of the peer.
    Send {
        /// Four bytes for the receiver's completion.
        immediate: Option<u32>,
        /// A key of the receiver's that its device revokes when the message arrives.
        invalidate: Option<u64>,
    },
    /// Provides memory for one message (or for the notice of one write with immediate).
    Recv,
    /// Writes to the peer's memory; with an immediate value it also consumes a receive there.
    Write {
        /// Where to.
        remote: RemoteAddr,
        /// Four bytes for the receiver's completion.
        immediate: Option<u32>,
    },
    /// Reads from the peer's memory.
    Read {
        /// Where from.
        remote: RemoteAddr,
    },
    /// Adds to an aligned word of the peer's memory; the old value comes back.
    FetchAdd {
        /// The word.
        remote: RemoteAddr,
        /// What to add, wrapping.
        add: u64,
    },
    /// Replaces an aligned word of the peer's memory if it has the value expected; the old value comes back.
    CompareSwap {
        /// The word.
        remote: RemoteAddr,
        /// The value to replace.
        expected: u64,
        /// The value to put there.
        new: u64,
    },
}

bitflags! {
    /// How work is carried out.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct WorkFlags: u8 {
        /// No completion if it succeeds; its `Buf`s are then dropped (a region's bytes stay the region's).
        const UNSIGNALED = 1;
        /// The bytes are copied while posting; at most the endpoint's `max_inline`.
        const INLINE = 2;
        /// Starts only after all earlier reads and atomics of this endpoint have finished.
        const FENCE = 4;
        /// Wakes a receiver that waits for solicited completions only.
        const SOLICITED = 8;
    }
}

impl Op {
    /// The operation without its arguments.
    #[must_use]
    pub fn opcode(&self) -> Opcode {
        match self {
            Self::Send { .. } => Opcode::Send,
            Self::Recv => Opcode::Recv,
            Self::Write { .. } => Opcode::Write,
            Self::Read { .. } => Opcode::Read,
            Self::FetchAdd { .. } => Opcode::FetchAdd,
            Self::CompareSwap { .. } => Opcode::CompareSwap,
        }
    }

    /// Whether bytes are placed in the local memory.
    #[must_use]
    pub fn scatters(&self) -> bool {
        !matches!(self, Self::Send { .. } | Self::Write { .. })
    }

    /// Whether it is a fetch-and-add or a compare-and-swap.
    #[must_use]
    pub fn is_atomic(&self) -> bool {
        matches!(self, Self::FetchAdd { .. } | Self::CompareSwap { .. })
    }

    /// The immediate value that travels with it.
    #[must_use]
    pub fn immediate(&self) -> Option<u32> {
        match self {
            Self::Send { immediate, .. } | Self::Write { immediate, .. } => *immediate,
            _ => None,
        }
    }
}

impl Work {
    /// Any operation.
    #[must_use]
    pub fn new(context: u64, op: Op, local: impl Into<Segments>) -> Self {
        Self {
            context,
            op,
            local: local.into(),
            peer: None,
            flags: WorkFlags::empty(),
        }
    }

    /// Sends `local` as one message.
    #[must_use]
    pub fn send(context: u64, local: impl Into<Segments>) -> Self {
        let op = Op::Send {
            immediate: None,
            invalidate: None,
        };
        Self::new(context, op, local)
    }

    /// Receives one message into `local`.
    #[must_use]
    pub fn recv(context: u64, local: impl Into<Segments>) -> Self {
        Self::new(context, Op::Recv, local)
    }

    /// Writes `local` to the peer's memory at `remote`.
    #[must_use]
    pub fn write(context: u64, local: impl Into<Segments>, remote: impl Into<RemoteAddr>) -> Self {
        let op = Op::Write {
            remote: remote.into(),
            immediate: None,
        };
        Self::new(context, op, local)
    }

    /// Fills `local` from the peer's memory at `remote`.
    #[must_use]
    pub fn read(context: u64, local: impl Into<Segments>, remote: impl Into<RemoteAddr>) -> Self {
        let op = Op::Read {
            remote: remote.into(),
        };
        Self::new(context, op, local)
    }

    /// Adds to the peer's word at `remote`; the old value goes to `local`, in this machine's byte order.
    #[must_use]
    pub fn fetch_add(
        context: u64,
        local: impl Into<Segment>,
        remote: impl Into<RemoteAddr>,
        add: u64,
    ) -> Self {
        let op = Op::FetchAdd {
            remote: remote.into(),
            add,
        };
        Self::new(context, op, local.into())
    }

    /// Replaces the peer's word at `remote` by `new` if it is `expected`; the old value goes to `local`.
    #[must_use]
    pub fn compare_swap(
        context: u64,
        local: impl Into<Segment>,
        remote: impl Into<RemoteAddr>,
        expected: u64,
        new: u64,
    ) -> Self {
        let op = Op::CompareSwap {
            remote: remote.into(),
            expected,
            new,
        };
        Self::new(context, op, local.into())
    }

    /// Whom to do it with.
    #[must_use]
    pub fn to(mut self, peer: Peer) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Sends `value` along, for a send or a write.
    ///
    /// # Panics
    /// If the operation carries none.
    #[must_use]
    pub fn with_immediate(mut self, value: u32) -> Self {
        match &mut self.op {
            Op::Send { immediate, .. } | Op::Write { immediate, .. } => *immediate = Some(value),
            op => panic!("{op:?} carries no immediate value"),
        }
        self
    }

    /// Has the receiver's device revoke `key` when this send arrives.
    ///
    /// # Panics
    /// If the operation is no send.
    #[must_use]
    pub fn invalidating(mut self, key: u64) -> Self {
        match &mut self.op {
            Op::Send { invalidate, .. } => *invalidate = Some(key),
            op => panic!("{op:?} invalidates nothing"),
        }
        self
    }

    /// See [`WorkFlags::UNSIGNALED`].
    #[must_use]
    pub fn unsignaled(self) -> Self {
        self.flagged(WorkFlags::UNSIGNALED)
    }

    /// See [`WorkFlags::INLINE`].
    #[must_use]
    pub fn inlined(self) -> Self {
        self.flagged(WorkFlags::INLINE)
    }

    /// See [`WorkFlags::FENCE`].
    #[must_use]
    pub fn fenced(self) -> Self {
        self.flagged(WorkFlags::FENCE)
    }

    /// See [`WorkFlags::SOLICITED`].
    #[must_use]
    pub fn solicited(self) -> Self {
        self.flagged(WorkFlags::SOLICITED)
    }

    /// Bytes of local memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.local.len()
    }

    /// Whether there is no local memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn flagged(mut self, flag: WorkFlags) -> Self {
        self.flags |= flag;
        self
    }
}
