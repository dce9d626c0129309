//! Listeners, and the requests that they hear.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use fabric::provider::{self, PendingConnection};
use fabric::{Address, Capabilities, ConnectionRequest, Error, Event, EventQueue};

use crate::address;
use crate::connect::{self, ALREADY, Link, Stage};
use crate::ep::{Endpoint, State, Tell};
use crate::fork;
use crate::helper::{Home, Node};
use crate::lock;
use crate::mapping::Mapping;
use crate::peer::PeerNode;
use crate::ring::{Geometry, Way};
use crate::socket;
use crate::wire::Message;

/// Listens under one number.
pub(crate) struct Listener {
    home: Arc<Home>,
    address: Address,
    hearing: Arc<Hearing>,
}

/// Where a listener's requests go.
#[derive(Debug)]
pub(crate) struct Hearing {
    pub(crate) token: u64,
    pub(crate) socket: OwnedFd,
    address: Address,
    home: Weak<Home>,
    events: EventQueue,
    capabilities: Arc<Capabilities>,
    /// Requests that the program has not answered.
    waiting: AtomicUsize,
    /// Peers that have connected and not said what they want.
    silent: AtomicUsize,
    /// Until when nobody more is let in.
    resting: Mutex<Option<Instant>>,
}

/// A peer that has connected and not said what it wants.
#[derive(Debug)]
pub(crate) struct Silent {
    hearing: Weak<Hearing>,
    pub(crate) since: Instant,
}

impl Silent {
    fn new(hearing: &Arc<Hearing>) -> Self {
        hearing.silent.fetch_add(1, Ordering::Relaxed);
        Self {
            hearing: Arc::downgrade(hearing),
            since: Instant::now(),
        }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        if let Some(hearing) = self.hearing.upgrade() {
            hearing.silent.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Listener {
    pub(crate) fn open(
        home: &Arc<Home>,
        address: &Address,
        events: &EventQueue,
        capabilities: &Arc<Capabilities>,
    ) -> Result<Self, Error> {
        let asked = address::name(address)?;
        let mut tries = 0;
        let (name, socket) = loop {
            let name = match &asked {
                Some(name) => name.clone(),
                None => address::of_number(UNASKED | random()?),
            };
            match socket::listen(&name) {
                Ok(socket) => break (name, socket),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if asked.is_some() || tries == TRIES {
                        return Err(Error::AddressInUse(name.into()));
                    }
                    tries += 1;
                }
                Err(error) => return Err(Error::io("listening", error)),
            }
        };
        let hearing = Arc::new(Hearing {
            token: home.node.token(),
            socket,
            address: name.clone().into(),
            home: Arc::downgrade(home),
            events: events.clone(),
            capabilities: Arc::clone(capabilities),
            waiting: AtomicUsize::new(0),
            silent: AtomicUsize::new(0),
            resting: Mutex::new(None),
        });
        home.node
            .add_listener(&hearing)
            .map_err(|error| Error::io("watching a socket", error))?;
        Ok(Self {
            home: Arc::clone(home),
            address: name.into(),
            hearing,
        })
    }
}

impl provider::Listener for Listener {
    fn address(&self) -> Address {
        self.address.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.home.generation == fork::generation() {
            self.home.node.remove_listener(&self.hearing);
            // The number is free when this returns, though the background thread may still look at the socket.
            socket::shut(self.hearing.socket.as_fd());
        }
    }
}

impl Hearing {
    /// Peers have connected.
    pub(crate) fn accept(self: &Arc<Self>, node: &Node) {
        loop {
            if self.silent.load(Ordering::Relaxed) >= MOST_SILENT {
                return self.rest(node);
            }
            let (socket, peer) = match socket::accept(self.socket.as_fd()) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    tracing::debug!("a process of another user asked for a connection");
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // No descriptor is free, say: whoever waits goes on waiting, and is not looked at all the time.
                    tracing::debug!(%error, "letting a peer in");
                    return self.rest(node);
                }
            };
            if self.waiting.load(Ordering::Relaxed) >= BACKLOG {
                let full = Message::Reject {
                    private_data: Vec::new(),
                    heard: true,
                };
                // It may be gone already.
                let _ = socket::send(socket.as_fd(), &full, &[]);
                continue;
            }
            let stage = Stage::Hearing(Silent::new(self));
            if let Err(error) = node.add_link(socket, peer, stage) {
                tracing::debug!(%error, "watching a socket");
            }
        }
    }

