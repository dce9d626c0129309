//! Moving bytes between the local memory of one work and that of another, or a region.

use mem::Memory;

use super::world::Pending;
use crate::provider::Exposed;

/// Consecutive bytes that lie in several places.
pub(super) enum Bytes<'a> {
    /// A work's local memory.
    Local(&'a Exposed),
    /// A part of a region.
    Region { memory: &'a Memory, offset: usize },
    /// Private bytes.
    Private(&'a [u8]),
}

/// Which side could not be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

impl Pending {
    /// What is sent: the inline bytes, else the local memory.
    pub(super) fn source(&self) -> Bytes<'_> {
        match &self.inline {
            Some(bytes) => Bytes::Private(bytes),
            None => Bytes::Local(&self.local),
        }
    }
}

/// Copies the first `len` bytes, in order, block by block.
pub(super) fn copy(target: &Bytes<'_>, source: &Bytes<'_>, len: usize) -> Result<(), Side> {
    let mut block = [0; 4096];
    let mut done = 0;
    while done < len {
        let block = &mut block[..BLOCK.min(len - done)];
        source.get(done, block).map_err(|()| Side::Source)?;
        target.put(done, block).map_err(|()| Side::Target)?;
        done += block.len();
    }
    Ok(())
}

const BLOCK: usize = 4096;

impl Bytes<'_> {
    fn get(&self, offset: usize, into: &mut [u8]) -> Result<(), ()> {
        match self {
            Self::Private(bytes) => {
                into.copy_from_slice(&bytes[offset..offset + into.len()]);
                Ok(())
            }
            Self::Region { memory, offset: at } => {
                memory.copy_out(at + offset, into).map_err(|_| ())
            }
            Self::Local(local) => each_part(local, offset, into.len(), |memory, at, range| {
                memory.copy_out(at, &mut into[range]).map_err(|_| ())
            }),
        }
    }

    fn put(&self, offset: usize, bytes: &[u8]) -> Result<(), ()> {
        match self {
            Self::Private(_) => Err(()),
            Self::Region { memory, offset: at } => {
                memory.copy_in(at + offset, bytes).map_err(|_| ())
            }
            Self::Local(local) => each_part(local, offset, bytes.len(), |memory, at, range| {
                memory.copy_in(at, &bytes[range]).map_err(|_| ())
            }),
        }
    }
}

/// Calls `part` for each place that `len` bytes at `offset` of the whole lie in.
fn each_part(
    local: &Exposed,
    offset: usize,
    len: usize,
    mut part: impl FnMut(&Memory, usize, std::ops::Range<usize>) -> Result<(), ()>,
) -> Result<(), ()> {
    let mut skip = offset;
    let mut done = 0;
    for segment in local.iter() {
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let count = (segment.len - skip).min(len - done);
        if segment.is_revoked() {
            return Err(());
        }
        part(segment.memory, segment.offset + skip, done..done + count)?;
        done += count;
        skip = 0;
        if done == len {
            return Ok(());
        }
    }
    Err(())
}
