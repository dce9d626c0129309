//! The handle to exposed bytes, and the allocations behind it.
//!
//! Bounds, alignment and writability are checked here; how bytes move is [`crate::copy`]'s.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::copy::{self, Span};

/// Why an access to exposed memory was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The range does not lie within the memory. Nothing was touched.
    #[error("{len} bytes at offset {offset} lie outside a memory of {size} bytes")]
    OutOfBounds {
        /// First byte asked for.
        offset: usize,
        /// Bytes asked for.
        len: usize,
        /// Bytes there are.
        size: usize,
    },
    /// A word access whose address is not a multiple of eight. Nothing was touched.
    #[error("address {0:#x} is not a multiple of 8")]
    Unaligned(u64),
    /// A write to memory that was mapped read-only. Nothing was touched.
    #[error("memory is mapped read-only")]
    ReadOnly,
    /// The file behind the memory was truncated (or its disk is full); what was read there is not the file's content.
    /// Every later access to the same mapping answers this too.
    #[error("the file behind the memory was truncated or could not be stored")]
    Fault,
}

/// A handle to bytes that other agents may read and write at any time.
///
/// Cloning is cheap; the bytes live until the last handle is gone. There is no way to a reference except the
/// `unsafe` [`Memory::assume_quiescent`]. What was read is a snapshot: copy first, then validate the copy.
#[derive(Clone)]
pub struct Memory {
    allocation: Arc<Allocation>,
}

impl Memory {
    /// Allocates `len` zeroed bytes in whole words, page-aligned.
    ///
    /// Large allocations (64 KiB and up) are anonymous mappings whose pages appear when first touched.
    ///
    /// # Panics
    /// If `len` exceeds `isize::MAX`. Running out of memory aborts, as for a `Vec`.
    #[must_use]
    pub fn allocate(len: usize) -> Self {
        Self::try_allocate(len).unwrap_or_else(|| {
            let layout = Allocation::layout(len).expect("no more than isize::MAX bytes");
            handle_alloc_error(layout)
        })
    }

    /// As [`Memory::allocate`], but answers `None` where there is not so much memory.
    #[must_use]
    pub fn try_allocate(len: usize) -> Option<Self> {
        Allocation::anonymous(len).map(Self::of)
    }

    pub(crate) fn of(allocation: Allocation) -> Self {
        Self {
            allocation: Arc::new(allocation),
        }
    }

    /// Takes memory that something else owns: a C caller's buffer, or a device's.
    ///
    /// Its first and last bytes may share a word with memory that is not ours, so edges are accessed bytewise.
    ///
    /// # Safety
    /// - `ptr` is valid for reads (and, if `writable`, writes) of `len` bytes until the last clone of the handle is dropped.
    /// - Until then Rust code holds no reference to those bytes while it, or a peer, may change them.
    #[must_use]
    pub unsafe fn foreign(ptr: NonNull<u8>, len: usize, writable: bool) -> Self {
        Self::of(Allocation {
            base: ptr,
            len,
            kind: Kind::Foreign,
            writable,
        })
    }

