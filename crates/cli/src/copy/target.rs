//! Where a copy goes: which directory, under which name; and the mark of a directory that is not finished.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use super::folder::Folder;
use super::names::{Siblings, numbered};
use crate::protocol::{Kind, Metadata};

/// A name in an open directory.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) folder: Folder,
    pub(super) name: OsString,
}

impl Target {
    /// As cp has it: into `destination` if that is a directory, under the source's name; else to `destination` itself. A
    /// symbolic link to a file is written through. A directory that is an unfinished copy of the source is that copy again.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) fn find(
        destination: &Path,
        source: &[u8],
        source_name: &OsStr,
        kind: Kind,
    ) -> anyhow::Result<Self> {
        let shown = destination.display();
        let path = match destination.metadata() {
            Ok(found) if found.is_dir() && unfinished(destination, source).is_some() => {
                destination.to_owned()
            }
            Ok(found) if found.is_dir() => destination.join(source_name),
            Ok(found) if !found.is_file() => {
                bail!("{shown} is neither a regular file nor a directory")
            }
            Ok(_) if kind == Kind::Directory => bail!("{shown} is not a directory"),
            Ok(_) => destination
                .canonicalize()
                .with_context(|| format!("{shown}"))?,
            Err(_) if kind == Kind::File && ends_in_slash(destination) => {
                bail!("{shown} is not a directory")
            }
            Err(_) => destination.to_owned(),
        };
        let name = path
            .file_name()
            .ok_or_else(|| anyhow!("{shown} names no file"))?;
        let parent = path.parent().map_or_else(PathBuf::new, Path::to_owned);
        let folder = Folder::open(&parent).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                anyhow!(
                    "cannot write {shown}: there is no directory {}",
                    parent.display()
                )
            }
            _ => anyhow!(error).context(format!("cannot write {shown}")),
        })?;
        Ok(Self {
            folder,
            name: name.to_owned(),
        })
    }

    /// Whether it is the file that the metadata describes, on this machine.
    pub(super) fn is(&self, source: &Metadata) -> bool {
        let found = self.folder.stat(&self.name).ok().flatten();
        found.is_some_and(|found| found.is_same_file(source))
    }
}

/// The name of the file that marks a directory of which not everything was copied yet: none that the source has.
pub(super) fn mark_name(siblings: &Siblings) -> OsString {
    siblings.spare(|number| numbered(MARK, number).into())
}

/// What the mark says: the source, and which directory it marks, since it may be copied as part of another one.
pub(super) fn mark(source: &[u8], device: u64, inode: u64) -> Vec<u8> {
    [source, format!("\0{device}:{inode}\n").as_bytes()].concat()
}

/// The name of its mark, if a directory is an unfinished copy of that source.
pub(super) fn unfinished(directory: &Path, source: &[u8]) -> Option<OsString> {
    let found = directory.metadata().ok()?;
    let mark = mark(source, found.dev(), found.ino());
    let mut names = (0..MARKS).map(|number| numbered(MARK, number));
    let name = names.find(|name| std::fs::read(directory.join(name)).is_ok_and(|is| is == mark));
    name.map(OsString::from)
}

const MARK: &str = ".ringmail-unfinished";

/// Names that are tried when a mark is looked for.
const MARKS: usize = 8;

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}
