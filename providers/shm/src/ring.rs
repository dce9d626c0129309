//! The ring of one direction of a connection: cells of one cache line, and a data area for what does not fit into a cell.
//!
//! ```text
//! header   written by the consumer: how many cells are done, and how it failed
//! cells    64 bytes each: | sequence, kind, flags, length | acknowledgement, immediate | 48 bytes |
//! data     bytes that a cell names
//! ```
//!
//! A cell is published by its first word, whose sequence number says which lap it belongs to, so a message of up to 48 bytes is
//! one cache line on its way. Cells and data become free when the consumer has acknowledged them, in order.
//!
//! Everything here is under the control of the peer. The consumer copies a cell and then looks at the copy; places are masked
//! or checked. What the words of a cell mean is the business of `send` and `recv`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fabric::Status;
use mem::{AccessError, Memory};

use crate::mapping::Mapping;

/// Sizes of a ring, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Cells, a power of two.
    pub(crate) cells: u32,
    /// Bytes of the data area, a power of two.
    pub(crate) data: u32,
}

impl Geometry {
    /// What the settings say if nobody does.
    pub(crate) const DEFAULT: Self = Self {
        cells: 64,
        data: 256 << 10,
    };

    /// Whether a peer may ask for it.
    pub(crate) fn is_valid(self) -> bool {
        let cells = self.cells.is_power_of_two() && (16..=4096).contains(&self.cells);
        let data = self.data.is_power_of_two() && (4096..=MAX_DATA).contains(&self.data);
        cells && data
    }

    /// Bytes of the file that holds both directions.
    pub(crate) fn len(self) -> usize {
        HEADER + 2 * (self.cells as usize * CELL + self.data as usize)
    }
}

/// Which direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the side that asked to the side that accepted.
    Out,
    /// The other way.
    Back,
}

/// What a message cell carries, as it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cell {
    /// What it is.
    pub(crate) kind: u8,
    /// Bits of the kind.
    pub(crate) flags: u8,
    /// Bytes in `words`, if they are a message.
    pub(crate) len: u8,
    /// How many cells of the other direction its sender has done.
    pub(crate) acknowledged: u32,
    /// The immediate value.
    pub(crate) immediate: u32,
    /// The bytes, or arguments.
    pub(crate) words: [u64; WORDS],
}

/// How far a consumer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Cells done, wrapping.
    pub(crate) done: u32,
    /// Why the next one failed.
    pub(crate) failure: Option<Status>,
}

/// The memory of one direction.
#[derive(Debug)]
struct Lane {
    /// Dropped before the mapping.
    data: Memory,
    header: usize,
    cells: usize,
    geometry: Geometry,
    mapping: Arc<Mapping>,
}

impl Lane {
    fn new(mapping: &Arc<Mapping>, geometry: Geometry, way: Way) -> Self {
        assert!(geometry.is_valid(), "checked before it was mapped");
        let index = way as usize;
        let cells = HEADER + index * geometry.cells as usize * CELL;
        let data = HEADER + 2 * geometry.cells as usize * CELL + index * geometry.data as usize;
        Self {
            // SAFETY: dropped with this lane, before the mapping that it holds.
            data: unsafe { mapping.memory(data, geometry.data as usize) },
            header: index * HEADER_WORDS,
            cells: cells / 8,
            geometry,
            mapping: Arc::clone(mapping),
        }
    }

    #[inline]
    fn cell(&self, number: u32) -> &[AtomicU64] {
        let index = (number & (self.geometry.cells - 1)) as usize;
        let at = self.cells + index * (CELL / 8);
        &self.mapping.words()[at..at + CELL / 8]
    }

    #[inline]
    fn header(&self, word: usize) -> &AtomicU64 {
        &self.mapping.words()[self.header + word]
    }
}

/// The side that writes cells.
#[derive(Debug)]
pub(crate) struct Producer {
    lane: Lane,
    /// Cells written, and done by the consumer.
    next: u32,
    done: u32,
    /// What the consumer's own word said last.
    told: u32,
    /// Where the data area is taken from and to, in bytes ever taken.
    head: u64,
    tail: u64,
    /// The ends of what cells have taken: cell number, byte.
    taken: VecDeque<(u32, u64)>,
}

/// A place in the data area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// First byte.
    pub(crate) at: u32,
    /// Bytes.
    pub(crate) len: u32,
}

