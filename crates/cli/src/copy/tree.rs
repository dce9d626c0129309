//! Copies what a path names, file by file: directories in the order of their names, symbolic links as links.
//!
//! What one file makes impossible is said and counted, and the others are copied; a lost connection ends the copy. While a
//! directory is being copied its destination holds a mark with the path of the source; where one is found, an earlier copy
//! was interrupted, and files that are there already, with the source's size and time, are verified instead of read again.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, anyhow};
use fabric::{Access, FileMapping, Memory, MemoryRegion};

use super::folder::Folder;
use super::partial::Partial;
use super::progress::Progress;
use super::session::Session;
use super::target::{MARK, Target, is_unfinished};
use super::transfer::{Fetched, Transfer, Trouble};
use crate::protocol::{Entry, Kind, Metadata, Opened, Reply, Request, read_listing};

/// Copies over one connection.
pub(super) struct Copier<'a> {
    session: &'a mut Session,
    block_len: u32,
    durable: bool,
    /// The server's file system is ours.
    is_local: bool,
    /// The destination directory.
    root: Option<Metadata>,
    /// Files already there are verified.
    resumes: bool,
    progress: Progress,
    done: Done,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) files: u64,
    /// Files, links and directories that were not.
    pub(super) failed: u64,
    /// Bytes of all files, and what of them was there before.
    pub(super) total: u64,
    pub(super) resumed: u64,
    pub(super) reads: u64,
    /// Of all files, one after the other.
    pub(super) crc32c: u32,
}

