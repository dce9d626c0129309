//! Notices `fork`: what a child inherited is its parent's, and answers errors.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks lie between this process and the first that called [`watch`].
#[inline]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Counts forks from now on.
pub(crate) fn watch() {
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    // SAFETY: the handler only touches an atomic, which is permitted between fork and exec.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
    });
}

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// What a child's calls on inherited objects answer.
pub(crate) fn error() -> fabric::Error {
    fabric::Error::WrongState("the domain belongs to the process that this one was forked from")
}
