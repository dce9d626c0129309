//! The unreliable services: UC, a connection that drops a message with a lost packet, and UD, single packets to anyone.
//!
//! IBA Vol. 1, 9.8. Nothing is acknowledged; work completes when its last packet was sent. There is no flow
//! control either: whoever sends faster than the peer receives loses messages.

use crate::host::{Arrival, Host, Transmit};
use crate::verbs::{Completion, CompletionKind, Operation, SendFlags, SendWork, Status};
use crate::wire::grh::{Grh, Ipv4Form, Ipv6Form};
use crate::wire::{Deth, Headers, Immediate, Opcode, Operation as Packet, Psn};

use super::inbound::{Inbound, Refusal, Rules};
use super::link::{Link, local_payload, pad};
use super::send_queue::{Cursor, SendQueue};

const UDP_PROTOCOL: u8 = 17;
const DONT_FRAGMENT: u16 = 0x4000;

/// The sending half of both services.
#[derive(Debug)]
pub(super) struct Sender {
    queue: SendQueue,
    cursor: Cursor,
    psn: Psn,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            queue: SendQueue::new(),
            cursor: Cursor::default(),
            psn: Psn::default(),
        }
    }

    pub(super) fn start(&mut self, link: &Link) {
        self.psn = link.sq_psn;
        self.queue.set_psn(link.sq_psn);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn push(&mut self, link: &Link, work: &SendWork, failed: Option<Status>) {
        self.queue.push(link, work, failed);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.cursor.packet == 0
    }

    pub(super) fn flush(&mut self, link: &Link, host: &mut impl Host) {
        self.cursor = Cursor::default();
        while let Some(wqe) = self.queue.pop() {
            host.complete_send(Completion::of(
                wqe.work.wr_id,
                link.qpn,
                wqe.work.operation.completion_kind(),
                Status::Flushed,
            ));
        }
    }

    /// Sends while there is room. `Err` when a piece of work failed: it is completed, the rest is for the caller to flush.
    pub(super) fn transmit(
        &mut self,
        link: &Link,
        host: &mut impl Host,
        out: &mut impl Transmit,
        draining: bool,
    ) -> Result<(), ()> {
        while out.has_room() {
            if draining && self.cursor.packet == 0 {
                break;
            }
            if self.cursor.packet == 0 {
                self.queue.start(0);
            }
            let Some(wqe) = self.queue.front() else { break };
            let packet = self.cursor.packet;
            let sent = match (wqe.failed, &wqe.work.destination) {
                (Some(status), _) => Err(status),
                (None, Some(to)) => {
                    let mut headers = Headers::new(link.headers(Packet::SendOnly, self.psn).bth);
                    headers.bth.dest_qp = to.qpn;
                    headers.bth.opcode = Opcode::Ud(Packet::SendOnly);
                    if let Operation::SendWithImm(imm) = wqe.work.operation {
                        headers.bth.opcode = Opcode::Ud(Packet::SendOnlyImm);
                        headers.imm = Some(Immediate(imm));
                    }
                    headers.bth.solicited = wqe.work.flags.contains(SendFlags::SOLICITED);
                    headers.bth.pad = pad(wqe.length);
                    // IBA 10.2.5: a Q_Key with the top bit set stands for the queue pair's own.
                    let qkey = if to.qkey >> 31 == 1 {
                        link.qkey
                    } else {
                        to.qkey
                    };
                    headers.deth = Some(Deth {
                        qkey,
                        source_qp: link.qpn,
                    });
                    out.send(
                        &to.path,
                        &headers,
                        local_payload(&wqe.work.local, 0, wqe.length),
                    )
                    .map_err(|_| Status::LocalProtection)
                }
                (None, None) => {
                    let (headers, payload) = link.request(wqe, packet, 1, false);
                    let Some(path) = &link.path else { break };
                    out.send(path, &headers, payload)
                        .map_err(|_| Status::LocalProtection)
                }
            };
            if sent.is_ok() {
                self.psn = self.psn.next();
                self.cursor.packet += 1;
                if self.cursor.packet < wqe.packets {
                    continue;
                }
            }
            self.cursor.packet = 0;
            let status = sent.err().unwrap_or(Status::Success);
            let wqe = self.queue.pop().expect("it was at the front");
            if wqe.is_signaled() || status != Status::Success {
                let kind = wqe.work.operation.completion_kind();
                host.complete_send(Completion::of(wqe.work.wr_id, link.qpn, kind, status));
            }
            sent.map_err(|_| ())?;
        }
        Ok(())
    }
}