    /// The address of the first byte; the default `iova` of a registration.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.allocation.base.as_ptr().addr() as u64
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.allocation.len
    }

    /// Whether there are no bytes at all.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are possible: false for a file mapped read-only.
    #[inline]
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.allocation.writable
    }

    /// Whether the file behind the memory has been found truncated; see [`AccessError::Fault`].
    #[inline]
    #[must_use]
    pub fn is_faulted(&self) -> bool {
        match &self.allocation.kind {
            #[cfg(unix)]
            Kind::File(guard, _) => guard.is_poisoned(),
            _ => false,
        }
    }

    /// Whether this handle is to the same allocation as `other`.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.allocation, &other.allocation)
    }

    /// Writes `bytes` at `offset`; the last of them become visible last (see the crate's "Publication").
    ///
    /// # Errors
    /// [`AccessError`]; after `Fault` an unspecified part may have been written.
    #[inline]
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), AccessError> {
        let span = self.writable_span(offset, bytes.len())?;
        // SAFETY: the span lies within the allocation, which is writable and lives as long as `self`.
        unsafe { copy::place(span, bytes) };
        self.check_fault()
    }

    /// Copies the bytes at `offset` out. They are a snapshot in no particular order: a peer may be writing.
    ///
    /// # Errors
    /// [`AccessError`]; after `Fault` the contents of `bytes` are unspecified.
    #[inline]
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), AccessError> {
        let span = self.span(offset, bytes.len())?;
        // SAFETY: the span lies within the allocation, which lives as long as `self`.
        unsafe { copy::fetch(span, bytes) };
        self.check_fault()
    }

    /// Copies out and feeds the copy to `crc`, in blocks that stay in the first-level cache.
    ///
    /// The checksum is that of the copy, even while a peer is writing: what leaves is what was checksummed.
    ///
    /// # Errors
    /// As [`Memory::copy_out`]; after `Fault` `crc` has taken unspecified bytes.
    pub fn copy_out_crc(
        &self,
        offset: usize,
        bytes: &mut [u8],
        crc: &mut crc32fast::Hasher,
    ) -> Result<(), AccessError> {
        self.span(offset, bytes.len())?;
        for (index, block) in bytes.chunks_mut(CRC_BLOCK).enumerate() {
            let span = self.span(offset + index * CRC_BLOCK, block.len())?;
            // SAFETY: the span lies within the allocation, which lives as long as `self`.
            unsafe { copy::fetch(span, block) };
            crc.update(block);
        }
        self.check_fault()
    }

    /// Copies `len` bytes from `source` (which may be exposed too); the last become visible last. Where both are ranges of
    /// one memory that overlap, what is written is unspecified.
    ///
    /// # Errors
    /// [`AccessError`] of either side; after `Fault` a part may have been written.
    #[inline]
    pub fn copy_from(
        &self,
        offset: usize,
        source: &Self,
        source_offset: usize,
        len: usize,
    ) -> Result<(), AccessError> {
        let to = self.writable_span(offset, len)?;
        let from = source.span(source_offset, len)?;
        // SAFETY: both spans lie within allocations that live as long as the handles; `to` is writable.
        unsafe { copy::transfer(to, from) };
        source.check_fault()?;
        self.check_fault()
    }

    /// Loads the aligned word at `offset`; what was published before it is visible afterwards.
    ///
    /// # Errors
    /// [`AccessError`].
    #[inline]
    pub fn load_u64(&self, offset: usize) -> Result<u64, AccessError> {
        // Acquire: pairs with the release store in `copy::place` and in `store_u64`.
        let value = self.word(offset)?.load(Ordering::Acquire);
        self.check_fault().map(|()| value)
    }

    /// Stores the aligned word at `offset`, after everything that this thread wrote before.
    ///
    /// # Errors
    /// [`AccessError`].
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64) -> Result<(), AccessError> {
        // Release: pairs with the acquire load in `load_u64`.
        self.writable_word(offset)?.store(value, Ordering::Release);
        self.check_fault()
    }

    /// Adds to the aligned word at `offset`, wrapping; answers the value before.
    ///
    /// # Errors
    /// [`AccessError`].
    #[inline]
    pub fn fetch_add(&self, offset: usize, add: u64) -> Result<u64, AccessError> {
        let before = self.writable_word(offset)?.fetch_add(add, Ordering::AcqRel);
        self.check_fault().map(|()| before)
    }

    /// Replaces the aligned word at `offset` by `new` if it equals `expected`; answers the value before.
    ///
    /// # Errors
    /// [`AccessError`].
    #[inline]
    pub fn compare_swap(&self, offset: usize, expected: u64, new: u64) -> Result<u64, AccessError> {
        let before = self
            .writable_word(offset)?
            .compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire)
            .unwrap_or_else(|before| before);
        self.check_fault().map(|()| before)
    }

    /// The raw parts of a range, for the gather list of a system call or a device.
    ///
    /// Producing them is safe; whoever follows the pointer keeps this handle alive meanwhile and follows the crate's
    /// invariant. A system call that reads a truncated file's mapping answers `EFAULT`.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn iovec(&self, offset: usize, len: usize) -> Result<(*const u8, usize), AccessError> {
        let span = self.span(offset, len)?;
        Ok((span.ptr.cast_const(), span.len))
    }

    /// As [`Memory::iovec`], for a scatter list.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`] and [`AccessError::ReadOnly`].
    pub fn iovec_mut(&self, offset: usize, len: usize) -> Result<(*mut u8, usize), AccessError> {
        let span = self.writable_span(offset, len)?;
        Ok((span.ptr, span.len))
    }

    /// A slice of exposed memory, for protocols in which peers hand parts of it over to each other.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    ///
    /// # Safety
    /// - Nobody, here or on another machine, writes to the range while the slice lives: the peer's protocol forbids it,
    ///   and the peer is trusted to follow it.
    /// - The end of the peer's writes was observed with acquire ordering (a completion, or [`Memory::load_u64`]).
    /// - A file behind the memory is not truncated meanwhile.
    pub unsafe fn assume_quiescent(&self, offset: usize, len: usize) -> Result<&[u8], AccessError> {
        let span = self.span(offset, len)?;
        // SAFETY: in bounds, initialised, alive as long as `self`; that nobody writes is the caller's promise.
        Ok(unsafe { std::slice::from_raw_parts(span.ptr, span.len) })
    }

    /// As [`Memory::assume_quiescent`], for writing.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`] and [`AccessError::ReadOnly`].
    ///
    /// # Safety
    /// As [`Memory::assume_quiescent`], and nobody reads the range meanwhile either.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn assume_quiescent_mut(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<&mut [u8], AccessError> {
        let span = self.writable_span(offset, len)?;
        // SAFETY: in bounds, initialised, alive as long as `self`; that nobody else looks is the caller's promise.
        Ok(unsafe { std::slice::from_raw_parts_mut(span.ptr, span.len) })
    }

    /// Has the pages of a range made ready to be written, all at once instead of one fault each. A hint: where the system
    /// does not know how, or cannot, nothing happens.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`] and [`AccessError::ReadOnly`].
    pub fn populate(&self, offset: usize, len: usize) -> Result<(), AccessError> {
        let span = self.writable_span(offset, len)?;
        #[cfg(all(target_os = "linux", not(miri)))]
        advise(span, libc::MADV_POPULATE_WRITE);
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = span;
        Ok(())
    }

    /// As [`Memory::populate`], for pages that will be read: of a file or of another process.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn populate_read(&self, offset: usize, len: usize) -> Result<(), AccessError> {
        let span = self.span(offset, len)?;
        #[cfg(all(target_os = "linux", not(miri)))]
        advise(span, libc::MADV_POPULATE_READ);
        #[cfg(not(all(target_os = "linux", not(miri))))]
        let _ = span;
        Ok(())
    }

    /// Whether this is the only handle, to bytes of our own. If so it may become a [`Buf`](crate::Buf), once no other process
    /// reaches them.
    pub(crate) fn is_own(&mut self) -> bool {
        // There are no weak handles, so the only handle stays the only one while it is borrowed exclusively.
        if !self.is_alone() {
            return false;
        }
        match &self.allocation.kind {
            Kind::Heap(_) => true,
            #[cfg(unix)]
            Kind::Anonymous(_) => true,
            #[cfg(unix)]
            Kind::File(..) => false,
            #[cfg(target_os = "linux")]
            Kind::Shared(_) => true,
            #[cfg(target_os = "linux")]
            Kind::Peer(_) => false,
            Kind::Foreign => false,
        }
    }

    /// Whether this is the only handle, at the moment.
    #[inline]
    pub(crate) fn is_alone(&self) -> bool {
        if Arc::strong_count(&self.allocation) != 1 {
            return false;
        }
        // Acquire: pairs with the release decrement of the handle dropped last; what was written by it is visible.
        fence(Ordering::Acquire);
        true
    }

    /// The allocation, if this is the only handle.
    pub(crate) fn exclusive(&mut self) -> Option<&mut Allocation> {
        Arc::get_mut(&mut self.allocation)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn allocation(&self) -> &Allocation {
        &self.allocation
    }

    #[inline]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.allocation.base
    }

    #[inline]
    fn check_fault(&self) -> Result<(), AccessError> {
        if self.is_faulted() {
            return Err(AccessError::Fault);
        }
        Ok(())
    }

    #[inline]
    fn span(&self, offset: usize, len: usize) -> Result<Span, AccessError> {
        let size = self.len();
        if offset > size || len > size - offset {
            return Err(AccessError::OutOfBounds { offset, len, size });
        }
        Ok(Span {
            // SAFETY: `offset <= size` was checked, so the result is within the allocation or one past its end.
            ptr: unsafe { self.allocation.base.as_ptr().add(offset) },
            len,
            whole_words: !matches!(self.allocation.kind, Kind::Foreign),
        })
    }

    #[inline]
    fn writable_span(&self, offset: usize, len: usize) -> Result<Span, AccessError> {
        if !self.is_writable() {
            return Err(AccessError::ReadOnly);
        }
        self.span(offset, len)
    }

    #[inline]
    fn word(&self, offset: usize) -> Result<&AtomicU64, AccessError> {
        let span = self.span(offset, 8)?;
        if span.ptr.addr() % 8 != 0 {
            return Err(AccessError::Unaligned(span.ptr.addr() as u64));
        }
        // SAFETY: eight bytes in bounds, aligned, alive as long as `self`; exposed words are only accessed atomically.
        Ok(unsafe { AtomicU64::from_ptr(span.ptr.cast()) })
    }

    #[inline]
    fn writable_word(&self, offset: usize) -> Result<&AtomicU64, AccessError> {
        if !self.is_writable() {
            return Err(AccessError::ReadOnly);
        }
        self.word(offset)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("addr", &format_args!("{:#x}", self.addr()))
            .field("len", &self.len())
            .field("kind", &self.allocation.kind)
            .finish_non_exhaustive()
    }
}

