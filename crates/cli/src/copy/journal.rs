//! Which blocks of a partial file are known to be right, so that an interrupted copy can go on.
//!
//! A file beside the partial one: a header that ties it to one state of one source, then the number of each block that was
//! verified, in the order in which they were. What it says is a hint: the blocks it names are verified again.
//!
//! ```text
//! "RMJOURN1"  size (8)  seconds (8)  nanoseconds (4)  block length (4)  device (8)  inode (8)  CRC32C of these (4)
//! block (4) ...
//! ```

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

use crate::protocol::Metadata;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Takes a journal up; answers the blocks it names, if it is about this source. Any other is begun anew.
    ///
    /// # Errors
    /// What reading or writing answers.
    pub(super) fn resume(
        mut file: File,
        source: &Metadata,
        block_len: u32,
    ) -> io::Result<(Self, Option<Vec<u64>>)> {
        let header = header(source, block_len);
        let mut found = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut found)?;
        let blocks = source.size.div_ceil(block_len.into());
        let held = found
            .strip_prefix(&header[..])
            .and_then(|entries| held(entries, blocks));
        if held.is_none() {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
        } else {
            // An entry that was cut short is overwritten.
            let whole = HEADER_LEN + (found.len() - HEADER_LEN) / 4 * 4;
            file.seek(SeekFrom::Start(whole as u64))?;
        }
        Ok((Self { file }, held))
    }

    /// Notes a block that was verified.
    ///
    /// # Errors
    /// What writing answers.
    pub(super) fn add(&mut self, block: u64) -> io::Result<()> {
        let entry = u32::try_from(block).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.file.write_all(&entry.to_be_bytes())
    }
}

fn held(entries: &[u8], blocks: u64) -> Option<Vec<u64>> {
    let (entries, _cut_short) = entries.as_chunks::<4>();
    let number = |entry: &[u8; 4]| u64::from(u32::from_be_bytes(*entry));
    let mut held: Vec<_> = entries.iter().map(number).collect();
    held.sort_unstable();
    held.dedup();
    held.last()
        .is_none_or(|&last| last < blocks)
        .then_some(held)
}

fn header(source: &Metadata, block_len: u32) -> [u8; HEADER_LEN] {
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend(MAGIC);
    header.extend(source.size.to_be_bytes());
    header.extend(source.modified.seconds.to_be_bytes());
    header.extend(source.modified.nanoseconds.to_be_bytes());
    header.extend(block_len.to_be_bytes());
    header.extend(source.device.to_be_bytes());
    header.extend(source.inode.to_be_bytes());
    header.extend(crc32c::crc32c(&header).to_be_bytes());
    header.try_into().expect("the fields have this length")
}

const MAGIC: &[u8; 8] = b"RMJOURN1";
const HEADER_LEN: usize = 8 + 8 + 8 + 4 + 4 + 8 + 8 + 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Kind, Time};

    const BLOCK: u32 = 4096;

    fn source() -> Metadata {
        Metadata {
            kind: Kind::File,
            size: 100 * u64::from(BLOCK) - 1,
            mode: 0o644,
            modified: Time {
                seconds: 5,
                nanoseconds: 6,
            },
            device: 7,
            inode: 8,
        }
    }

    fn resume(file: &File, source: &Metadata, block_len: u32) -> (Journal, Option<Vec<u64>>) {
        Journal::resume(file.try_clone().unwrap(), source, block_len).unwrap()
    }

    #[test]
    fn a_journal_is_taken_up_where_it_was_left_even_when_cut_short() {
        let file = tempfile::tempfile().unwrap();
        let (mut journal, held) = resume(&file, &source(), BLOCK);
        assert_eq!(held, None);
        for block in [3, 1, 99, 3] {
            journal.add(block).unwrap();
        }
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        let (mut journal, held) = resume(&file, &source(), BLOCK);
        assert_eq!(held, Some(vec![1, 3, 99]));
        journal.add(7).unwrap();
        assert_eq!(resume(&file, &source(), BLOCK).1, Some(vec![1, 3, 7, 99]));
    }

    #[test]
    fn a_journal_of_another_source_is_begun_anew() {
        let others: [fn(&mut Metadata); 5] = [
            |source| source.size -= 1,
            |source| source.modified.seconds += 1,
            |source| source.modified.nanoseconds += 1,
            |source| source.device += 1,
            |source| source.inode += 1,
        ];
        for other in others {
            let file = tempfile::tempfile().unwrap();
            resume(&file, &source(), BLOCK).0.add(1).unwrap();
            let mut changed = source();
            other(&mut changed);
            assert_eq!(resume(&file, &changed, BLOCK).1, None, "{changed:?}");
            assert_eq!(
                resume(&file, &changed, BLOCK).1,
                Some(vec![]),
                "it was not begun anew"
            );
        }
        let file = tempfile::tempfile().unwrap();
        resume(&file, &source(), BLOCK).0.add(1).unwrap();
        assert_eq!(resume(&file, &source(), 2 * BLOCK).1, None);
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_journal_it_names_only_blocks_that_exist(damage in proptest::collection::vec((0usize..120, any::<u8>()), 0..8)) {
            let mut file = tempfile::tempfile().unwrap();
            let (mut journal, _) = resume(&file, &source(), BLOCK);
            for block in 0..15 {
                journal.add(block).unwrap();
            }
            for (at, value) in damage {
                file.seek(SeekFrom::Start(at as u64)).unwrap();
                file.write_all(&[value]).unwrap();
            }
            if let Some(held) = resume(&file, &source(), BLOCK).1 {
                prop_assert!(held.iter().all(|&block| block < 100));
            }
        }
    }
}