impl<'a> Copier<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        block_len: u32,
        durable: bool,
        is_local: bool,
    ) -> Self {
        Self {
            session,
            block_len,
            durable,
            is_local,
            root: None,
            resumes: false,
            progress: Progress::new(),
            done: Done::default(),
        }
    }

    /// Copies a file, or a directory with everything in it.
    ///
    /// # Errors
    /// What ended the copy: of a single file anything, of a directory what its other files could not be copied for either.
    pub(super) fn copy(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        target: &Target,
    ) -> anyhow::Result<()> {
        if metadata.kind == Kind::Directory {
            return self.directory_with_mark(path, metadata, target);
        }
        match self.file(path, &target.folder, &target.name) {
            Err(Trouble::File(error) | Trouble::All(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    /// What was copied.
    pub(super) fn finish(self) -> Done {
        self.progress.finish();
        self.done
    }

    fn directory_with_mark(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        target: &Target,
    ) -> anyhow::Result<()> {
        let folder = subfolder(&target.folder, &target.name)?;
        let mark = OsStr::new(MARK);
        self.resumes = is_unfinished(folder.path(), path);
        self.root = Some(folder.metadata()?);
        let mut file = folder
            .file(mark)
            .with_context(|| cannot_write(folder.path()))?;
        let marked = file.set_len(0).and_then(|()| file.write_all(path));
        marked.with_context(|| cannot_write(folder.path()))?;
        match self.directory(path, &folder, 0) {
            Ok(()) => {}
            Err(Trouble::File(error) | Trouble::All(error)) => return Err(error),
        }
        if self.done.failed == 0 {
            folder
                .remove(mark)
                .with_context(|| cannot_write(folder.path()))?;
        }
        folder
            .finish(metadata)
            .with_context(|| cannot_write(folder.path()))
    }

    /// Copies what is in a directory.
    fn directory(&mut self, path: &[u8], folder: &Folder, depth: usize) -> Result<(), Trouble> {
        if depth > MAX_DEPTH {
            return Err(Trouble::File(anyhow!(
                "{}: too many directories within each other",
                shown(path)
            )));
        }
        for entry in self.list(path)? {
            let mut inner = path.to_vec();
            if inner.last() != Some(&b'/') {
                inner.push(b'/');
            }
            inner.extend(&entry.name);
            match self.entry(&inner, folder, &entry, depth) {
                Err(Trouble::File(error)) => {
                    self.done.failed += 1;
                    self.progress.say(&format!("ringmail: {error:#}"));
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &[u8],
        folder: &Folder,
        entry: &Entry,
        depth: usize,
    ) -> Result<(), Trouble> {
        let name = OsStr::from_bytes(&entry.name);
        match entry.metadata.kind {
            Kind::File => self.file(path, folder, name),
            Kind::Directory => {
                let is_root = |root: Metadata| root.is_same_file(&entry.metadata);
                if self.is_local && self.root.is_some_and(is_root) {
                    return Err(Trouble::File(anyhow!("{} is the destination", shown(path))));
                }
                let subfolder = subfolder(folder, name).map_err(Trouble::File)?;
                self.directory(path, &subfolder, depth + 1)?;
                let finished = subfolder.finish(&entry.metadata);
                finished
                    .with_context(|| cannot_write(subfolder.path()))
                    .map_err(Trouble::File)
            }
            Kind::Symlink => {
                link(folder, name, OsStr::from_bytes(&entry.target)).map_err(Trouble::File)
            }
            Kind::Special => Err(Trouble::File(anyhow!(
                "{} is neither a regular file nor a directory",
                shown(path)
            ))),
        }
    }

    fn file(&mut self, path: &[u8], folder: &Folder, name: &OsStr) -> Result<(), Trouble> {
        let opened = self.open(path)?;
        let brought = match self.bring(path, &opened, folder, name) {
            Err(Trouble::File(error)) => {
                self.close(&opened)?;
                return Err(Trouble::File(error));
            }
            other => other?,
        };
        let unchanged =
            self.close(&opened)
                .and_then(|now| match opened.metadata.is_unchanged(&now) {
                    true => Ok(()),
                    false => Err(Trouble::File(anyhow!(
                        "{} changed while it was copied",
                        shown(path)
                    ))),
                });
        let (partial, fetched) = brought;
        if let Some(partial) = partial {
            if unchanged.is_err() {
                partial.discard();
                return unchanged;
            }
            partial
                .commit(&opened.metadata, self.durable)
                .map_err(Trouble::File)?;
        }
        self.count(&opened, &fetched);
        unchanged
    }

    /// Reads a file into a part, unless the whole is there already.
    fn bring<'f>(
        &mut self,
        path: &[u8],
        opened: &Opened,
        folder: &'f Folder,
        name: &'f OsStr,
    ) -> Result<(Option<Partial<'f>>, Fetched), Trouble> {
        if opened.metadata.kind != Kind::File {
            return Err(Trouble::File(anyhow!(
                "{} is no file any more",
                shown(path)
            )));
        }
        self.progress.expect(opened.metadata.size, name);
        if self.resumes
            && let Some(fetched) = self.is_there(opened, folder, name)?
        {
            return Ok((None, fetched));
        }
        let mut partial =
            Partial::open(folder, name, &opened.metadata, self.block_len).map_err(Trouble::File)?;
        match self.fill(opened, &mut partial) {
            Ok(fetched) => Ok((Some(partial), fetched)),
            Err(Trouble::File(error)) => {
                partial.discard();
                Err(Trouble::File(error))
            }
            Err(Trouble::All(error)) if partial.is_resumable() => {
                let advice = "interrupted; the same command goes on where this one stopped";
                Err(Trouble::All(error.context(advice)))
            }
            Err(Trouble::All(error)) => {
                partial.discard();
                Err(Trouble::All(error))
            }
        }
    }

    fn fill(&mut self, opened: &Opened, partial: &mut Partial<'_>) -> Result<Fetched, Trouble> {
        if opened.metadata.size == 0 {
            return Ok(Fetched::default());
        }
        let region = self.region(partial.memory().clone())?;
        let held = partial.held().to_vec();
        let progress = &mut |bytes| self.progress.add(bytes);
        let transfer = Transfer::new(
            self.session,
            opened,
            &region,
            self.block_len,
            &held,
            progress,
        );
        transfer.with_journal(partial.journal()).run()
    }

    /// What an earlier copy finished: it looks like its source, and every block is right.
    fn is_there(
        &mut self,
        opened: &Opened,
        folder: &Folder,
        name: &OsStr,
    ) -> Result<Option<Fetched>, Trouble> {
        let source = &opened.metadata;
        let alike = |found: &Metadata| {
            found.kind == Kind::File
                && (found.size, found.modified) == (source.size, source.modified)
        };
        if !folder.stat(name).ok().flatten().as_ref().is_some_and(alike) {
            return Ok(None);
        }
        let Ok(mapping) = folder.existing(name).and_then(FileMapping::map_read) else {
            return Ok(None);
        };
        let sums = self.sums(opened)?;
        let memory = mapping.memory();
        let mut block = vec![0; self.block_len as usize];
        let mut crc32c = 0;
        for (number, &sum) in sums.iter().enumerate() {
            let start = number * self.block_len as usize;
            let len = memory
                .len()
                .saturating_sub(start)
                .min(self.block_len as usize);
            let block = &mut block[..len];
            if memory.copy_out(start, block).is_err() || crc32c::crc32c(block) != sum {
                return Ok(None);
            }
            crc32c = crc32c::crc32c_combine(crc32c, sum, len);
        }
        self.progress.add(source.size);
        Ok(Some(Fetched {
            crc32c,
            resumed: source.size,
            ..Fetched::default()
        }))
    }

    /// All checksums of a file.
    fn sums(&mut self, opened: &Opened) -> Result<Vec<u32>, Trouble> {
        let blocks = opened.metadata.size.div_ceil(self.block_len.into());
        let mut sums = Vec::new();
        while (sums.len() as u64) < blocks {
            let first = sums.len() as u64;
            let request = Request::Checksums {
                handle: opened.handle,
                block_len: self.block_len,
                first,
                count: (blocks - first).min(crate::protocol::MAX_CHECKSUMS.into()) as u32,
            };
            match self.call(&request)? {
                Reply::Checksums(some) if !some.is_empty() => sums.extend(some),
                _ => return Err(nonsense()),
            }
        }
        Ok(sums)
    }

    /// The entries of a directory.
    fn list(&mut self, path: &[u8]) -> Result<Vec<Entry>, Trouble> {
        let opened = self.open(path)?;
        let size = opened.metadata.size;
        if opened.metadata.kind != Kind::Directory || size > MAX_LISTING {
            return Err(Trouble::File(anyhow!("{} cannot be listed", shown(path))));
        }
        let mut listing = vec![0; size as usize];
        if size > 0 {
            let region = self.region(Memory::allocate(listing.len()))?;
            let fetched = Transfer::new(
                self.session,
                &opened,
                &region,
                self.block_len,
                &[],
                &mut |_| (),
            )
            .run()?;
            self.done.reads += fetched.reads;
            region
                .read(0, &mut listing)
                .expect("it is as long as the region");
        }
        self.close(&opened)?;
        read_listing(&listing).map_err(|malformed| Trouble::All(malformed.into()))
    }

    fn region(&self, memory: Memory) -> Result<MemoryRegion, Trouble> {
        let registered = self.session.domain().register(memory, Access::LOCAL);
        registered.map_err(|error| {
            Trouble::All(anyhow!(error).context("cannot register the destination"))
        })
    }

    fn open(&mut self, path: &[u8]) -> Result<Opened, Trouble> {
        match self.call(&Request::Open {
            path: path.to_vec(),
        })? {
            // What does not fit into memory cannot be mapped; and a region says how long it is.
            Reply::Opened(opened) if isize::try_from(opened.metadata.size).is_ok() => Ok(opened),
            _ => Err(nonsense()),
        }
    }

    fn close(&mut self, opened: &Opened) -> Result<Metadata, Trouble> {
        match self.call(&Request::Close {
            handle: opened.handle,
        })? {
            Reply::Metadata(metadata) => Ok(metadata),
            _ => Err(nonsense()),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Reply, Trouble> {
        self.session
            .call(request)?
            .map_err(|failure| Trouble::File(failure.into()))
    }

    fn count(&mut self, opened: &Opened, fetched: &Fetched) {
        let size = opened.metadata.size;
        self.done.files += 1;
        self.done.total += size;
        self.done.resumed += fetched.resumed;
        self.done.reads += fetched.reads;
        self.done.crc32c = crc32c::crc32c_combine(self.done.crc32c, fetched.crc32c, size as usize);
    }
}

fn subfolder(folder: &Folder, name: &OsStr) -> anyhow::Result<Folder> {
    folder
        .subfolder(name)
        .with_context(|| cannot_write(&folder.path().join(name)))
}

/// Makes a symbolic link, in place of an earlier one.
fn link(folder: &Folder, name: &OsStr, target: &OsStr) -> anyhow::Result<()> {
    let part = OsString::from(LINK_PART);
    let make = || -> io::Result<()> {
        if folder
            .stat(name)?
            .is_some_and(|found| found.kind != Kind::Symlink)
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        folder.remove(&part)?;
        folder.link(target, &part)?;
        folder.rename(&part, name)
    };
    make().with_context(|| cannot_write(&folder.path().join(name)))
}

fn nonsense() -> Trouble {
    Trouble::All(anyhow!(
        "the server answered something else than it was asked"
    ))
}

fn shown(path: &[u8]) -> impl std::fmt::Display + '_ {
    OsStr::from_bytes(path).display()
}

fn cannot_write(path: &std::path::Path) -> String {
    format!("cannot write {}", path.display())
}

const LINK_PART: &str = ".ringmail-link-part";

/// Directories within each other; each holds a descriptor open.
const MAX_DEPTH: usize = 200;

/// Bytes of a listing that a server may make us read.
const MAX_LISTING: u64 = 1 << 30;
