//! Puts the packets of one incoming SEND or WRITE message where they belong. Serves RC and UC.
//!
//! IBA 9.7.4.1 (request packet validation, after the PSN was accepted). What a refusal means on the wire is
//! the responder's business, or nobody's on an unreliable connection.

use crate::host::Host;
use crate::verbs::{Access, Completion, CompletionKind, RecvWork, Status};
use crate::wire::{Headers, Key, Operation as Packet, Qpn};

/// Longest message, in bytes (IBA 9.7.4.1.6).
pub(crate) const MAX_MESSAGE: u64 = 1 << 31;

/// Why a packet of a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No receive is posted. Nothing was changed: the same packet may come again.
    NotReady,
    /// Out of sequence, of a wrong length, longer than announced, or not permitted on this queue pair.
    InvalidRequest,
    /// The key does not permit it.
    RemoteAccess,
    /// The message does not fit our receive, whose completion says so.
    TooLongForReceive,
    /// Our receive's own memory could not be written; its completion says so.
    LocalFault,
}

/// What of the queue pair a packet is judged by.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) qpn: Qpn,
    pub(super) mtu: u32,
    pub(super) access: Access,
    /// WRITEs in parts are taken.
    pub(super) parts: bool,
}

/// The message that is under way.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    message: Message,
    /// Taken from the queue for the message under way, or left over from one that was abandoned.
    recv: RecvWork,
    holds_recv: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Message {
    #[default]
    None,
    Send {
        received: u64,
    },
    Write {
        rkey: Key,
        va: u64,
        length: u64,
        received: u64,
    },
}

