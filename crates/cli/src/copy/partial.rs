//! A file under way: `.NAME.ringmail-part` beside its final name, with its journal, until it is whole.
//!
//! The part is locked and has its length from the start; the final name appears by one rename when every block was verified, so
//! it never names a part of a file. An interrupted part stays, for the next copy of the same source to go on with. What is ours
//! has names that nothing else in the source's directory has.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use super::folder::{Folder, preserve};
use super::journal::Journal;
use super::names::{Siblings, beside};
use crate::protocol::{Kind, Metadata};

/// A partial file, ready to be filled.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    folder: &'a Folder,
    name: &'a OsStr,
    part: OsString,
    journal_name: OsString,
    file: Arc<File>,
    journal: Option<Journal>,
    held: Vec<u64>,
}

impl<'a> Partial<'a> {
    /// Begins a file, or takes up what an earlier copy of the same source left.
    ///
    /// # Errors
    /// What is in the way: a read-only target, a full disk, another copy at work.
    pub(super) fn open(
        folder: &'a Folder,
        name: &'a OsStr,
        siblings: &Siblings,
        source: &Metadata,
        block_len: u32,
    ) -> anyhow::Result<Self> {
        check_target(folder, name)?;
        let part = siblings.spare(|number| beside(name, PART, number));
        let journal_name = siblings.spare(|number| beside(name, JOURNAL, number));
        let (file, is_new) = lock(folder, &part, &journal_name, name)?;
        let discard = || {
            let _ = folder
                .remove(&part)
                .and_then(|()| folder.remove(&journal_name));
        };
        let (journal, held) = match resume(folder, &journal_name, &file, source, block_len) {
            Ok(resumed) => resumed,
            Err(error) => {
                if is_new {
                    discard();
                }
                return Err(error).with_context(|| cannot_write(folder, name));
            }
        };
        if let Err(error) = file.set_len(source.size) {
            if held.is_empty() {
                discard();
            }
            return Err(refused(error, source.size).context(cannot_write(folder, name)));
        }
        Ok(Self {
            folder,
            name,
            part,
            journal_name,
            file: Arc::new(file),
            journal,
            held,
        })
    }

    /// Where the bytes go.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Blocks that an earlier copy verified.
    pub(super) fn held(&self) -> &[u64] {
        &self.held
    }

    /// Whether a later copy can go on from here.
    pub(super) fn is_resumable(&self) -> bool {
        self.journal.is_some()
    }

    /// Where to note blocks that were verified.
    pub(super) fn journal(&mut self) -> Option<&mut Journal> {
        self.journal.as_mut()
    }

    /// Makes it whole: permissions and time of the source, then the final name.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn commit(self, source: &Metadata, durable: bool) -> anyhow::Result<()> {
        self.finish(source, durable)
            .with_context(|| cannot_write(self.folder, self.name))
    }

    fn finish(&self, source: &Metadata, durable: bool) -> io::Result<()> {
        preserve(&*self.file, source)?;
        if durable {
            self.file.sync_all()?;
        }
        self.folder.rename(&self.part, self.name)?;
        self.folder.remove(&self.journal_name)?;
        if durable {
            self.folder.sync()?;
        }
        Ok(())
    }

    /// Forgets it: nothing of it is of use to a later copy.
    pub(super) fn discard(self) {
        let _ = self.folder.remove(&self.part);
        let _ = self.folder.remove(&self.journal_name);
    }
}

/// What is in the way of the final name.
fn check_target(folder: &Folder, name: &OsStr) -> anyhow::Result<()> {
    let found = folder
        .stat(name)
        .with_context(|| cannot_write(folder, name))?;
    let Some(found) = found else {
        return Ok(());
    };
    let shown = folder.path().join(name);
    let shown = shown.display();
    match found.kind {
        Kind::Directory => bail!("{shown} is a directory"),
        Kind::Special => bail!("{shown} is not a regular file"),
        Kind::File if !folder.is_writable(name) => bail!("{shown} is read-only"),
        Kind::File | Kind::Symlink => Ok(()),
    }
}

/// Opens and locks the partial file; answers whether it was empty.
fn lock(
    folder: &Folder,
    part: &OsStr,
    journal_name: &OsStr,
    name: &OsStr,
) -> anyhow::Result<(File, bool)> {
    let in_the_way = || anyhow!("{} is in the way", folder.path().join(part).display());
    loop {
        let file = folder
            .file(part)
            .with_context(|| cannot_write(folder, name))?;
        let stat = fstat(&file).map_err(io::Error::from)?;
        let metadata = Metadata::from(&stat);
        if metadata.kind != Kind::File {
            return Err(in_the_way());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // File systems without locks do without.
            Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => {}
            Err(Errno::WOULDBLOCK) => bail!(
                "{} is being written by another copy",
                folder.path().join(name).display()
            ),
            Err(error) => {
                return Err(io::Error::from(error)).with_context(|| cannot_write(folder, name));
            }
        }
        // Whoever held the lock before may have given the file its final name, or removed it.
        let named = folder
            .stat(part)
            .with_context(|| cannot_write(folder, name))?;
        if !named.is_some_and(|named| named.is_same_file(&metadata)) {
            continue;
        }
        // Ours is for us alone nearly until it has its final name, or has a journal; something else is not to be lost.
        let is_ours = metadata.size == 0 || metadata.mode & 0o077 == 0;
        if !is_ours && folder.stat(journal_name).ok().flatten().is_none() {
            return Err(in_the_way());
        }
        return Ok((file, metadata.size == 0));
    }
}

