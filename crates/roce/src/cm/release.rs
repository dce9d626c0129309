//! How connections end: released, refused, or given up.
//!
//! IBA Vol. 1, 12.9.8. A peer's DREQ is answered at once, without asking the application: there is nothing
//! that it could object.

use super::connection::State;
use super::{Cm, CmError, CmEvent, Patience, Route, timeout};
use crate::time::Instant;
use crate::wire::cm::{Answered, CommId, Drep, Dreq, Message, Rej, RejectReason};
use crate::wire::{Guid, Qpn, WireError};

impl Cm {
    /// Ends a connection, or an attempt at one. An established connection ends with
    /// [`CmEvent::Disconnected`] and then [`CmEvent::Closed`]; the id of an attempt is forgotten at once.
    ///
    /// # Errors
    /// [`CmError::Unknown`], [`CmError::WrongState`] when it is ending already.
    pub fn disconnect(&mut self, now: Instant, id: CommId) -> Result<(), CmError> {
        let connection = self.connection(id)?;
        match connection.state {
            State::ReqSent => {
                let (route, transaction) = (connection.route, connection.transaction);
                self.send_timeout_reject(route, transaction, id, CommId(0));
                self.forget(id);
                Ok(())
            }
            State::ReqReceived | State::RepReceived => {
                self.reject(now, id, RejectReason::Consumer, &[])
            }
            // IBA 12.9.8: also when RTU has not come, for it may have been lost.
            State::RepSent | State::Established => {
                self.release(now, id);
                Ok(())
            }
            State::DreqSent | State::Timewait { .. } => Err(CmError::WrongState(id)),
        }
    }

    pub(super) fn release(&mut self, now: Instant, id: CommId) {
        self.leave_half_open(id);
        let transaction = self.random.next();
        let connection = self
            .connections
            .get_mut(&id)
            .expect("the caller has looked");
        connection.state = State::DreqSent;
        connection.transaction = transaction;
        let dreq = Dreq {
            local: id,
            remote: connection.remote,
            remote_qpn: connection.remote_qpn.unwrap_or(Qpn::new(0)),
            private_data: [0; 220],
        };
        let longest = timeout(self.config.response_timeout);
        let patience = Patience::new(&self.config, self.config.retries, longest);
        self.send_until_answered(now, id, &Message::Dreq(dreq), patience);
    }

    pub(super) fn on_dreq(&mut self, now: Instant, route: Route, transaction: u64, dreq: &Dreq) {
        let id = dreq.remote;
        let drep = Message::Drep(Drep {
            local: id,
            remote: dreq.local,
            private_data: [0; 224],
        });
        let Some(connection) = self.named(route, (id, dreq.local)) else {
            // Nothing to release: the peer need not wait for us.
            self.outbox.counters.unexpected += 1;
            self.outbox.send(route, transaction, &drep);
            return;
        };
        let state = connection.state;
        match state {
            State::RepSent | State::RepReceived | State::Established | State::DreqSent => {
                connection.sent = None;
                if state == State::RepSent {
                    // RTU was lost: who releases has been connected.
                    self.become_established(id);
                }
                self.outbox.send(route, transaction, &drep);
                self.events.push_back(CmEvent::Disconnected { id });
                self.enter_timewait(now, id, true);
            }
            State::Timewait { .. } => {
                self.outbox.counters.duplicates += 1;
                self.outbox.send(route, transaction, &drep);
            }
            State::ReqSent | State::ReqReceived => self.outbox.counters.unexpected += 1,
        }
    }

    pub(super) fn on_drep(&mut self, now: Instant, route: Route, drep: &Drep) {
        match self
            .named(route, (drep.remote, drep.local))
            .map(|connection| connection.state)
        {
            Some(State::DreqSent) => {
                self.events
                    .push_back(CmEvent::Disconnected { id: drep.remote });
                self.enter_timewait(now, drep.remote, true);
            }
            Some(State::Timewait { .. }) => self.outbox.counters.duplicates += 1,
            _ => self.outbox.counters.unexpected += 1,
        }
    }

    pub(super) fn on_rej(&mut self, now: Instant, route: Route, rej: &Rej) {
        let Some(id) = self.rejected(route, rej) else {
            self.outbox.counters.unexpected += 1;
            return;
        };
        let rejected = CmEvent::Rejected {
            id,
            reason: rej.reason,
            private_data: rej.private_data.to_vec(),
        };
        match self.connections[&id].state {
            State::ReqSent | State::RepReceived => {
                self.events.push_back(rejected);
                self.forget(id);
            }
            State::ReqReceived | State::RepSent => {
                self.events.push_back(rejected);
                self.connections.get_mut(&id).expect("just seen").sent = None;
                self.enter_timewait(now, id, false);
            }
            // The peer does not know the connection any more.
            State::Established | State::DreqSent => {
                self.events.push_back(CmEvent::Disconnected { id });
                self.enter_timewait(now, id, true);
            }
            State::Timewait { .. } => self.outbox.counters.duplicates += 1,
        }
    }

    /// The connection that a rejection is of.
    fn rejected(&self, route: Route, rej: &Rej) -> Option<CommId> {
        let id = if rej.remote == CommId(0) && rej.reason == RejectReason::Timeout {
            // The peer has had no answer, so it knows no name of ours: it gives its GUID.
            *self
                .by_request
                .get(&(route.remote, announced_guid(rej).ok()?, rej.local))?
        } else {
            rej.remote
        };
        let connection = self.connections.get(&id)?;
        let is_named = match connection.state {
            // Who refuses a request may not have given the connection a name.
            State::ReqSent => rej.answered != Answered::Rep,
            _ => connection.remote == rej.local,
        };
        (connection.route == route && is_named).then_some(id)
    }
}

/// The CA GUID in the additional information of a rejection for timeout.
fn announced_guid(rej: &Rej) -> Result<Guid, WireError> {
    let guid = rej.info.first_chunk().ok_or(WireError::NotA("CA GUID"))?;
    Ok(Guid(u64::from_be_bytes(*guid)))
}
