//! A lock-free list of the objects that have news for the holder of the core lock.
//!
//! Any thread rings; the holder takes all at once. An object is on the list at most once. The links lie in the objects,
//! so ringing allocates nothing.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The link of an object that can be on one [`Doorbells`].
#[derive(Debug)]
pub(crate) struct Link<T> {
    next: AtomicPtr<T>,
    rung: AtomicBool,
}

impl<T> Link<T> {
    /// On no list.
    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicPtr::new(ptr::null_mut()),
            rung: AtomicBool::new(false),
        }
    }
}

/// An object with a link.
pub(crate) trait Linked: Sized {
    /// The link.
    fn link(&self) -> &Link<Self>;
}

/// Objects that rang and were not taken yet. Each holds a reference to itself meanwhile.
#[derive(Debug)]
pub(crate) struct Doorbells<T: Linked> {
    head: AtomicPtr<T>,
}

impl<T: Linked> Doorbells<T> {
    /// Nobody rang.
    pub(crate) const fn new() -> Self {
        Self {
            head: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Puts `object` on the list unless it is there. What was done before is visible to who takes it afterwards.
    pub(crate) fn ring(&self, object: &Arc<T>) {
        // AcqRel: pairs with the swap in `take`. Whoever finds it rung knows that the taker comes after it.
        if object.link().rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let raw = Arc::into_raw(Arc::clone(object)).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            object.link().next.store(head, Ordering::Relaxed);
            // SeqCst: ordered before the attempt on the core lock that follows; see `Shared::progress`.
            match self
                .head
                .compare_exchange_weak(head, raw, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Whether somebody rang.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        // SeqCst: ordered after the release of the core lock; see `Shared::progress`.
        !self.head.load(Ordering::SeqCst).is_null()
    }

    /// Takes all, the latest first, and calls `each`. An object may ring again from then on.
    pub(crate) fn take(&self, mut each: impl FnMut(Arc<T>)) {
        let mut at = self.head.swap(ptr::null_mut(), Ordering::AcqRel);
        while !at.is_null() {
            // SAFETY: `ring` made the pointer from an Arc and gave the list its reference, which the swap above took
            // over; nobody else can take it again.
            let object = unsafe { Arc::from_raw(at.cast_const()) };
            at = object.link().next.load(Ordering::Relaxed);
            // AcqRel: pairs with the swap in `ring`. Rings before this are served by `each` below.
            object.link().rung.swap(false, Ordering::AcqRel);
            each(object);
        }
    }
}

impl<T: Linked> Drop for Doorbells<T> {
    fn drop(&mut self) {
        self.take(drop);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    struct Object {
        link: Link<Self>,
        news: AtomicU64,
    }

    impl Linked for Object {
        fn link(&self) -> &Link<Self> {
            &self.link
        }
    }

    fn object() -> Arc<Object> {
        Arc::new(Object {
            link: Link::new(),
            news: AtomicU64::new(0),
        })
    }

    #[test]
    fn an_object_rings_once_until_taken() {
        let (doorbells, a, b) = (Doorbells::new(), object(), object());
        assert!(!doorbells.any());
        for object in [&a, &b, &a] {
            doorbells.ring(object);
        }
        let mut taken = 0;
        doorbells.take(|_| taken += 1);
        assert_eq!(taken, 2);
        assert!(!doorbells.any());
        doorbells.ring(&a);
        drop(doorbells);
        assert_eq!((Arc::strong_count(&a), Arc::strong_count(&b)), (1, 1));
    }

    #[test]
    fn no_news_is_lost_between_threads() {
        const NEWS: u64 = if cfg!(miri) { 200 } else { 100_000 };
        let doorbells = Doorbells::new();
        let objects = [object(), object()];
        let mut seen = 0;
        std::thread::scope(|scope| {
            for object in &objects {
                scope.spawn(|| {
                    for _ in 0..NEWS {
                        object.news.fetch_add(1, Ordering::Relaxed);
                        doorbells.ring(object);
                    }
                });
            }
            while seen < 2 * NEWS {
                doorbells.take(|object| seen += object.news.swap(0, Ordering::Relaxed));
                std::thread::yield_now();
            }
        });
        assert_eq!(seen, 2 * NEWS);
    }
}