/// What a journal says of the partial file. Few blocks are not worth one.
fn resume(
    folder: &Folder,
    journal_name: &OsStr,
    part: &File,
    source: &Metadata,
    block_len: u32,
) -> io::Result<(Option<Journal>, Vec<u64>)> {
    let worth_it = source.size > JOURNALED_FROM * u64::from(block_len);
    if !worth_it {
        folder.remove(journal_name)?;
        empty(part)?;
        return Ok((None, Vec::new()));
    }
    let (journal, held) = Journal::resume(folder.file(journal_name)?, source, block_len)?;
    if held.is_none() || part.metadata()?.len() != source.size {
        // Of another source, or none.
        empty(part)?;
        return Ok((Some(journal), Vec::new()));
    }
    Ok((Some(journal), held.unwrap_or_default()))
}

/// Empties a file that is not empty. A file system may take one that was made empty for one that is being replaced, and begin to
/// write it to the disk as soon as it is closed.
fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.len() > 0 {
        file.set_len(0)?;
    }
    Ok(())
}

/// Why the destination does not take so many bytes.
pub(super) fn refused(error: io::Error, size: u64) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            anyhow!("no room for {} there", indicatif::BinaryBytes(size))
        }
        io::ErrorKind::FileTooLarge => anyhow!(
            "a file of {} is too large there",
            indicatif::BinaryBytes(size)
        ),
        _ => anyhow!(error).context("the destination cannot be written"),
    }
}

fn cannot_write(folder: &Folder, name: &OsStr) -> String {
    format!("cannot write {}", folder.path().join(name).display())
}

const PART: &str = ".ringmail-part";
const JOURNAL: &str = ".ringmail-journal";

/// Files of at most so many blocks are copied anew.
const JOURNALED_FROM: u64 = 8;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};

    use super::*;
    use crate::protocol::Time;

    const BLOCK: u32 = 4096;

    fn source(size: u64) -> Metadata {
        Metadata {
            kind: Kind::File,
            size,
            mode: 0o4751,
            modified: Time {
                seconds: 1_000_000_000,
                nanoseconds: 500,
            },
            device: 1,
            inode: 2,
        }
    }

    fn names(directory: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_part_becomes_the_file_with_mode_and_time_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let source = source(100 * u64::from(BLOCK));
        let mut partial =
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &source, BLOCK).unwrap();
        assert_eq!(
            names(&directory),
            [".name.ringmail-journal", ".name.ringmail-part"]
        );
        partial
            .journal()
            .expect("it is large enough for one")
            .add(0)
            .unwrap();
        partial.file().write_all_at(b"bytes", 0).unwrap();
        partial.commit(&source, true).unwrap();
        assert_eq!(names(&directory), ["name"]);
        let metadata = std::fs::metadata(directory.path().join("name")).unwrap();
        assert_eq!(
            (metadata.len(), metadata.mode() & 0o7777),
            (source.size, 0o751)
        );
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (1_000_000_000, 500)
        );
    }

    #[test]
    fn a_part_is_taken_up_by_the_same_source_only() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let first = source(100 * u64::from(BLOCK));
        let mut partial =
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &first, BLOCK).unwrap();
        partial.journal().unwrap().add(5).unwrap();
        drop(partial);
        let again =
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &first, BLOCK).unwrap();
        assert_eq!(again.held(), [5]);
        drop(again);
        let other = Metadata { inode: 3, ..first };
        assert!(
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &other, BLOCK)
                .unwrap()
                .held()
                .is_empty()
        );
    }

    #[test]
    fn two_copies_do_not_write_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let source = source(10);
        let _first =
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &source, BLOCK).unwrap();
        let second =
            Partial::open(&folder, "name".as_ref(), &Siblings::none(), &source, BLOCK).unwrap_err();
        assert!(format!("{second:#}").contains("another copy"), "{second:#}");
    }

    #[test]
    fn what_is_in_the_way_is_not_followed_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        symlink(&victim, directory.path().join(".name.ringmail-part")).unwrap();
        assert!(
            Partial::open(
                &folder,
                "name".as_ref(),
                &Siblings::none(),
                &source(10),
                BLOCK
            )
            .is_err()
        );
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        let error = Partial::open(
            &folder,
            "directory".as_ref(),
            &Siblings::none(),
            &source(10),
            BLOCK,
        )
        .unwrap_err();
        assert!(error.to_string().contains("is a directory"), "{error:#}");
        assert!(!names(&directory).contains(&".directory.ringmail-part".to_owned()));
    }
}
