//! The thread that moves a device along while nobody polls.
//!
//! A program that polls drives the device itself, and a second thread at the socket would only steal its core: waking
//! one across cores costs tens of microseconds. So the helper leases the device to whoever polls: while polls keep
//! coming it sleeps, and only looks now and then whether they still do. When they do not, or when the program says
//! that it will sleep on a channel, the helper sleeps on the socket instead and does all the work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::thread::JoinHandle;
use std::time::Duration;

use std::os::fd::{AsFd, AsRawFd};

use roce::time::Instant;

use crate::device::Shared;
use crate::signal::{Signal, wait_readable};

/// What the helper and the others tell each other.
#[derive(Debug)]
pub(crate) struct Helper {
    socket: i32,
    kick: Signal,
    stop: AtomicBool,
    /// Counts polls; only the holder of the core lock advances it.
    polls: AtomicU32,
    /// The helper sleeps because somebody polls.
    leased: AtomicBool,
    /// The lease is to end now.
    recalled: AtomicBool,
    /// The helper sleeps on the socket, or is about to; until when, and how many polls there had been.
    on_socket: AtomicBool,
    sleeps_until: AtomicU64,
    polls_before: AtomicU32,
}

impl Helper {
    /// The state of a helper of the device whose receiving socket is `socket`.
    ///
    /// # Errors
    /// The process has no file descriptors left.
    pub(crate) fn new(socket: i32) -> io::Result<Self> {
        Ok(Self {
            socket,
            kick: Signal::new()?,
            stop: AtomicBool::new(false),
            polls: AtomicU32::new(0),
            leased: AtomicBool::new(false),
            recalled: AtomicBool::new(false),
            on_socket: AtomicBool::new(false),
            sleeps_until: AtomicU64::new(0),
            polls_before: AtomicU32::new(0),
        })
    }

    /// A program polls, under the core lock. Sends the helper away from the socket when that seems to be a habit.
    #[inline]
    pub(crate) fn note_poll(&self) {
        // Only the lock's holder writes.
        let polls = self.polls.load(Ordering::Relaxed).wrapping_add(1);
        self.polls.store(polls, Ordering::Relaxed);
        if self.on_socket.load(Ordering::Relaxed)
            && polls.wrapping_sub(self.polls_before.load(Ordering::Relaxed)) >= HABIT
        {
            self.kick();
        }
    }

    /// Whether somebody polls, as far as the helper knows.
    #[inline]
    pub(crate) fn is_polled(&self) -> bool {
        self.leased.load(Ordering::Relaxed)
    }

    /// Whether the helper sleeps on the socket.
    #[inline]
    pub(crate) fn is_on_socket(&self) -> bool {
        self.on_socket.load(Ordering::Relaxed)
    }

    /// Under the core lock: wakes the helper if it would sleep past `deadline`, or if there is work for it.
    #[inline]
    pub(crate) fn wake_for(&self, deadline: Option<Instant>, has_work: bool) {
        let until = self.sleeps_until.load(Ordering::Relaxed);
        if has_work || deadline.is_some_and(|deadline| deadline.as_nanos() < until) {
            self.kick();
        }
    }

    /// Nobody will poll from now on: the helper takes over at once.
    #[inline]
    pub(crate) fn take_over(&self) {
        let is_news = !self.recalled.swap(true, Ordering::Relaxed);
        if is_news && self.leased.load(Ordering::Relaxed) {
            self.kick.raise();
        }
    }

    /// Ends the helper.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.kick.raise();
    }

    fn kick(&self) {
        if self.on_socket.swap(false, Ordering::Relaxed) {
            self.kick.raise();
        }
    }

    /// Under the core lock, so that no deadline is set between the look at the last one and this.
    fn go_on_socket(&self, deadline: Option<Instant>) {
        self.sleeps_until.store(
            deadline.map_or(u64::MAX, Instant::as_nanos),
            Ordering::Relaxed,
        );
        self.polls_before
            .store(self.polls.load(Ordering::Relaxed), Ordering::Relaxed);
        self.on_socket.store(true, Ordering::Relaxed);
    }

    fn sleep(&self, socket: Option<i32>, timeout: Option<Duration>) {
        if wait_readable([socket, Some(self.kick.as_fd().as_raw_fd())], timeout)[1] {
            self.kick.lower();
        }
        self.on_socket.store(false, Ordering::Relaxed);
    }
}