    /// Lets nobody in for a while; who asks meanwhile waits, or tries again.
    fn rest(&self, node: &Node) {
        *lock::mutex(&self.resting) = Some(Instant::now() + REST);
        node.listen_to(self, false);
    }

    /// Whether it rests, or did until now: then it is to be listened to again.
    pub(crate) fn wakes(&self, now: Instant) -> Option<bool> {
        let mut resting = lock::mutex(&self.resting);
        let wakes = now >= (*resting)?;
        if wakes {
            *resting = None;
        }
        Some(wakes)
    }
}

/// A peer asks for a connection.
pub(crate) fn hear(
    node: &Node,
    link: &Arc<Link>,
    silent: &Silent,
    (ring, peer): ((Arc<Mapping>, Geometry), Arc<PeerNode>),
    private_data: Vec<u8>,
) {
    let hearing = silent.hearing.upgrade();
    let home = hearing.as_ref().and_then(|hearing| hearing.home.upgrade());
    let (Some(hearing), Some(home)) = (hearing, home) else {
        // Nobody listens any more.
        return refuse(node, link, false, &[]);
    };
    hearing.waiting.fetch_add(1, Ordering::Relaxed);
    let from = address::of_number(link.peer.pid.unsigned_abs());
    let pending = Pending {
        home,
        hearing: Arc::downgrade(&hearing),
        link: Arc::clone(link),
        ring,
        peer,
        address: hearing.address.clone(),
        answered: false,
    };
    let capabilities = Arc::clone(&hearing.capabilities);
    let request =
        ConnectionRequest::new(Box::new(pending), capabilities, from.into(), private_data);
    hearing.events.push(Event::ConnectionRequest(request));
}

fn refuse(node: &Node, link: &Arc<Link>, heard: bool, private_data: &[u8]) {
    let reject = Message::Reject {
        private_data: private_data.to_vec(),
        heard,
    };
    // The peer may have given up.
    let _ = link.send(&reject, &[]);
    node.end(link);
}

/// A request that waits for an answer.
struct Pending {
    home: Arc<Home>,
    hearing: Weak<Hearing>,
    link: Arc<Link>,
    ring: (Arc<Mapping>, Geometry),
    peer: Arc<PeerNode>,
    address: Address,
    answered: bool,
}

impl PendingConnection for Pending {
    fn accept(
        mut self: Box<Self>,
        endpoint: &dyn provider::Endpoint,
        private_data: &[u8],
    ) -> Result<(), Error> {
        let endpoint: &dyn Any = endpoint;
        let endpoint = endpoint
            .downcast_ref::<Endpoint>()
            .filter(|endpoint| Arc::ptr_eq(&endpoint.core.home, &self.home))
            .ok_or(Error::OtherDomain("the endpoint"))?;
        let core = &endpoint.core;
        if !core.advance(State::Idle, State::Connecting) {
            return Err(ALREADY);
        }
        self.answered = true;
        let _ = core.address.set(self.address.clone());
        let node = &self.home.node;
        core.attach(&self.link, &self.ring.0, self.ring.1, Way::Back, &self.peer);
        let before = self.link.enter(Stage::Accepted(Arc::downgrade(core)));
        let (hello, table) = node.introduce();
        let reply = Message::Reply {
            hello,
            private_data: private_data.to_vec(),
        };
        let waits = matches!(before, Stage::Waiting);
        if !waits
            || self
                .link
                .send(&reply, &connect::files(node, &table))
                .is_err()
        {
            self.link.enter(Stage::Over);
            core.fail(Tell::Peer);
            return Err(Error::Disconnected);
        }
        Ok(())
    }

    fn reject(mut self: Box<Self>, private_data: &[u8]) {
        self.refuse(private_data);
    }
}

impl Pending {
    fn refuse(&mut self, private_data: &[u8]) {
        if !std::mem::replace(&mut self.answered, true)
            && self.home.generation == fork::generation()
        {
            refuse(&self.home.node, &self.link, true, private_data);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.refuse(&[]);
        if let Some(hearing) = self.hearing.upgrade() {
            hearing.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn random() -> Result<u32, Error> {
    getrandom::u32().map_err(|error| Error::io("drawing a number", io::Error::other(error)))
}

/// Numbers from here on are given to those who do not ask for one.
const UNASKED: u32 = 1 << 31;
const TRIES: usize = 16;
/// Requests that may wait for their answer.
const BACKLOG: usize = 1024;
/// Peers that may be connected without having said what they want.
const MOST_SILENT: usize = 256;
/// How long nobody is let in when there is no room.
pub(crate) const REST: Duration = Duration::from_millis(20);
