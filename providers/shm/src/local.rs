//! The local side of work: bytes in several places, gathered and scattered.

use fabric::provider::Exposed;
use mem::Memory;

/// The local memory could not be accessed: revoked, or its file truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inaccessible;

/// Calls `part` for each place that `len` bytes at `offset` of the whole lie in, with how many came before.
///
/// # Errors
/// What `part` answers, or that a place was revoked.
#[inline]
pub(crate) fn each_part<E: From<Inaccessible>>(
    local: &Exposed,
    offset: usize,
    len: usize,
    mut part: impl FnMut(&Memory, usize, usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut skip = offset;
    let mut done = 0;
    for segment in local.iter() {
        if done == len {
            break;
        }
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        if segment.is_revoked() {
            return Err(Inaccessible.into());
        }
        let count = (segment.len - skip).min(len - done);
        part(segment.memory, segment.offset + skip, done, count)?;
        done += count;
        skip = 0;
    }
    match done == len {
        true => Ok(()),
        false => Err(Inaccessible.into()),
    }
}

/// Copies bytes at `offset` of the whole out.
///
/// # Errors
/// [`Inaccessible`].
pub(crate) fn gather(local: &Exposed, offset: usize, into: &mut [u8]) -> Result<(), Inaccessible> {
    each_part(local, offset, into.len(), |memory, at, done, count| {
        memory
            .copy_out(at, &mut into[done..done + count])
            .map_err(|_| Inaccessible)
    })
}

/// Copies bytes in at `offset` of the whole.
///
/// # Errors
/// [`Inaccessible`].
pub(crate) fn scatter(local: &Exposed, offset: usize, bytes: &[u8]) -> Result<(), Inaccessible> {
    each_part(local, offset, bytes.len(), |memory, at, done, count| {
        memory
            .copy_in(at, &bytes[done..done + count])
            .map_err(|_| Inaccessible)
    })
}

/// As [`gather`], into other memory.
///
/// # Errors
/// [`Inaccessible`].
pub(crate) fn gather_to(
    local: &Exposed,
    offset: usize,
    len: usize,
    (target, target_at): (&Memory, usize),
) -> Result<(), Inaccessible> {
    each_part(local, offset, len, |memory, at, done, count| {
        target
            .copy_from(target_at + done, memory, at, count)
            .map_err(|_| Inaccessible)
    })
}

/// As [`scatter`], from other memory.
///
/// # Errors
/// [`Inaccessible`].
pub(crate) fn scatter_from(
    local: &Exposed,
    offset: usize,
    len: usize,
    (source, source_at): (&Memory, usize),
) -> Result<(), Inaccessible> {
    each_part(local, offset, len, |memory, at, done, count| {
        memory
            .copy_from(at, source, source_at + done, count)
            .map_err(|_| Inaccessible)
    })
}
