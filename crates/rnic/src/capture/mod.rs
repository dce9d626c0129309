//! Packet captures: what a device sends and receives, written as pcapng, and captures read back.
//!
//! Captures hold raw IP packets (link type 101), so that Wireshark and tshark dissect them. The device sees UDP
//! payloads only; the IP and UDP headers are made up from what is known, with the Identification that the ICRC covers,
//! so that a dissector finds the ICRC right.
//!
//! Formats: pcapng (draft-ietf-opsawg-pcapng) is written; pcapng and pcap (draft-ietf-opsawg-pcap), of either byte
//! order, are read.

mod ip;
mod read;
mod write;

use std::net::SocketAddr;

pub use read::{CaptureError, Reader};
#[allow(unused_imports, reason = "the core that captures follows")]
pub(crate) use write::Writer;

/// Which way a packet went past the device that captured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device received it.
    Received,
    /// The device sent it.
    Sent,
}

/// A captured RoCEv2 packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Nanoseconds since the Unix epoch.
    pub time: u64,
    /// Which way it went, where the capture says so.
    pub direction: Option<Direction>,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// IPv4 Identification; 0 for IPv6.
    pub identification: u16,
    /// The UDP payload, BTH to ICRC.
    pub payload: Vec<u8>,
}