impl Inbound {
    /// Takes the next packet, a SEND or a WRITE. `Ok(true)` when it ended its message.
    pub(super) fn accept(
        &mut self,
        rules: Rules,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<bool, Refusal> {
        let length = payload.len() as u64;
        let mtu = u64::from(rules.mtu);
        let length_fits = match (packet.starts_message(), packet.ends_message()) {
            (_, false) => length == mtu,
            (false, true) => (1..=mtu).contains(&length),
            (true, true) => length <= mtu,
        };
        if !length_fits || packet.starts_message() == self.is_under_way() {
            return Err(Refusal::InvalidRequest);
        }
        if packet.is_write() {
            self.accept_write(rules, packet, headers, payload, host)
        } else {
            self.accept_send(rules, packet, headers, payload, host)
        }
    }

    fn accept_send(
        &mut self,
        rules: Rules,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<bool, Refusal> {
        let received = match self.message {
            Message::None => 0,
            Message::Send { received } => received,
            Message::Write { .. } => return Err(Refusal::InvalidRequest),
        };
        if !self.take_recv(host) {
            return Err(Refusal::NotReady);
        }
        let end = received + payload.len() as u64;
        if end > self.recv.sges.total() {
            self.complete(rules.qpn, CompletionKind::Recv, Status::LocalLength, host);
            return Err(Refusal::TooLongForReceive);
        }
        if !payload.is_empty() && host.scatter(&self.recv.sges, received, payload).is_err() {
            self.complete(
                rules.qpn,
                CompletionKind::Recv,
                Status::LocalProtection,
                host,
            );
            return Err(Refusal::LocalFault);
        }
        if !packet.ends_message() {
            self.message = Message::Send { received: end };
            return Ok(false);
        }
        let invalidated = headers.ieth.map(|ieth| ieth.rkey);
        if let Some(rkey) = invalidated
            && host.invalidate(rkey).is_err()
        {
            self.complete(
                rules.qpn,
                CompletionKind::Recv,
                Status::LocalProtection,
                host,
            );
            return Err(Refusal::RemoteAccess);
        }
        self.succeed(rules.qpn, CompletionKind::Recv, end, headers, host);
        Ok(true)
    }

    fn accept_write(
        &mut self,
        rules: Rules,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<bool, Refusal> {
        let (rkey, va, length, received) = match (self.message, headers.reth) {
            (
                Message::Write {
                    rkey,
                    va,
                    length,
                    received,
                },
                _,
            ) => (rkey, va, length, received),
            (Message::None, Some(reth)) => {
                let length = u64::from(reth.length);
                if !rules.access.contains(Access::REMOTE_WRITE) || length > MAX_MESSAGE {
                    return Err(Refusal::InvalidRequest);
                }
                // IBA C9-88: a zero-length request's key and address are not checked.
                if length != 0
                    && host
                        .check_remote(reth.rkey, reth.va, length, Access::REMOTE_WRITE)
                        .is_err()
                {
                    return Err(Refusal::RemoteAccess);
                }
                (reth.rkey, reth.va, length, 0)
            }
            _ => return Err(Refusal::InvalidRequest),
        };
        let end = received + payload.len() as u64;
        let is_part = rules.parts
            && packet == Packet::WriteOnly
            && end < length
            && payload.len() as u32 == rules.mtu;
        if end > length || (packet.ends_message() && end != length && !is_part) {
            return Err(Refusal::InvalidRequest);
        }
        // The receive comes before the bytes, so that a refused packet leaves no trace.
        if headers.imm.is_some() && !self.take_recv(host) {
            return Err(Refusal::NotReady);
        }
        if !payload.is_empty()
            && host
                .place(rkey, va.wrapping_add(received), payload)
                .is_err()
        {
            return Err(Refusal::RemoteAccess);
        }
        if !packet.ends_message() {
            self.message = Message::Write {
                rkey,
                va,
                length,
                received: end,
            };
            return Ok(false);
        }
        self.message = Message::None;
        if is_part {
            return Ok(false);
        }
        if headers.imm.is_some() {
            self.succeed(
                rules.qpn,
                CompletionKind::RecvWriteWithImm,
                end,
                headers,
                host,
            );
        }
        Ok(true)
    }

    /// Where the `ahead`-th packet from here lands, when it surely is a middle packet of the WRITE under way:
    /// key and address. The last packet never qualifies.
    pub(super) fn middle_ahead(&self, mtu: u32, ahead: u32) -> Option<(Key, u64)> {
        let Message::Write {
            rkey,
            va,
            length,
            received,
        } = self.message
        else {
            return None;
        };
        let start = received + u64::from(ahead) * u64::from(mtu);
        (start + u64::from(mtu) < length).then_some((rkey, va.wrapping_add(start)))
    }

    /// Counts a middle packet of the WRITE under way that was placed ahead of its turn.
    pub(super) fn count_placed(&mut self, mtu: u32) {
        if let Message::Write { received, .. } = &mut self.message {
            *received += u64::from(mtu);
        }
    }

    /// Whether a message is under way.
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.message, Message::None)
    }

    /// Forgets the message under way; its receive serves the next one (unreliable connections).
    pub(super) fn abandon(&mut self) {
        self.message = Message::None;
    }

    /// Flushes the receive that is held, if one is.
    pub(super) fn flush(&mut self, qpn: Qpn, host: &mut impl Host) {
        self.message = Message::None;
        if self.holds_recv {
            self.complete(qpn, CompletionKind::Recv, Status::Flushed, host);
        }
    }

    fn take_recv(&mut self, host: &mut impl Host) -> bool {
        if !self.holds_recv
            && let Some(recv) = host.take_recv()
        {
            self.recv = recv;
            self.holds_recv = true;
        }
        self.holds_recv
    }

    fn succeed(
        &mut self,
        qpn: Qpn,
        kind: CompletionKind,
        length: u64,
        headers: &Headers,
        host: &mut impl Host,
    ) {
        self.message = Message::None;
        self.holds_recv = false;
        host.complete_recv(Completion {
            byte_len: length as u32,
            imm: headers.imm.map(|imm| imm.0),
            invalidated: headers.ieth.map(|ieth| ieth.rkey),
            solicited: headers.bth.solicited,
            ..Completion::of(self.recv.wr_id, qpn, kind, Status::Success)
        });
    }

    fn complete(&mut self, qpn: Qpn, kind: CompletionKind, status: Status, host: &mut impl Host) {
        self.message = Message::None;
        self.holds_recv = false;
        host.complete_recv(Completion::of(self.recv.wr_id, qpn, kind, status));
    }
}
