//! Exposed memory: registered with a domain, reachable by peers who know its key.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Once};

use bitflags::bitflags;
use mem::{AccessError, Memory};

use super::{Buf, RemoteRegion, Segment};
use crate::provider::{self, Registration};

bitflags! {
    /// What peers who know the key may do. Local work may always use the region.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Access: u8 {
        /// Peers may read.
        const REMOTE_READ = 1;
        /// Peers may write.
        const REMOTE_WRITE = 2;
        /// Peers may fetch-and-add and compare-and-swap.
        const REMOTE_ATOMIC = 4;
    }
}

impl Access {
    /// Nothing: the region is for local work.
    pub const LOCAL: Self = Self::empty();
}

/// Memory that peers may access at any time. A cheap handle; the region is deregistered with the last one. Registering may
/// have moved the memory; from then on it stays where it is.
///
/// No reference to the bytes exists; what was read is a copy: validate the copy, since the peer may be writing.
///
/// ```compile_fail
/// # use ringmail_fabric::MemoryRegion;
/// fn look(region: &MemoryRegion) -> &[u8] {
///     &region[..] // exposed memory has no slices
/// }
/// ```
#[derive(Clone)]
pub struct MemoryRegion {
    inner: Arc<Inner>,
}

struct Inner {
    registered: Registered,
    access: Access,
    domain: u64,
    _keeps_alive: Arc<dyn provider::Domain>,
}

/// Memory with its registration, which ends once, at the latest on drop.
struct Registered {
    registration: Box<dyn Registration>,
    ended: Once,
    /// There until it becomes a `Buf` again.
    memory: Option<Memory>,
}

impl Registered {
    #[inline]
    fn memory(&self) -> &Memory {
        let memory = self.memory.as_ref();
        memory.expect("a region has its memory until it is taken apart")
    }

    /// Ends the registration. Peers may still have the memory mapped.
    fn end(&self) {
        self.ended.call_once(|| self.registration.deregister());
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.end();
        // Nobody wants the content of memory that has no other handle: no copy of it is made.
        if let Some(memory) = self.memory.take() {
            memory.discard();
        }
    }
}

impl MemoryRegion {
    pub(crate) fn new(
        registration: Box<dyn Registration>,
        memory: Memory,
        access: Access,
        domain: u64,
        keeps_alive: Arc<dyn provider::Domain>,
    ) -> Self {
        let registered = Registered {
            registration,
            ended: Once::new(),
            memory: Some(memory),
        };
        Self {
            inner: Arc::new(Inner {
                registered,
                access,
                domain,
                _keeps_alive: keeps_alive,
            }),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory().len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What peers may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.inner.access
    }

    /// The whole region as peers name it.
    #[must_use]
    pub fn remote(&self) -> RemoteRegion {
        let registration = &self.inner.registered.registration;
        RemoteRegion {
            addr: registration.remote_addr(),
            len: self.len() as u64,
            key: registration.remote_key(),
        }
    }

    /// A range of the region for the local side of a work: no copy is made.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn slice(&self, range: Range<usize>) -> Result<Segment, AccessError> {
        let len = range.end.saturating_sub(range.start);
        self.memory().iovec(range.start, len)?;
        Ok(Segment::Region {
            region: self.clone(),
            offset: range.start,
            len,
        })
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), AccessError> {
        self.memory().copy_out(offset, into)
    }

    /// Copies bytes in; the last become visible last.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.memory().copy_in(offset, bytes)
    }

    /// Loads an aligned word; what a peer wrote before it is visible afterwards if the device places in order
    /// ([`crate::Capabilities::ordered_placement`]).
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn load(&self, offset: usize) -> Result<u64, AccessError> {
        self.memory().load_u64(offset)
    }

    /// Stores an aligned word, after everything that this thread wrote before.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn store(&self, offset: usize, value: u64) -> Result<(), AccessError> {
        self.memory().store_u64(offset, value)
    }

    /// Adds to an aligned word; answers the value before.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn fetch_add(&self, offset: usize, add: u64) -> Result<u64, AccessError> {
        self.memory().fetch_add(offset, add)
    }

    /// Replaces an aligned word by `new` if it is `expected`; answers the value before.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn compare_swap(&self, offset: usize, expected: u64, new: u64) -> Result<u64, AccessError> {
        self.memory().compare_swap(offset, expected, new)
    }

    /// Ends the peers' access. When this returns no peer reads or writes the region any more, and its key is refused.
    ///
    /// Where peers had the memory mapped, its touched pages are copied by the kernel; its address stays, and no peer is
    /// waited for. Dropping the last handle instead copies nothing.
    ///
    /// # Errors
    /// The region itself, revoked, if it is not the last handle to memory of our own: another clone or work in flight
    /// holds it, or it is a file or foreign memory.
    pub fn revoke(mut self) -> Result<Buf, Self> {
        self.inner.registered.end();
        let Some(inner) = Arc::get_mut(&mut self.inner) else {
            self.memory().clone().unshare();
            return Err(self);
        };
        let mut memory = inner.registered.memory.take().expect("this is no drop");
        memory.unshare();
        match mem::Buf::try_from(memory) {
            Ok(bytes) => Ok(bytes.into()),
            Err(memory) => {
                inner.registered.memory = Some(memory);
                Err(self)
            }
        }
    }

    /// Whether the peers' access was ended by [`MemoryRegion::revoke`] on some handle.
    #[inline]
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.inner.registered.ended.is_completed()
    }

    /// Whether the file behind the region was found truncated; see [`AccessError::Fault`].
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        self.memory().is_faulted()
    }

    /// A slice of exposed memory, for protocols in which peers hand parts of it over to each other.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    ///
    /// # Safety
    /// - As [`Memory::assume_quiescent`]: no peer, thread or work in flight writes to the range while the slice lives.
    pub unsafe fn assume_quiescent(&self, range: Range<usize>) -> Result<&[u8], AccessError> {
        let len = range.end.saturating_sub(range.start);
        // SAFETY: the caller's promise, passed on.
        unsafe { self.memory().assume_quiescent(range.start, len) }
    }

    /// The memory itself: more handles to the same exposed bytes.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &Memory {
        self.inner.registered.memory()
    }

    #[inline]
    pub(crate) fn domain(&self) -> u64 {
        self.inner.domain
    }

    pub(crate) fn local_key(&self) -> u64 {
        self.inner.registered.registration.local_key()
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("addr", &format_args!("{:#x}", self.remote().addr))
            .field("len", &self.len())
            .field("access", &self.access())
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}
