//! Reliable datagrams over connections, for providers that have connections and shared receives.
//!
//! An endpoint listens at its address and connects to a peer when work for it is first posted. All its connections take
//! receives from one pool and report to its queues. What it promises:
//!
//! - Two endpoints that connect to each other at once end with one connection: the request of the lower address wins.
//! - Work for one peer keeps its order; a peer that is slow or gone delays no other.
//! - A connection that fails fails the work outstanding for that peer once; nothing is executed twice. The next work connects
//!   again. A peer that came back at its address is known by its incarnation, and replaces what was left of the old one.
//! - Beyond [`MAX_CONNECTIONS`] the connection idle for longest is closed, and opened again when it is needed. Closing it
//!   flushes what the peer may have had under way. Where none is idle our own work connects all the same, and peers that
//!   ask are refused: whoever knocks takes no more memory than the limit allows.
//!
//! A peer may claim any address of the host it asks from. Who may connect at all is for the network to say.
//!
//! Connecting is done by a thread an endpoint, so that peers reach the memory of a program that sleeps; data never waits for it.

mod connect;
mod core;
mod domain;
mod endpoint;
mod hello;
mod queue;

use std::sync::Arc;

use crate::{Config, Info, Kinds, Operations, Setting, SettingKind, provider};

/// How many connections one endpoint keeps.
pub static MAX_CONNECTIONS: Setting = Setting {
    name: "rdm.max-connections",
    default: "4096",
    kind: SettingKind::Number,
    help: "connections that a reliable datagram endpoint keeps before it closes idle ones",
};

/// The domain with reliable datagram endpoints added, if it lacks them and has what they need.
#[must_use]
pub fn layer(domain: Arc<dyn provider::Domain>, config: &Config) -> Arc<dyn provider::Domain> {
    if !applies(domain.info()) {
        return domain;
    }
    let limit = usize::try_from(config.number(&MAX_CONNECTIONS)).unwrap_or(usize::MAX);
    Arc::new(domain::Domain::new(domain, limit.max(1)))
}

/// What [`layer`] makes of a device.
#[must_use]
pub fn layered(mut info: Info) -> Info {
    if applies(&info) {
        info.capabilities.kinds |= Kinds::RDM;
    }
    info
}

fn applies(info: &Info) -> bool {
    let has = &info.capabilities;
    has.kinds.contains(Kinds::MSG)
        && !has.kinds.contains(Kinds::RDM)
        && has.operations.contains(Operations::SHARED_RECEIVE)
        && has.max_private_data >= hello::LONGEST
}
