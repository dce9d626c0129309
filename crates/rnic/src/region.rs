//! The table of memory regions: which key opens which memory, to whom, for what.
//!
//! IBA Vol. 1, 10.6. Keys are random, all 32 bits, and new for every registration: guessing one that exists is as
//! hard as there are few, and an old one never comes back to life. The table lies under the core lock; a region that
//! was removed is accessed no more.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mem::Memory;
use roce::host::AccessDenied;
use roce::verbs::Access;
use roce::wire::Key;

/// A protection domain's number, unique within its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PdId(pub(crate) u32);

/// A registered region.
#[derive(Debug)]
pub(crate) struct Region {
    /// The memory, from its first byte to its last.
    pub(crate) memory: Memory,
    /// The virtual address of the first byte, as work and peers name it.
    pub(crate) iova: u64,
    /// What may be done with it.
    pub(crate) access: Access,
    /// To whose queue pairs it belongs.
    pub(crate) pd: PdId,
    /// A peer invalidated the key: peers have no access any more.
    invalidated: Cell<bool>,
}

impl Region {
    /// A region of all of `memory`.
    pub(crate) const fn new(memory: Memory, iova: u64, access: Access, pd: PdId) -> Self {
        Self {
            memory,
            iova,
            access,
            pd,
            invalidated: Cell::new(false),
        }
    }

    /// Where `length` bytes at `va` lie in the memory.
    #[inline]
    fn offset(&self, va: u64, length: u64) -> Result<usize, AccessDenied> {
        let offset = va.checked_sub(self.iova).ok_or(AccessDenied)?;
        match offset.checked_add(length) {
            Some(end) if end <= self.memory.len() as u64 => Ok(offset as usize),
            _ => Err(AccessDenied),
        }
    }
}

/// All regions of a device.
#[derive(Debug, Default)]
pub(crate) struct RegionTable {
    regions: HashMap<u32, Region, BuildHasherDefault<KeyHasher>>,
}

impl RegionTable {
    /// Registers `region` and returns its new key.
    pub(crate) fn insert(&mut self, region: Region, mut random: impl FnMut() -> u32) -> Key {
        loop {
            let key = random();
            // 0 is what zeroed work holds: it shall never be a valid key.
            if key != 0 && !self.regions.contains_key(&key) {
                self.regions.insert(key, region);
                return Key(key);
            }
        }
    }

    /// Removes a region: nothing accesses its memory through this table any more.
    pub(crate) fn remove(&mut self, key: Key) -> Option<Region> {
        self.regions.remove(&key.0)
    }

    /// Number of regions.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Local memory for work of a queue pair of `pd`: the memory and the offset of `va` in it.
    #[inline]
    pub(crate) fn local(
        &self,
        key: Key,
        pd: PdId,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<(&Memory, usize), AccessDenied> {
        let region = self.regions.get(&key.0).ok_or(AccessDenied)?;
        if region.pd != pd || !region.access.contains(access) {
            return Err(AccessDenied);
        }
        Ok((&region.memory, region.offset(va, length)?))
    }

    /// The same for a peer's request.
    #[inline]
    pub(crate) fn remote(
        &self,
        key: Key,
        pd: PdId,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<(&Memory, usize), AccessDenied> {
        let region = self.regions.get(&key.0).ok_or(AccessDenied)?;
        if region.pd != pd || !region.access.contains(access) || region.invalidated.get() {
            return Err(AccessDenied);
        }
        Ok((&region.memory, region.offset(va, length)?))
    }

    /// Closes a region to peers until it is registered anew.
    pub(crate) fn invalidate(&self, key: Key, pd: PdId) -> Result<(), AccessDenied> {
        let region = self.regions.get(&key.0).ok_or(AccessDenied)?;
        if region.pd != pd || !region.access.intersects(REMOTE) {
            return Err(AccessDenied);
        }
        region.invalidated.set(true);
        Ok(())
    }
}

/// Keys are random already; a multiplication spreads them over the high bits, which the table also uses.
#[derive(Debug, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(self.0 as u32 ^ u32::from(byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, key: u32) {
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// Every right that peers can have.
pub(crate) const REMOTE: Access = Access::REMOTE_WRITE
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC);

#[cfg(test)]
mod tests {
    use super::*;

