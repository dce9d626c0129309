//! Which pages of a private mapping were ever touched: copying those is enough.
//!
//! From `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst): a word a page, whose two highest bits say
//! "present" and "swapped". Where it cannot be read, everything counts as touched.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use crate::shared::page;

/// The touched parts of `len` bytes at `base`, both multiples of a page, as offsets, in order.
pub(crate) fn resident_runs(base: NonNull<u8>, len: usize) -> Vec<Range<usize>> {
    let everything = 0..len;
    runs(base, len).unwrap_or_else(|_| vec![everything])
}

fn runs(base: NonNull<u8>, len: usize) -> io::Result<Vec<Range<usize>>> {
    let map = File::open("/proc/self/pagemap")?;
    let (first, pages) = (base.as_ptr().addr() / page(), len / page());
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut words = vec![0; ENTRY * AT_ONCE.min(pages)];
    for start in (0..pages).step_by(AT_ONCE) {
        let words = &mut words[..ENTRY * AT_ONCE.min(pages - start)];
        map.read_exact_at(words, (ENTRY * (first + start)) as u64)?;
        let (words, _) = words.as_chunks::<ENTRY>();
        for (index, word) in words.iter().enumerate() {
            if u64::from_ne_bytes(*word) & (PRESENT | SWAPPED) == 0 {
                continue;
            }
            let at = (start + index) * page();
            match runs.last_mut() {
                Some(last) if last.end == at => last.end += page(),
                _ => runs.push(at..at + page()),
            }
        }
    }
    Ok(runs)
}

const ENTRY: usize = 8;
const AT_ONCE: usize = 8192;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::Memory;

    #[test]
    fn touched_pages_are_found_and_no_others() {
        let memory = Memory::allocate(64 * page());
        for at in [3, 4, 40] {
            memory.copy_in(at * page() + 17, &[1]).unwrap();
        }
        let runs = resident_runs(memory.base(), 64 * page());
        assert_eq!(runs, [3 * page()..5 * page(), 40 * page()..41 * page()]);
    }
}
