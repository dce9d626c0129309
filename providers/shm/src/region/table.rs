//! Which keys stand: one word each, written by the owner, read by every peer before and after each access.
//!
//! A word is odd while something is exported under it, and no value comes twice: a peer remembers the value that it was told
//! and compares. Each word has a cache line of its own, which stays shared as long as nothing changes. Peers map the table
//! for reading; the owner never reads it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fabric::Error;
use mem::{Backing, MapError, Memory};

/// The owner's side.
pub(super) struct Table {
    memory: Memory,
    file: Arc<File>,
    /// The present value of each word that was ever used.
    words: Vec<u64>,
    free: Vec<u32>,
}

impl Table {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |error| Error::io("making the table of keys", error);
        let memory = Memory::try_allocate(LEN);
        let mut memory = memory.ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
        memory
            .share()
            .map_err(|error| failed(io::Error::other(error)))?;
        let (file, _) = memory.descriptor().expect("just shared");
        Ok(Self {
            memory,
            file,
            words: Vec::new(),
            free: Vec::new(),
        })
    }

    /// What peers map.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Takes a word and makes it stand: its place and value. `None` if all are taken.
    pub(super) fn begin(&mut self) -> Option<(u32, u64)> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.words.len() < WORDS => {
                self.words.push(0);
                self.words.len() as u32 - 1
            }
            None => return None,
        };
        Some((place, self.advance(place, 1)))
    }

    /// What stands changes: whoever knew it asks again. Answers the new value.
    pub(super) fn change(&mut self, place: u32) -> u64 {
        self.advance(place, 2)
    }

    /// What stood is no more.
    pub(super) fn end(&mut self, place: u32) {
        self.advance(place, 1);
        self.free.push(place);
    }

    fn advance(&mut self, place: u32, by: u64) -> u64 {
        let word = &mut self.words[place as usize];
        *word += by;
        self.memory
            .store_u64(offset(place), *word)
            .expect("places lie within the table");
        *word
    }
}

/// A peer's table.
pub(super) struct PeerTable(Memory);

impl PeerTable {
    /// Maps what a peer sent, if it is a table.
    pub(super) fn map(fd: OwnedFd) -> Result<Self, MapError> {
        Memory::map(File::from(fd), LEN as u64, false, Backing::Sealed).map(Self)
    }

    /// The word at a place; `None` if there is no such place.
    #[inline]
    pub(super) fn word(&self, place: u32) -> Option<u64> {
        self.0.load_u64(offset(place)).ok()
    }
}

#[inline]
fn offset(place: u32) -> usize {
    place as usize * LINE
}

/// Keys that can stand at once. The pages of unused ones are never touched.
pub(super) const WORDS: usize = 1 << 20;
const LINE: usize = 64;
const LEN: usize = WORDS * LINE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_until_it_ends_and_never_comes_again() {
        let mut table = Table::new().unwrap();
        let peer = PeerTable::map(table.file().try_clone().unwrap().into()).unwrap();
        let (place, first) = table.begin().unwrap();
        let (other, _) = table.begin().unwrap();
        assert_eq!(peer.word(place), Some(first));
        let second = table.change(place);
        assert_eq!(peer.word(place), Some(second));
        table.end(place);
        assert_ne!(peer.word(place), Some(second));
        let (again, third) = table.begin().unwrap();
        assert!(again == place && place != other);
        assert!(first < second && second < third);
        assert_eq!(peer.word(WORDS as u32), None);
        assert_eq!(peer.word(u32::MAX), None);
    }
}
