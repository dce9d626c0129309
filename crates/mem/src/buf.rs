//! Private memory: one owner, an ordinary slice, until it is exposed.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::Memory;

/// Bytes with one owner, allocated so that a device can use them.
///
/// [`Buf::into_memory`] exposes them; [`Buf::try_from`] makes the last handle private again. While a `Buf` exists no
/// other handle to its bytes does, so slices of it are sound.
///
/// ```
/// # use ringmail_mem::{Buf, Memory};
/// let mut buf = Buf::zeroed(16);
/// buf[..5].copy_from_slice(b"hello");
/// let memory = buf.into_memory();
/// memory.copy_in(0, b"J").unwrap();
/// let other = memory.clone();
/// let memory = Buf::try_from(memory).unwrap_err(); // `other` could still write
/// drop(other);
/// assert_eq!(&Buf::try_from(memory).unwrap()[..5], b"Jello");
/// ```
pub struct Buf {
    /// The only handle, to an allocation of our own, except between [`Buf::share`] and the end of what it was for.
    memory: Memory,
    /// Visible bytes, at most `memory.len()`.
    len: usize,
}

impl Buf {
    /// Allocates `len` zeroed bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        Self {
            memory: Memory::allocate(len),
            len,
        }
    }

    /// As [`Buf::zeroed`], but answers `None` where there is not so much memory.
    #[must_use]
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let memory = Memory::try_allocate(len)?;
        Some(Self { memory, len })
    }

    /// How many bytes were allocated; [`Buf::set_len`] may go up to this.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Shows the first `len` bytes as the slice. Bytes past the old length keep what was last in them.
    ///
    /// # Panics
    /// If `len` exceeds [`Buf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "a Buf of {} bytes has no {len}",
            self.capacity()
        );
        self.len = len;
    }

    /// The address of the first byte.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.memory.addr()
    }

    /// Exposes the whole capacity.
    #[must_use]
    pub fn into_memory(self) -> Memory {
        self.memory
    }

    /// The handle to the bytes, for a device that works on them where they are.
    ///
    /// # Safety
    /// - What is reached through it, or a clone of it, is touched only while the `Buf` is owned by an operation in flight,
    ///   when nobody can name its slice.
    #[inline]
    #[must_use]
    pub unsafe fn exposed(&self) -> &Memory {
        &self.memory
    }

    /// Whether there is no other handle to the bytes. Then what others wrote through theirs is visible.
    #[inline]
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.memory.is_alone()
    }

    /// A second handle to the bytes, for a device that keeps registered memory in a table.
    ///
    /// # Safety
    /// - The handle (and its clones) touches the bytes only while the `Buf` is owned by an operation in flight, when
    ///   nobody can name its slice.
    #[must_use]
    pub unsafe fn share(&self) -> Memory {
        self.memory.clone()
    }
}

/// The last handle to an allocation of our own becomes private again (and is taken back from processes that had it
/// mapped); any other is given back.
impl TryFrom<Memory> for Buf {
    type Error = Memory;

    fn try_from(mut memory: Memory) -> Result<Self, Memory> {
        if !memory.is_own() {
            return Err(memory);
        }
        memory.withdraw();
        memory.unshare();
        let len = memory.len();
        Ok(Self { memory, len })
    }
}

impl From<&[u8]> for Buf {
    fn from(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: in bounds and initialised; this is the only handle, so nobody writes while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.memory.base().as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: in bounds and initialised; this is the only handle, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.base().as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buf_keeps_its_bytes_through_exposure() {
        let buf = Buf::from(&b"ring"[..]);
        let memory = buf.into_memory();
        let mut word = [0; 4];
        memory.copy_out(0, &mut word).unwrap();
        assert_eq!(&word, b"ring");
        let held = memory.clone();
        let memory = Buf::try_from(memory).expect_err("another handle could still write");
        drop(held);
        let mut buf = Buf::try_from(memory).expect("the last handle");
        assert_eq!(&buf[..], b"ring");
        buf.set_len(2);
        assert_eq!(&buf[..], b"ri");
        assert_eq!(buf.capacity(), 4);
    }

    #[test]
    fn foreign_memory_never_becomes_a_buf() {
        let mut host = [0_u8; 8];
        let base = std::ptr::NonNull::new(host.as_mut_ptr()).unwrap();
        // SAFETY: the array outlives the handle.
        let memory = unsafe { Memory::foreign(base, 8, true) };
        assert!(Buf::try_from(memory).is_err());
    }
}
