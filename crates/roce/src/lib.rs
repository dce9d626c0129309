//! RoCEv2 and IB connection management as a sans-I/O protocol engine.
//!
//! Protocol logic takes time and bytes and returns decisions; it owns no socket, thread, clock or
//! randomness. [`wire`] is the packet formats.
#![forbid(unsafe_code)]

pub mod wire;
