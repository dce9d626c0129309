//! What a client learns of a file without opening it.

use rustix::fs::{FileType, Stat};

use super::Malformed;
use super::fields::Fields;

/// A file as the server's file system describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes; of a directory that is opened, those of its listing.
    pub(crate) size: u64,
    /// Permission bits, at most `0o7777`.
    pub(crate) mode: u32,
    /// When its content last changed.
    pub(crate) modified: Time,
    /// The file system it is on, and ...
    pub(crate) device: u64,
    /// ... its number there: together they name the file on the server's machine.
    pub(crate) inode: u64,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe, a socket: cannot be copied.
    Special,
}

/// A time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    /// Since 1970; negative before.
    pub(crate) seconds: i64,
    /// Less than 1,000,000,000.
    pub(crate) nanoseconds: u32,
}

impl Metadata {
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        into.push(self.kind.code());
        into.extend(self.size.to_be_bytes());
        into.extend(self.mode.to_be_bytes());
        into.extend(self.modified.seconds.to_be_bytes());
        into.extend(self.modified.nanoseconds.to_be_bytes());
        into.extend(self.device.to_be_bytes());
        into.extend(self.inode.to_be_bytes());
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let kind = Kind::from_code(fields.u8()?).ok_or(Malformed("an unknown kind of file"))?;
        let size = fields.u64()?;
        let mode = fields.u32()? & 0o7777;
        let seconds = fields.i64()?;
        let nanoseconds = fields.u32()?;
        if nanoseconds >= 1_000_000_000 {
            return Err(Malformed("a time that is none"));
        }
        Ok(Self {
            kind,
            size,
            mode,
            modified: Time {
                seconds,
                nanoseconds,
            },
            device: fields.u64()?,
            inode: fields.u64()?,
        })
    }

    /// Whether `now` may be the same file with the same content.
    pub(crate) fn is_unchanged(&self, now: &Self) -> bool {
        self.is_same_file(now) && (self.size, self.modified) == (now.size, now.modified)
    }

    /// Whether both name one file of one machine.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[expect(
    clippy::unnecessary_cast,
    trivial_numeric_casts,
    reason = "the types of these fields differ between systems"
)]
impl From<&Stat> for Metadata {
    fn from(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Special,
        };
        Self {
            kind,
            size: stat.st_size as u64,
            mode: stat.st_mode as u32 & 0o7777,
            modified: Time {
                seconds: stat.st_mtime as i64,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
            Self::Special => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Special,
            _ => return None,
        })
    }
}
