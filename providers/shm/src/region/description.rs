//! What an owner answers about a key: 48 bytes, little-endian, and at most one descriptor beside them.
//!
//! ```text
//! 0    kind     0 unknown, 1 sealed memory, 2 file, 3 foreign
//! 1    rights   of fabric::Access
//! 2    zeros
//! 4    place    of the word in the owner's table
//! 8    word     its value while the answer holds
//! 16   key
//! 24   addr     of the first byte, in the owner's terms
//! 32   len      bytes
//! 40   zeros
//! ```

use fabric::Access;

/// An answer about a key that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) kind: Kind,
    pub(super) access: Access,
    pub(super) place: u32,
    pub(super) word: u64,
    pub(super) key: u64,
    pub(super) addr: u64,
    pub(super) len: u64,
}

/// How a peer reaches the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By mapping the memory file that comes with the answer.
    Sealed,
    /// By mapping, for reading, the file that comes with the answer.
    File,
    /// By system calls, or through its owner.
    Foreign,
}

pub(super) const LEN: usize = 48;

/// The answer about a key that means nothing.
pub(super) fn unknown(key: u64) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[16..24].copy_from_slice(&key.to_le_bytes());
    bytes
}

impl Description {
    pub(super) fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = unknown(self.key);
        bytes[0] = match self.kind {
            Kind::Sealed => 1,
            Kind::File => 2,
            Kind::Foreign => 3,
        };
        bytes[1] = self.access.bits();
        bytes[4..8].copy_from_slice(&self.place.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.word.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.addr.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Reads an answer: `Ok(None)` if the key is unknown to the peer, `Err` if the answer makes no sense.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, ()> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| ())?;
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let kind = match bytes[0] {
            0 => return Ok(None),
            1 => Kind::Sealed,
            2 => Kind::File,
            3 => Kind::Foreign,
            _ => return Err(()),
        };
        let description = Self {
            kind,
            access: Access::from_bits(bytes[1]).ok_or(())?,
            place: u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes")),
            word: word(8),
            key: word(16),
            addr: word(24),
            len: word(32),
        };
        description.addr.checked_add(description.len).ok_or(())?;
        // Words of mapped memory are aligned for both or for none.
        let mapped = kind != Kind::Foreign;
        if mapped && !description.addr.is_multiple_of(8) {
            return Err(());
        }
        Ok(Some(description))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn description() -> Description {
        Description {
            kind: Kind::Sealed,
            access: Access::REMOTE_READ | Access::REMOTE_ATOMIC,
            place: 7,
            word: 9,
            key: 0x0102_0304_0506_0708,
            addr: 0x7000,
            len: 100,
        }
    }

    #[test]
    fn an_answer_survives_the_way() {
        for kind in [Kind::Sealed, Kind::File, Kind::Foreign] {
            let sent = Description {
                kind,
                ..description()
            };
            assert_eq!(Description::from_bytes(&sent.to_bytes()), Ok(Some(sent)));
        }
        assert_eq!(Description::from_bytes(&unknown(3)), Ok(None));
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_refused() {
        let bytes = description().to_bytes();
        assert!(Description::from_bytes(&bytes[1..]).is_err());
        assert!(Description::from_bytes(&[]).is_err());
        let with = |at: usize, value: u8| {
            let mut bytes = bytes;
            bytes[at] = value;
            Description::from_bytes(&bytes)
        };
        assert!(with(0, 4).is_err(), "a kind that is none");
        assert!(with(1, 0x80).is_err(), "a right that is none");
        assert!(with(24, 1).is_err(), "an address that is not aligned");
        let mut wraps = description();
        (wraps.addr, wraps.len) = (u64::MAX - 7, 9);
        assert!(Description::from_bytes(&wraps.to_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(description)) = Description::from_bytes(&bytes) {
                prop_assert!(description.addr.checked_add(description.len).is_some());
            }
        }
    }
}
