//! Packets that arrived ahead of a gap, on a connection with selective repeat.
//!
//! RDMA's order holds: ahead of a gap only middle packets of the WRITE that is under way are placed, never its
//! last packet; whatever could tell a program that something is complete waits here, in bounded memory, until the
//! gap is filled. So a program that polls memory for a flag never sees it before the data.

use std::collections::BTreeMap;

use crate::wire::{Headers, Psn, Sack};

use super::psn_set::PsnSet;

/// Furthest that a packet may be ahead.
pub(super) const REACH: u32 = 512;

/// Most payload that waits, in bytes: what the peer sends ahead of a gap fits, as it goes no farther than a report reaches.
const MOST_HELD: usize = 1 << 20;

/// Most buffers kept for the next gap. Where losses are many, asking the allocator for each packet costs more than the packet.
const MOST_SPARE: usize = 64;

#[derive(Debug)]
pub(super) struct Reorder {
    arrived: PsnSet,
    placed: PsnSet,
    /// By the low bits of the PSN, of which no two alike lie within reach.
    held: BTreeMap<u32, Held>,
    held_bytes: usize,
    /// Buffers of packets that have waited, for the next ones.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) headers: Headers,
    pub(super) payload: Vec<u8>,
}

impl Reorder {
    pub(super) fn new() -> Self {
        Self {
            arrived: PsnSet::new(),
            placed: PsnSet::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            spare: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }

    pub(super) fn has(&self, psn: Psn) -> bool {
        self.arrived.contains(psn)
    }

    /// The packet's bytes are in their place.
    pub(super) fn note_placed(&mut self, psn: Psn) {
        self.arrived.insert(psn);
        self.placed.insert(psn);
    }

    /// Keeps a packet that stands for `count` PSNs, if there is room.
    pub(super) fn hold(&mut self, headers: &Headers, payload: &[u8], count: u32) {
        if self.held_bytes + payload.len() > MOST_HELD {
            return;
        }
        let psn = headers.bth.psn;
        self.held_bytes += payload.len();
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.extend_from_slice(payload);
        let held = Held {
            headers: *headers,
            payload: copy,
        };
        if let Some(other) = self.held.insert(psn.value(), held) {
            self.held_bytes -= other.payload.len();
            self.reuse(other);
        }
        for psn in (0..count).map(|step| psn + step) {
            self.arrived.insert(psn);
        }
    }

    /// Whether the packet at `psn` was placed; it is then forgotten.
    pub(super) fn take_placed(&mut self, psn: Psn) -> bool {
        let placed = self.placed.remove(psn);
        if placed {
            self.arrived.remove(psn);
        }
        placed
    }

    /// The packet that waits for its turn at `psn`.
    pub(super) fn take_held(&mut self, psn: Psn) -> Option<Held> {
        let held = self.held.remove(&psn.value())?;
        self.held_bytes -= held.payload.len();
        Some(held)
    }

    /// A packet that waited was dealt with.
    pub(super) fn reuse(&mut self, held: Held) {
        if self.spare.len() < MOST_SPARE {
            let mut buffer = held.payload;
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// The turn has moved on from `from` to `to`.
    pub(super) fn forget(&mut self, from: Psn, to: Psn) {
        for psn in (0..to.since(from).clamp(0, REACH as i32) as u32).map(|step| from + step) {
            if self.arrived.remove(psn) {
                self.placed.remove(psn);
                if let Some(held) = self.take_held(psn) {
                    self.reuse(held);
                }
            }
        }
    }

    /// What has arrived beyond `expected`, for the peer.
    pub(super) fn report(&self, expected: Psn, window: u16) -> Sack {
        let mut sack = Sack {
            expected,
            window,
            ..Sack::default()
        };
        for index in 0..256u32 {
            if self.arrived.contains(expected + 1 + index) {
                sack.bitmap[(index / 64) as usize] |= 1 << (index % 64);
            }
        }
        sack
    }
}
