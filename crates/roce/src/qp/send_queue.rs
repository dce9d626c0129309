//! The send queue: work in posting order with the PSNs that each piece occupies.
//!
//! A SEND or WRITE occupies one PSN a packet; a READ as many as its responses have packets; an atomic one
//! (IBA 9.7.2). PSNs are given out when work is started, so a PSN in flight always leads back to its work and
//! all PSNs in use lie close together, however much is posted.

use crate::verbs::{SendFlags, SendWork, Status};
use crate::wire::Psn;

use super::link::Link;

/// A piece of work and its PSNs.
#[derive(Clone, Debug)]
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
    const EMPTY: Self = Self {
        work: SendWork::EMPTY,
        first: Psn::new(0),
        packets: 0,
        length: 0,
        in_parts: false,
        chunk: 0,
        failed: None,
    };

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
    /// A ring, as long as a power of two. What was in a place stays there to be overwritten: a work is some hundred bytes
    /// long, of which few are used.
    ring: Vec<Wqe>,
    head: usize,
    len: usize,
    /// How many, from the oldest on, have their PSNs.
    started: usize,
    next_psn: Psn,
}

impl SendQueue {
    pub(super) fn new() -> Self {
        Self {
            ring: Vec::new(),
            head: 0,
            len: 0,
            started: 0,
            next_psn: Psn::default(),
        }
    }

    /// The first PSN to give out.
    pub(super) fn set_psn(&mut self, psn: Psn) {
        self.next_psn = psn;
    }

    pub(super) fn push(&mut self, link: &Link, work: &SendWork, failed: Option<Status>) {
        let length = work.local.total().min(u64::from(u32::MAX)) as u32;
        let packets = if work.operation.is_atomic() {
            1
        } else {
            length.div_ceil(link.mtu()).max(1)
        };
        if self.len == self.ring.len() {
            self.grow();
        }
        let place = self.place(self.len);
        self.len += 1;
        let wqe = &mut self.ring[place];
        wqe.work.assign(work);
        wqe.first = Psn::default();
        wqe.packets = packets;
        wqe.length = length;
        wqe.in_parts = link.is_in_parts(work, packets);
        wqe.chunk = match work.operation.has_response() {
            true => link.read_chunk(),
            false => 1,
        };
        wqe.failed = failed;
    }

    #[cold]
    fn grow(&mut self) {
        self.ring.rotate_left(self.head);
        self.head = 0;
        let longer = (2 * self.ring.len()).max(SHORTEST);
        self.ring.resize(longer, Wqe::EMPTY);
    }

    /// Where the work at `index`, counted from the oldest, lies in the ring, which is not empty.
    #[inline]
    fn place(&self, index: usize) -> usize {
        self.head.wrapping_add(index) & (self.ring.len() - 1)
    }

    #[inline]
    fn get_mut(&mut self, index: usize) -> Option<&mut Wqe> {
        if index >= self.len {
            return None;
        }
        let place = self.place(index);
        self.ring.get_mut(place)
    }

    /// Gives the work at `index` its PSNs, when all before it have theirs.
    pub(super) fn start(&mut self, index: usize) {
        if index == self.started && index < self.len {
            let place = self.place(index);
            let wqe = &mut self.ring[place];
            wqe.first = self.next_psn;
            self.next_psn = wqe.end();
            self.started += 1;
        }
    }

    #[inline]
    pub(super) fn front(&self) -> Option<&Wqe> {
        self.get(0)
    }

    /// Forgets the oldest.
    #[inline]
    pub(super) fn drop_front(&mut self) {
        if self.len > 0 {
            self.started = self.started.saturating_sub(1);
            self.head = self.place(1);
            self.len -= 1;
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Wqe> {
        let oldest = self.front()?.clone();
        self.drop_front();
        Some(oldest)
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Wqe> {
        if index >= self.len {
            return None;
        }
        self.ring.get(self.place(index))
    }

    pub(super) fn fail(&mut self, index: usize, status: Status) {
        if let Some(wqe) = self.get_mut(index) {
            wqe.failed = Some(status);
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The packet that has `psn`: one that was given out and whose work is still queued, or the next.
    pub(super) fn locate(&self, psn: Psn) -> Cursor {
        // Almost always it belongs to the oldest.
        let index = match self.front() {
            Some(front) if psn.since(front.end()) < 0 => 0,
            _ => {
                let (mut from, mut to) = (1.min(self.started), self.started);
                while from < to {
                    let middle = usize::midpoint(from, to);
                    if psn.since(self.ring[self.place(middle)].end()) < 0 {
                        to = middle;
                    } else {
                        from = middle + 1;
                    }
                }
                from
            }
        };
        let packet = match self.get(index) {
            Some(wqe) if index < self.started => psn.since(wqe.first).max(0) as u32,
            _ => 0,
        };
        Cursor { index, packet }
    }
}

/// Places of a ring that is used at all; a power of two.
const SHORTEST: usize = 16;
