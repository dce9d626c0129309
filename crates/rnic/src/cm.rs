//! Connection management as a program holds it: channels of events, listeners, and the queue pair's way to ready.
//!
//! IBA Vol. 1, chapter 12, as `rdma_cm` uses it: a service is a port. The protocol is [`roce::cm`]'s, its datagrams
//! go through queue pair 1 of the same device. A channel is what `rdma_event_channel` is: events in order, and a
//! descriptor to sleep on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use roce::cm::{
    AcceptParams, CmError, CmEvent, ConnectParams, End, Failure, IncomingRequest, Peer, Route,
};
use roce::verbs::{Access, Mtu, Path, QpAttr, QpState, QpType, Retries, ack_timeout};
use roce::wire::cm::{CommId, RejectReason, ServiceId, SidrStatus};
use roce::wire::{Psn, Qpn};

use crate::device::{Device, DeviceLost};
use crate::gsi::Gsi;
use crate::qp::{Qp, QpModifyError};
use crate::signal::Signal;

/// Why a command of connection management was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CmCommandError {
    /// The connection manager refuses.
    #[error(transparent)]
    Refused(#[from] CmError),
    /// The device is not this process's.
    #[error(transparent)]
    DeviceLost(#[from] DeviceLost),
}

/// The part of a channel that the core knows.
pub(crate) struct ChannelShared {
    signal: Signal,
    events: Mutex<VecDeque<CmEvent>>,
}

impl ChannelShared {
    /// Adds an event. A request that was given up before the program took it takes both events with it: a program that is
    /// slower than its peers ask has as many waiting as the connection manager remembers, and no more.
    pub(crate) fn push(&self, event: CmEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if let CmEvent::Failed {
            id,
            why: Failure::Evicted,
        } = &event
        {
            let unheard = events.iter().position(
                |other| matches!(other, CmEvent::ConnectRequest { id: asked, .. } if asked == id),
            );
            if let Some(at) = unheard {
                events.remove(at);
                return;
            }
        }
        events.push_back(event);
        drop(events);
        self.signal.raise();
    }

    fn take(&self) -> Option<CmEvent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let event = events.pop_front();
        if events.is_empty() {
            self.signal.lower();
        }
        event
    }
}

/// A channel of connection events of one device, and the commands that answer them. When it is dropped, its
/// connections end and its listeners' requests are refused.
pub struct CmChannel {
    device: Device,
    shared: Arc<ChannelShared>,
}

