//! A set of PSNs within the window of a connection: one bit each, in a ring.

use crate::wire::Psn;

/// Most PSNs between the oldest and the newest member.
pub(crate) const SPAN: u32 = 1024;

const WORDS: usize = SPAN as usize / 64;

/// PSNs that lie less than [`SPAN`] apart. The owner removes members as its window moves on.
#[derive(Clone, Debug)]
pub(crate) struct PsnSet {
    words: [u64; WORDS],
    len: u32,
}

impl PsnSet {
    pub(crate) const fn new() -> Self {
        Self {
            words: [0; WORDS],
            len: 0,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(crate) fn contains(&self, psn: Psn) -> bool {
        let (word, bit) = place(psn);
        self.words[word] & bit != 0
    }

    // Both compare the word before and after. Asking for the bit and then setting it lost count in optimised builds of
    // rustc 1.95, where the two were merged: `tests/goodput.rs` fails on that under `--release`.

    /// Whether it was new.
    #[inline]
    pub(crate) fn insert(&mut self, psn: Psn) -> bool {
        let (word, bit) = place(psn);
        let before = self.words[word];
        let after = before | bit;
        self.words[word] = after;
        let new = after != before;
        self.len += u32::from(new);
        new
    }

    /// Whether it was there.
    #[inline]
    pub(crate) fn remove(&mut self, psn: Psn) -> bool {
        let (word, bit) = place(psn);
        let before = self.words[word];
        let after = before & !bit;
        self.words[word] = after;
        let there = after != before;
        self.len -= u32::from(there);
        there
    }

    /// Removes `from .. to`.
    #[inline]
    pub(crate) fn remove_range(&mut self, from: Psn, to: Psn) {
        if self.len == 0 {
            return;
        }
        let count = to.since(from).max(0) as u32;
        if count >= SPAN {
            return self.clear();
        }
        for step in 0..count {
            self.remove(from + step);
        }
    }

    pub(crate) fn clear(&mut self) {
        if self.len != 0 {
            *self = Self::new();
        }
    }

    /// The first member in `from .. to`.
    pub(crate) fn first_in(&self, from: Psn, to: Psn) -> Option<Psn> {
        if self.len == 0 {
            return None;
        }
        let count = to.since(from).clamp(0, SPAN as i32) as u32;
        (0..count)
            .map(|step| from + step)
            .find(|&psn| self.contains(psn))
    }
}

#[inline]
fn place(psn: Psn) -> (usize, u64) {
    let index = psn.value() % SPAN;
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_survive_the_wrap_of_the_psn() {
        let start = Psn::new(0xFF_FFFE);
        let mut set = PsnSet::new();
        for step in [0, 1, 2, 5] {
            assert!(set.insert(start + step));
        }
        assert!(!set.insert(start));
        assert_eq!(set.first_in(start + 3, start + 10), Some(start + 5));
        set.remove_range(start, start + 5);
        assert!(!set.contains(start + 2));
        assert!(set.contains(start + 5));
        assert!(!set.is_empty());
        assert!(set.remove(start + 5));
        assert!(set.is_empty());
    }
}
