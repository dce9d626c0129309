//! The monotonic clock as one number, read on every poll: the system's own call without the arithmetic of two fields.

/// Nanoseconds since some moment in the past.
#[cfg(unix)]
#[inline]
pub(crate) fn nanos() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes a live timespec. It cannot fail: the clock exists everywhere.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds since some moment in the past.
#[cfg(not(unix))]
pub(crate) fn nanos() -> u64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    ORIGIN.elapsed().as_nanos() as u64
}