/// The bytes themselves. Those of every kind but `Foreign` are whole aligned words, also past `len`.
pub(crate) struct Allocation {
    pub(crate) base: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) kind: Kind,
    pub(crate) writable: bool,
}

pub(crate) enum Kind {
    /// From the global allocator.
    Heap(Layout),
    /// An anonymous mapping of so many bytes.
    #[cfg(unix)]
    Anonymous(usize),
    /// A shared mapping of a file, with its guard. Never resized. The file itself is kept if it is only read, so that
    /// others can map it too.
    #[cfg(unix)]
    File(crate::guard::Guard, Option<Arc<std::fs::File>>),
    /// A mapping of a memory file of our own, which other processes may have mapped.
    #[cfg(target_os = "linux")]
    Shared(crate::shared::Shared),
    /// A mapping, of so many bytes, of another process's sealed memory file.
    #[cfg(target_os = "linux")]
    Peer(usize),
    /// Somebody else's.
    Foreign,
}

impl Allocation {
    fn anonymous(len: usize) -> Option<Self> {
        let layout = Self::layout(len)?;
        #[cfg(all(unix, not(miri)))]
        if len >= LARGE
            && let Some(allocation) = Self::map(len)
        {
            return Some(allocation);
        }
        // SAFETY: the layout's size is at least eight.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self {
            base,
            len,
            kind: Kind::Heap(layout),
            writable: true,
        })
    }

    /// None for more than `isize::MAX` bytes.
    fn layout(len: usize) -> Option<Layout> {
        let words = len.max(8).checked_next_multiple_of(8)?;
        Layout::from_size_align(words, alignment(len)).ok()
    }

    #[cfg(all(unix, not(miri)))]
    fn map(len: usize) -> Option<Self> {
        let mapped = len.checked_next_multiple_of(8)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        Some(Self {
            base: NonNull::new(base.cast())?,
            len,
            kind: Kind::Anonymous(mapped),
            writable: true,
        })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &mut self.kind {
            // SAFETY: allocated with this layout in `anonymous`, and no handle is left.
            Kind::Heap(layout) => unsafe { dealloc(self.base.as_ptr(), *layout) },
            // SAFETY: mapped with this length in `map`, and no handle is left.
            #[cfg(unix)]
            Kind::Anonymous(mapped) => unsafe {
                libc::munmap(self.base.as_ptr().cast(), *mapped);
            },
            // The guard owns the mapping.
            #[cfg(unix)]
            Kind::File(..) => {}
            // SAFETY: mapped here, and no handle is left.
            #[cfg(target_os = "linux")]
            Kind::Shared(shared) => unsafe { shared.unmap(self.base) },
            // SAFETY: mapped with this length in `Memory::map`, and no handle is left.
            #[cfg(target_os = "linux")]
            Kind::Peer(mapped) => unsafe {
                libc::munmap(self.base.as_ptr().cast(), *mapped);
            },
            Kind::Foreign => {}
        }
    }
}

