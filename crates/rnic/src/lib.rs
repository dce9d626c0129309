//! A software RDMA NIC in an ordinary process, speaking RoCEv2 over UDP.
//!
//! The objects are those of verbs: a [`Device`] has protection domains ([`Pd`]), completion queues ([`Cq`]) and, in a
//! domain, memory regions ([`Mr`]), queue pairs ([`Qp`]) and shared receive queues ([`Srq`]). Work and completions
//! are the plain structs of [`roce::verbs`]. No kernel module, no root: packets go through UDP sockets.
//!
//! # How it works
//!
//! One *core* a device holds the protocol engines, the memory table, and the sockets' driver, all under one lock that
//! the data path only ever tries. Posting hands work to the core, or leaves it for the core's present holder; polling
//! an empty completion queue moves the whole device along by one round: one burst out, one batch in. While nobody
//! polls, a helper thread does that, so that peers can always read and write registered memory.

mod address;
pub mod capture;
mod clock;
mod cm;
mod config;
mod core;
mod counters;
mod cq;
mod device;
mod doorbell;
mod event;
mod faults;
mod fork;
mod gsi;
mod helper;
mod host;
mod load;
mod lock;
mod mr;
mod nic;
mod peers;
mod qp;
mod recv_queue;
mod region;
mod signal;
mod srq;
mod udp;

pub use address::host_addresses;
pub use cm::{Agreement, CmChannel, CmCommandError, CmListener};
pub use config::{AddressChoice, DeviceConfig};
pub use counters::Counters;
pub use cq::{CompletionChannel, Cq};
pub use device::{Attributes, Device, DeviceLost, OpenError};
pub use event::{AsyncEvent, CqId, SrqId};
pub use faults::{FaultCounters, Faults, FaultsError};
pub use mr::{Mr, MrChange, Pd, RegisterError};
pub use qp::{Ah, PostError, Qp, QpInit, QpModifyError};
pub use srq::Srq;
pub use udp::UdpKind;
