//! Shared receives as users hold them.

use std::fmt;
use std::sync::Arc;

use crate::{Capabilities, PostError, Work, check, provider};

/// Receives that several endpoints take from, so that many endpoints need few buffers. A cheap handle.
///
/// Which endpoint took one is said by its completion, which is in that endpoint's queue.
#[derive(Clone)]
pub struct SharedReceive {
    pub(crate) inner: Arc<dyn provider::SharedReceive>,
    pub(crate) domain: u64,
    pub(crate) capabilities: Arc<Capabilities>,
}

impl SharedReceive {
    /// Posts receives from the front of the vector and takes out those that were accepted.
    ///
    /// # Errors
    /// Why the work that is now first was not accepted.
    pub fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let valid = check::receives(work, &self.capabilities, self.domain);
        check::post_valid(work, valid, |work| self.inner.post(work))
    }

    /// Asks for one [`crate::Event::ReceiveLimit`] as soon as fewer than `limit` receives are left.
    pub fn arm_limit(&self, limit: usize) {
        self.inner.arm_limit(limit);
    }
}

impl SharedReceive {
    /// Takes back the receives that nothing has arrived in. Drop the endpoints that use them first: what arrives meanwhile
    /// goes into some of them.
    #[must_use]
    pub fn drain(&self) -> Vec<Work> {
        self.inner.drain()
    }
}

impl fmt::Debug for SharedReceive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedReceive").finish_non_exhaustive()
    }
}
