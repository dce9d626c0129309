//! Endpoints: two halves, each with the queue where its work is reported, and the connection between them and the peer's.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use fabric::provider::{self, EndpointAttributes, own};
use fabric::{Address, EndpointId, EndpointKind, Error, Event, EventQueue, Op, PostError, Work};

use crate::connect::{self, Link};
use crate::cq::{Queue, State as QueueState};
use crate::fork;
use crate::helper::Home;
use crate::lock;
use crate::mapping::Mapping;
use crate::peer::PeerNode;
use crate::recv::RecvHalf;
use crate::ring::{Cell, Consumer, Geometry, Producer, Way};
use crate::send::SendHalf;
use crate::shared::Pool;
use crate::wire::Message;

/// What the fabric holds. Dropping it ends all access to memory in flight.
pub(crate) struct Endpoint {
    pub(crate) core: Arc<Core>,
}

/// What everybody else holds.
pub(crate) struct Core {
    pub(crate) id: EndpointId,
    pub(crate) home: Arc<Home>,
    pub(crate) events: EventQueue,
    /// How often a send is tried without a receive: 7 for ever.
    pub(crate) rnr_code: u8,
    state: AtomicU8,
    /// Cells of the peer's that are done here, by our receiving half; and up to which the peer was told by our own cells.
    pub(crate) consumed: AtomicU32,
    pub(crate) told: AtomicU32,
    /// Cells of ours that are done there, as far as the peer's own cells said.
    pub(crate) heard: AtomicU32,
    send: Place,
    recv: Place,
    link: Mutex<Option<Arc<Link>>>,
    /// Names this side of the connection.
    pub(crate) address: OnceLock<Address>,
}

/// Where a half is.
struct Place {
    queue: Arc<Queue>,
    index: AtomicU32,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Not connected. Receives are taken.
    Idle,
    /// Asked, or accepted and not confirmed.
    Connecting,
    /// Sends are taken.
    Connected,
    /// Work is taken and flushed.
    Failed,
}

/// Why an endpoint fails, and so who has to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// The program has ended it, or work of this side failed: the peer is told.
    Peer,
    /// The peer has ended it.
    Program,
    /// The peer died.
    Died,
}

impl Endpoint {
    pub(crate) fn open(home: &Arc<Home>, attributes: EndpointAttributes) -> Result<Self, Error> {
        let queue = |queue: &Arc<dyn provider::CompletionQueue>| {
            own::<Queue>(Arc::clone(queue), "the completion queue")
        };
        let pool = match &attributes.shared_receive {
            Some(shared) => Some(own::<Pool>(Arc::clone(shared), "the shared receive")?),
            None => None,
        };
        if attributes.kind != EndpointKind::Msg {
            return Err(Error::Unsupported {
                provider: crate::NAME.to_owned(),
                what: attributes.kind.to_string(),
            });
        }
        let place = |queue| Place {
            queue,
            index: AtomicU32::new(0),
        };
        let core = Arc::new(Core {
            id: attributes.id,
            home: Arc::clone(home),
            events: attributes.events,
            rnr_code: attributes.rnr_retries.unwrap_or(7).min(7),
            state: AtomicU8::new(State::Idle as u8),
            consumed: AtomicU32::new(0),
            told: AtomicU32::new(0),
            heard: AtomicU32::new(0),
            send: place(queue(&attributes.send_queue)?),
            recv: place(queue(&attributes.recv_queue)?),
            link: Mutex::new(None),
            address: OnceLock::new(),
        });
        let depth = attributes.send_depth;
        let index = core.send.queue.with(|state| {
            QueueState::add(&mut state.sends, |index| SendHalf::new(&core, index, depth))
        });
        core.send.index.store(index, Ordering::Release);
        let depth = attributes.recv_depth;
        let index = core.recv.queue.with(|state| {
            QueueState::add(&mut state.recvs, |index| {
                RecvHalf::new(&core, index, depth, pool)
            })
        });
        core.recv.index.store(index, Ordering::Release);
        Ok(Self { core })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let core = &self.core;
        if core.home.generation != fork::generation() {
            // Somebody may have held the locks when the process forked: they are not to be had here.
            return;
        }
        // Memory is touched under the locks of the queues: when this returns, it is no more.
        core.fail(Tell::Peer);
        let index = core.send.index() as usize;
        let half = core.send.queue.with(|state| state.sends[index].take());
        drop(half);
        let index = core.recv.index() as usize;
        let half = core.recv.queue.with(|state| state.recvs[index].take());
        drop(half);
    }
}

impl provider::Endpoint for Endpoint {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let core = &*self.core;
        if core.home.generation != fork::generation() {
            return Err(PostError::DeviceLost);
        }
        while let Some(first) = work.first() {
            let receives = is_receive(first);
            let run = match work.iter().position(|work| is_receive(work) != receives) {
                None => work.len(),
                Some(run) => run,
            };
            match receives {
                true => core.post_receives(work, run)?,
                false => core.post_sends(work, run)?,
            }
        }
        Ok(())
    }

    fn connect(&self, to: &Address, private_data: &[u8]) -> Result<(), Error> {
        if self.core.home.generation != fork::generation() {
            return Err(fork::error());
        }
        connect::ask(&self.core, to, private_data)
    }

    fn disconnect(&self) {
        if self.core.home.generation == fork::generation() {
            self.core.fail(Tell::Peer);
        }
    }

    fn address(&self) -> Result<Address, Error> {
        match self.core.address.get() {
            Some(address) => Ok(address.clone()),
            None => Err(Error::WrongState("the endpoint has not been connected")),
        }
    }
}

#[inline]
fn is_receive(work: &Work) -> bool {
    matches!(work.op, Op::Recv)
}

