//! The lock around a device's core: tried on the data path, waited for on the control path.
//!
//! Posting and polling never block: who finds the lock taken leaves word for its holder. Creating, changing and
//! destroying objects waits; while somebody waits, attempts fail, so that two busy pollers cannot keep a third thread
//! out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A mutex with attempts that yield to waiters.
#[derive(Debug)]
pub(crate) struct CoreLock<T> {
    inner: Mutex<T>,
    waiting: AtomicU32,
    refused: AtomicU64,
}

impl<T> CoreLock<T> {
    /// An open lock around `value`.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            inner: Mutex::new(value),
            waiting: AtomicU32::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes the lock if nobody holds it or waits for it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            match self.inner.try_lock() {
                Ok(guard) => return Some(guard),
                // A panic under the lock was a bug of ours; every invariant of the core holds between its calls.
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Waits for the lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// How many attempts found the lock taken.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn an_attempt_on_a_held_lock_fails_and_is_counted() {
        let lock = CoreLock::new(1);
        let guard = lock.try_lock().expect("nobody holds it");
        assert!(lock.try_lock().is_none());
        assert_eq!(lock.refused(), 1);
        drop(guard);
        assert_eq!(*lock.lock(), 1);
    }

    #[test]
    fn attempts_do_not_starve_a_waiter() {
        let lock = CoreLock::new(());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        drop(lock.try_lock());
                    }
                });
            }
            for _ in 0..100 {
                drop(lock.lock());
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