/// The receiving half of UC.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    expected: Psn,
    pub(super) inbound: Inbound,
    pub(super) heard: bool,
    pub(super) dropped: u64,
}

impl Receiver {
    pub(super) fn start(&mut self, link: &Link) {
        self.expected = link.rq_psn;
    }

    /// A packet of the peer. `Err` when our own receive could not take it: the queue pair is in error.
    pub(super) fn handle_connected(
        &mut self,
        link: &Link,
        packet: Packet,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) -> Result<(), ()> {
        let psn = headers.bth.psn;
        // IBA 9.8.2.1: a gap ends the message; the next one begins anew.
        if psn != self.expected || packet.starts_message() {
            self.dropped += u64::from(self.inbound.is_under_way());
            self.inbound.abandon();
        }
        self.expected = psn.next();
        if !packet.starts_message() && !self.inbound.is_under_way() {
            return Ok(());
        }
        let rules = Rules {
            qpn: link.qpn,
            mtu: link.mtu(),
            access: link.access,
            parts: false,
        };
        match self.inbound.accept(rules, packet, headers, payload, host) {
            Ok(_) => Ok(()),
            Err(Refusal::TooLongForReceive | Refusal::LocalFault) => Err(()),
            Err(Refusal::NotReady | Refusal::InvalidRequest | Refusal::RemoteAccess) => {
                self.dropped += 1;
                self.inbound.abandon();
                Ok(())
            }
        }
    }

    /// A datagram: 40 bytes of addressing, then its payload, into the next receive. Whatever does not fit is dropped.
    pub(super) fn handle_datagram(
        &mut self,
        link: &Link,
        arrival: &Arrival,
        headers: &Headers,
        payload: &[u8],
        host: &mut impl Host,
    ) {
        let (Some(deth), Some(grh)) = (headers.deth, grh_of(arrival)) else {
            return;
        };
        if deth.qkey != link.qkey || payload.len() > link.mtu() as usize {
            self.dropped += 1;
            return;
        }
        let Some(recv) = host.take_recv() else {
            self.dropped += 1;
            return;
        };
        let length = (Grh::LEN + payload.len()) as u64;
        let mut front = [0; Grh::LEN];
        grh.emit(&mut front);
        let status = if length > recv.sges.total() {
            Status::LocalLength
        } else if host.scatter(&recv.sges, 0, &front).is_err()
            || (!payload.is_empty() && host.scatter(&recv.sges, Grh::LEN as u64, payload).is_err())
        {
            Status::LocalProtection
        } else {
            Status::Success
        };
        host.complete_recv(Completion {
            byte_len: length as u32,
            imm: headers.imm.map(|imm| imm.0),
            source_qpn: deth.source_qp,
            has_grh: true,
            solicited: headers.bth.solicited,
            ..Completion::of(recv.wr_id, link.qpn, CompletionKind::Recv, status)
        });
    }
}

/// The IP header of `arrival`, as far as a UDP socket tells it; `None` for mixed families.
fn grh_of(arrival: &Arrival) -> Option<Grh> {
    use std::net::IpAddr::{V4, V6};
    match (arrival.source, arrival.destination) {
        (V4(source), V4(destination)) => Some(Grh::V4(Ipv4Form {
            tos: arrival.traffic_class,
            total_length: arrival.udp_length.saturating_add(20),
            identification: 0,
            flags_and_offset: DONT_FRAGMENT,
            ttl: arrival.hop_limit,
            protocol: UDP_PROTOCOL,
            source,
            destination,
        })),
        (V6(source), V6(destination)) => Some(Grh::V6(Ipv6Form {
            traffic_class: arrival.traffic_class,
            flow_label: 0,
            payload_length: arrival.udp_length,
            next_header: UDP_PROTOCOL,
            hop_limit: arrival.hop_limit,
            source,
            destination,
        })),
        _ => None,
    }
}
