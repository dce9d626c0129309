//! What the owner does itself with its exposed memory when a peer asks: the peer cannot reach it, or may not.
//!
//! All of it happens under the lock of the [`Exports`], so that nothing is touched after a registration has ended. Long work
//! comes in pieces, in order; the last bytes of each become visible last.

use fabric::{Access, Status};
use mem::Memory;

use super::exports::{Export, Exports};

impl Exports {
    /// Writes bytes that lie in memory here.
    pub(crate) fn execute_write(
        &self,
        key: u64,
        addr: u64,
        source: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), Status> {
        self.access(key, addr, len, Access::REMOTE_WRITE, |export, at| {
            let written = export.memory.copy_from(at, source, offset, len);
            written.map_err(|_| Status::RemoteOperation)
        })
    }

    /// Reads bytes into memory here.
    pub(crate) fn execute_read(
        &self,
        key: u64,
        addr: u64,
        into: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), Status> {
        self.access(key, addr, len, Access::REMOTE_READ, |export, at| {
            let read = into.copy_from(offset, &export.memory, at, len);
            read.map_err(|_| Status::RemoteOperation)
        })
    }

    /// Adds to a word; answers the value before.
    pub(crate) fn execute_fetch_add(&self, key: u64, addr: u64, add: u64) -> Result<u64, Status> {
        self.atomic(key, addr, |memory, at| memory.fetch_add(at, add))
    }

    /// Replaces a word if it is `expected`; answers the value before.
    pub(crate) fn execute_compare_swap(
        &self,
        key: u64,
        addr: u64,
        expected: u64,
        new: u64,
    ) -> Result<u64, Status> {
        self.atomic(key, addr, |memory, at| {
            memory.compare_swap(at, expected, new)
        })
    }

    fn atomic(
        &self,
        key: u64,
        addr: u64,
        change: impl FnOnce(&Memory, usize) -> Result<u64, mem::AccessError>,
    ) -> Result<u64, Status> {
        // IBA 9.7.4.1.5: an unaligned address is an invalid request, whatever the key.
        if !addr.is_multiple_of(8) {
            return Err(Status::RemoteInvalidRequest);
        }
        self.access(key, addr, 8, Access::REMOTE_ATOMIC, |export, at| {
            change(&export.memory, at).map_err(|_| Status::RemoteOperation)
        })
    }

    /// Runs `touch` with what stands under the key, if the range and the right are there, at the offset of `addr`. An access
    /// to no bytes is not checked (IBA 9.7.4.1.5).
    fn access<T: Default>(
        &self,
        key: u64,
        addr: u64,
        len: usize,
        access: Access,
        touch: impl FnOnce(&Export, usize) -> Result<T, Status>,
    ) -> Result<T, Status> {
        if len == 0 {
            return Ok(T::default());
        }
        self.with(key, |export| {
            let offset = addr
                .checked_sub(export.addr)
                .and_then(|offset| usize::try_from(offset).ok())
                .filter(|&offset| export.memory.iovec(offset, len).is_ok());
            match offset {
                Some(offset) if export.access.contains(access) => touch(export, offset),
                _ => Err(Status::RemoteAccess),
            }
        })
        .unwrap_or(Err(Status::RemoteAccess))
    }
}
