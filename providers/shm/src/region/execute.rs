//! What the owner does itself with its exposed memory when a peer asks: the peer cannot reach it, or may not.
//!
//! All of it happens under the lock of the [`Exports`], so that nothing is touched after a registration has ended. Long work
//! comes in pieces, in order; the last bytes of each become visible last.

use fabric::{Access, Status};
use mem::Memory;

use super::exports::{Export, Exports};
use super::process::{Process, ReadError};

/// Why bytes were not pulled from the initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pull {
    /// The work fails.
    Failed(Status),
    /// Its memory cannot be read from here: the bytes must be carried.
    NotPermitted,
}

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

    /// Writes bytes that lie in the initiator's memory at `from`.
    pub(crate) fn execute_pull(
        &self,
        key: u64,
        addr: u64,
        initiator: &Process,
        from: u64,
        len: usize,
    ) -> Result<(), Pull> {
        // The kernel copies in no particular order, so the last word goes another way, and last.
        let tail = len.min(8);
        let body = len - tail;
        let last = Memory::allocate(8);
        let result = self.access(key, addr, len, Access::REMOTE_WRITE, |export, at| {
            initiator.read(from, &export.memory, at, body)?;
            initiator.read(from.wrapping_add(body as u64), &last, 0, tail)?;
            let written = export.memory.copy_from(at + body, &last, 0, tail);
            written.map_err(|_| ReadError::Failed)?;
            Ok::<(), Refusal>(())
        });
        match result {
            Ok(()) => Ok(()),
            Err(Refusal::Status(status)) => Err(Pull::Failed(status)),
            Err(Refusal::Read(ReadError::Failed)) => Err(Pull::Failed(Status::RemoteOperation)),
            Err(Refusal::Read(ReadError::NotPermitted)) => Err(Pull::NotPermitted),
        }
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
    fn access<T: Default, E: From<Status>>(
        &self,
        key: u64,
        addr: u64,
        len: usize,
        access: Access,
        touch: impl FnOnce(&Export, usize) -> Result<T, E>,
    ) -> Result<T, E> {
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
                _ => Err(Status::RemoteAccess.into()),
            }
        })
        .unwrap_or_else(|| Err(Status::RemoteAccess.into()))
    }
}

/// Why a pull did not happen.
enum Refusal {
    Status(Status),
    Read(ReadError),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
