//! How a peer is woken: an event descriptor, rung only while a word in shared memory says that it sleeps.
//!
//! Who writes to a ring looks at the word afterwards; who goes to sleep sets the word and looks at its rings afterwards. Between
//! the two steps each needs a barrier. On the sleeper's side it is `membarrier`, which serves for both, so the writer pays for
//! none; where the system has no such call, the writer has a fence instead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::event::EventfdFlags;

use crate::mapping::Mapping;

/// Our own: peers ring it.
#[derive(Debug)]
pub(crate) struct Bell {
    event: OwnedFd,
    page: Mapping,
    page_file: OwnedFd,
}

impl Bell {
    /// One that is not to be rung yet.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags)?;
        let (page, page_file) = Mapping::create("ringmail-bell", PAGE)?;
        has_barrier();
        Ok(Self {
            event,
            page,
            page_file,
        })
    }

    /// Says whether it is to be rung. What peers wrote before they looked is visible afterwards.
    pub(crate) fn set_sleeping(&self, sleeps: bool) {
        self.page.words()[SLEEPING].store(u64::from(sleeps), Ordering::Relaxed);
        if sleeps {
            barrier();
        }
    }

    /// Makes it silent again.
    pub(crate) fn hush(&self) {
        let mut count = [0; 8];
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.event, &mut count);
    }

    /// What a peer needs to ring it.
    pub(crate) fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.event.as_fd(), self.page_file.as_fd()]
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A peer's.
#[derive(Debug)]
pub(crate) struct PeerBell {
    event: OwnedFd,
    page: Mapping,
}

impl PeerBell {
    /// Of what the peer sent.
    ///
    /// # Errors
    /// The page is none.
    pub(crate) fn new(event: OwnedFd, page: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            event,
            page: Mapping::adopt(page.as_fd(), PAGE)?,
        })
    }

    /// Wakes the peer if it sleeps, after something was written for it.
    #[inline]
    pub(crate) fn ring_if_sleeping(&self) {
        match has_barrier() {
            true => compiler_fence(Ordering::SeqCst),
            // SeqCst: what was written is visible before the look; pairs with the barrier of `Bell::set_sleeping`.
            false => fence(Ordering::SeqCst),
        }
        if self.page.words()[SLEEPING].load(Ordering::Relaxed) != 0 {
            ring(self.event.as_fd());
        }
    }
}

#[cold]
fn ring(event: BorrowedFd<'_>) {
    // A full counter is readable as it is. What a peer sent as an event may be anything: it may refuse, but is never waited for.
    let flags = rustix::fs::fcntl_getfl(event);
    if flags.is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK)) {
        let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
    }
}

/// Whether this process is registered for barriers that another process asks for.
#[inline]
fn has_barrier() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED))
}

/// A full barrier on this and every registered thread.
fn barrier() {
    // SeqCst: for peers without the call, who have a fence of their own.
    fence(Ordering::SeqCst);
    membarrier(libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED);
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: takes numbers, and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

const PAGE: usize = 4096;
const SLEEPING: usize = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn rings(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn it_rings_only_for_who_sleeps() {
        let bell = Bell::new().unwrap();
        let [event, page] = bell.files().map(|file| file.try_clone_to_owned().unwrap());
        let peer = PeerBell::new(event, &page).unwrap();
        peer.ring_if_sleeping();
        assert!(!rings(&bell), "nobody sleeps");
        bell.set_sleeping(true);
        peer.ring_if_sleeping();
        assert!(rings(&bell));
        bell.hush();
        assert!(!rings(&bell));
    }
}
