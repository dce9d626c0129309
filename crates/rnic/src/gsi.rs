//! Queue pair 1, the general services interface: management datagrams in and out.
//!
//! IBA Vol. 1, 13.5. Connection management goes to the manager of [`roce::cm`], which has no socket and no clock;
//! what it tells is handed to the channels of whoever listens or asked. Everything runs under the core lock.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use roce::cm::{AcceptParams, Cm, CmError, CmEvent, ConnectParams, Mad, Route};
use roce::time::Instant;
use roce::wire::cm::{CommId, RejectReason, ServiceId, SidrStatus};
use roce::wire::extension::{Hello, Offer};
use roce::wire::mad::MadHeader;
use roce::wire::{Bth, Deth, Headers, MAX_HEADERS, Opcode, Operation, Psn, Qpn};

use crate::cm::ChannelShared;
use crate::udp::Burst;
use crate::udp::burst::{Destination, Source};

/// The state behind queue pair 1.
pub(crate) struct Gsi {
    ip: IpAddr,
    cm: Cm,
    listeners: HashMap<ServiceId, Arc<ChannelShared>>,
    connections: HashMap<CommId, Connection>,
    /// Datagrams to send.
    outbox: VecDeque<(IpAddr, Mad)>,
    psn: Psn,
    /// What the core has to do; see [`Consequence`].
    consequences: VecDeque<Consequence>,
}

/// Whom a connection's events are for, and its queue pair, once known.
struct Connection {
    channel: Arc<ChannelShared>,
    qpn: Option<Qpn>,
}

/// Something that concerns a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consequence {
    /// A connection awaits its peer's word; data that comes first is as good.
    AwaitsData(Qpn, CommId),
    /// A connection is up; the peer may offer extensions.
    Established(Qpn, Option<Offer>),
    /// A peer says hello.
    Hello(IpAddr, Hello),
}

impl Gsi {
    /// Nothing to do.
    pub(crate) fn new(ip: IpAddr, cm: Cm) -> Self {
        Self {
            ip,
            cm,
            listeners: HashMap::new(),
            connections: HashMap::new(),
            outbox: VecDeque::new(),
            psn: Psn::default(),
            consequences: VecDeque::new(),
        }
    }

