//! Queue pairs as a program holds them: posting, state, counters. The protocol is the engine's, in the core.
//!
//! A post that finds the core free hands its work to the engine at once; one that finds it taken leaves the work in the
//! queue pair's ring and rings the doorbell. Neither waits.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use roce::qp::{Counters, ModifyError};
use roce::verbs::{Path, QpAttr, QpState, QpType, RecvWork, SendWork};
use roce::wire::Qpn;

use crate::cq::{Cq, CqShared};
use crate::device::{Device, DeviceLost};
use crate::doorbell::{Link, Linked};
use crate::mr::Pd;
use crate::recv_queue::{RecvQueue, Refused};
use crate::region::PdId;
use crate::srq::{Srq, SrqShared};

/// What a queue pair is made with.
#[derive(Debug, Clone, Copy)]
pub struct QpInit<'a> {
    /// The service.
    pub qp_type: QpType,
    /// Where sends complete.
    pub send_cq: &'a Cq,
    /// Where receives complete.
    pub recv_cq: &'a Cq,
    /// Where receives come from, instead of a queue of its own.
    pub srq: Option<&'a Srq>,
    /// Most pieces of send work outstanding.
    pub max_send: u32,
    /// Most receives outstanding; of no effect with a shared receive queue.
    pub max_recv: u32,
    /// Most pieces of a receive's scatter list.
    pub max_recv_sge: usize,
}

impl<'a> QpInit<'a> {
    /// A queue pair that completes to `cq`, with 128 sends and 128 receives of one piece.
    #[must_use]
    pub fn new(qp_type: QpType, cq: &'a Cq) -> Self {
        Self {
            qp_type,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            max_send: 128,
            max_recv: 128,
            max_recv_sge: 1,
        }
    }
}

/// Why work was not posted. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// As much work as the queue holds is outstanding.
    #[error("the queue is full")]
    QueueFull,
    /// The scatter list is longer than the queue was made for.
    #[error("the scatter list has more pieces than the queue was made for")]
    TooManyPieces,
    /// Receives are taken in every state but reset.
    #[error("the queue pair is in the reset state, which takes no receives")]
    Reset,
    /// The queue pair takes its receives from a shared receive queue.
    #[error("the queue pair has no receive queue of its own")]
    SharedReceives,
    /// A datagram's path does not start at this device, or ends in another address family.
    #[error("the destination cannot be reached from this device's address")]
    Unreachable,
    /// The work does not suit the queue pair.
    #[error(transparent)]
    Work(#[from] roce::qp::PostError),
    /// The device is not this process's.
    #[error(transparent)]
    DeviceLost(#[from] DeviceLost),
}

impl From<Refused> for PostError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::QueueFull,
            Refused::TooManyPieces => Self::TooManyPieces,
        }
    }
}

