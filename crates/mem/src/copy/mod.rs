//! How bytes move between private and exposed memory.
//!
//! On x86-64 by assembly, elsewhere and under Miri by atomic words; the rules both follow are the crate's invariant.

#[cfg(any(not(all(target_arch = "x86_64", not(miri))), test))]
mod words;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) use words::{fetch, place, transfer};
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use x86_64::{fetch, place, transfer};

/// A range of exposed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) ptr: *mut u8,
    pub(crate) len: usize,
    /// Whether the aligned words that hold the first and the last byte are wholly ours.
    #[cfg_attr(all(target_arch = "x86_64", not(miri), not(test)), expect(dead_code))]
    pub(crate) whole_words: bool,
}
