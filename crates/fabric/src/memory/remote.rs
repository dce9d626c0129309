//! A peer's memory, by name.

use serde::{Deserialize, Serialize};

/// A peer's region: what travels to those who may access it. Whoever has it has the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteRegion {
    /// Address of the first byte, in the peer's terms.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// The key that its device asks for.
    pub key: u64,
}

impl RemoteRegion {
    /// Bytes of [`RemoteRegion::to_bytes`].
    pub const WIRE_LEN: usize = 24;

    /// The place `offset` bytes into the region. Not checked: the peer's device does that.
    #[must_use]
    pub fn at(&self, offset: u64) -> RemoteAddr {
        RemoteAddr {
            addr: self.addr.wrapping_add(offset),
            key: self.key,
        }
    }

    /// Address, length and key, each as a big-endian word.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::WIRE_LEN] {
        let mut bytes = [0; Self::WIRE_LEN];
        bytes[..8].copy_from_slice(&self.addr.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_be_bytes());
        bytes[16..].copy_from_slice(&self.key.to_be_bytes());
        bytes
    }

    /// Reads what [`RemoteRegion::to_bytes`] wrote, from the start of `bytes`; `None` if there are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let word = bytes.get(at..)?.first_chunk()?;
            Some(u64::from_be_bytes(*word))
        };
        Some(Self {
            addr: word(0)?,
            len: word(8)?,
            key: word(16)?,
        })
    }
}

/// A place in a peer's memory; how many bytes is said by the local side of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteAddr {
    /// In the peer's terms.
    pub addr: u64,
    /// The region's key.
    pub key: u64,
}

/// The beginning of the region.
impl From<RemoteRegion> for RemoteAddr {
    fn from(region: RemoteRegion) -> Self {
        region.at(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_region_travels_as_24_bytes() {
        let region = RemoteRegion {
            addr: 0x0102_0304_0506_0708,
            len: 9,
            key: 10,
        };
        let bytes = region.to_bytes();
        assert_eq!(bytes[..9], [1, 2, 3, 4, 5, 6, 7, 8, 0]);
        assert_eq!(RemoteRegion::from_bytes(&bytes), Some(region));
        assert_eq!(RemoteRegion::from_bytes(&bytes[..23]), None);
    }
}