// SAFETY: the bytes are accessed as the crate's invariant says, which is data-race free; the rest is plain data.
unsafe impl Send for Allocation {}
// SAFETY: as for `Send`.
unsafe impl Sync for Allocation {}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heap(_) => "heap",
            #[cfg(unix)]
            Self::Anonymous(_) => "anonymous",
            #[cfg(unix)]
            Self::File(..) => "file",
            #[cfg(target_os = "linux")]
            Self::Shared(_) => "shared",
            #[cfg(target_os = "linux")]
            Self::Peer(_) => "a peer's",
            Self::Foreign => "foreign",
        })
    }
}

/// Advises the kernel on the pages of a range; its failure is ignored.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise(span: Span, advice: libc::c_int) {
    // The kernel wants a start at a page; all of that page is mapped, since a byte of it is ours.
    let before = span.ptr.addr() & (PAGE - 1);
    // SAFETY: populating changes no byte. A file too short is answered by an error, not by a signal.
    unsafe {
        libc::madvise(
            span.ptr.wrapping_sub(before).cast(),
            span.len + before,
            advice,
        );
    }
}

/// Small allocations need not each cost a page of alignment; a cache line keeps neighbours apart.
fn alignment(len: usize) -> usize {
    if len < PAGE { 64 } else { PAGE }
}

