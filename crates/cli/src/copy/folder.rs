//! A directory of the destination, by descriptor: everything in it is named relative to that, and no symbolic link beneath
//! the destination is followed. So neither a server nor whoever renames things meanwhile can lead a copy elsewhere.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RawMode, Timespec, Timestamps, fchmod, fsync, futimens, mkdirat,
    openat, renameat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::protocol::{Metadata, Time};

/// An open directory.
#[derive(Debug)]
pub(super) struct Folder {
    directory: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

impl Folder {
    /// Opens an existing directory, following symbolic links as the user wrote them.
    ///
    /// # Errors
    /// What opening answers.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let directory = openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Self {
            directory,
            path: path.to_owned(),
        })
    }

    /// Opens the directory of that name, made if there is none. It is ours alone until its mode is set.
    ///
    /// # Errors
    /// What making or opening answers; `NotADirectory` for a symbolic link, wherever that leads.
    pub(super) fn subfolder(&self, name: &OsStr) -> io::Result<Self> {
        match mkdirat(&self.directory, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let directory = openat(
            &self.directory,
            name,
            DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )?;
        Ok(Self {
            directory,
            path: self.path.join(name),
        })
    }

    /// Opens a file for reading and writing, made if there is none; never through a symbolic link.
    ///
    /// # Errors
    /// What opening answers.
    pub(super) fn file(&self, name: &OsStr) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(file.into())
    }

    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// What opening answers.
    pub(super) fn existing(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(openat(&self.directory, name, flags, Mode::empty())?.into())
    }

    /// What a name stands for; `None` if there is nothing.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Option<Metadata>> {
        match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Metadata::from(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the existing file of that name may be replaced: not if it is read-only to us.
    pub(super) fn is_writable(&self, name: &OsStr) -> bool {
        rustix::fs::accessat(
            &self.directory,
            name,
            rustix::fs::Access::WRITE_OK,
            AtFlags::EACCESS,
        )
        .is_ok()
    }

    /// Gives a file another name at once, in place of what had it.
    ///
    /// # Errors
    /// What renaming answers.
    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.directory, from, &self.directory, to)?)
    }

    /// Removes a file; it is no error if there is none.
    ///
    /// # Errors
    /// What removing answers.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// What making it answers.
    pub(super) fn link(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(symlinkat(target, &self.directory, name)?)
    }

    /// Makes the names in it durable.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.directory)?)
    }

    /// Gives the directory itself the mode and time of its source.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn finish(&self, source: &Metadata) -> io::Result<()> {
        preserve(&self.directory, source)
    }

    /// What it is.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        Ok(Metadata::from(&rustix::fs::fstat(&self.directory)?))
    }

    /// How messages name it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives an open file or directory the permissions and the modification time of its source. Neither set-user-ID nor
/// set-group-ID: the owner is another.
///
/// # Errors
/// What the system answers.
pub(super) fn preserve(file: impl std::os::fd::AsFd, source: &Metadata) -> io::Result<()> {
    fchmod(&file, Mode::from_raw_mode((source.mode & 0o777) as RawMode))?;
    let Time {
        seconds,
        nanoseconds,
    } = source.modified;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(futimens(file, &times)?)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
