//! The RDMA API that programs use, and the contract that a provider implements.
//!
//! # For users, top down
//!
//! A [`Registry`] knows the providers; [`Registry::select`] picks one by [`Hints`] and says why. A [`Domain`] is one of
//! its devices, opened. From the domain come
//!
//! - memory: [`Buf`] is private and moves into an operation; [`MemoryRegion`] is exposed, its [`RemoteRegion`] is what
//!   a peer needs to reach it;
//! - a [`CompletionQueue`], polled or waited for;
//! - an [`Endpoint`], to which [`Work`] is posted and which is connected ([`EndpointKind::Msg`], through a [`Listener`])
//!   or addresses peers by handles of an [`AddressVector`] ([`EndpointKind::Rdm`], [`EndpointKind::Dgram`]).
//!
//! Work that is accepted is reported by exactly one [`Completion`], with its buffers; work that is refused stays with the
//! caller.
//!
//! ```
//! use ringmail_fabric::{Access, EndpointKind, Memory, Registry, Work, loopback::Loopback};
//! use std::time::Duration;
//!
//! let registry = Registry::new().with(Loopback::new());
//! let domain = registry.open("loopback", &registry.config()?)?;
//! let cq = domain.completion_queue(16)?;
//! let region = domain.register(Memory::allocate(4096), Access::REMOTE_WRITE)?;
//!
//! let (target, source) = (domain.endpoint(EndpointKind::Rdm, &cq).open()?, domain.endpoint(EndpointKind::Rdm, &cq).open()?);
//! let peer = source.addresses().insert(&target.address()?)?;
//! let work = Work::write(1, domain.buf_from(b"hello")?, region.remote().at(64)).to(peer);
//! source.post_one(work).map_err(|refused| refused.error)?;
//! cq.next(Duration::from_secs(1))?.ok()?;
//!
//! let mut bytes = [0; 5];
//! region.read(64, &mut bytes)?;
//! assert_eq!(&bytes, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # For providers
//!
//! The contract is [`provider`]: a few small object-safe traits and five sentences. Bounds, access, capabilities and buffer
//! ownership are checked above it, once. [`loopback`] is the reference provider, [`hook`] holds decorators over any, and
//! [`rdm`] gives reliable datagrams to a provider that has connections.
//!
//! What this crate does not do: it has no async runtime, no threads of its own but those of [`rdm`], and names no provider but the reference one.

mod address;
mod check;
mod completion;
mod config;
mod cq;
mod domain;
mod endpoint;
mod error;
mod event;

pub mod hook;
mod info;
mod listener;
pub mod loopback;
mod memory;
pub mod provider;
pub mod rdm;
mod registry;
mod shared_receive;
pub mod util;
mod work;

pub use address::{Address, AddressVector, Peer};
pub use completion::{Completion, CompletionError, Opcode, Status};
pub use config::{Config, ConfigError, Setting, SettingKind, Source};
pub use cq::CompletionQueue;
pub use domain::Domain;
pub use endpoint::{Endpoint, EndpointBuilder, EndpointId};
pub use error::{Error, PostError, Refused};
pub use event::{Event, EventQueue};
pub use info::{Atomics, Capabilities, EndpointKind, Info, Kinds, Operations, Reach};
pub use listener::{ConnectionRequest, Listener};
pub use memory::{Access, Buf, MemoryRegion, RemoteAddr, RemoteRegion, Segment, Segments};
pub use registry::{Hints, Registry, Selection, Verdict};
pub use shared_receive::SharedReceive;
pub use work::{Op, Work, WorkFlags};

#[cfg(unix)]
pub use mem::FileMapping;
pub use mem::{AccessError, Memory};
