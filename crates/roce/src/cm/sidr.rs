//! Service ID resolution: which queue pair and key serve datagrams.
//!
//! IBA Vol. 1, 12.11. Two messages, either of which may be lost: the request is repeated, the answer
//! remembered for a while.

use std::collections::VecDeque;

use super::{Cm, CmError, CmEvent, Failure, Mad, Patience, Route, fits, timeout};
use crate::time::Instant;
use crate::wire::cm::{
    CommId, IpCm, Message, ServiceId, SidrRep, SidrReq, SidrStatus, private_data,
};
use crate::wire::{DEFAULT_PKEY, Qpn};

/// A resolution under way.
#[derive(Debug)]
pub(super) struct Sidr {
    route: Route,
    transaction: u64,
    stage: Stage,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    /// We ask.
    Asked {
        request: Box<Mad>,
        patience: Patience,
    },
    /// A peer asks.
    Asking {
        request: u32,
        service: ServiceId,
        answer: Option<Box<Mad>>,
    },
}

impl Cm {
    /// Asks which queue pair serves datagrams. The answer is [`CmEvent::Resolved`],
    /// [`CmEvent::ResolveRefused`] or [`CmEvent::Failed`]. At most 180 bytes of private data with the IP
    /// port spaces, else 216.
    ///
    /// # Errors
    /// [`CmError::PrivateDataTooLong`], [`CmError::MixedFamilies`].
    pub fn resolve(
        &mut self,
        now: Instant,
        route: Route,
        service: ServiceId,
        source_port: u16,
        application: &[u8],
    ) -> Result<CommId, CmError> {
        let route = route.canonical();
        let mut data = [0; 216];
        let room = if service.port().is_some() {
            let header = IpCm::new(route.local, source_port, route.remote)
                .map_err(|_| CmError::MixedFamilies)?;
            let (front, behind) = data.split_first_chunk_mut().expect("216 bytes hold 36");
            header.emit(front);
            behind
        } else {
            &mut data[..]
        };
        fits(application, room.len())?;
        room[..application.len()].copy_from_slice(application);

        let id = self.new_id();
        let transaction = self.random.next();
        let message = SidrReq {
            request: id.0,
            pkey: DEFAULT_PKEY,
            service,
            private_data: data,
        };
        let mad = self
            .outbox
            .send(route, transaction, &Message::SidrReq(message));
        let longest = timeout(self.config.response_timeout);
        let patience = Patience::new(&self.config, self.config.retries, longest);
        let stage = Stage::Asked {
            request: Box::new(mad),
            patience,
        };
        self.insert_sidr(id, route, transaction, stage, now + patience.interval);
        Ok(id)
    }

    /// Answers [`CmEvent::ResolveRequest`] with a queue pair and its key, or refuses; at most 136 bytes
    /// for the peer's application.
    ///
    /// # Errors
    /// [`CmError::Unknown`], [`CmError::WrongState`] when it is answered, [`CmError::PrivateDataTooLong`].
    pub fn resolve_reply(
        &mut self,
        now: Instant,
        id: CommId,
        answer: Result<(Qpn, u32), SidrStatus>,
        application: &[u8],
    ) -> Result<(), CmError> {
        fits(application, 136)?;
        let sidr = self.sidr.get_mut(&id).ok_or(CmError::Unknown(id))?;
        let Stage::Asking {
            request,
            service,
            answer: sent @ None,
        } = &mut sidr.stage
        else {
            return Err(CmError::WrongState(id));
        };
        let message = reply(*request, *service, answer, application);
        let mad = self
            .outbox
            .send(sidr.route, sidr.transaction, &Message::SidrRep(message));
        *sent = Some(Box::new(mad));
        // Remembered while the request may be repeated.
        self.timers.remove(&(sidr.deadline, id));
        sidr.deadline = now + self.config.timewait;
        self.timers.insert((sidr.deadline, id));
        Ok(())
    }

