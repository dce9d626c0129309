//! Copies by atomic words: the portable version, and the one that loom and Miri judge.
//!
//! A partly covered word of our own is merged by compare-and-exchange, so that every racing access has the same size;
//! the edges of foreign memory are bytes, since the rest of their words is not ours to write.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::Span;

/// An aligned 8-byte word: the standard library's, or loom's in a test.
pub(crate) trait Word {
    fn load(&self) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// Replaces the bits of `mask`.
    fn merge(&self, mask: u64, value: u64, order: Ordering);
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        Self::load(self, Ordering::Relaxed)
    }

    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    fn merge(&self, mask: u64, value: u64, order: Ordering) {
        let _ = self.fetch_update(order, Ordering::Relaxed, |word| {
            Some(word & !mask | value & mask)
        });
    }
}

/// Writes `bytes` to the span, those of its last aligned word last.
///
/// # Safety
/// - `span` is valid for writes of `bytes.len()` bytes, and accessed by others only as the crate's invariant says.
pub(crate) unsafe fn place(span: Span, bytes: &[u8]) {
    let (head, middle) = edges(span);
    let (head_bytes, rest) = bytes.split_at(head);
    let (middle_bytes, tail_bytes) = rest.split_at(middle);
    // SAFETY: the three parts lie within the span; see `byte` and `words`.
    unsafe {
        for (at, &value) in head_bytes.iter().enumerate() {
            byte(span.ptr.add(at)).store(value, Ordering::Release);
        }
        let (words, offset) = words(span.ptr.add(head), middle);
        place_words(words, offset, middle_bytes);
        for (at, &value) in tail_bytes.iter().enumerate() {
            byte(span.ptr.add(head + middle + at)).store(value, Ordering::Release);
        }
    }
}

/// Reads the span into `bytes`.
///
/// # Safety
/// - `span` is valid for reads of `bytes.len()` bytes, and accessed by others only as the crate's invariant says.
pub(crate) unsafe fn fetch(span: Span, bytes: &mut [u8]) {
    let (head, middle) = edges(span);
    let (head_bytes, rest) = bytes.split_at_mut(head);
    let (middle_bytes, tail_bytes) = rest.split_at_mut(middle);
    // SAFETY: the three parts lie within the span; see `byte` and `words`.
    unsafe {
        for (at, value) in head_bytes.iter_mut().enumerate() {
            *value = byte(span.ptr.add(at)).load(Ordering::Relaxed);
        }
        let (words, offset) = words(span.ptr.add(head), middle);
        fetch_words(words, offset, middle_bytes);
        for (at, value) in tail_bytes.iter_mut().enumerate() {
            *value = byte(span.ptr.add(head + middle + at)).load(Ordering::Relaxed);
        }
    }
}

/// Copies one span to another, through a private block.
///
/// # Safety
/// - As [`fetch`] of `from` and [`place`] of `to`, which has the same length.
pub(crate) unsafe fn transfer(to: Span, from: Span) {
    let mut block = [0; 512];
    let mut done = 0;
    while done < to.len {
        let len = (to.len - done).min(block.len());
        let part = |span: Span| Span {
            // SAFETY: the part lies within the span.
            ptr: unsafe { span.ptr.add(done) },
            len,
            ..span
        };
        // SAFETY: the caller's promises, for a part.
        unsafe {
            fetch(part(from), &mut block[..len]);
            place(part(to), &block[..len]);
        }
        done += len;
    }
}

/// Splits foreign memory into bytes, whole words, bytes; our own is all words. Answers the first two lengths.
fn edges(span: Span) -> (usize, usize) {
    if span.whole_words {
        return (0, span.len);
    }
    let head = span.ptr.addr().wrapping_neg() % 8;
    if head >= span.len {
        return (span.len, 0);
    }
    (head, (span.len - head) / 8 * 8)
}

/// # Safety
/// - `ptr` points to a byte at the edge of foreign memory, valid for the accesses made, alive for `'a`.
unsafe fn byte<'a>(ptr: *mut u8) -> &'a AtomicU8 {
    // SAFETY: the caller's promise; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(ptr) }
}

/// The aligned words that hold `len` bytes at `ptr`, and where in the first of them the bytes begin.
///
/// # Safety
/// - All bytes of those words belong to one allocation, valid for the accesses made, alive for `'a`.
unsafe fn words<'a>(ptr: *mut u8, len: usize) -> (&'a [AtomicU64], usize) {
    if len == 0 {
        return (&[], 0);
    }
    let offset = ptr.addr() % 8;
    let count = (offset + len).div_ceil(8);
    // SAFETY: aligned by construction, in bounds by the caller's promise; the words are only accessed atomically.
    let words = unsafe { std::slice::from_raw_parts(ptr.sub(offset).cast::<AtomicU64>(), count) };
    (words, offset)
}