impl Producer {
    pub(crate) fn new(mapping: &Arc<Mapping>, geometry: Geometry, way: Way) -> Self {
        Self {
            lane: Lane::new(mapping, geometry, way),
            next: 0,
            done: 0,
            told: 0,
            head: 0,
            tail: 0,
            taken: VecDeque::with_capacity(geometry.cells as usize),
        }
    }

    /// Whether a cell is free.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.next.wrapping_sub(self.done) < self.lane.geometry.cells
    }

    /// Cells written so far: the number of the next.
    #[inline]
    pub(crate) fn written(&self) -> u32 {
        self.next
    }

    /// Cells that the consumer has not done.
    #[inline]
    pub(crate) fn outstanding(&self) -> u32 {
        self.next.wrapping_sub(self.done)
    }

    /// A free part of the data area, of `len` bytes or, if there are fewer in one piece, of at least `least`, or of half the area.
    pub(crate) fn room_for(&self, len: usize, least: usize) -> Option<Chunk> {
        let size = u64::from(self.lane.geometry.data);
        // However the area is cut, one of two halves is in one piece once all is free.
        let least = least.min(size as usize / 2);
        let free = size - (self.head - self.tail);
        let at = self.head & (size - 1);
        let before_end = (size - at).min(free);
        let (at, room) = if before_end >= least as u64 {
            (at, before_end)
        } else {
            // The rest of this lap is skipped.
            (0, free.saturating_sub(size - at))
        };
        let len = room.min(len as u64);
        (len >= least as u64 && len > 0).then_some(Chunk {
            at: at as u32,
            len: len as u32,
        })
    }

    /// The data area.
    #[inline]
    pub(crate) fn data(&self) -> &Memory {
        &self.lane.data
    }

    /// Takes what [`Producer::room_for`] found, for the next cell.
    pub(crate) fn take(&mut self, chunk: Chunk) {
        let size = u64::from(self.lane.geometry.data);
        let at = self.head & (size - 1);
        if u64::from(chunk.at) != at {
            self.head += size - at;
        }
        // Whole cache lines, so that two messages share none.
        let end = self.head + u64::from(chunk.len).next_multiple_of(CELL as u64);
        self.head = end.min(self.tail + size);
        self.taken.push_back((self.next, self.head));
    }

    /// Writes a cell. There is room.
    #[inline]
    pub(crate) fn push(&mut self, cell: &Cell) {
        debug_assert!(self.has_room(), "the caller looked");
        let words = self.lane.cell(self.next);
        self.next = self.next.wrapping_add(1);
        let second = u64::from(cell.acknowledged) | u64::from(cell.immediate) << 32;
        words[1].store(second, Ordering::Relaxed);
        let used = match cell.kind {
            // A message's words as far as it has bytes.
            INLINE => usize::from(cell.len).div_ceil(8),
            _ => WORDS,
        };
        for (word, value) in words[2..].iter().zip(&cell.words[..used.min(WORDS)]) {
            word.store(*value, Ordering::Relaxed);
        }
        let first = u64::from(self.next)
            | u64::from(cell.kind) << 32
            | u64::from(cell.flags) << 40
            | u64::from(cell.len) << 48;
        // Release: pairs with the acquire load in `Consumer::peek`.
        words[0].store(first, Ordering::Release);
    }

    /// How far the consumer says it is; it may be further, where cells of the other direction said so. `None` if what it says
    /// cannot be.
    #[inline]
    pub(crate) fn heard(&mut self) -> Option<Progress> {
        // Acquire: pairs with the release stores in `Consumer::acknowledge` and `Consumer::fail`.
        let word = self.lane.header(DONE).load(Ordering::Acquire);
        let done = word as u32;
        if done.wrapping_sub(self.told) > self.next.wrapping_sub(self.told) {
            return None;
        }
        self.told = done;
        Some(Progress {
            done,
            failure: decode(word >> 32),
        })
    }

    /// Cells are done up to `done`, unless that was known, or cannot be.
    pub(crate) fn advance(&mut self, done: u32) {
        if done.wrapping_sub(self.done) > self.next.wrapping_sub(self.done) {
            return;
        }
        self.done = done;
        while let Some(&(cell, end)) = self.taken.front() {
            // Done are those before `done`.
            if done.wrapping_sub(cell).wrapping_sub(1) >= self.lane.geometry.cells {
                break;
            }
            self.tail = end;
            self.taken.pop_front();
        }
    }

    /// Cells done, as far as [`Producer::advance`] was told.
    #[inline]
    pub(crate) fn done(&self) -> u32 {
        self.done
    }
}

