//! One region of a peer, as it is reached from here.
//!
//! Each access looks at the peer's word after its last byte. If that changed, the bytes may be anywhere: the access says
//! [`Stop::Changed`], and the key is asked for again.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use fabric::{Access, Status};
use mem::{AccessError, Memory};

use super::barrier;
use super::description::Description;
use super::imports::Peer;
use super::mapping::Mapping;
use super::process::ReadError;

/// A peer's region.
pub(crate) struct Import {
    peer: Arc<Peer>,
    description: Description,
    /// Its pages, where they can be mapped.
    mapping: Option<Mapping>,
}

/// Why an access ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The work fails.
    Failed(Status),
    /// The owner revoked the region or moved it while it was accessed: what was read means nothing, what was written may
    /// be lost. Resolve again, and do all of it again.
    Changed,
    /// This access is not possible from here: the owner must execute it.
    Delegate,
}

impl Import {
    pub(super) fn new(peer: Arc<Peer>, description: Description, mapping: Option<Memory>) -> Self {
        Self {
            peer,
            description,
            mapping: mapping.map(Mapping::new),
        }
    }

    #[inline]
    pub(super) fn key(&self) -> u64 {
        self.description.key
    }

    /// Bytes that are mapped.
    pub(super) fn mapped(&self) -> u64 {
        self.mapping
            .as_ref()
            .map_or(0, |mapping| mapping.memory().len() as u64)
    }

    /// Whether the owner still says what it said.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.peer.table.word(self.description.place) == Some(self.description.word)
    }

    /// The offset of `len` bytes at `addr`, if the range and the right are there.
    #[inline]
    pub(super) fn check(&self, addr: u64, len: usize, access: Access) -> Result<usize, Status> {
        let Description {
            addr: base,
            len: size,
            access: rights,
            ..
        } = self.description;
        let offset = addr.wrapping_sub(base);
        // An address below the base wraps to an offset beyond any size.
        let inside = offset <= size && len as u64 <= size - offset;
        if !inside || !rights.contains(access) {
            return Err(Status::RemoteAccess);
        }
        Ok(offset as usize)
    }

    /// Whether this kind of access is possible from here.
    #[inline]
    pub(super) fn reaches(&self, access: Access) -> bool {
        self.mapping.is_some() || access == Access::REMOTE_READ && self.peer.process.may_read()
    }

    /// Writes bytes of memory here to `addr` there.
    ///
    /// # Errors
    /// [`Stop`]; a part may have been written.
    #[inline]
    pub(crate) fn write(
        &self,
        addr: u64,
        source: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), Stop> {
        let (memory, at) = self.mapped_at(addr, len, Access::REMOTE_WRITE)?;
        if let Err(error) = memory.copy_from(at, source, offset, len) {
            return Err(self.blame(error, source));
        }
        self.written()
    }

    /// Writes bytes that nobody else sees, such as inline data, to `addr` there.
    ///
    /// # Errors
    /// [`Stop`]; a part may have been written.
    #[inline]
    pub(crate) fn write_bytes(&self, addr: u64, bytes: &[u8]) -> Result<(), Stop> {
        let (memory, at) = self.mapped_at(addr, bytes.len(), Access::REMOTE_WRITE)?;
        if memory.copy_in(at, bytes).is_err() {
            return Err(Stop::Failed(Status::RemoteOperation));
        }
        self.written()
    }

    /// Reads bytes at `addr` there into memory here.
    ///
    /// # Errors
    /// [`Stop`]; a part may have been overwritten.
    #[inline]
    pub(crate) fn read(
        &self,
        addr: u64,
        into: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), Stop> {
        let at = self
            .check(addr, len, Access::REMOTE_READ)
            .map_err(Stop::Failed)?;
        let Some(mapping) = &self.mapping else {
            return self.read_foreign(addr, into, offset, len);
        };
        let memory = mapping.ready(at, len);
        if let Err(error) = into.copy_from(offset, memory, at, len) {
            return Err(self.blame(error, into));
        }
        self.looked()
    }

    /// Adds to a word there; answers the value before.
    ///
    /// # Errors
    /// [`Stop`]; never `Changed`, since an atomic operation is not done twice.
    #[inline]
    pub(crate) fn fetch_add(&self, addr: u64, add: u64) -> Result<u64, Stop> {
        self.atomic(addr, |memory, at| memory.fetch_add(at, add))
    }

    /// Replaces a word there if it is `expected`; answers the value before.
    ///
    /// # Errors
    /// As [`Import::fetch_add`].
    #[inline]
    pub(crate) fn compare_swap(&self, addr: u64, expected: u64, new: u64) -> Result<u64, Stop> {
        self.atomic(addr, |memory, at| memory.compare_swap(at, expected, new))
    }

    #[inline]
    fn atomic(
        &self,
        addr: u64,
        change: impl FnOnce(&Memory, usize) -> Result<u64, AccessError>,
    ) -> Result<u64, Stop> {
        // IBA 9.7.4.1.5: an unaligned address is an invalid request.
        if !addr.is_multiple_of(8) {
            return Err(Stop::Failed(Status::RemoteInvalidRequest));
        }
        let (memory, at) = self.mapped_at(addr, 8, Access::REMOTE_ATOMIC)?;
        let failed = Stop::Failed(Status::RemoteOperation);
        let before = change(memory, at).map_err(|_| failed)?;
        // Nobody can tell whether the owner kept it.
        self.written().map_err(|_| failed)?;
        Ok(before)
    }

    #[inline]
    fn mapped_at(&self, addr: u64, len: usize, access: Access) -> Result<(&Memory, usize), Stop> {
        let at = self.check(addr, len, access).map_err(Stop::Failed)?;
        match &self.mapping {
            Some(mapping) => Ok((mapping.ready(at, len), at)),
            None => Err(Stop::Delegate),
        }
    }

    #[cold]
    fn read_foreign(
        &self,
        addr: u64,
        into: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), Stop> {
        if !self.peer.process.may_read() {
            return Err(Stop::Delegate);
        }
        match self.peer.process.read(addr, into, offset, len) {
            Ok(()) => self.looked(),
            Err(ReadError::NotPermitted) => Err(Stop::Delegate),
            // Memory that was freed after its key was revoked.
            Err(ReadError::Failed) if !self.is_current() => Err(Stop::Changed),
            Err(ReadError::Failed) if into.iovec_mut(offset, len).is_err() => {
                Err(Stop::Failed(Status::LocalProtection))
            }
            Err(ReadError::Failed) => Err(Stop::Failed(Status::RemoteOperation)),
        }
    }

    /// The second look after writing.
    #[inline]
    fn written(&self) -> Result<(), Stop> {
        barrier::after_access();
        self.unchanged()
    }

    /// The second look after reading.
    #[inline]
    fn looked(&self) -> Result<(), Stop> {
        // Acquire: what was read was read before the word; pairs with the barrier that the owner passes after changing it.
        fence(Ordering::Acquire);
        self.unchanged()
    }

    #[inline]
    fn unchanged(&self) -> Result<(), Stop> {
        if self.is_current() {
            Ok(())
        } else {
            Err(Stop::Changed)
        }
    }

    /// Which side of a copy could not be accessed.
    #[cold]
    fn blame(&self, error: AccessError, local: &Memory) -> Stop {
        let mapping = self.mapping.as_ref();
        let remote = mapping.is_some_and(|mapping| mapping.memory().is_faulted());
        match error {
            AccessError::Fault if remote && !local.is_faulted() => {
                Stop::Failed(Status::RemoteOperation)
            }
            _ => Stop::Failed(Status::LocalProtection),
        }
    }
}