/// Writes `bytes` at byte `offset < 8` of `words`; the last word with release ordering.
fn place_words<W: Word>(words: &[W], offset: usize, bytes: &[u8]) {
    let mut rest = bytes;
    let mut start = offset;
    for word in words {
        let (now, later) = rest.split_at(rest.len().min(8 - start));
        // Release: pairs with the acquire load in `Memory::load_u64`.
        let order = if later.is_empty() {
            Ordering::Release
        } else {
            Ordering::Relaxed
        };
        let mut value = [0; 8];
        value[start..start + now.len()].copy_from_slice(now);
        if now.len() == 8 {
            word.store(u64::from_ne_bytes(value), order);
        } else {
            let mut mask = [0; 8];
            mask[start..start + now.len()].fill(0xff);
            word.merge(u64::from_ne_bytes(mask), u64::from_ne_bytes(value), order);
        }
        (rest, start) = (later, 0);
    }
}

/// Reads `bytes` from byte `offset < 8` of `words`.
fn fetch_words<W: Word>(words: &[W], offset: usize, bytes: &mut [u8]) {
    let mut rest = bytes;
    let mut start = offset;
    for word in words {
        let part = rest.len().min(8 - start);
        let (now, later) = std::mem::take(&mut rest).split_at_mut(part);
        now.copy_from_slice(&word.load().to_ne_bytes()[start..start + part]);
        (rest, start) = (later, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Word for loom::sync::atomic::AtomicU64 {
        fn load(&self) -> u64 {
            Self::load(self, Ordering::Relaxed)
        }

        fn store(&self, value: u64, order: Ordering) {
            Self::store(self, value, order);
        }

        fn merge(&self, mask: u64, value: u64, order: Ordering) {
            let _ = self.fetch_update(order, Ordering::Relaxed, |word| {
                Some(word & !mask | value & mask)
            });
        }
    }

    /// The whole of the portable copy, at every alignment, on memory of our own and on foreign memory.
    #[test]
    fn any_range_goes_in_and_comes_out_and_nothing_else_changes() {
        for whole_words in [true, false] {
            for start in 0..17 {
                for len in 0..40 {
                    let mut host = [u64::from_ne_bytes([0xee; 8]); 8];
                    let span = Span {
                        // SAFETY: `start + len` is less than the 64 bytes there are.
                        ptr: unsafe { host.as_mut_ptr().cast::<u8>().add(start) },
                        len,
                        whole_words,
                    };
                    let source: Vec<u8> = (1..=len as u8).collect();
                    let mut middle = [0_u64; 8];
                    let between = Span {
                        ptr: middle.as_mut_ptr().cast(),
                        ..span
                    };
                    let mut back = vec![0; len];
                    // SAFETY: the spans lie within the arrays, which nobody else touches meanwhile.
                    unsafe {
                        place(between, &source);
                        transfer(span, between);
                        fetch(span, &mut back);
                    }
                    assert_eq!(back, source, "{len} bytes at {start}");
                    let bytes: Vec<u8> = host.iter().flat_map(|word| word.to_ne_bytes()).collect();
                    assert_eq!(&bytes[start..start + len], source);
                    assert!(bytes[..start].iter().all(|&byte| byte == 0xee));
                    assert!(bytes[start + len..].iter().all(|&byte| byte == 0xee));
                }
            }
        }
    }

    /// Three words, of which a message covers the last half of the first, the second, and `tail` bytes of the third.
    fn publish(tail: usize) {
        use loom::sync::{Arc, atomic::AtomicU64 as LoomWord};
        loom::model(move || {
            let words: Arc<[LoomWord; 3]> = Arc::new(std::array::from_fn(|_| LoomWord::new(0)));
            let writer = Arc::clone(&words);
            let thread =
                loom::thread::spawn(move || place_words(&writer[..], 4, &vec![7; 12 + tail]));
            let flag = words[2].load(Ordering::Acquire);
            if flag != 0 {
                let mut data = [0; 12];
                fetch_words(&words[..2], 4, &mut data);
                assert_eq!(data, [7; 12], "the flag was seen before the data");
            }
            thread.join().unwrap();
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "loom brings its own model")]
    fn a_whole_word_written_last_publishes_what_was_before() {
        publish(8);
    }

    #[test]
    #[cfg_attr(miri, ignore = "loom brings its own model")]
    fn a_partial_word_written_last_publishes_what_was_before() {
        publish(3);
    }

    #[test]
    #[cfg_attr(miri, ignore = "loom brings its own model")]
    fn two_writers_of_one_word_lose_nothing() {
        use loom::sync::{Arc, atomic::AtomicU64 as LoomWord};
        loom::model(|| {
            let word = Arc::new([LoomWord::new(0)]);
            let other = Arc::clone(&word);
            let thread = loom::thread::spawn(move || place_words(&other[..], 0, &[1; 4]));
            place_words(&word[..], 4, &[2; 4]);
            thread.join().unwrap();
            let mut bytes = [0; 8];
            fetch_words(&word[..], 0, &mut bytes);
            assert_eq!(bytes, [1, 1, 1, 1, 2, 2, 2, 2]);
        });
    }
}