impl Place {
    #[inline]
    fn index(&self) -> u32 {
        // Relaxed: set before anybody else knows the endpoint.
        self.index.load(Ordering::Relaxed)
    }
}

impl Core {
    #[inline]
    pub(crate) fn state(&self) -> State {
        // Acquire: pairs with the changes below; what came before them is seen.
        match self.state.load(Ordering::Acquire) {
            0 => State::Idle,
            1 => State::Connecting,
            2 => State::Connected,
            _ => State::Failed,
        }
    }

    /// Moves on from `from`; false if it is not there.
    pub(crate) fn advance(&self, from: State, to: State) -> bool {
        let (from, to) = (from as u8, to as u8);
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Has a cell say how far our receiving half is.
    #[inline]
    pub(crate) fn stamp(&self, cell: &mut Cell) {
        // Acquire: pairs with the release store in `RecvHalf::consume`; the peer reuses what was read.
        let consumed = self.consumed.load(Ordering::Acquire);
        cell.acknowledged = consumed;
        self.told.store(consumed, Ordering::Relaxed);
    }

    /// Accepts the first `run` of `work` and takes them out, as far as there is room.
    fn post_sends(&self, work: &mut Vec<Work>, run: usize) -> Result<(), PostError> {
        if matches!(self.state(), State::Idle | State::Connecting) {
            return Err(PostError::NotConnected);
        }
        self.send.queue.with(|state| {
            let QueueState {
                ready,
                sends,
                after,
                ..
            } = state;
            let half = sends[self.send.index() as usize]
                .as_mut()
                .expect("taken out by the endpoint's drop");
            let count = run.min(half.room()).min(ready.room());
            for work in work.drain(..count) {
                half.accept(work, ready);
            }
            half.advance(ready, after);
            match count == run {
                true => Ok(()),
                false => Err(PostError::QueueFull),
            }
        })
    }

    fn post_receives(&self, work: &mut Vec<Work>, run: usize) -> Result<(), PostError> {
        self.recv.queue.with(|state| {
            let QueueState {
                ready,
                recvs,
                after,
                ..
            } = state;
            let half = recvs[self.recv.index() as usize]
                .as_mut()
                .expect("taken out by the endpoint's drop");
            let count = run.min(half.room()).min(ready.room());
            for work in work.drain(..count) {
                half.accept(work, ready);
            }
            if half.is_starved() {
                half.consume(ready, after, true);
            }
            match count == run {
                true => Ok(()),
                false => Err(PostError::QueueFull),
            }
        })
    }

    /// Gives both halves their way to the peer.
    pub(crate) fn attach(
        &self,
        link: &Arc<Link>,
        mapping: &Arc<Mapping>,
        geometry: Geometry,
        out: Way,
        peer: &Arc<PeerNode>,
    ) {
        let back = match out {
            Way::Out => Way::Back,
            Way::Back => Way::Out,
        };
        *lock::mutex(&self.link) = Some(Arc::clone(link));
        self.send.queue.with(|state| {
            if let Some(half) = state.send_half(self.send.index(), self.id) {
                let producer = Producer::new(mapping, geometry, out);
                half.attach(producer, Arc::clone(peer));
            }
        });
        self.recv.queue.with(|state| {
            if let Some(half) = state.recv_half(self.recv.index(), self.id) {
                let consumer = Consumer::new(mapping, geometry, back);
                half.attach(consumer, Arc::clone(peer));
            }
        });
        if self.state() == State::Failed {
            // It was given up meanwhile.
            self.flush(Tell::Peer);
            self.hang_up();
        }
    }

    /// Asks the peer what a key of its means; false if that cannot be asked.
    pub(crate) fn ask(&self, key: u64) -> bool {
        let link = lock::mutex(&self.link);
        let want = Message::Want { key };
        link.as_ref()
            .is_some_and(|link| link.send(&want, &[]).is_ok())
    }

    /// The peer has answered what a key means.
    pub(crate) fn learn(&self, key: u64, answer: &[u8], files: Vec<OwnedFd>) {
        self.send.queue.with(|state| {
            let QueueState {
                ready,
                sends,
                after,
                ..
            } = state;
            let half = sends[self.send.index() as usize].as_mut();
            if let Some(half) = half.filter(|half| half.core.id == self.id) {
                half.learn(key, answer, files, ready, after);
            }
        });
    }

    /// Ends the connection, and all work with it.
    pub(crate) fn fail(&self, tell: Tell) {
        let before = self.state.swap(State::Failed as u8, Ordering::AcqRel);
        self.flush(tell);
        if before != State::Failed as u8 && before != State::Idle as u8 {
            self.events.push(Event::Disconnected { endpoint: self.id });
        }
        self.hang_up();
    }

    fn flush(&self, tell: Tell) {
        self.send.queue.with(|state| {
            let QueueState { ready, sends, .. } = state;
            // The place may be another endpoint's by now.
            let half = sends[self.send.index() as usize].as_mut();
            if let Some(half) = half.filter(|half| half.core.id == self.id) {
                half.flush(tell == Tell::Died, ready);
            }
        });
        self.recv.queue.with(|state| {
            let QueueState { ready, recvs, .. } = state;
            let half = recvs[self.recv.index() as usize].as_mut();
            if let Some(half) = half.filter(|half| half.core.id == self.id) {
                half.flush(ready);
            }
        });
    }

    fn hang_up(&self) {
        let link = lock::mutex(&self.link).take();
        if let Some(link) = link {
            self.home.node.end(&link);
        }
    }

    /// The link that a request goes over.
    pub(crate) fn set_link(&self, link: &Arc<Link>) {
        *lock::mutex(&self.link) = Some(Arc::clone(link));
    }

    pub(crate) fn clear_link(&self) {
        *lock::mutex(&self.link) = None;
    }
}
