//! What a provider and its devices can do, as data.

use std::fmt;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::Address;

/// A device that a provider found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The provider's name.
    pub provider: &'static str,
    /// The device's name within the provider.
    pub device: String,
    /// The address of its own that endpoints have, where there is one before anything is opened.
    pub address: Option<Address>,
    /// One line for humans.
    pub description: String,
    /// Which to choose among those that fit: the highest. Hardware 400, RoCEv2 in software 200, shared memory, which reaches
    /// only processes of one user, 150, others 100, this process only 0.
    pub rank: u32,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What a device can do. Lengths are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Kinds of endpoints.
    pub kinds: Kinds,
    /// Operations of connected and reliable endpoints.
    pub operations: Operations,
    /// How far its messages go.
    pub reach: Reach,
    /// Whether atomics of a peer and of this machine's processors exclude each other.
    pub atomics: Atomics,
    /// Whether a program may poll memory for a flag that a peer writes after its data, without a completion.
    pub ordered_placement: bool,
    /// Longest message or one-sided transfer.
    pub max_message: usize,
    /// Longest message of a datagram endpoint.
    pub max_datagram: usize,
    /// Most bytes of inline work.
    pub max_inline: usize,
    /// Most segments of one work.
    pub max_segments: usize,
    /// Most work outstanding on one endpoint, each way.
    pub max_depth: usize,
    /// Most bytes with a connection request.
    pub max_private_data: usize,
    /// Whether packet faults can be injected (setting `faults`).
    pub faults: bool,
    /// Whether packets can be captured to a file (setting `capture`).
    pub capture: bool,
    /// Whether private memory must be registered before it is posted: [`crate::Domain::buf`] does that.
    pub registers_private_memory: bool,
}

bitflags! {
    /// Kinds of endpoints, as a set.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Kinds: u8 {
        /// [`EndpointKind::Msg`].
        const MSG = 1;
        /// [`EndpointKind::Rdm`].
        const RDM = 2;
        /// [`EndpointKind::Dgram`].
        const DGRAM = 4;
    }
}

bitflags! {
    /// Operations and what goes with them, as a set.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Operations: u16 {
        /// Send and receive.
        const SEND = 1;
        /// Remote write.
        const WRITE = 2;
        /// Remote read.
        const READ = 4;
        /// Fetch-and-add, compare-and-swap.
        const ATOMIC = 8;
        /// Immediate values with sends and writes.
        const IMMEDIATE = 16;
        /// Sends that revoke a key of the receiver.
        const INVALIDATE = 32;
        /// Receives shared by several endpoints.
        const SHARED_RECEIVE = 64;
    }
}

/// How an endpoint finds its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointKind {
    /// Connected to one peer; reliable, in order.
    Msg,
    /// Any peer of an address vector; reliable, in order for each peer.
    Rdm,
    /// Any peer of an address vector; sends only, which may be lost.
    Dgram,
}

impl From<EndpointKind> for Kinds {
    fn from(kind: EndpointKind) -> Self {
        match kind {
            EndpointKind::Msg => Self::MSG,
            EndpointKind::Rdm => Self::RDM,
            EndpointKind::Dgram => Self::DGRAM,
        }
    }
}

impl fmt::Display for EndpointKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Msg => "connected endpoints",
            Self::Rdm => "reliable datagram endpoints",
            Self::Dgram => "datagram endpoints",
        })
    }
}

/// How far messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Within this process.
    Process,
    /// Between processes of this machine.
    Host,
    /// Between machines.
    Network,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "this process",
            Self::Host => "this machine",
            Self::Network => "other machines",
        })
    }
}

/// What a remote atomic excludes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Atomics {
    /// There are none.
    None,
    /// Other atomics of the same device only.
    Device,
    /// Those of the processors too.
    Processor,
}