/// Starts the helper of a device.
pub(crate) fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let _blocked = BlockedSignals::block();
    std::thread::Builder::new()
        .name("ringmail-rnic".into())
        .stack_size(256 << 10)
        .spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    let helper = &shared.helper;
    let mut seen = helper.polls.load(Ordering::Relaxed);
    let mut lease = SHORTEST_LEASE;
    let mut linger_until = Instant::ZERO;
    // Until then another thread wants this core: no lingering.
    let mut alone_from = Instant::ZERO;
    ask_for_short_slices();
    while !helper.stop.load(Ordering::SeqCst) {
        let polls = helper.polls.load(Ordering::Relaxed);
        let is_recalled = helper.recalled.swap(false, Ordering::Relaxed);
        if is_recalled {
            seen = polls;
        }
        // Counted since the helper last slept: while it lingers, a poller shows itself by and by. A poll that moves
        // bulk data takes its time, so who had a lease keeps it by being at it now.
        let fresh = polls.wrapping_sub(seen);
        let is_leased = helper.leased.load(Ordering::Relaxed);
        if fresh >= HABIT || (is_leased && fresh > 0 && !is_recalled && shared.is_at_it()) {
            seen = polls;
            helper.leased.store(true, Ordering::Relaxed);
            helper.sleep(None, Some(lease));
            lease = (2 * lease).min(LONGEST_LEASE);
            continue;
        }
        helper.leased.store(false, Ordering::Relaxed);
        lease = SHORTEST_LEASE;

        let Some(mut core) = shared.core.try_lock() else {
            // Somebody is at it, and if that is a habit the next look tells.
            helper.sleep(None, Some(BRIEFLY));
            continue;
        };
        shared.answer_doorbells(&mut core);
        let now = shared.now();
        if core.serve(now) || core.has_work() {
            if now >= alone_from {
                linger_until = now + LINGER;
            }
            drop(core);
            shared.look_again();
            continue;
        }
        if now < linger_until {
            drop(core);
            shared.look_again();
            // Whoever shares this core goes first. If that takes a time slice, being woken by the socket is sooner.
            std::thread::yield_now();
            if shared.now().since(now) > LINGER {
                linger_until = Instant::ZERO;
                alone_from = shared.now() + CROWDED;
            }
            continue;
        }
        let deadline = core.next_deadline();
        seen = helper.polls.load(Ordering::Relaxed);
        helper.go_on_socket(deadline);
        drop(core);
        // SeqCst: as in `Shared::look_again`. Who rings after this look finds the core free.
        fence(Ordering::SeqCst);
        if shared.doorbells.any() || helper.stop.load(Ordering::SeqCst) {
            helper.on_socket.store(false, Ordering::Relaxed);
            continue;
        }
        helper.sleep(
            Some(helper.socket),
            deadline.map(|deadline| deadline.since(now)),
        );
    }
}

/// Asks the scheduler for short turns, and so for early ones: a thread that is woken takes the core from one that spins
/// the sooner the shorter its turns are (Linux 6.12; before, nothing comes of it).
fn ask_for_short_slices() {
    #[cfg(target_os = "linux")]
    {
        /// `struct sched_attr` in its first version.
        #[repr(C)]
        struct Attributes {
            size: u32,
            policy: u32,
            flags: u64,
            nice: i32,
            priority: u32,
            runtime: u64,
            deadline: u64,
            period: u64,
        }
        let mut attributes = Attributes {
            size: size_of::<Attributes>() as u32,
            policy: 0,
            flags: 0,
            nice: 0,
            priority: 0,
            runtime: 0,
            deadline: 0,
            period: 0,
        };
        let at = &raw mut attributes;
        // SAFETY: both calls are for this thread; they read and write a live structure of the size that is passed.
        unsafe {
            if libc::syscall(libc::SYS_sched_getattr, 0, at, (*at).size, 0) == 0
                && (*at).policy == libc::SCHED_OTHER as u32
            {
                (*at).runtime = SLICE.as_nanos() as u64;
                libc::syscall(libc::SYS_sched_setattr, 0, at, 0);
            }
        }
    }
}

/// Keeps signals for the program's own threads while a thread is started that inherits the mask; but not those of
/// faults, which a thread handles itself or dies of.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn block() -> Self {
        // SAFETY: the sets are filled before they are used; a set of zeros is a valid value.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            for fault in [
                libc::SIGBUS,
                libc::SIGSEGV,
                libc::SIGFPE,
                libc::SIGILL,
                libc::SIGTRAP,
                libc::SIGABRT,
                libc::SIGSYS,
            ] {
                libc::sigdelset(&mut all, fault);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the mask that `block` found.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// So many polls between two looks are a program that polls in a loop, not one that was woken and looks around.
const HABIT: u32 = 16;
/// How long the helper stays away at first, and at most while polls keep coming.
const SHORTEST_LEASE: Duration = Duration::from_micros(200);
const LONGEST_LEASE: Duration = Duration::from_millis(2);
/// How long after some work the helper looks for more before it sleeps: waking up costs more than that.
const LINGER: Duration = Duration::from_micros(30);
/// How long the helper does not linger after another thread had its core in the meantime.
const CROWDED: Duration = Duration::from_millis(10);
/// The shortest turn that the scheduler gives.
#[cfg(target_os = "linux")]
const SLICE: Duration = Duration::from_micros(100);
/// How long a holder of the core gets before the helper looks again.
const BRIEFLY: Duration = Duration::from_micros(50);