impl CmChannel {
    /// A channel without listeners and connections.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub fn new(device: &Device) -> io::Result<Self> {
        let shared = ChannelShared {
            signal: Signal::new()?,
            events: Mutex::default(),
        };
        Ok(Self {
            device: device.clone(),
            shared: Arc::new(shared),
        })
    }

    /// Its device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The next event, if there is one. Drives the device when there is none yet.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn try_event(&self) -> Result<Option<CmEvent>, DeviceLost> {
        if let Some(event) = self.shared.take() {
            return Ok(Some(event));
        }
        self.device.drive()?;
        Ok(self.shared.take())
    }

    /// Sleeps until there is an event, at most for `timeout` (`None`: for ever).
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<CmEvent>, DeviceLost> {
        self.device.alive()?;
        self.device.expect_sleep();
        self.shared.signal.wait(timeout);
        Ok(self.shared.take())
    }

    /// Takes requests for `service` until the listener is dropped. They come as [`CmEvent::ConnectRequest`] and
    /// [`CmEvent::ResolveRequest`].
    ///
    /// # Errors
    /// [`CmError::InUse`]; [`DeviceLost`].
    pub fn listen(&self, service: ServiceId) -> Result<CmListener, CmCommandError> {
        self.device
            .with_core(|core| core.gsi().listen(service, &self.shared))??;
        Ok(CmListener {
            device: self.device.clone(),
            service,
        })
    }

    /// Asks for a connection. [`CmEvent::ConnectReply`], [`CmEvent::Rejected`] or [`CmEvent::Failed`] follows.
    ///
    /// # Errors
    /// As [`roce::cm::Cm::connect`]; [`DeviceLost`].
    pub fn connect(&self, params: &ConnectParams) -> Result<CommId, CmCommandError> {
        let now = self.device.now();
        Ok(self
            .device
            .with_core(|core| core.gsi().connect(now, params, &self.shared))??)
    }

    /// Accepts a request, with a queue pair that is ready to receive. [`CmEvent::Established`] follows, or
    /// [`CmEvent::Rejected`] or [`CmEvent::Failed`].
    ///
    /// # Errors
    /// As [`roce::cm::Cm::accept`]; [`DeviceLost`].
    pub fn accept(&self, id: CommId, params: &AcceptParams) -> Result<(), CmCommandError> {
        self.command(|gsi, now| gsi.accept(now, id, params))
    }

    /// Refuses a request or a reply, with at most 148 bytes for the peer's program. The id is forgotten.
    ///
    /// # Errors
    /// As [`roce::cm::Cm::reject`]; [`DeviceLost`].
    pub fn reject(
        &self,
        id: CommId,
        reason: RejectReason,
        private_data: &[u8],
    ) -> Result<(), CmCommandError> {
        self.command(|gsi, now| gsi.reject(now, id, reason, private_data))
    }

    /// Says that the queue pair is ready, after [`CmEvent::ConnectReply`].
    ///
    /// # Errors
    /// As [`roce::cm::Cm::establish`]; [`DeviceLost`].
    pub fn establish(&self, id: CommId) -> Result<(), CmCommandError> {
        self.command(|gsi, _| gsi.establish(id))
    }

    /// Ends a connection, or an attempt at one.
    ///
    /// # Errors
    /// As [`roce::cm::Cm::disconnect`]; [`DeviceLost`].
    pub fn disconnect(&self, id: CommId) -> Result<(), CmCommandError> {
        self.command(|gsi, now| gsi.disconnect(now, id))
    }

    /// Asks which queue pair serves datagrams of `service`. [`CmEvent::Resolved`], [`CmEvent::ResolveRefused`] or
    /// [`CmEvent::Failed`] follows.
    ///
    /// # Errors
    /// As [`roce::cm::Cm::resolve`]; [`DeviceLost`].
    pub fn resolve(
        &self,
        route: Route,
        service: ServiceId,
        source_port: u16,
        private_data: &[u8],
    ) -> Result<CommId, CmCommandError> {
        let channel = &self.shared;
        self.command(|gsi, now| {
            gsi.resolve(now, route, service, source_port, private_data, channel)
        })
    }

    /// Answers [`CmEvent::ResolveRequest`] with a queue pair and its key, or refuses.
    ///
    /// # Errors
    /// As [`roce::cm::Cm::resolve_reply`]; [`DeviceLost`].
    pub fn resolve_reply(
        &self,
        id: CommId,
        answer: Result<(Qpn, u32), SidrStatus>,
        private_data: &[u8],
    ) -> Result<(), CmCommandError> {
        self.command(|gsi, now| gsi.resolve_reply(now, id, answer, private_data))
    }

    fn command<T>(
        &self,
        f: impl FnOnce(&mut Gsi, roce::time::Instant) -> Result<T, CmError>,
    ) -> Result<T, CmCommandError> {
        let now = self.device.now();
        Ok(self.device.with_core(|core| f(core.gsi(), now))??)
    }
}

impl AsFd for CmChannel {
    /// Readable while there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.signal.as_fd()
    }
}

impl Drop for CmChannel {
    fn drop(&mut self) {
        let now = self.device.now();
        let _ = self
            .device
            .with_core(|core| core.gsi().forget(now, &self.shared));
    }
}

impl fmt::Debug for CmChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmChannel")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Takes requests for one service; refuses them once dropped.
#[derive(Debug)]
pub struct CmListener {
    device: Device,
    service: ServiceId,
}

impl CmListener {
    /// The service.
    #[must_use]
    pub fn service(&self) -> ServiceId {
        self.service
    }
}

impl Drop for CmListener {
    fn drop(&mut self) {
        let _ = self
            .device
            .with_core(|core| core.gsi().unlisten(self.service));
    }
}

/// What two connected ends agreed upon: how to bring the queue pair from init to ready.
#[derive(Debug, Clone, Copy)]
pub struct Agreement {
    /// Between which addresses.
    pub route: Route,
    /// Our end.
    pub ours: End,
    /// The peer's.
    pub theirs: End,
    /// The path MTU.
    pub path_mtu: Mtu,
    /// How often our queue pair retries, 0 to 7.
    pub retry_count: u8,
    /// Local ACK timeout code of our queue pair, 0 to 31.
    pub ack_timeout: u8,
}