/// The side that reads cells.
#[derive(Debug)]
pub(crate) struct Consumer {
    lane: Lane,
    next: u32,
    published: u32,
    /// Nothing is told after a failure.
    failed: bool,
}

impl Consumer {
    pub(crate) fn new(mapping: &Arc<Mapping>, geometry: Geometry, way: Way) -> Self {
        Self {
            lane: Lane::new(mapping, geometry, way),
            next: 0,
            published: 0,
            failed: false,
        }
    }

    /// A copy of the next cell, if it has been written.
    #[inline]
    pub(crate) fn peek(&self) -> Option<Cell> {
        let words = self.lane.cell(self.next);
        // Acquire: pairs with the release store in `Producer::push`.
        let first = words[0].load(Ordering::Acquire);
        if first as u32 != self.next.wrapping_add(1) {
            return None;
        }
        let second = words[1].load(Ordering::Relaxed);
        Some(Cell {
            kind: (first >> 32) as u8,
            flags: (first >> 40) as u8,
            len: (first >> 48) as u8,
            acknowledged: second as u32,
            immediate: (second >> 32) as u32,
            words: std::array::from_fn(|at| words[2 + at].load(Ordering::Relaxed)),
        })
    }

    /// Moves on to the next cell.
    #[inline]
    pub(crate) fn advance(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// Cells done.
    #[inline]
    pub(crate) fn done(&self) -> u32 {
        self.next
    }

    /// Tells the producer what is done, unless it has been told, also by `elsewhere`. Answers whether it did.
    #[inline]
    pub(crate) fn acknowledge(&mut self, elsewhere: u32) -> bool {
        // However well it is told elsewhere, its own word must not fall behind so far that it could be mistaken.
        let lag = self.next.wrapping_sub(self.published);
        if lag == 0 || (elsewhere == self.next && lag < MAX_LAG) || self.failed {
            return false;
        }
        self.published = self.next;
        // Release: pairs with the acquire load in `Producer::heard`; the producer reuses what was read.
        self.lane
            .header(DONE)
            .store(u64::from(self.next), Ordering::Release);
        true
    }

    /// Tells the producer that the next cell failed.
    pub(crate) fn fail(&mut self, status: Status) {
        self.failed = true;
        let word = u64::from(self.next) | encode(status) << 32;
        // Release: as in `Consumer::acknowledge`.
        self.lane.header(DONE).store(word, Ordering::Release);
    }

    /// The data area and the place in it that a cell names.
    ///
    /// # Errors
    /// [`AccessError`] if there is no such place.
    pub(crate) fn data(&self, at: u64, len: u64) -> Result<(&Memory, usize), AccessError> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.lane.data.iovec(at, len)?;
        Ok((&self.lane.data, at))
    }
}

/// A failure as a number; zero is none.
fn encode(status: Status) -> u64 {
    FAILURES
        .iter()
        .position(|known| *known == status)
        .map_or(1, |at| at as u64 + 1)
}

fn decode(code: u64) -> Option<Status> {
    if code == 0 {
        return None;
    }
    let at = usize::try_from(code - 1).unwrap_or(usize::MAX);
    Some(FAILURES.get(at).copied().unwrap_or(Status::BadResponse))
}

/// What a consumer may answer, by number.
const FAILURES: [Status; 6] = [
    Status::RemoteOperation,
    Status::RemoteInvalidRequest,
    Status::RemoteAccess,
    Status::RnrRetryExceeded,
    Status::BadResponse,
    Status::Flushed,
];

