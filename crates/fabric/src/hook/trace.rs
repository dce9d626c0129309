//! Logs each post and each completion by `tracing`, at level trace.

use super::{Hook, PostedTo};
use crate::{Completion, PostError, Work};

/// The hook; see the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trace;

impl Hook for Trace {
    fn post(
        &self,
        to: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        for work in work.iter() {
            tracing::trace!(?to, context = work.context, op = ?work.op, bytes = work.len(), flags = ?work.flags, "post");
        }
        let outcome = next(work);
        if let Err(error) = outcome {
            tracing::trace!(?to, refused = work.len(), %error, "post");
        }
        outcome
    }

    fn poll(
        &self,
        queue: u64,
        into: &mut Vec<Completion>,
        max: usize,
        next: &dyn Fn(&mut Vec<Completion>, usize) -> usize,
    ) -> usize {
        let count = next(into, max);
        let from = into.len() - count;
        for done in &into[from..] {
            tracing::trace!(queue, endpoint = %done.endpoint, context = done.context, opcode = ?done.opcode, status = %done.status, bytes = done.len, "done");
        }
        count
    }
}
