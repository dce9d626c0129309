//! Where a copy goes: which directory, under which name; and the mark of a directory that is not finished.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};

use super::folder::Folder;
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
            Ok(found) if found.is_dir() && is_unfinished(destination, source) => {
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

/// The file that marks a directory of which not everything was copied yet; it names the source.
pub(super) const MARK: &str = ".ringmail-unfinished";

/// Whether a directory is an unfinished copy of that source.
pub(super) fn is_unfinished(directory: &Path, source: &[u8]) -> bool {
    std::fs::read(directory.join(MARK)).is_ok_and(|marked| marked == source)
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}
