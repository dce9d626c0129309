//! RoCEv2 and IB connection management as a sans-I/O protocol engine.
//!
//! Protocol logic takes time and bytes and returns decisions; it owns no socket, thread, clock or
//! randomness. [`wire`] is the packet formats, [`verbs`] the vocabulary of work and completions, [`qp`] the
//! queue-pair engine, [`host`] what it asks of the NIC around it; [`cm`] brings connections up and down;
//! [`trace`] shows packets to humans.
#![forbid(unsafe_code)]

pub mod cm;
pub mod host;
pub mod qp;
#[cfg(feature = "sim")]
pub mod sim;
pub mod time;
pub mod trace;
pub mod verbs;
pub mod wire;