impl Agreement {
    /// Of the active side, when the reply has come.
    #[must_use]
    pub fn of_reply(params: &ConnectParams, peer: &Peer) -> Self {
        Self {
            route: params.route,
            ours: params.end,
            theirs: peer.end,
            path_mtu: params.path_mtu,
            retry_count: params.retry_count,
            ack_timeout: params.ack_timeout,
        }
    }

    /// Of the passive side, which accepts with `ours`.
    #[must_use]
    pub fn of_request(request: &IncomingRequest, ours: End) -> Self {
        Self {
            route: request.route,
            ours,
            theirs: request.peer.end,
            path_mtu: request.path_mtu,
            retry_count: request.retry_count,
            ack_timeout: request.ack_timeout,
        }
    }

    /// The attributes from init to ready to receive.
    #[must_use]
    pub fn ready_to_receive(&self, qp_type: QpType) -> QpAttr {
        let is_reliable = qp_type == QpType::Rc;
        let resources = self
            .ours
            .responder_resources
            .min(self.theirs.initiator_depth);
        QpAttr {
            state: Some(QpState::Rtr),
            path: Some(Path::new(self.route.local, self.route.remote)),
            path_mtu: Some(self.path_mtu),
            dest_qpn: Some(self.theirs.qpn),
            // Each end says where the other is to start.
            rq_psn: Some(self.ours.psn),
            max_dest_rd_atomic: is_reliable.then_some(resources),
            min_rnr_timer: is_reliable.then_some(RNR_TIMER),
            ..QpAttr::default()
        }
    }

    /// The attributes from ready to receive to ready to send.
    #[must_use]
    pub fn ready_to_send(&self, qp_type: QpType) -> QpAttr {
        let is_reliable = qp_type == QpType::Rc;
        let depth = self
            .ours
            .initiator_depth
            .min(self.theirs.responder_resources);
        QpAttr {
            state: Some(QpState::Rts),
            sq_psn: Some(self.theirs.psn),
            max_rd_atomic: is_reliable.then_some(depth),
            timeout: is_reliable.then_some(ack_timeout(self.ack_timeout)),
            retry_count: is_reliable.then_some(Retries::Limited(self.retry_count)),
            rnr_retry: is_reliable.then_some(retries(self.theirs.rnr_retry_count)),
            ..QpAttr::default()
        }
    }
}

impl Qp {
    /// Brings a queue pair from reset to init, open to peers as `access` says.
    ///
    /// # Errors
    /// [`QpModifyError`].
    pub fn initialise(&self, access: Access) -> Result<(), QpModifyError> {
        self.modify(&QpAttr {
            state: Some(QpState::Init),
            access: Some(access),
            pkey: Some(roce::wire::DEFAULT_PKEY),
            ..QpAttr::default()
        })
    }

    /// Brings a queue pair from init to ready to send, as agreed.
    ///
    /// # Errors
    /// [`QpModifyError`].
    pub fn make_ready(&self, agreement: &Agreement) -> Result<(), QpModifyError> {
        self.modify(&agreement.ready_to_receive(self.qp_type()))?;
        self.modify(&agreement.ready_to_send(self.qp_type()))
    }

    /// This end, with the PSN that the peer is to start at drawn at random.
    ///
    /// # Panics
    /// When the system has no randomness.
    #[must_use]
    pub fn end(&self, max_rd_atomic: u8, has_srq: bool) -> End {
        let psn = getrandom::u32().expect("the system had randomness when the device was opened");
        End {
            qpn: self.qpn(),
            psn: Psn::new(psn),
            responder_resources: max_rd_atomic,
            initiator_depth: max_rd_atomic,
            rnr_retry_count: 7,
            srq: has_srq,
        }
    }
}

/// RNR retries: 7 is for ever (IBA 9.7.5.2.8).
fn retries(count: u8) -> Retries {
    if count == 7 {
        Retries::Unlimited
    } else {
        Retries::Limited(count)
    }
}

/// What peers are told to wait when no receive is posted: 0.08 ms.
const RNR_TIMER: u8 = 6;