    const PD: PdId = PdId(1);

    fn table(access: Access) -> (RegionTable, Key) {
        let mut table = RegionTable::default();
        let mut next = 0x1000;
        let region = Region::new(Memory::allocate(100), 0x7000, access, PD);
        let key = table.insert(region, || {
            next += 1;
            next
        });
        (table, key)
    }

    #[test]
    fn only_what_was_registered_is_open() {
        let (table, key) = table(Access::REMOTE_READ);
        assert_eq!(
            table
                .remote(key, PD, 0x7000, 100, Access::REMOTE_READ)
                .unwrap()
                .1,
            0
        );
        assert_eq!(
            table
                .remote(key, PD, 0x7063, 1, Access::REMOTE_READ)
                .unwrap()
                .1,
            99
        );
        assert!(
            table
                .remote(key, PD, 0x7064, 0, Access::REMOTE_READ)
                .is_ok(),
            "nothing at the end"
        );
        for (va, length) in [
            (0x6FFF, 1),
            (0x7000, 101),
            (0x7064, 1),
            (0, 1),
            (u64::MAX, 1),
            (0x7001, u64::MAX),
        ] {
            let refused = table.remote(key, PD, va, length, Access::REMOTE_READ);
            assert_eq!(refused.map(|_| ()), Err(AccessDenied), "{va:#x} + {length}");
        }
        assert!(
            table
                .remote(key, PD, 0x7000, 1, Access::REMOTE_WRITE)
                .is_err(),
            "not granted"
        );
        assert!(
            table
                .remote(key, PdId(2), 0x7000, 1, Access::REMOTE_READ)
                .is_err(),
            "another domain's"
        );
        assert!(
            table
                .remote(Key(key.0 ^ 1), PD, 0x7000, 1, Access::REMOTE_READ)
                .is_err(),
            "another key"
        );
        assert!(table.local(key, PD, 0x7000, 1, Access::empty()).is_ok());
        assert!(
            table
                .local(key, PD, 0x7000, 1, Access::LOCAL_WRITE)
                .is_err()
        );
    }

    #[test]
    fn a_removed_or_invalidated_key_opens_nothing() {
        let (mut table, key) = table(Access::REMOTE_READ);
        assert!(table.invalidate(key, PdId(2)).is_err());
        table.invalidate(key, PD).unwrap();
        assert!(
            table
                .remote(key, PD, 0x7000, 1, Access::REMOTE_READ)
                .is_err()
        );
        assert!(
            table.local(key, PD, 0x7000, 1, Access::empty()).is_ok(),
            "the owner keeps its memory"
        );
        assert!(table.remove(key).is_some());
        assert!(table.remove(key).is_none());
        assert!(table.local(key, PD, 0x7000, 1, Access::empty()).is_err());
    }

    #[test]
    fn a_region_closed_to_peers_cannot_be_invalidated_by_them() {
        let (table, key) = table(Access::LOCAL_WRITE);
        assert!(table.invalidate(key, PD).is_err());
    }

    #[test]
    fn keys_are_never_zero_and_never_shared() {
        let mut table = RegionTable::default();
        let mut drawn = [0, 5, 5, 6].into_iter();
        let mut random = || drawn.next().unwrap();
        let region = || Region::new(Memory::allocate(8), 0, Access::empty(), PD);
        assert_eq!(table.insert(region(), &mut random), Key(5));
        assert_eq!(table.insert(region(), &mut random), Key(6));
        assert_eq!(table.len(), 2);
    }
}
