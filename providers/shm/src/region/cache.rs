//! The regions that one endpoint used last: found without a lock, without an allocation, by one comparison.

use std::sync::Arc;

use fabric::{Access, RemoteAddr, Status};

use super::import::Import;
use super::imports::Imports;

/// An endpoint's way to its peer's memory.
pub(crate) struct Cache {
    imports: Arc<Imports>,
    /// By the low bits of the key, which is random.
    recent: [Option<Arc<Import>>; RECENT],
}

/// How to reach a range of a peer's memory.
pub(crate) enum Resolved<'a> {
    /// By [`Import::write`] and its like, here and now.
    Here(&'a Import),
    /// Not at all, and it need not be: there are no bytes, so nothing is checked (IBA 9.7.4.1.5).
    Nothing,
    /// Through the owner, who executes the work.
    Delegate,
    /// The key is not known here, or what was known no longer holds: ask the owner, then resolve again.
    Ask,
    /// Not at all: the work fails.
    Refused(Status),
}

impl Cache {
    pub(crate) fn new(imports: Arc<Imports>) -> Self {
        Self {
            imports,
            recent: [const { None }; RECENT],
        }
    }

    /// How to do `access` (one right) to `len` bytes at `remote`.
    #[inline]
    pub(crate) fn resolve(
        &mut self,
        remote: RemoteAddr,
        len: usize,
        access: Access,
    ) -> Resolved<'_> {
        if len == 0 {
            return Resolved::Nothing;
        }
        // IBA 9.7.4.1.5: an unaligned address is an invalid request, whatever the key.
        if access == Access::REMOTE_ATOMIC && !remote.addr.is_multiple_of(8) {
            return Resolved::Refused(Status::RemoteInvalidRequest);
        }
        let recent = &mut self.recent[remote.key as usize % RECENT];
        let hit =
            matches!(recent, Some(import) if import.key() == remote.key && import.is_current());
        if !hit {
            *recent = self.imports.find(remote.key);
        }
        let Some(import) = recent else {
            return Resolved::Ask;
        };
        match import.check(remote.addr, len, access) {
            Err(status) => Resolved::Refused(status),
            Ok(_) if import.reaches(access) => Resolved::Here(import),
            Ok(_) => Resolved::Delegate,
        }
    }
}

const RECENT: usize = 8;
