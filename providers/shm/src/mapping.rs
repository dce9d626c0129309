//! Memory that two processes map: an anonymous file, sealed against resizing, so that no access to it can fault.
//!
//! What is in it is under the control of the peer at every moment. It is read and written as atomic words, or copied through
//! [`mem::Memory`]; no other reference to it exists.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use mem::Memory;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapping of a whole sealed file.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, reached as atomic words and through `Memory`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes a sealed file of `len` zeroed bytes, which cost memory only when they are touched, and maps it.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn create(name: &str, len: usize) -> io::Result<(Self, OwnedFd)> {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        rustix::fs::fcntl_add_seals(&file, SEALS)?;
        let mapping = Self::map(file.as_fd(), len)?;
        Ok((mapping, file))
    }

    /// Maps a file that a peer sent.
    ///
    /// # Errors
    /// `InvalidData` if it is not of this length or may still be resized; what the system answers.
    pub(crate) fn adopt(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(file)?;
        if !seals.contains(SEALS) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file may still be resized",
            ));
        }
        let size = rustix::fs::fstat(file)?.st_size;
        if u64::try_from(size) != Ok(len as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file has another size",
            ));
        }
        Self::map(file, len)
    }

    fn map(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping at a place of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// All of it, as atomic words.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, whole words within the mapping, alive as long as `self`. Both processes change them as atomic
        // words, or by the assembly of `mem`, which is outside the compiler's view.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len / 8) }
    }

    /// A handle to a part of it, for copies.
    ///
    /// # Safety
    /// - The handle and its clones are dropped before the mapping.
    pub(crate) unsafe fn memory(&self, offset: usize, len: usize) -> Memory {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "a part of the mapping"
        );
        // SAFETY: in bounds and mapped writable for as long as the caller promises; no references but to atomic words exist.
        unsafe { Memory::foreign(self.base.add(offset), len, true) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `map` mapped, whole; nothing reaches it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn two_mappings_show_the_same_words() {
        let (one, file) = Mapping::create("test", 8192).unwrap();
        let two = Mapping::adopt(file.as_fd(), 8192).unwrap();
        one.words()[1023].store(7, Ordering::Release);
        assert_eq!(two.words()[1023].load(Ordering::Acquire), 7);
    }

    #[test]
    fn a_file_that_could_shrink_or_is_too_short_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let open = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&open, 8192).unwrap();
        assert!(
            Mapping::adopt(open.as_fd(), 8192).is_err(),
            "it may be resized"
        );
        let (_, sealed) = Mapping::create("test", 4096).unwrap();
        assert!(
            Mapping::adopt(sealed.as_fd(), 8192).is_err(),
            "it is too short"
        );
        assert!(rustix::fs::ftruncate(&sealed, 0).is_err(), "the seal holds");
    }
}
