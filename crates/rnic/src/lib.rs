//! A software RDMA NIC in an ordinary process, speaking RoCEv2 over UDP.

#![expect(dead_code, reason = "the core that drives the drivers follows")]

pub mod capture;
mod faults;
mod udp;

pub use faults::{FaultCounters, Faults, FaultsError};
pub use udp::UdpKind;