    /// A datagram for queue pair 1. What is not for us is ignored; whether it was taken.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        from: IpAddr,
        headers: &Headers,
        payload: &[u8],
    ) -> bool {
        let is_ours = headers.deth.is_some_and(|deth| deth.qkey == Deth::GSI_QKEY);
        let Ok((mad, _)) = MadHeader::parse(payload) else {
            return false;
        };
        match mad.class {
            _ if !is_ours => false,
            MadHeader::CLASS_CM => {
                self.cm.handle_mad(
                    now,
                    Route {
                        local: self.ip,
                        remote: from,
                    },
                    payload,
                );
                self.settle();
                true
            }
            Hello::CLASS => match Hello::parse(payload) {
                Ok(hello) => {
                    self.consequences.push_back(Consequence::Hello(from, hello));
                    true
                }
                Err(_) => false,
            },
            _ => false,
        }
    }

    /// Sends what is to be sent, as far as there is room.
    #[inline]
    pub(crate) fn fill(&mut self, burst: &mut Burst) {
        if !self.outbox.is_empty() {
            self.empty_outbox(burst);
        }
    }

    #[cold]
    fn empty_outbox(&mut self, burst: &mut Burst) {
        while burst.has_room() {
            let Some((to, mad)) = self.outbox.pop_front() else {
                return;
            };
            let mut bth = Bth::new(Opcode::Ud(Operation::SendOnly), Qpn::GSI, self.psn);
            bth.migrated = true;
            self.psn = self.psn.next();
            let mut headers = Headers::new(bth);
            headers.deth = Some(Deth {
                qkey: Deth::GSI_QKEY,
                source_qp: Qpn::GSI,
            });
            let mut bytes = [0; MAX_HEADERS];
            let len = headers.emit(&mut bytes);
            let to = Destination {
                ip: to,
                traffic_class: 0,
            };
            if to.ip.is_ipv4() == self.ip.is_ipv4() {
                // SAFETY: the bytes are copied.
                let pushed = unsafe { burst.push(to, &bytes[..len], Source::Bytes(&mad)) };
                debug_assert!(pushed.is_ok(), "bytes can always be read");
            }
        }
    }

    /// Sends a hello.
    pub(crate) fn say(&mut self, to: IpAddr, hello: &Hello) {
        // A peer that asks faster than we answer waits for its own timeout.
        if self.outbox.len() < OUTBOX {
            let mut mad = [0; roce::wire::mad::MAD_LEN];
            hello.emit(&mut mad);
            self.outbox.push_back((to, mad));
        }
    }

    /// What the core has to do.
    pub(crate) fn next_consequence(&mut self) -> Option<Consequence> {
        self.consequences.pop_front()
    }

    /// Whether something is to be sent or to be seen to.
    pub(crate) fn has_work(&self) -> bool {
        !self.outbox.is_empty() || !self.consequences.is_empty()
    }

    /// When [`Gsi::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.cm.poll_timeout()
    }

    /// Does what is due; whether anything was.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.cm.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.cm.handle_timeout(now);
            self.settle();
        }
        due
    }

    /// Takes requests for `service` on behalf of `channel`.
    pub(crate) fn listen(
        &mut self,
        service: ServiceId,
        channel: &Arc<ChannelShared>,
    ) -> Result<(), CmError> {
        self.cm.listen(service)?;
        self.listeners.insert(service, Arc::clone(channel));
        Ok(())
    }

    /// Refuses requests for `service` from now on.
    pub(crate) fn unlisten(&mut self, service: ServiceId) {
        self.cm.unlisten(service);
        self.listeners.remove(&service);
    }

    /// Asks for a connection; its events go to `channel`.
    pub(crate) fn connect(
        &mut self,
        now: Instant,
        params: &ConnectParams,
        channel: &Arc<ChannelShared>,
    ) -> Result<CommId, CmError> {
        let id = self.cm.connect(now, params)?;
        let qpn = Some(params.end.qpn);
        self.connections.insert(
            id,
            Connection {
                channel: Arc::clone(channel),
                qpn,
            },
        );
        self.settle();
        Ok(id)
    }

    /// Accepts a request.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        id: CommId,
        params: &AcceptParams,
    ) -> Result<(), CmError> {
        self.cm.accept(now, id, params)?;
        let qpn = params.end.qpn;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.qpn = Some(qpn);
        }
        self.consequences
            .push_back(Consequence::AwaitsData(qpn, id));
        self.settle();
        Ok(())
    }

    /// Says that a connection is up.
    pub(crate) fn establish(&mut self, id: CommId) -> Result<(), CmError> {
        let established = self.cm.establish(id);
        self.settle();
        established
    }

    /// Refuses a request or a reply.
    pub(crate) fn reject(
        &mut self,
        now: Instant,
        id: CommId,
        reason: RejectReason,
        data: &[u8],
    ) -> Result<(), CmError> {
        let rejected = self.cm.reject(now, id, reason, data);
        if rejected.is_ok() {
            self.connections.remove(&id);
        }
        self.settle();
        rejected
    }

    /// Ends a connection or an attempt.
    pub(crate) fn disconnect(&mut self, now: Instant, id: CommId) -> Result<(), CmError> {
        let ended = self.cm.disconnect(now, id);
        self.settle();
        ended
    }

    /// Asks which queue pair serves datagrams.
    pub(crate) fn resolve(
        &mut self,
        now: Instant,
        route: Route,
        service: ServiceId,
        source_port: u16,
        data: &[u8],
        channel: &Arc<ChannelShared>,
    ) -> Result<CommId, CmError> {
        let id = self.cm.resolve(now, route, service, source_port, data)?;
        self.connections.insert(
            id,
            Connection {
                channel: Arc::clone(channel),
                qpn: None,
            },
        );
        self.settle();
        Ok(id)
    }

    /// Answers who asks for a datagram queue pair.
    pub(crate) fn resolve_reply(
        &mut self,
        now: Instant,
        id: CommId,
        answer: Result<(Qpn, u32), SidrStatus>,
        data: &[u8],
    ) -> Result<(), CmError> {
        let replied = self.cm.resolve_reply(now, id, answer, data);
        self.settle();
        replied
    }

    /// A channel is gone: its connections end, its requests are refused.
    pub(crate) fn forget(&mut self, now: Instant, channel: &Arc<ChannelShared>) {
        let theirs: Vec<CommId> = self
            .connections
            .iter()
            .filter(|(_, connection)| Arc::ptr_eq(&connection.channel, channel))
            .map(|(id, _)| *id)
            .collect();
        for id in theirs {
            if self
                .cm
                .reject(now, id, RejectReason::Consumer, &[])
                .is_err()
            {
                // Not one that can be refused: one to be ended, or one that is ending.
                let _ = self.cm.disconnect(now, id);
            }
        }
        self.settle();
        self.connections
            .retain(|_, connection| !Arc::ptr_eq(&connection.channel, channel));
    }

    /// Hands out what the connection manager tells and sends.
    fn settle(&mut self) {
        while let Some((route, mad)) = self.cm.poll_transmit() {
            self.outbox.push_back((route.remote, mad));
        }
        while let Some(event) = self.cm.poll_event() {
            let (id, ends) = match &event {
                CmEvent::ConnectRequest { id, request } => {
                    self.adopt(*id, request.service);
                    (*id, false)
                }
                CmEvent::ResolveRequest { id, service, .. } => {
                    self.adopt(*id, *service);
                    (*id, false)
                }
                CmEvent::ConnectReply { id, .. } | CmEvent::Disconnected { id } => (*id, false),
                CmEvent::Established { id, offer } => {
                    let qpn = self
                        .connections
                        .get(id)
                        .and_then(|connection| connection.qpn);
                    if let Some(qpn) = qpn {
                        self.consequences
                            .push_back(Consequence::Established(qpn, *offer));
                    }
                    (*id, false)
                }
                CmEvent::Rejected { id, .. }
                | CmEvent::Failed { id, .. }
                | CmEvent::Closed { id }
                | CmEvent::Resolved { id, .. }
                | CmEvent::ResolveRefused { id, .. } => (*id, true),
            };
            if let Some(connection) = self.connections.get(&id) {
                connection.channel.push(event);
            }
            if ends {
                self.connections.remove(&id);
            }
        }
    }

    /// A request's events are for who listens to its service.
    fn adopt(&mut self, id: CommId, service: ServiceId) {
        if let Some(channel) = self.listeners.get(&service) {
            self.connections.insert(
                id,
                Connection {
                    channel: Arc::clone(channel),
                    qpn: None,
                },
            );
        }
    }
}

const OUTBOX: usize = 256;