const PAGE: usize = 4096;

/// From here on an anonymous mapping is cheaper than zeroing.
#[cfg(all(unix, not(miri)))]
const LARGE: usize = 64 << 10;

/// Half of a common first-level data cache: the copy is still there when the checksum reads it.
const CRC_BLOCK: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_goes_in_and_comes_out_and_nothing_else_changes() {
        let memory = Memory::allocate(256);
        let source: Vec<u8> = (1..=255).collect();
        for offset in 0..20 {
            for len in 0..100 {
                memory.copy_in(0, &[0xee; 256]).unwrap();
                memory.copy_in(offset, &source[..len]).unwrap();
                let mut all = [0; 256];
                memory.copy_out(0, &mut all).unwrap();
                assert_eq!(&all[offset..offset + len], &source[..len]);
                assert!(all[..offset].iter().all(|&byte| byte == 0xee));
                assert!(all[offset + len..].iter().all(|&byte| byte == 0xee));
                let mut part = vec![0; len];
                memory.copy_out(offset, &mut part).unwrap();
                assert_eq!(part, &source[..len]);
            }
        }
    }

    #[test]
    fn large_copies_are_exact_at_every_alignment() {
        let len = if cfg!(miri) { 300 } else { 10_000 };
        let memory = Memory::allocate(len + 16);
        let source: Vec<u8> = (0..len).map(|index| (index * 7 % 251) as u8).collect();
        for offset in 0..16 {
            memory.copy_in(offset, &source).unwrap();
            let mut back = vec![0; len];
            memory.copy_out(offset, &mut back).unwrap();
            assert_eq!(back, source, "at offset {offset}");
        }
    }

    #[test]
    fn foreign_memory_is_never_touched_outside_its_range() {
        let mut host = [0xee_u8; 64];
        for start in 0..9 {
            for len in 0..30 {
                host.fill(0xee);
                let base = NonNull::new(host[start..].as_mut_ptr()).unwrap();
                // SAFETY: the array outlives the handle and is not looked at while it lives.
                let memory = unsafe { Memory::foreign(base, len, true) };
                memory.copy_in(0, &vec![7; len]).unwrap();
                let mut back = vec![0; len];
                memory.copy_out(0, &mut back).unwrap();
                drop(memory);
                assert_eq!(back, vec![7; len]);
                assert!(host[..start].iter().all(|&byte| byte == 0xee));
                assert!(host[start..start + len].iter().all(|&byte| byte == 7));
                assert!(host[start + len..].iter().all(|&byte| byte == 0xee));
            }
        }
    }

    #[test]
    fn a_range_outside_the_memory_is_refused_untouched() {
        let memory = Memory::allocate(16);
        for (offset, len) in [(0, 17), (16, 1), (17, 0), (usize::MAX, 2), (8, usize::MAX)] {
            assert_eq!(
                memory.iovec(offset, len),
                Err(AccessError::OutOfBounds {
                    offset,
                    len,
                    size: 16
                })
            );
        }
        assert!(memory.copy_in(10, &[1; 7]).is_err());
        assert_eq!(memory.load_u64(8), Ok(0));
        assert!(memory.load_u64(9).is_err());
        assert_eq!(
            memory.fetch_add(4, 1),
            Err(AccessError::Unaligned(memory.addr() + 4))
        );
    }

    #[test]
    fn atomics_answer_the_value_before() {
        let memory = Memory::allocate(16);
        memory.store_u64(8, 40).unwrap();
        assert_eq!(memory.fetch_add(8, 2), Ok(40));
        assert_eq!(memory.compare_swap(8, 41, 0), Ok(42));
        assert_eq!(memory.compare_swap(8, 42, 7), Ok(42));
        assert_eq!(memory.load_u64(8), Ok(7));
        assert_eq!(memory.load_u64(0), Ok(0));
    }

    #[test]
    fn the_checksum_is_that_of_the_copy() {
        let memory = Memory::allocate(40_000);
        let source: Vec<u8> = (0..40_000).map(|index| (index % 253) as u8).collect();
        memory.copy_in(0, &source).unwrap();
        let mut crc = crc32fast::Hasher::new();
        let mut copy = vec![0; 39_000];
        memory.copy_out_crc(500, &mut copy, &mut crc).unwrap();
        assert_eq!(copy, &source[500..39_500]);
        assert_eq!(crc.finalize(), crc32fast::hash(&source[500..39_500]));
    }

    #[test]
    fn copies_between_memories_are_exact() {
        let source = Memory::allocate(50_000);
        let target = Memory::allocate(50_000);
        let bytes: Vec<u8> = (0..50_000).map(|index| (index % 241) as u8).collect();
        source.copy_in(0, &bytes).unwrap();
        target.copy_from(3, &source, 1, 49_000).unwrap();
        let mut back = vec![0; 49_000];
        target.copy_out(3, &mut back).unwrap();
        assert_eq!(back, &bytes[1..49_001]);
        assert!(target.copy_from(1_001, &source, 0, 49_000).is_err());
    }

    /// The promise that makes one-sided protocols work, on the copy that this build uses.
    #[test]
    fn a_flag_written_after_the_data_is_never_seen_before_the_data() {
        let rounds: u64 = if cfg!(miri) { 30 } else { 20_000 };
        for len in [16, 64, 200, 1024, 4096] {
            let memory = Memory::allocate(len);
            let writer = memory.clone();
            let thread = std::thread::spawn(move || {
                let mut message = vec![0; len];
                for round in 1..=rounds {
                    for word in message.chunks_exact_mut(8) {
                        word.copy_from_slice(&round.to_ne_bytes());
                    }
                    writer.copy_in(0, &message).unwrap();
                }
            });
            let mut data = vec![0; len - 8];
            loop {
                let flag = memory.load_u64(len - 8).unwrap();
                memory.copy_out(0, &mut data).unwrap();
                // Later rounds may already have overwritten the data; an earlier one must not be seen.
                let oldest = data
                    .chunks_exact(8)
                    .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
                    .min();
                assert!(oldest >= Some(flag), "flag {flag} before data {oldest:?}");
                if flag == rounds {
                    break;
                }
                std::thread::yield_now();
            }
            thread.join().unwrap();
        }
    }
}
