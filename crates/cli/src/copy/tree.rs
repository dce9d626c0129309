//! Copies what a path names, file by file: directories in the order of their names, symbolic links as links.
//!
//! What one file makes impossible is said and counted, and the others are copied. A lost connection is made anew, a few times, and
//! the copy goes on where it was. While a directory is being copied its destination holds a mark with the path of the source;
//! where one is found, an earlier copy was interrupted, and files that are there already, with the source's size and time, are
//! verified instead of read again.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::folder::Folder;
use super::names::{Siblings, numbered};
use super::partial::Partial;
use super::progress::Progress;
use super::session::{Cause, Lost, Session};
use super::store::{Destination, Store};
use super::target::{Target, mark, mark_name, unfinished};
use super::transfer::{Fetched, Transfer, Trouble};
use crate::protocol::{Entry, Kind, Metadata, Opened, Reply, Request, read_listing};

/// Copies over one connection, or over several if one is lost.
pub(super) struct Copier<'a> {
    session: &'a mut Session,
    store: Store,
    block_len: u32,
    durable: bool,
    /// The server's file system is ours.
    is_local: bool,
    /// Whether it makes sense to connect once more.
    may_return: &'a dyn Fn() -> bool,
    /// Attempts to connect once more since `progressed` bytes were verified.
    attempts: u32,
    progressed: u64,
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

/// A file that is open at the server.
struct Open {
    opened: Opened,
    /// Of the connection to which it is open.
    epoch: u32,
}

