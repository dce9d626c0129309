//! Where the system has no sealed memory files, memory is never shared.

use crate::Memory;

impl Memory {
    /// Hands the bytes to nobody any more: nobody could have them.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        false
    }

    /// Takes the bytes back from other processes: there are none.
    pub fn unshare(&mut self) {}

    /// Drops the handle.
    pub fn discard(self) {}
}