/// A cell with bytes in its words.
pub(crate) const INLINE: u8 = 1;
/// Bytes of a cell.
pub(crate) const CELL: usize = 64;
/// Words of a cell that its kind gives a meaning to.
pub(crate) const WORDS: usize = 6;
/// Bytes that a cell holds.
pub(crate) const CELL_BYTES: usize = WORDS * 8;
const HEADER: usize = 4096;
const HEADER_WORDS: usize = 64;
const DONE: usize = 0;
const MAX_DATA: u32 = 16 << 20;
const MAX_LAG: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        cells: 16,
        data: 4096,
    };

    fn ring() -> (Arc<Mapping>, Producer, Consumer) {
        let (mapping, _) = Mapping::create("test", GEOMETRY.len()).unwrap();
        let mapping = Arc::new(mapping);
        let producer = Producer::new(&mapping, GEOMETRY, Way::Back);
        let consumer = Consumer::new(&mapping, GEOMETRY, Way::Back);
        (mapping, producer, consumer)
    }

    #[test]
    fn cells_arrive_in_order_lap_after_lap() {
        let (_mapping, mut producer, mut consumer) = ring();
        for round in 0..100_u32 {
            let mut written = 0;
            while producer.has_room() {
                let cell = Cell {
                    kind: 2,
                    immediate: round * 16 + written,
                    words: [round.into(); WORDS],
                    ..Cell::default()
                };
                producer.push(&cell);
                written += 1;
            }
            assert_eq!(written, 16);
            for index in 0..16 {
                let cell = consumer.peek().expect("it was written");
                assert_eq!(
                    (cell.immediate, cell.words[5]),
                    (round * 16 + index, round.into())
                );
                consumer.advance();
            }
            assert_eq!(consumer.peek(), None, "a cell of the last lap is none");
            consumer.acknowledge(0);
            let told = producer.heard().expect("it is true");
            producer.advance(told.done);
        }
    }

    #[test]
    fn data_is_free_again_when_its_cell_is_done() {
        let (_mapping, mut producer, mut consumer) = ring();
        for _ in 0..50 {
            let mut taken = 0;
            while let Some(chunk) = producer.room_for(1000, 1000) {
                producer.take(chunk);
                producer.push(&Cell::default());
                taken += 1;
            }
            assert!((3..=4).contains(&taken), "{taken} of 1000 bytes in 4096");
            for _ in 0..taken {
                consumer.peek().expect("it was written");
                consumer.advance();
            }
            consumer.acknowledge(u32::MAX);
            let told = producer.heard().expect("it is true");
            producer.advance(told.done);
        }
    }

    #[test]
    fn a_failure_says_why_and_where() {
        let (_mapping, mut producer, mut consumer) = ring();
        producer.push(&Cell::default());
        producer.push(&Cell::default());
        consumer.advance();
        consumer.fail(Status::RemoteInvalidRequest);
        let progress = producer.heard().expect("it is true");
        assert_eq!(progress.done, 1);
        assert_eq!(progress.failure, Some(Status::RemoteInvalidRequest));
    }

    #[test]
    fn a_consumer_that_claims_more_than_there_is_is_not_believed() {
        let (mapping, mut producer, _) = ring();
        let word = &mapping.words()[HEADER_WORDS + DONE];
        producer.push(&Cell::default());
        for lie in [2, u32::MAX] {
            word.store(lie.into(), Ordering::Release);
            assert_eq!(producer.heard(), None);
            producer.advance(lie);
            assert_eq!(producer.done(), 0);
        }
        word.store(1, Ordering::Release);
        assert_eq!(producer.heard().map(|told| told.done), Some(1));
        word.store(0, Ordering::Release);
        assert_eq!(producer.heard(), None, "it does not go back");
    }

    proptest! {
        #[test]
        fn chunks_in_use_never_overlap(steps in proptest::collection::vec((1_usize..3000, any::<bool>()), 1..300)) {
            let (_mapping, mut producer, mut consumer) = ring();
            let mut live: VecDeque<Chunk> = VecDeque::new();
            for (len, free) in steps {
                if free && live.pop_front().is_some() {
                    consumer.advance();
                    consumer.acknowledge(consumer.done().wrapping_sub(1));
                    let told = producer.heard().expect("it is true");
            producer.advance(told.done);
                }
                if !producer.has_room() {
                    continue;
                }
                if let Some(chunk) = producer.room_for(len, 1) {
                    prop_assert!(chunk.at + chunk.len <= GEOMETRY.data);
                    for other in &live {
                        let apart = chunk.at + chunk.len <= other.at || other.at + other.len <= chunk.at;
                        prop_assert!(apart, "{chunk:?} overlaps {other:?}");
                    }
                    producer.take(chunk);
                    producer.push(&Cell::default());
                    live.push_back(chunk);
                }
            }
        }
    }
}