impl<'a> Copier<'a> {
    /// A copier that connects once more when the server is lost, as long as `may_return` says so.
    ///
    /// # Errors
    /// What starting a thread answers.
    pub(super) fn new(
        session: &'a mut Session,
        block_len: u32,
        durable: bool,
        is_local: bool,
        may_return: &'a dyn Fn() -> bool,
    ) -> io::Result<Self> {
        Ok(Self {
            session,
            store: Store::start()?,
            block_len,
            durable,
            is_local,
            may_return,
            attempts: 0,
            progressed: 0,
            root: None,
            resumes: false,
            progress: Progress::new(),
            done: Done::default(),
        })
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
        let outcome = self.file(path, &target.folder, &target.name, &Siblings::none());
        outcome.map_err(ended)
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
        let entries = self.list(path).map_err(ended)?;
        let siblings = Siblings::of(&entries);
        let root = folder
            .metadata()
            .with_context(|| cannot_write(folder.path()))?;
        self.root = Some(root);
        let found = unfinished(folder.path(), path);
        self.resumes = found.is_some();
        // Should the source have got a file of that name since, it keeps the name that it had.
        let name = found.unwrap_or_else(|| mark_name(&siblings));
        let mut file = folder
            .file(&name)
            .with_context(|| cannot_write(folder.path()))?;
        let content = mark(path, root.device, root.inode);
        let marked = file.set_len(0).and_then(|()| file.write_all(&content));
        marked.with_context(|| cannot_write(folder.path()))?;
        self.entries(path, &folder, &entries, 0).map_err(ended)?;
        if self.done.failed == 0 {
            folder
                .remove(&name)
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
        let entries = self.list(path)?;
        self.entries(path, folder, &entries, depth)
    }

    fn entries(
        &mut self,
        path: &[u8],
        folder: &Folder,
        entries: &[Entry],
        depth: usize,
    ) -> Result<(), Trouble> {
        let siblings = Siblings::of(entries);
        for entry in entries {
            let mut inner = path.to_vec();
            if inner.last() != Some(&b'/') {
                inner.push(b'/');
            }
            inner.extend(&entry.name);
            match self.entry(&inner, folder, entry, &siblings, depth) {
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
        siblings: &Siblings,
        depth: usize,
    ) -> Result<(), Trouble> {
        let name = OsStr::from_bytes(&entry.name);
        match entry.metadata.kind {
            Kind::File => self.file(path, folder, name, siblings),
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
            Kind::Symlink => link(folder, name, siblings, OsStr::from_bytes(&entry.target))
                .map_err(Trouble::File),
            Kind::Special => Err(Trouble::File(anyhow!(
                "{} is neither a regular file nor a directory",
                shown(path)
            ))),
        }
    }

    fn file(
        &mut self,
        path: &[u8],
        folder: &Folder,
        name: &OsStr,
        siblings: &Siblings,
    ) -> Result<(), Trouble> {
        let mut open = self.open(path)?;
        let first = open.opened;
        let brought = match self.bring(path, &mut open, folder, name, siblings) {
            Err(Trouble::File(error)) => {
                // Should that fail too, the next request finds out.
                let _ = self.close(path, &open);
                return Err(Trouble::File(error));
            }
            other => other?,
        };
        let unchanged =
            self.close(path, &open)
                .and_then(|now| match first.metadata.is_unchanged(&now) {
                    true => Ok(()),
                    false => Err(changed(path)),
                });
        let (partial, fetched) = brought;
        if let Some(partial) = partial {
            if unchanged.is_err() {
                partial.discard();
                return unchanged;
            }
            partial
                .commit(&first.metadata, self.durable)
                .map_err(Trouble::File)?;
        }
        self.count(&first, &fetched);
        unchanged
    }

    /// Reads a file into a part, unless the whole is there already.
    fn bring<'f>(
        &mut self,
        path: &[u8],
        open: &mut Open,
        folder: &'f Folder,
        name: &'f OsStr,
        siblings: &Siblings,
    ) -> Result<(Option<Partial<'f>>, Fetched), Trouble> {
        let metadata = open.opened.metadata;
        if metadata.kind != Kind::File {
            return Err(Trouble::File(anyhow!(
                "{} is no file any more",
                shown(path)
            )));
        }
        self.progress.expect(metadata.size, name);
        if self.resumes
            && let Some(fetched) = self.is_there(path, open, folder, name)?
        {
            return Ok((None, fetched));
        }
        let mut partial = Partial::open(folder, name, siblings, &metadata, self.block_len)
            .map_err(Trouble::File)?;
        match self.fill(path, open, &mut partial) {
            Ok(fetched) => Ok((Some(partial), fetched)),
            Err(Trouble::File(error)) => {
                partial.discard();
                Err(Trouble::File(
                    error.context(cannot_write(&folder.path().join(name))),
                ))
            }
            Err(Trouble::All(error) | Trouble::Lost(Lost { error, .. }))
                if partial.is_resumable() =>
            {
                let advice = "interrupted; the same command goes on where this one stopped";
                Err(Trouble::All(error.context(advice)))
            }
            Err(trouble) => {
                partial.discard();
                Err(trouble)
            }
        }
    }

    fn fill(
        &mut self,
        path: &[u8],
        open: &mut Open,
        partial: &mut Partial<'_>,
    ) -> Result<Fetched, Trouble> {
        if open.opened.metadata.size == 0 {
            return Ok(Fetched::default());
        }
        let held = partial.held().to_vec();
        let transfer = Transfer::new(&open.opened, partial.file(), self.block_len, &held);
        let mut transfer = transfer.reporting(partial.journal(), &self.progress);
        self.run(path, open, &mut transfer)
    }

    /// Runs a transfer to its end, over as many connections as it takes.
    fn run(
        &mut self,
        path: &[u8],
        open: &mut Open,
        transfer: &mut Transfer<'_>,
    ) -> Result<Fetched, Trouble> {
        loop {
            match transfer.run(self.session, &mut self.store, &open.opened) {
                Err(Trouble::Lost(lost)) => {
                    self.return_to_server(lost)?;
                    let again = self.open(path)?;
                    if !open.opened.metadata.is_unchanged(&again.opened.metadata) {
                        return Err(changed(path));
                    }
                    *open = again;
                }
                other => return other,
            }
        }
    }

    /// What an earlier copy finished: it looks like its source, and every block is right.
    fn is_there(
        &mut self,
        path: &[u8],
        open: &mut Open,
        folder: &Folder,
        name: &OsStr,
    ) -> Result<Option<Fetched>, Trouble> {
        let source = open.opened.metadata;
        let alike = |found: &Metadata| {
            found.kind == Kind::File
                && (found.size, found.modified) == (source.size, source.modified)
        };
        if !folder.stat(name).ok().flatten().as_ref().is_some_and(alike) {
            return Ok(None);
        }
        let Ok(file) = folder.existing(name) else {
            return Ok(None);
        };
        if source.size == 0 {
            return Ok(Some(Fetched::default()));
        }
        let mut transfer = Transfer::of_all_held(&open.opened, Arc::new(file), self.block_len);
        match self.run(path, open, &mut transfer) {
            Ok(fetched) => {
                self.progress.add(source.size);
                Ok(Some(fetched))
            }
            // It is another, or cannot be read: the copy will tell.
            Err(Trouble::File(_)) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// The entries of a directory.
    fn list(&mut self, path: &[u8]) -> Result<Vec<Entry>, Trouble> {
        let mut open = self.open(path)?;
        let size = open.opened.metadata.size;
        if open.opened.metadata.kind != Kind::Directory || size > MAX_LISTING {
            return Err(Trouble::File(anyhow!("{} cannot be listed", shown(path))));
        }
        let listing = Arc::new(Mutex::new(vec![0; size as usize]));
        if size > 0 {
            let destination: Arc<dyn Destination> = Arc::<Mutex<Vec<u8>>>::clone(&listing);
            let mut transfer = Transfer::new(&open.opened, destination, self.block_len, &[]);
            self.done.reads += self.run(path, &mut open, &mut transfer)?.reads;
        }
        self.close(path, &open)?;
        let listing = listing.lock().expect("nothing under the lock panics");
        read_listing(&listing).map_err(|malformed| Trouble::All(malformed.into()))
    }

    fn open(&mut self, path: &[u8]) -> Result<Open, Trouble> {
        let request = Request::Open {
            path: path.to_vec(),
        };
        match self.call(&request)? {
            // What does not fit into memory cannot be mapped; and a region says how long it is.
            Reply::Opened(opened) if isize::try_from(opened.metadata.size).is_ok() => Ok(Open {
                opened,
                epoch: self.session.epoch(),
            }),
            _ => Err(nonsense()),
        }
    }

    /// Closes a file; answers its metadata as it is now.
    fn close(&mut self, path: &[u8], open: &Open) -> Result<Metadata, Trouble> {
        let request = Request::Close {
            handle: open.opened.handle,
        };
        let is_open = !self.session.is_lost() && self.session.epoch() == open.epoch;
        let answer = match is_open.then(|| self.session.call(&request)) {
            Some(Ok(answer)) => answer.map_err(|failure| Trouble::File(failure.into()))?,
            lost => {
                if let Some(Err(lost)) = lost {
                    self.return_to_server(lost)?;
                }
                // It was closed with its connection.
                self.call(&Request::Stat {
                    path: path.to_vec(),
                })?
            }
        };
        match answer {
            Reply::Metadata(metadata) => Ok(metadata),
            _ => Err(nonsense()),
        }
    }

    /// Sends a request that is the same to any connection, over the next one if this one is lost.
    fn call(&mut self, request: &Request) -> Result<Reply, Trouble> {
        loop {
            if self.session.is_lost() {
                self.reconnect()?;
            }
            match self.session.call(request) {
                Ok(answer) => return answer.map_err(|failure| Trouble::File(failure.into())),
                Err(lost) => self.return_to_server(lost)?,
            }
        }
    }

    /// Connects once more after the connection was lost, if that makes sense, and says so.
    fn return_to_server(&mut self, lost: Lost) -> Result<(), Trouble> {
        if lost.cause == Cause::Nonsense {
            return Err(lost.into());
        }
        if self.progressed < self.progress.bytes() {
            self.progressed = self.progress.bytes();
            self.attempts = 0;
        }
        while self.attempts < MAX_ATTEMPTS && (self.may_return)() {
            if self.attempts > 0 {
                thread::sleep(PAUSE);
            }
            self.attempts += 1;
            self.progress.say(&format!(
                "ringmail: {:#}; connecting once more ({} of {MAX_ATTEMPTS})",
                lost.error, self.attempts
            ));
            if self.session.reconnect().is_ok() {
                return Ok(());
            }
        }
        Err(Trouble::All(lost.error))
    }

    /// Connects once more after a file took the connection with it: that was said already.
    fn reconnect(&mut self) -> Result<(), Trouble> {
        match self.session.reconnect() {
            Ok(()) => Ok(()),
            Err(error) => self.return_to_server(Lost {
                cause: Cause::Silence,
                error,
            }),
        }
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
fn link(folder: &Folder, name: &OsStr, siblings: &Siblings, target: &OsStr) -> anyhow::Result<()> {
    let part = siblings.spare(|number| OsString::from(numbered(LINK_PART, number)));
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

/// What ended the whole copy.
fn ended(trouble: Trouble) -> anyhow::Error {
    match trouble {
        Trouble::File(error) | Trouble::All(error) => error,
        Trouble::Lost(lost) => lost.error,
    }
}

fn changed(path: &[u8]) -> Trouble {
    Trouble::File(anyhow!("{} changed while it was copied", shown(path)))
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

/// How often a server that was lost is connected to once more before something is verified.
const MAX_ATTEMPTS: u32 = 3;

/// Between one attempt and the next.
const PAUSE: Duration = Duration::from_secs(1);

const LINK_PART: &str = ".ringmail-link-part";

/// Directories within each other; each holds a descriptor open.
const MAX_DEPTH: usize = 200;

/// Bytes of a listing that a server may make us read.
const MAX_LISTING: u64 = 1 << 30;
