//! All that loopback knows, behind one lock.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use mem::Memory;

use crate::provider::{EndpointAttributes, Exposed};
use crate::util::{Slot, SoftQueue};
use crate::{Access, Address, Capabilities, EndpointId, EventQueue, Op, Peer, Work, WorkFlags};

/// Everything: who exists, what is registered, what waits.
#[derive(Default)]
pub(super) struct World {
    pub(super) endpoints: HashMap<EndpointId, Endpoint>,
    pub(super) listeners: HashMap<Address, Listener>,
    /// Datagram endpoints by their address.
    pub(super) addresses: HashMap<Address, EndpointId>,
    /// By domain and key.
    pub(super) regions: HashMap<(u64, u64), Region>,
    pub(super) shared: HashMap<u64, Shared>,
    pub(super) next: u64,
    /// Lanes whose head waits for a receive and will not wait for ever, with the queue whose polls count.
    pub(super) impatient: Vec<(EndpointId, Option<Peer>)>,
    /// What must be dropped without the lock, since its drop may take it.
    trash: Vec<Box<dyn Any + Send>>,
}

/// An endpoint's state.
pub(super) struct Endpoint {
    pub(super) attributes: EndpointAttributes,
    pub(super) domain: u64,
    pub(super) address: Address,
    pub(super) state: State,
    pub(super) send_queue: SoftQueue,
    pub(super) recv_queue: SoftQueue,
    pub(super) shared: Option<u64>,
    pub(super) sends_outstanding: Arc<AtomicUsize>,
    pub(super) recvs_outstanding: Arc<AtomicUsize>,
    /// One queue of work a peer; a connected endpoint has only `None`.
    pub(super) lanes: BTreeMap<Option<Peer>, Lane>,
    pub(super) receives: VecDeque<Pending>,
    pub(super) blocked: Vec<(EndpointId, Option<Peer>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Connecting,
    Connected(EndpointId),
    /// Work is accepted and flushed.
    Failed,
}

#[derive(Default)]
pub(super) struct Lane {
    pub(super) queue: VecDeque<Pending>,
    /// How often a poll found the head without a receive.
    pub(super) attempts: u8,
}

/// Accepted work.
pub(super) struct Pending {
    pub(super) context: u64,
    pub(super) op: Op,
    pub(super) local: Exposed,
    /// The bytes of inline work, as they were at post.
    pub(super) inline: Option<Vec<u8>>,
    pub(super) peer: Option<Peer>,
    pub(super) flags: WorkFlags,
    pub(super) slot: Slot,
}

impl Pending {
    /// The work as it was posted.
    pub(super) fn into_work(self) -> Work {
        Work {
            context: self.context,
            op: self.op,
            local: self.local.conceal(),
            peer: self.peer,
            flags: self.flags,
        }
    }
}

pub(super) struct Listener {
    pub(super) events: EventQueue,
    pub(super) capabilities: Arc<Capabilities>,
}

pub(super) struct Region {
    pub(super) memory: Memory,
    pub(super) access: Access,
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) receives: VecDeque<Pending>,
    pub(super) blocked: Vec<(EndpointId, Option<Peer>)>,
    pub(super) limit: usize,
    pub(super) events: EventQueue,
}

impl World {
    /// A number that nothing else has.
    pub(super) fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Drops something after the lock is released.
    pub(super) fn discard(&mut self, thing: impl Send + 'static) {
        self.trash.push(Box::new(thing));
    }
}

/// The lock, held. What was discarded meanwhile is dropped after its release.
pub(super) struct Locked {
    guard: Option<MutexGuard<'static, World>>,
}

pub(super) fn lock() -> Locked {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
    let world = WORLD.get_or_init(Mutex::default);
    Locked {
        guard: Some(world.lock().expect("nothing under the lock panics")),
    }
}

impl Deref for Locked {
    type Target = World;

    fn deref(&self) -> &World {
        self.guard.as_ref().expect("held until drop")
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut World {
        self.guard.as_mut().expect("held until drop")
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut guard = self.guard.take().expect("held until drop");
        let trash = std::mem::take(&mut guard.trash);
        drop(guard);
        drop(trash);
    }
}
