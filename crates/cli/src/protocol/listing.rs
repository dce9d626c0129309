//! The content of a directory, as it lies in the region that opening it answers.
//!
//! Entries follow each other without padding:
//!
//! ```text
//! name length (2)  name  metadata (41)  target length (2)  target of a symbolic link
//! ```
//!
//! Metadata is that of the entry itself: symbolic links are not followed. A reader must not trust names; it gets only those
//! that name something within the directory.

use super::fields::{Fields, put_string};
use super::{Kind, MAX_PATH, Malformed, Metadata};

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// One component of a path: no `/`, not `.`, not `..`, not empty.
    pub(crate) name: Vec<u8>,
    /// What it names.
    pub(crate) metadata: Metadata,
    /// Where a symbolic link points; empty for others.
    pub(crate) target: Vec<u8>,
}

/// Appends an entry to a listing.
pub(crate) fn write_entry(into: &mut Vec<u8>, entry: &Entry) {
    put_string(into, &entry.name);
    entry.metadata.write(into);
    put_string(into, &entry.target);
}

/// Reads a whole listing.
///
/// # Errors
/// [`Malformed`] for anything that is none, or for a name that leads elsewhere.
pub(crate) fn read_listing(bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let mut fields = Fields(bytes);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let name = fields.string(MAX_NAME)?;
        let metadata = Metadata::read(&mut fields)?;
        let target = fields.string(MAX_PATH)?;
        let inside = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
        if !inside || name.contains(&0) || target.contains(&0) {
            return Err(Malformed("a file name that is none"));
        }
        if (metadata.kind == Kind::Symlink) == target.is_empty() {
            return Err(Malformed("a symbolic link that is none"));
        }
        entries.push(Entry {
            name: name.to_vec(),
            metadata,
            target: target.to_vec(),
        });
    }
    Ok(entries)
}

/// Most bytes of a name, as on Linux.
const MAX_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Time;

    fn entry(name: &[u8], kind: Kind, target: &[u8]) -> Entry {
        Entry {
            name: name.to_vec(),
            metadata: Metadata {
                kind,
                size: 5,
                mode: 0o640,
                modified: Time {
                    seconds: -1,
                    nanoseconds: 999_999_999,
                },
                device: 1,
                inode: 2,
            },
            target: target.to_vec(),
        }
    }

    fn listing(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in entries {
            write_entry(&mut bytes, entry);
        }
        bytes
    }

    #[test]
    fn a_listing_is_read_as_it_was_written() {
        let entries = [
            entry(b"file", Kind::File, b""),
            entry(b"\xff not UTF-8", Kind::Directory, b""),
            entry(b"link", Kind::Symlink, b"../file"),
        ];
        let bytes = listing(&entries);
        assert_eq!(read_listing(&bytes), Ok(entries.to_vec()));
        let payload = 4 + 11 + 4 + 7;
        assert_eq!(bytes.len(), payload + 3 * (4 + 41), "the documented layout");
        assert_eq!(read_listing(&[]), Ok(vec![]));
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/etc", b"a\0b"] {
            let bytes = listing(&[entry(name, Kind::File, b"")]);
            assert!(read_listing(&bytes).is_err(), "{name:?} was accepted");
        }
        assert!(read_listing(&listing(&[entry(b"link", Kind::Symlink, b"")])).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_a_listing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_listing(&bytes);
        }

        #[test]
        fn a_damaged_listing_is_refused_or_names_only_what_is_inside(at in 0usize..120, value: u8) {
            let mut bytes = listing(&[entry(b"file", Kind::File, b""), entry(b"link", Kind::Symlink, b"file")]);
            let at = at % bytes.len();
            bytes[at] = value;
            for entry in read_listing(&bytes).unwrap_or_default() {
                prop_assert!(!entry.name.contains(&b'/') && entry.name != b"..");
            }
        }
    }
}
