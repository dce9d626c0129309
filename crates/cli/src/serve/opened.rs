//! A file, or the listing of a directory, while a client may read it.
//!
//! Where its holes are is for the file system to say (`SEEK_DATA`, `SEEK_HOLE`); they are never read.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use fabric::{Access, AccessError, Domain, FileMapping, MemoryRegion, RemoteRegion};
use rustix::fs::{AtFlags, Dir, SeekFrom, fstat, readlinkat, seek, statat};
use rustix::io::Errno;

use super::roots::{self, Roots};
use crate::protocol::{
    Entry, Failure, FailureKind, Kind, Layout, MAX_RUNS, Metadata, Run, write_entry,
};

/// What is exposed to one client. Its region ends with it.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: Vec<u8>,
    file: File,
    metadata: Metadata,
    /// None where there are no bytes: devices register none.
    region: Option<MemoryRegion>,
    is_sparse: bool,
}

impl OpenFile {
    /// Opens, maps and registers what a path names.
    ///
    /// # Errors
    /// [`Failure`] for the client.
    pub(super) fn open(roots: &Roots, domain: &Domain, path: &[u8]) -> Result<Self, Failure> {
        let (file, mut metadata) = roots.read(path)?;
        let memory = match metadata.kind {
            Kind::Directory => {
                let listing = listing(&file).map_err(|error| roots::failure(path, error))?;
                metadata.size = listing.len() as u64;
                fabric::Buf::from(&listing[..]).into_memory()
            }
            _ => {
                let mapping = file.try_clone().and_then(FileMapping::map_read);
                let mapping = mapping.map_err(|error| other(path, &error))?;
                // As long as the file was when it was mapped; the client hears that length and no other.
                metadata.size = mapping.memory().len() as u64;
                if metadata.size == 0 && is_generated(&file) {
                    let message = format!(
                        "{}: the system makes it while it is read, and says no size that could be copied",
                        roots::shown(path)
                    );
                    return Err(Failure::new(FailureKind::Special, message));
                }
                mapping.memory().clone()
            }
        };
        let region = (!memory.is_empty())
            .then(|| domain.register(memory, Access::REMOTE_READ))
            .transpose()
            .map_err(|error| other(path, &error))?;
        let is_sparse = metadata.kind == Kind::File && is_sparse(&file, metadata.size);
        Ok(Self {
            path: path.to_vec(),
            file,
            metadata,
            region,
            is_sparse,
        })
    }

    /// As it was when it was opened.
    pub(super) fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// What the client reads.
    pub(super) fn remote(&self) -> RemoteRegion {
        let nothing = RemoteRegion {
            addr: 0,
            len: 0,
            key: 0,
        };
        self.region.as_ref().map_or(nothing, MemoryRegion::remote)
    }

    /// Whether it may have holes.
    pub(super) fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// The metadata as it is now.
    ///
    /// # Errors
    /// [`Failure`] for the client.
    pub(super) fn now(&self) -> Result<Metadata, Failure> {
        let stat = fstat(&self.file).map_err(|error| roots::failure(&self.path, error))?;
        Ok(Metadata::from(&stat))
    }

    /// The CRC32C of blocks, of the bytes as they are now.
    ///
    /// # Errors
    /// [`Failure`] for the client: blocks behind the end, a file truncated meanwhile.
    pub(super) fn checksums(
        &self,
        block_len: u32,
        first: u64,
        count: u32,
    ) -> Result<Vec<u32>, Failure> {
        let len = self.region.as_ref().map_or(0, MemoryRegion::len);
        let block_len = block_len as usize;
        let blocks = len.div_ceil(block_len) as u64;
        if first
            .checked_add(count.into())
            .is_none_or(|end| end > blocks)
        {
            let message = format!("{} has no such blocks", roots::shown(&self.path));
            return Err(Failure::new(FailureKind::Other, message));
        }
        let Some(region) = &self.region else {
            return Ok(Vec::new());
        };
        let block = |number: u64| {
            let start = number as usize * block_len;
            checksum(region, start, block_len.min(len - start))
        };
        let checksums = (first..first + u64::from(count)).map(block);
        checksums
            .collect::<Result<_, _>>()
            .map_err(|_| self.truncated())
    }

