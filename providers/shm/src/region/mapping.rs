//! The pages of a peer's region, mapped, and made present before long copies.
//!
//! A page that this process never touched costs a fault when it is first written or read, several times what copying it
//! costs; the kernel makes many at once for a fraction of that (`MADV_POPULATE_WRITE`). Which were made is remembered in
//! chunks, so that long copies in the same place ask no more.

use std::sync::atomic::{AtomicU64, Ordering};

use mem::Memory;

/// A mapped region.
pub(super) struct Mapping {
    memory: Memory,
    /// A bit a chunk.
    present: Box<[AtomicU64]>,
}

impl Mapping {
    pub(super) fn new(memory: Memory) -> Self {
        let chunks = memory.len().div_ceil(CHUNK);
        Self {
            present: (0..chunks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            memory,
        }
    }

    /// The bytes.
    #[inline]
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The bytes, with those of the range present if they are many. The range lies within them.
    #[inline]
    pub(super) fn ready(&self, offset: usize, len: usize) -> &Memory {
        if len >= LONG {
            self.make_present(offset / CHUNK, (offset + len).div_ceil(CHUNK));
        }
        &self.memory
    }

    fn make_present(&self, first: usize, end: usize) {
        let is_present = |chunk: usize| {
            // Relaxed: the bit speaks of page tables only; whoever is wrong faults, or populates twice.
            self.present[chunk / 64].load(Ordering::Relaxed) & 1 << (chunk % 64) != 0
        };
        let Some(missing) = (first..end).find(|&chunk| !is_present(chunk)) else {
            return;
        };
        self.populate(missing, end);
    }

    #[cold]
    fn populate(&self, first: usize, end: usize) {
        let start = first * CHUNK;
        let len = (end * CHUNK).min(self.memory.len()) - start;
        let populated = if self.memory.is_writable() {
            self.memory.populate(start, len)
        } else {
            self.memory.populate_read(start, len)
        };
        debug_assert_eq!(populated, Ok(()), "the range lies within the memory");
        for chunk in first..end {
            self.present[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::Relaxed);
        }
    }
}

/// What is populated and remembered as one: beyond a range at most this much is touched at either side.
const CHUNK: usize = 64 << 10;

/// Shorter accesses fault at most so often that a call does not pay.
const LONG: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_long_copy_needs_becomes_present_and_is_remembered() {
        let mapping = Mapping::new(Memory::allocate(300_000));
        let present = || mapping.present[0].load(Ordering::Relaxed);
        mapping.ready(0, LONG - 1);
        assert_eq!(present(), 0, "a short access is not worth a call");
        mapping.ready(70_000, 60_000);
        assert_eq!(present(), 0b00010);
        mapping.ready(131_000, 100_000);
        assert_eq!(present(), 0b01110);
        mapping.ready(0, 300_000);
        assert_eq!(present(), 0b11111);
        Mapping::new(Memory::allocate(0)).ready(0, 0);
    }
}
