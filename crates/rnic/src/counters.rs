//! What a device counts.

use crate::FaultCounters;
use crate::udp::DriverCounters;

/// Counts since the device was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// RoCEv2 packets handed to the host.
    pub packets_sent: u64,
    /// Their bytes, from the BTH to the ICRC.
    pub bytes_sent: u64,
    /// Packets that were sent again; they are among the packets sent.
    pub retransmitted: u64,
    /// Packets received, what faults made of them.
    pub packets_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Bursts sent: calls that carried one or many packets.
    pub bursts: u64,
    /// Packets dropped because their ICRC was wrong.
    pub bad_icrc: u64,
    /// Packets dropped because their headers made no sense.
    pub malformed: u64,
    /// Packets dropped because no queue pair has their number.
    pub unknown_qp: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub overflows: u64,
    /// System calls to send.
    pub send_calls: u64,
    /// System calls to receive.
    pub receive_calls: u64,
    /// Those of them that found nothing.
    pub empty_receive_calls: u64,
    /// Bytes of payload that we copied, from memory to a packet or from a packet to memory; the kernel's copies are its own.
    pub bytes_copied: u64,
    /// Sends that the host refused.
    pub send_errors: u64,
    /// Sends that waited because the host's queue was full.
    pub send_blocked: u64,
    /// Attempts on the core that found it taken.
    pub contended: u64,
    /// Faults that were injected.
    pub faults: FaultCounters,
}

impl Counters {
    /// These with what the driver counted.
    pub(crate) const fn with_driver(self, driver: DriverCounters) -> Self {
        Self {
            overflows: driver.overflows,
            send_calls: driver.send_calls,
            receive_calls: driver.receive_calls,
            empty_receive_calls: driver.empty_receive_calls,
            send_errors: driver.send_errors,
            send_blocked: driver.send_blocked,
            ..self
        }
    }
}