    /// Which blocks from `first` on have data.
    ///
    /// # Errors
    /// [`Failure`] for the client: a block behind the end.
    pub(super) fn layout(&self, block_len: u32, first: u64) -> Result<Layout, Failure> {
        let len = self.region.as_ref().map_or(0, MemoryRegion::len) as u64;
        let block_len = u64::from(block_len);
        let blocks = len.div_ceil(block_len);
        if first >= blocks {
            let message = format!("{} has no such block", roots::shown(&self.path));
            return Err(Failure::new(FailureKind::Other, message));
        }
        if !self.is_sparse {
            let count = blocks - first;
            return Ok(Layout {
                end: blocks,
                data: vec![Run { first, count }],
            });
        }
        Ok(data_runs(&self.file, block_len, first, blocks))
    }

    /// Says so if the file was truncated while it was exposed.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &self.region {
            Some(region) if region.is_faulted() => Err(self.truncated()),
            _ => Ok(()),
        }
    }

    fn truncated(&self) -> Failure {
        let message = format!(
            "{} was truncated while it was served",
            roots::shown(&self.path)
        );
        Failure::new(FailureKind::Changed, message)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(region) = self.region.take() {
            // A file's mapping never becomes private; its registration has ended all the same.
            let _ = region.revoke();
        }
    }
}

/// Whether a file of no size has bytes all the same, as those of `/proc` have.
fn is_generated(file: &File) -> bool {
    file.read_at(&mut [0], 0).is_ok_and(|read| read > 0)
}

/// Whether less is allocated than the file is long. Where more is, there may be holes all the same, but they save little.
fn is_sparse(file: &File, size: u64) -> bool {
    fstat(file).is_ok_and(|stat| stat.st_blocks as u64 * 512 < size)
}

/// The blocks with data among `first..blocks`, as far as [`MAX_SEEKS`] and [`MAX_RUNS`] go. What the file system does not say
/// is taken for data.
fn data_runs(file: &File, block_len: u64, first: u64, blocks: u64) -> Layout {
    let mut data: Vec<Run> = Vec::new();
    let mut next = first;
    for _ in 0..MAX_SEEKS {
        if next >= blocks {
            break;
        }
        let found = match seek(file, SeekFrom::Data(next * block_len)) {
            Ok(found) => found,
            // Only a hole until the end.
            Err(Errno::NXIO) => u64::MAX,
            Err(_) => next * block_len,
        };
        let start = found / block_len;
        if start >= blocks {
            next = blocks;
            break;
        }
        let end = match seek(file, SeekFrom::Hole(found)) {
            Ok(end) => end.div_ceil(block_len).clamp(start + 1, blocks),
            Err(_) => blocks,
        };
        let is_full = data.len() == MAX_RUNS;
        match data.last_mut() {
            Some(last) if last.first + last.count == start => last.count = end - last.first,
            _ if is_full => {
                next = start;
                break;
            }
            _ => data.push(Run {
                first: start,
                count: end - start,
            }),
        }
        next = end;
    }
    Layout { end: next, data }
}

/// Most pairs of questions to the file system for one request: a file of small pieces must not hold up what else is asked.
const MAX_SEEKS: usize = 4096;

/// The CRC32C of a range of exposed memory, as a snapshot.
///
/// # Errors
/// [`AccessError`].
fn checksum(region: &MemoryRegion, start: usize, len: usize) -> Result<u32, AccessError> {
    // Stays in the first-level cache between the copy and the sum.
    let mut chunk = [0; 16 << 10];
    let mut crc = 0;
    let mut done = 0;
    while done < len {
        let chunk = &mut chunk[..(len - done).min(16 << 10)];
        region.read(start + done, chunk)?;
        crc = crc32c::crc32c_append(crc, chunk);
        done += chunk.len();
    }
    Ok(crc)
}

/// The entries of a directory, sorted by name.
fn listing(directory: &File) -> Result<Vec<u8>, Errno> {
    let mut entries = Vec::new();
    for found in Dir::read_from(directory)? {
        let found = found?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match entry(directory.as_fd(), name) {
            Ok(entry) => entries.push(entry),
            // Deleted since its name was read.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let mut bytes = Vec::new();
    for entry in &entries {
        write_entry(&mut bytes, entry);
    }
    Ok(bytes)
}

fn entry(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Entry, Errno> {
    let metadata = Metadata::from(&statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?);
    let target = match metadata.kind {
        Kind::Symlink => readlinkat(directory, name, Vec::new())?.into_bytes(),
        _ => Vec::new(),
    };
    Ok(Entry {
        name: name.to_bytes().to_vec(),
        metadata,
        target,
    })
}

fn other(path: &[u8], error: &dyn std::error::Error) -> Failure {
    let mut message = format!("{}: {error}", roots::shown(path));
    if let Some(source) = error.source() {
        message = format!("{message}: {source}");
    }
    Failure::new(FailureKind::Other, message)
}
