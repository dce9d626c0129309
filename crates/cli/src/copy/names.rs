//! Names for what a copy leaves beside a file while it is under way, such that they are not those of files of the source.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::protocol::Entry;

/// The names that a directory of the source has: none of them may be taken for something of ours.
#[derive(Debug, Default)]
pub(super) struct Siblings(Vec<Vec<u8>>);

impl Siblings {
    /// Of a file that is copied by itself.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Of the files of a directory.
    pub(super) fn of(entries: &[Entry]) -> Self {
        let hidden = entries
            .iter()
            .filter(|entry| entry.name.starts_with(b"."))
            .map(|entry| entry.name.clone());
        let mut names: Vec<_> = hidden.collect();
        names.sort_unstable();
        Self(names)
    }

    /// The first of the numbered names that is free. The same source gives the same name again.
    pub(super) fn spare(&self, name: impl Fn(usize) -> OsString) -> OsString {
        let is_free = |name: &OsString| {
            let found = self
                .0
                .binary_search_by(|other| other[..].cmp(name.as_bytes()));
            found.is_err()
        };
        // Of one name more than there are siblings one is free.
        let mut names = (0..=self.0.len()).map(name);
        names.find(is_free).expect("numbered names differ")
    }
}

/// A hidden name for something that belongs to `name`; cut where it would be too long, told apart by a checksum then. Of the
/// numbers 0 is left out.
pub(super) fn beside(name: &OsStr, suffix: &str, number: usize) -> OsString {
    let suffix = numbered(suffix, number);
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

/// A name with a number behind; 0 is left out.
pub(super) fn numbered(name: &str, number: usize) -> String {
    match number {
        0 => name.to_owned(),
        _ => format!("{name}~{number}"),
    }
}

/// Bytes of a name without the dot in front.
const LONGEST: usize = 254;

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = ".part";

    #[test]
    fn a_name_of_any_length_has_a_part_of_its_own() {
        let one = OsString::from("x".repeat(255));
        let two = OsString::from(format!("{}y", "x".repeat(254)));
        let (first, second) = (beside(&one, PART, 0), beside(&two, PART, 0));
        assert_ne!(first, second);
        assert!(first.len() <= 255 && second.len() <= 255);
        assert_eq!(beside("name".as_ref(), PART, 0), ".name.part");
        assert_eq!(beside("name".as_ref(), PART, 12), ".name.part~12");
    }

    #[test]
    fn a_name_that_the_source_has_is_not_taken() {
        let names = [".name.part~1", "name", ".name.part", ".name.part~3"];
        let siblings = {
            let mut names = names.map(|name| name.as_bytes().to_vec()).to_vec();
            names.sort();
            Siblings(names)
        };
        let spare = |siblings: &Siblings| siblings.spare(|n| beside("name".as_ref(), PART, n));
        assert_eq!(spare(&siblings), ".name.part~2");
        assert_eq!(spare(&Siblings::none()), ".name.part");
    }
}
