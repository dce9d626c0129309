//! Decorators over any provider: they see work as it is posted and completions as they are polled, and may delay, split,
//! refuse or record them.
//!
//! ```
//! use ringmail_fabric::{Registry, hook::Stats, loopback::Loopback};
//! use std::sync::Arc;
//!
//! let registry = Registry::new().with(Loopback::new());
//! let stats = Arc::new(Stats::default());
//! let domain = registry.open("loopback", &registry.defaults())?.hooked(Arc::clone(&stats));
//! assert_eq!(stats.snapshot().posted, 0);
//! # Ok::<(), ringmail_fabric::Error>(())
//! ```
//!
//! The setting `hooks` does the same for a whole run: `RINGMAIL_HOOKS=trace,fault:7`.

mod decorate;
mod fault;
mod record;
mod stats;
mod trace;

use std::sync::Arc;

pub(crate) use decorate::decorate;
pub use fault::Fault;
pub use record::{Record, Recorder};
pub use stats::{Counts, Stats};
pub use trace::Trace;

use crate::{Completion, EndpointId, Error, PostError, Work};

/// Where work was posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostedTo {
    /// An endpoint.
    Endpoint(EndpointId),
    /// A shared receive queue, by number.
    Shared(u64),
}

/// What stands between the user and a provider. Each method calls `next` for what it lets through.
pub trait Hook: Send + Sync + 'static {
    /// Work is posted: what is taken out of the vector counts as accepted, the rest is refused with the error.
    ///
    /// # Errors
    /// The provider's, or the hook's own.
    fn post(
        &self,
        to: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let _ = to;
        next(work)
    }

    /// A queue, by number, is polled: appends at most `max` completions and answers how many.
    fn poll(
        &self,
        queue: u64,
        into: &mut Vec<Completion>,
        max: usize,
        next: &dyn Fn(&mut Vec<Completion>, usize) -> usize,
    ) -> usize {
        let _ = queue;
        next(into, max)
    }

    /// Whether it holds completions of the queue back: then nobody waits for the provider.
    fn holds(&self, queue: u64) -> bool {
        let _ = queue;
        false
    }

    /// The queue is gone, and what is held for it should go, too.
    fn forget(&self, queue: u64) {
        let _ = queue;
    }
}

impl<H: Hook> Hook for Arc<H> {
    fn post(
        &self,
        to: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        H::post(self, to, work, next)
    }

    fn poll(
        &self,
        queue: u64,
        into: &mut Vec<Completion>,
        max: usize,
        next: &dyn Fn(&mut Vec<Completion>, usize) -> usize,
    ) -> usize {
        H::poll(self, queue, into, max, next)
    }

    fn holds(&self, queue: u64) -> bool {
        H::holds(self, queue)
    }

    fn forget(&self, queue: u64) {
        H::forget(self, queue);
    }
}

/// The hooks that a setting names, first the one nearest to the provider: `trace`, `fault:SEED`.
pub(crate) fn named(list: &str) -> Result<Vec<Arc<dyn Hook>>, Error> {
    let names = list
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    names.map(one).collect()
}

fn one(name: &str) -> Result<Arc<dyn Hook>, Error> {
    if name == "trace" {
        return Ok(Arc::new(Trace));
    }
    let seed = name
        .strip_prefix("fault:")
        .and_then(|seed| seed.parse().ok());
    if let Some(seed) = seed {
        return Ok(Arc::new(Fault::seeded(seed)));
    }
    Err(crate::ConfigError::Value {
        name: "hooks".to_owned(),
        value: name.to_owned(),
        expected: "a hook: trace or fault:SEED",
    }
    .into())
}
