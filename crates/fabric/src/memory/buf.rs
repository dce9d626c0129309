//! Private memory with the local registration that some devices need.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use mem::Memory;

use crate::provider::Registration;

/// Private memory: one owner, an ordinary slice. It moves into a work and comes back with the completion.
///
/// ```compile_fail
/// # use ringmail_fabric::{Buf, Work};
/// let buf = Buf::from(&b"in flight"[..]);
/// let work = Work::send(1, buf);
/// println!("{}", buf.len()); // moved: nobody can look at it while the device does
/// ```
pub struct Buf {
    // Dropped before the bytes: a device must not know memory that is gone.
    registration: Option<Arc<LocalRegistration>>,
    bytes: mem::Buf,
}

/// That a device may reach a `Buf` while it is in flight.
pub(crate) struct LocalRegistration {
    pub(crate) registration: Box<dyn Registration>,
    pub(crate) domain: u64,
}

impl Drop for LocalRegistration {
    fn drop(&mut self) {
        self.registration.deregister();
    }
}

impl Buf {
    /// `len` zeroed bytes of no domain. [`crate::Domain::buf`] also registers them where the device wants that.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        mem::Buf::zeroed(len).into()
    }

    /// How many bytes were allocated.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Shows the first `len` bytes as the slice, and posts only those.
    ///
    /// # Panics
    /// If `len` exceeds [`Buf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        self.bytes.set_len(len);
    }

    /// Ends a local registration and answers the bytes, to be exposed by [`crate::Domain::register`].
    #[must_use]
    pub fn into_memory(self) -> Memory {
        let Self {
            registration,
            bytes,
        } = self;
        drop(registration);
        bytes.into_memory()
    }

    pub(crate) fn registered(bytes: mem::Buf, registration: LocalRegistration) -> Self {
        Self {
            registration: Some(Arc::new(registration)),
            bytes,
        }
    }

    pub(crate) fn into_bytes(self) -> mem::Buf {
        self.bytes
    }

    /// The domain it is registered with.
    #[inline]
    pub(crate) fn domain(&self) -> Option<u64> {
        self.registration.as_ref().map(|local| local.domain)
    }

    pub(crate) fn local_key(&self) -> Option<u64> {
        let local = self.registration.as_ref()?;
        Some(local.registration.local_key())
    }

    #[inline]
    pub(crate) fn is_registered(&self) -> bool {
        self.registration.is_some()
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &mem::Buf {
        &self.bytes
    }
}

impl From<mem::Buf> for Buf {
    fn from(bytes: mem::Buf) -> Self {
        Self {
            registration: None,
            bytes,
        }
    }
}

impl From<&[u8]> for Buf {
    fn from(bytes: &[u8]) -> Self {
        mem::Buf::from(bytes).into()
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes.fmt(f)
    }
}
