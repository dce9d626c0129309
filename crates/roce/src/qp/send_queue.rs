//! The send queue: work in posting order with the PSNs that each piece occupies.
//!
//! A SEND or WRITE occupies one PSN a packet; a READ as many as its responses have packets; an atomic one
//! (IBA 9.7.2). PSNs are given out when work is started, so a PSN in flight always leads back to its work and
//! all PSNs in use lie close together, however much is posted.

use std::collections::VecDeque;

use crate::verbs::{SendFlags, SendWork, Status};
use crate::wire::Psn;

use super::link::Link;

/// A piece of work and its PSNs.
#[derive(Debug)]
pub(super) struct Wqe {
    pub(super) work: SendWork,
    pub(super) first: Psn,
    pub(super) packets: u32,
    pub(super) length: u32,
    /// Each packet names its place ([`super::link::Link::is_in_parts`]).
    pub(super) in_parts: bool,
    /// Packets that a READ request of it asks for, at most ([`super::link::Link::read_chunk`]).
    pub(super) chunk: u32,
    /// It cannot be carried out; it fails when its turn to complete comes.
    pub(super) failed: Option<Status>,
}

impl Wqe {
    /// The PSN after the last.
    #[inline]
    pub(super) fn end(&self) -> Psn {
        self.first + self.packets
    }

    #[inline]
    pub(super) fn has_response(&self) -> bool {
        self.work.operation.has_response()
    }

    #[inline]
    pub(super) fn is_signaled(&self) -> bool {
        self.work.flags.contains(SendFlags::SIGNALED)
    }

    /// Bytes of the message before packet `index`.
    #[inline]
    pub(super) fn bytes_before(&self, index: u32, mtu: u32) -> u32 {
        (u64::from(index) * u64::from(mtu)).min(u64::from(self.length)) as u32
    }
}

/// A packet of the queue: the work's place counted from the oldest, and the packet within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) index: usize,
    pub(super) packet: u32,
}

#[derive(Debug)]
pub(super) struct SendQueue {
    queue: VecDeque<Wqe>,
    /// How many, from the oldest on, have their PSNs.
    started: usize,
    next_psn: Psn,
}

impl SendQueue {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            started: 0,
            next_psn: Psn::default(),
        }
    }

    /// The first PSN to give out.
    pub(super) fn set_psn(&mut self, psn: Psn) {
        self.next_psn = psn;
    }

    pub(super) fn push(&mut self, link: &Link, work: SendWork, failed: Option<Status>) {
        let length = work.local.total().min(u64::from(u32::MAX)) as u32;
        let packets = if work.operation.is_atomic() {
            1
        } else {
            length.div_ceil(link.mtu()).max(1)
        };
        self.queue.push_back(Wqe {
            in_parts: link.is_in_parts(&work, packets),
            chunk: match work.operation.has_response() {
                true => link.read_chunk(),
                false => 1,
            },
            work,
            first: Psn::default(),
            packets,
            length,
            failed,
        });
    }

    /// Gives the work at `index` its PSNs, when all before it have theirs.
    pub(super) fn start(&mut self, index: usize) {
        if index == self.started
            && let Some(wqe) = self.queue.get_mut(index)
        {
            wqe.first = self.next_psn;
            self.next_psn = wqe.end();
            self.started += 1;
        }
    }

    #[inline]
    pub(super) fn front(&self) -> Option<&Wqe> {
        self.queue.front()
    }

    /// Forgets the oldest, where it lies: a work is some hundred bytes long.
    #[inline]
    pub(super) fn drop_front(&mut self) {
        self.started = self.started.saturating_sub(1);
        self.queue.pop_front();
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Wqe> {
        self.started = self.started.saturating_sub(1);
        self.queue.pop_front()
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Wqe> {
        self.queue.get(index)
    }

    pub(super) fn fail(&mut self, index: usize, status: Status) {
        if let Some(wqe) = self.queue.get_mut(index) {
            wqe.failed = Some(status);
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The packet that has `psn`: one that was given out and whose work is still queued, or the next.
    pub(super) fn locate(&self, psn: Psn) -> Cursor {
        // Almost always it belongs to the oldest.
        let index = match self.queue.front() {
            Some(front) if psn.since(front.end()) < 0 => 0,
            _ => {
                let (mut from, mut to) = (1.min(self.started), self.started);
                while from < to {
                    let middle = usize::midpoint(from, to);
                    if psn.since(self.queue[middle].end()) < 0 {
                        to = middle;
                    } else {
                        from = middle + 1;
                    }
                }
                from
            }
        };
        let packet = match self.queue.get(index) {
            Some(wqe) if index < self.started => psn.since(wqe.first).max(0) as u32,
            _ => 0,
        };
        Cursor { index, packet }
    }
}