    pub(super) fn on_sidr_req(
        &mut self,
        now: Instant,
        route: Route,
        transaction: u64,
        req: &SidrReq,
    ) {
        let known = self.sidr.values().find(|sidr| {
            let Stage::Asking { request, .. } = sidr.stage else {
                return false;
            };
            request == req.request && sidr.route == route && sidr.transaction == transaction
        });
        if let Some(sidr) = known {
            self.outbox.counters.duplicates += 1;
            if let Stage::Asking {
                answer: Some(mad), ..
            } = &sidr.stage
            {
                self.outbox.repeat(route, mad);
            }
            return;
        }
        let refusal = if !self.services.contains(&req.service) {
            Some(SidrStatus::UnknownService)
        } else {
            None
        };
        let ip_cm = match req.service.port() {
            Some(_) => IpCm::parse(&req.private_data).map(|(ip, behind)| (Some(ip), behind)),
            None => Ok((None, &req.private_data[..])),
        };
        let (ip, application) = match (refusal, ip_cm) {
            (None, Ok(split)) => split,
            (refusal, _) => {
                let status = refusal.unwrap_or(SidrStatus::Rejected);
                let message = reply(req.request, req.service, Err(status), &[]);
                self.outbox
                    .send(route, transaction, &Message::SidrRep(message));
                return;
            }
        };
        self.make_room_for_sidr();
        let id = self.new_id();
        let event = CmEvent::ResolveRequest {
            id,
            route,
            service: req.service,
            ip,
            private_data: application.to_vec(),
        };
        self.events.push_back(event);
        let stage = Stage::Asking {
            request: req.request,
            service: req.service,
            answer: None,
        };
        // A slow application has as long as it may ask for elsewhere.
        let patience = timeout(self.config.service_timeout);
        self.insert_sidr(id, route, transaction, stage, now + patience);
    }

    /// Gives up a peer's request, any of them, if there are too many. It may ask again.
    fn make_room_for_sidr(&mut self) {
        let is_asking = |sidr: &&Sidr| matches!(sidr.stage, Stage::Asking { .. });
        let asking = self.sidr.values().filter(is_asking).count();
        if asking < self.config.max_half_open.max(1) {
            return;
        }
        let victim = self
            .sidr
            .iter()
            .find(|(_, sidr)| is_asking(sidr))
            .map(|(&id, _)| id);
        let victim = victim.expect("there are too many");
        self.outbox.counters.evicted += 1;
        self.forget_sidr(victim);
        forget_request(&mut self.events, victim);
    }

    pub(super) fn on_sidr_rep(&mut self, _now: Instant, route: Route, rep: &SidrRep) {
        let id = CommId(rep.request);
        let is_asked =
            |sidr: &Sidr| sidr.route == route && matches!(sidr.stage, Stage::Asked { .. });
        if !self.sidr.get(&id).is_some_and(is_asked) {
            self.outbox.counters.unexpected += 1;
            return;
        }
        self.forget_sidr(id);
        let private_data = rep.private_data.to_vec();
        self.events.push_back(match rep.status {
            SidrStatus::Valid => CmEvent::Resolved {
                id,
                qpn: rep.qpn,
                qkey: rep.qkey,
                private_data,
            },
            status => CmEvent::ResolveRefused {
                id,
                status,
                private_data,
            },
        });
    }

    pub(super) fn on_sidr_timeout(&mut self, now: Instant, id: CommId) {
        let Some(sidr) = self.sidr.get_mut(&id) else {
            return;
        };
        match &mut sidr.stage {
            Stage::Asked { request, patience } => {
                if let Some(wait) = patience.next() {
                    self.outbox.repeat(sidr.route, request);
                    sidr.deadline = now + wait;
                    self.timers.insert((sidr.deadline, id));
                } else {
                    self.forget_sidr(id);
                    self.events.push_back(CmEvent::Failed {
                        id,
                        why: Failure::Unreachable,
                    });
                }
            }
            Stage::Asking { answer, .. } => {
                let is_unanswered = answer.is_none();
                self.forget_sidr(id);
                if is_unanswered {
                    forget_request(&mut self.events, id);
                }
            }
        }
    }

    fn insert_sidr(
        &mut self,
        id: CommId,
        route: Route,
        transaction: u64,
        stage: Stage,
        deadline: Instant,
    ) {
        self.sidr.insert(
            id,
            Sidr {
                route,
                transaction,
                stage,
                deadline,
            },
        );
        self.timers.insert((deadline, id));
    }

    fn forget_sidr(&mut self, id: CommId) {
        if let Some(sidr) = self.sidr.remove(&id) {
            self.timers.remove(&(sidr.deadline, id));
        }
    }
}

/// A request that has expired before the application heard of it is not reported.
fn forget_request(events: &mut VecDeque<CmEvent>, id: CommId) {
    events.retain(
        |event| !matches!(event, CmEvent::ResolveRequest { id: expired, .. } if *expired == id),
    );
}

fn reply(
    request: u32,
    service: ServiceId,
    answer: Result<(Qpn, u32), SidrStatus>,
    application: &[u8],
) -> SidrRep {
    let (status, (qpn, qkey)) = match answer {
        Ok(served) => (SidrStatus::Valid, served),
        Err(status) => (status, (Qpn::new(0), 0)),
    };
    SidrRep {
        request,
        status,
        info_length: 0,
        qpn,
        service,
        qkey,
        info: [0; 72],
        private_data: private_data(application),
    }
}
