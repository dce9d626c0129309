//! A file under way: `.NAME.ringmail-part` beside its final name, with its journal, until it is whole.
//!
//! The part is locked, allocated and mapped; the final name appears by one rename when every block was verified, so it never
//! names a part of a file. An interrupted part stays, for the next copy of the same source to go on with.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use anyhow::{Context as _, anyhow, bail};
use fabric::{FileMapping, Memory};
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use super::folder::{Folder, preserve};
use super::journal::Journal;
use crate::protocol::{Kind, Metadata};

/// A partial file, ready to be filled.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    folder: &'a Folder,
    name: &'a OsStr,
    part: OsString,
    journal_name: OsString,
    mapping: FileMapping,
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
        source: &Metadata,
        block_len: u32,
    ) -> anyhow::Result<Self> {
        check_target(folder, name)?;
        let part = beside(name, PART);
        let journal_name = beside(name, JOURNAL);
        let (file, is_new) = lock(folder, &part, name)?;
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
        let mapping = match FileMapping::map_write(file, source.size) {
            Ok(mapping) => mapping,
            Err(error) => {
                if held.is_empty() {
                    discard();
                }
                return Err(allocation(error, source.size).context(cannot_write(folder, name)));
            }
        };
        Ok(Self {
            folder,
            name,
            part,
            journal_name,
            mapping,
            journal,
            held,
        })
    }

    /// Where the bytes go.
    pub(super) fn memory(&self) -> &Memory {
        self.mapping.memory()
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
        preserve(self.mapping.file(), source)?;
        if durable {
            self.mapping.file().sync_all()?;
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
fn lock(folder: &Folder, part: &OsStr, name: &OsStr) -> anyhow::Result<(File, bool)> {
    loop {
        let file = folder
            .file(part)
            .with_context(|| cannot_write(folder, name))?;
        let stat = fstat(&file).map_err(io::Error::from)?;
        let metadata = Metadata::from(&stat);
        if metadata.kind != Kind::File {
            bail!("{} is in the way", folder.path().join(part).display());
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
        if named.is_some_and(|named| named.is_same_file(&metadata)) {
            return Ok((file, metadata.size == 0));
        }
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
        part.set_len(0)?;
        return Ok((None, Vec::new()));
    }
    let (journal, held) = Journal::resume(folder.file(journal_name)?, source, block_len)?;
    if held.is_none() || part.metadata()?.len() != source.size {
        // Of another source, or none: its blocks would only be in the way of the allocation.
        part.set_len(0)?;
        return Ok((Some(journal), Vec::new()));
    }
    Ok((Some(journal), held.unwrap_or_default()))
}

fn allocation(error: io::Error, size: u64) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            anyhow!("no room for {} there", indicatif::BinaryBytes(size))
        }
        io::ErrorKind::FileTooLarge => anyhow!(
            "a file of {} is too large there",
            indicatif::BinaryBytes(size)
        ),
        io::ErrorKind::Unsupported => {
            anyhow!("the file system there cannot allocate files or map them")
        }
        _ => error.into(),
    }
}

fn cannot_write(folder: &Folder, name: &OsStr) -> String {
    format!("cannot write {}", folder.path().join(name).display())
}

/// A hidden name for something that belongs to `name`; cut where it would be too long, told apart by a checksum then.
fn beside(name: &OsStr, suffix: &str) -> OsString {
    let name = name.as_bytes();
    let mut hidden = vec![b'.'];
    if name.len() <= LONGEST - suffix.len() {
        hidden.extend(name);
    } else {
        hidden.extend(&name[..LONGEST - suffix.len() - 9]);
        hidden.extend(format!("~{:08x}", crc32c::crc32c(name)).bytes());
    }
    hidden.extend(suffix.bytes());
    OsString::from_vec(hidden)
}

const PART: &str = ".ringmail-part";
const JOURNAL: &str = ".ringmail-journal";

/// Bytes of a name without the dot in front.
const LONGEST: usize = 254;

/// Files of at most so many blocks are copied anew.
const JOURNALED_FROM: u64 = 8;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::fs::symlink;

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
        let mut partial = Partial::open(&folder, "name".as_ref(), &source, BLOCK).unwrap();
        assert_eq!(
            names(&directory),
            [".name.ringmail-journal", ".name.ringmail-part"]
        );
        partial
            .journal()
            .expect("it is large enough for one")
            .add(0)
            .unwrap();
        partial.memory().copy_in(0, b"bytes").unwrap();
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
        let mut partial = Partial::open(&folder, "name".as_ref(), &first, BLOCK).unwrap();
        partial.journal().unwrap().add(5).unwrap();
        drop(partial);
        let again = Partial::open(&folder, "name".as_ref(), &first, BLOCK).unwrap();
        assert_eq!(again.held(), [5]);
        drop(again);
        let other = Metadata { inode: 3, ..first };
        assert!(
            Partial::open(&folder, "name".as_ref(), &other, BLOCK)
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
        let _first = Partial::open(&folder, "name".as_ref(), &source, BLOCK).unwrap();
        let second = Partial::open(&folder, "name".as_ref(), &source, BLOCK).unwrap_err();
        assert!(format!("{second:#}").contains("another copy"), "{second:#}");
    }

    #[test]
    fn what_is_in_the_way_is_not_followed_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        symlink(&victim, directory.path().join(".name.ringmail-part")).unwrap();
        assert!(Partial::open(&folder, "name".as_ref(), &source(10), BLOCK).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        let error = Partial::open(&folder, "directory".as_ref(), &source(10), BLOCK).unwrap_err();
        assert!(error.to_string().contains("is a directory"), "{error:#}");
        assert!(!names(&directory).contains(&".directory.ringmail-part".to_owned()));
    }

    #[test]
    fn a_name_of_any_length_has_a_part_of_its_own() {
        let one = OsString::from("x".repeat(255));
        let two = OsString::from(format!("{}y", "x".repeat(254)));
        let (first, second) = (beside(&one, PART), beside(&two, PART));
        assert_ne!(first, second);
        assert!(first.len() <= 255 && second.len() <= 255);
        assert_eq!(beside("name".as_ref(), PART), ".name.ringmail-part");
    }
}
