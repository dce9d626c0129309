//! What tests against the world outside need: network namespaces, packet captures judged by others, a Linux kernel.
//!
//! Everything here removes what it made, also when the test that uses it is killed: a [`Namespace`] lives as long as the
//! process that made it, and all interfaces and processes live in a namespace. Linux only; needs the right to make
//! namespaces (root). Every wait has a limit.

#![forbid(unsafe_code)]

mod capture;
mod cpio;
mod icrc;
mod image;
mod judge;
mod modules;
mod namespace;
mod packages;
mod pcap;
mod process;
mod transcript;
mod vm;

pub use capture::Capture;
pub use image::Image;
pub use judge::{Judgement, Packet};
pub use namespace::Namespace;
pub use process::{Output, Process};
pub use vm::{
    GUEST_IPV4, GUEST_IPV6, HOST_INTERFACE, HOST_IPV4, HOST_IPV6, Options, RXE, Running, Vm,
    exchange_program,
};