/// Why a queue pair was not modified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QpModifyError {
    /// The transition or an attribute is not permitted.
    #[error(transparent)]
    Transition(#[from] ModifyError),
    /// The path does not start at this device, or ends in another address family.
    #[error("the peer cannot be reached from this device's address")]
    Unreachable,
    /// The device is not this process's.
    #[error(transparent)]
    DeviceLost(#[from] DeviceLost),
}

/// The part of a queue pair that the core and its users share.
pub(crate) struct QpShared {
    pub(crate) qpn: Qpn,
    pub(crate) qp_type: QpType,
    pub(crate) pd: PdId,
    /// Where the core keeps the engine.
    pub(crate) slot: usize,
    pub(crate) send_cq: Arc<CqShared>,
    pub(crate) recv_cq: Arc<CqShared>,
    pub(crate) srq: Option<Arc<SrqShared>>,
    pub(crate) receives: RecvQueue,
    /// Sends that found the core taken.
    pub(crate) waiting: ArrayQueue<SendWork>,
    max_send: u64,
    /// Sends posted, and of these the ones that ended. Only the core advances the second.
    posted: AtomicU64,
    retired: AtomicU64,
    state: AtomicU8,
    link: Link<Self>,
}

impl QpShared {
    pub(crate) fn new(qpn: Qpn, slot: usize, pd: PdId, init: &QpInit<'_>) -> Self {
        let max_recv = if init.srq.is_some() {
            1
        } else {
            init.max_recv as usize
        };
        Self {
            qpn,
            qp_type: init.qp_type,
            pd,
            slot,
            send_cq: Arc::clone(&init.send_cq.shared),
            recv_cq: Arc::clone(&init.recv_cq.shared),
            srq: init.srq.map(|srq| Arc::clone(&srq.shared)),
            receives: RecvQueue::new(max_recv, init.max_recv_sge),
            waiting: ArrayQueue::new(WAITING.min(init.max_send.max(1) as usize)),
            max_send: u64::from(init.max_send),
            posted: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            state: AtomicU8::new(QpState::Reset as u8),
            link: Link::new(),
        }
    }

    /// Takes up to `wanted` places in the send queue; how many there were.
    #[inline]
    fn reserve(&self, wanted: usize) -> usize {
        let posted = self.posted.fetch_add(wanted as u64, Ordering::Relaxed);
        let outstanding = posted.saturating_sub(self.retired.load(Ordering::Relaxed));
        let room = self.max_send.saturating_sub(outstanding);
        let got = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
        if got < wanted {
            self.release(wanted - got);
        }
        got
    }

    /// Gives places back that were taken for work that was not posted.
    fn release(&self, places: usize) {
        self.posted.fetch_sub(places as u64, Ordering::Relaxed);
    }

    /// Sends that were posted and did not end.
    pub(crate) fn outstanding(&self) -> u64 {
        self.posted
            .load(Ordering::Relaxed)
            .saturating_sub(self.retired.load(Ordering::Relaxed))
    }

    /// The core tells how many sends have ended and what the state is.
    #[inline]
    pub(crate) fn publish(&self, retired: u64, state: QpState) {
        self.retired.store(retired, Ordering::Relaxed);
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn state(&self) -> QpState {
        let state = self.state.load(Ordering::Relaxed);
        STATES
            .into_iter()
            .find(|known| *known as u8 == state)
            .expect("only states are stored")
    }
}

impl Linked for QpShared {
    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

/// A queue pair. Dropping it destroys it: when that returns, the memory of its outstanding work is accessed no more,
/// and the work does not complete.
pub struct Qp {
    pd: Pd,
    shared: Arc<QpShared>,
}

impl Qp {
    pub(crate) fn create(pd: &Pd, init: &QpInit<'_>) -> Result<Self, DeviceLost> {
        let shared = pd.device.insert_qp(pd.id, init)?;
        Ok(Self {
            pd: pd.clone(),
            shared,
        })
    }

    /// Its number.
    #[must_use]
    pub fn qpn(&self) -> Qpn {
        self.shared.qpn
    }

    /// Its service.
    #[must_use]
    pub fn qp_type(&self) -> QpType {
        self.shared.qp_type
    }

    /// Its domain.
    #[must_use]
    pub fn pd(&self) -> &Pd {
        &self.pd
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.pd.device
    }

    /// Its state, as of the last call that went past the core.
    #[must_use]
    pub fn state(&self) -> QpState {
        self.shared.state()
    }

    /// All attributes, as they are now.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn attr(&self) -> Result<QpAttr, DeviceLost> {
        self.device()
            .with_core(|core| core.engine(self.shared.slot).attr())
    }

    /// What it counted.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn counters(&self) -> Result<Counters, DeviceLost> {
        self.device()
            .with_core(|core| core.engine(self.shared.slot).counters())
    }

    /// Whether the peer was recognised as software, and the extensions to RoCEv2 are in use.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn is_extended(&self) -> Result<bool, DeviceLost> {
        self.device()
            .with_core(|core| core.is_extended(self.shared.slot))
    }

    /// Changes state or attributes (IBA 11.2.5.2).
    ///
    /// # Errors
    /// [`QpModifyError`]; nothing changed.
    pub fn modify(&self, attr: &QpAttr) -> Result<(), QpModifyError> {
        if let Some(path) = &attr.path
            && !self.device().reaches(path)
        {
            return Err(QpModifyError::Unreachable);
        }
        Ok(self
            .device()
            .with_core(|core| core.modify(&self.shared, attr))??)
    }

    /// Posts send work.
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued.
    #[inline]
    pub fn post_send(&self, work: SendWork) -> Result<(), PostError> {
        self.post_sends(std::slice::from_ref(&work)).1
    }

    /// Posts send work in order, as if one by one but going to the core once: how much of it from the front, and why the
    /// next was not. What is not posted was not queued.
    #[inline]
    pub fn post_sends(&self, works: &[SendWork]) -> (usize, Result<(), PostError>) {
        if let Err(lost) = self.device().alive() {
            return (0, Err(lost.into()));
        }
        if matches!(self.state(), QpState::Reset | QpState::Init | QpState::Rtr) {
            return (0, Err(roce::qp::PostError::State(self.state()).into()));
        }
        let is_reached = |work: &SendWork| match &work.destination {
            Some(destination) => self.device().reaches(&destination.path),
            None => true,
        };
        let (wanted, mut outcome) = match works.iter().position(|work| !is_reached(work)) {
            Some(unreached) => (unreached, Err(PostError::Unreachable)),
            None => (works.len(), Ok(())),
        };
        let room = self.shared.reserve(wanted);
        if room < wanted {
            outcome = Err(PostError::QueueFull);
        }
        if room == 0 {
            return (0, outcome);
        }
        let (posted, refused) = self.device().post(&self.shared, &works[..room]);
        if posted < room {
            self.shared.release(room - posted);
        }
        (posted, refused.and(outcome))
    }

    /// Posts a receive.
    ///
    /// # Errors
    /// [`PostError`]; nothing was queued.
    #[inline]
    pub fn post_recv(&self, work: &RecvWork) -> Result<(), PostError> {
        self.device().alive()?;
        if self.shared.srq.is_some() {
            return Err(PostError::SharedReceives);
        }
        match self.state() {
            QpState::Reset => return Err(PostError::Reset),
            QpState::Err => {
                self.shared.receives.push(work)?;
                // In error receives are flushed; the core does that.
                self.device().ring(&self.shared);
                return Ok(());
            }
            _ => {}
        }
        self.shared.receives.push(work)?;
        // It may have gone to error just now, after its receives were flushed.
        if self.state() == QpState::Err {
            self.device().ring(&self.shared);
        }
        Ok(())
    }

    /// Sends that were posted and did not end, unsignaled ones included.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.shared.outstanding()
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        self.pd.device.remove_qp(&self.shared);
    }
}

impl fmt::Debug for Qp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qp")
            .field("qpn", &self.qpn())
            .field("type", &self.qp_type())
            .field("state", &self.state())
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

/// An address handle: the way to a datagram's receiver, checked once (IBA Vol. 1, 10.2.2).
#[derive(Debug, Clone)]
pub struct Ah {
    path: Path,
    _pd: Pd,
}

impl Ah {
    /// A handle for `path`, which starts at the domain's device.
    ///
    /// # Errors
    /// [`PostError::Unreachable`].
    pub fn new(pd: &Pd, path: Path) -> Result<Self, PostError> {
        if !pd.device.reaches(&path) {
            return Err(PostError::Unreachable);
        }
        Ok(Self {
            path,
            _pd: pd.clone(),
        })
    }

    /// The way.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }
}

/// Whether packets from `source` can go along `path`.
pub(crate) fn reaches(source: IpAddr, path: &Path) -> bool {
    path.source == source
        && path.destination.is_ipv4() == source.is_ipv4()
        && !path.destination.is_multicast()
}

/// Sends that may wait for the core; one more and the poster lends the core's holder a hand.
const WAITING: usize = 8;

const STATES: [QpState; 7] = [
    QpState::Reset,
    QpState::Init,
    QpState::Rtr,
    QpState::Rts,
    QpState::Sqd,
    QpState::Sqe,
    QpState::Err,
];
