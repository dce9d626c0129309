//! The background thread of a domain: connects, and moves things along while nobody polls.
//!
//! A program that polls does everything itself, and a second thread would only steal its core. So the helper leases the work to
//! whoever polls: while polls keep coming it sleeps, and only looks now and then whether they still do. When they do not, it
//! sleeps on the bell instead, which peers ring, and does what is to be done.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric::Error;
use rustix::event::{EventfdFlags, Timespec, epoll};

use crate::bell::Bell;
use crate::connect::{self, Link, Retry, Stage};
use crate::cq::Queue;
use crate::listener::{Hearing, REST};
use crate::peer::Peers;
use crate::region::Exports;
use crate::ring::Geometry;
use crate::socket::Credentials;
use crate::{fork, lock};

/// A domain and its thread. When the last handle drops, the thread ends.
pub(crate) struct Home {
    pub(crate) node: Arc<Node>,
    pub(crate) generation: u32,
    thread: Option<JoinHandle<()>>,
}

/// What a domain knows, shared with its thread.
pub(crate) struct Node {
    /// Random.
    pub(crate) id: [u8; 16],
    pub(crate) geometry: Geometry,
    pub(crate) bell: Bell,
    pub(crate) peers: Peers,
    pub(crate) exports: Arc<Exports>,
    epoll: OwnedFd,
    kick: OwnedFd,
    stop: AtomicBool,
    tokens: AtomicU64,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    listeners: Mutex<HashMap<u64, Arc<Hearing>>>,
    /// Processes that there are connections with: their descriptor, and how many.
    processes: Mutex<HashMap<i32, Watched>>,
    queues: Mutex<Vec<Weak<Queue>>>,
    retries: Mutex<Vec<Retry>>,
    /// The helper sleeps on the bell, or is about to.
    on_bell: AtomicBool,
    /// Nobody will poll from now on.
    recalled: AtomicBool,
    /// Some message will not wait for ever for its receive.
    impatient: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    /// Closed with this, and watched no more.
    _descriptor: Option<OwnedFd>,
    links: usize,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home").finish_non_exhaustive()
    }
}

impl Home {
    /// Starts a domain.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn open(geometry: Geometry) -> Result<Arc<Self>, Error> {
        fork::watch();
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| Error::io("drawing a name", io::Error::other(error)))?;
        let node = Node::new(id, geometry, Exports::new()?)
            .map_err(|error| Error::io("opening a domain", error))?;
        let node = Arc::new(node);
        let thread = {
            let node = Arc::clone(&node);
            let _blocked = BlockedSignals::block();
            std::thread::Builder::new()
                .name("ringmail-shm".into())
                .stack_size(256 << 10)
                .spawn(move || node.run())
                .map_err(|error| Error::io("starting a thread", error))?
        };
        Ok(Arc::new(Self {
            node,
            generation: fork::generation(),
            thread: Some(thread),
        }))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            // The thread is the parent's.
            return;
        }
        self.node.stop.store(true, Ordering::SeqCst);
        self.node.kick();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It does not panic; if it did, there is nothing to be done here.
            let _ = thread.join();
        }
    }
}

impl Node {
    fn new(id: [u8; 16], geometry: Geometry, exports: Arc<Exports>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let kick = rustix::event::eventfd(0, flags)?;
        let bell = Bell::new()?;
        watch(&epoll, kick.as_fd(), KICK)?;
        watch(&epoll, bell.as_fd(), BELL)?;
        Ok(Self {
            id,
            geometry,
            bell,
            peers: Peers::default(),
            exports,
            epoll,
            kick,
            stop: AtomicBool::new(false),
            tokens: AtomicU64::new(FIRST),
            links: Mutex::default(),
            listeners: Mutex::default(),
            processes: Mutex::default(),
            queues: Mutex::default(),
            retries: Mutex::default(),
            on_bell: AtomicBool::new(false),
            recalled: AtomicBool::new(false),
            impatient: AtomicBool::new(false),
        })
    }

    /// A number that nothing else of this domain has.
    pub(crate) fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Watches the socket of a connection.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn add_link(
        &self,
        socket: OwnedFd,
        peer: Credentials,
        stage: Stage,
    ) -> io::Result<Arc<Link>> {
        let link = Arc::new(Link::new(self.token(), socket, peer, stage));
        lock::mutex(&self.links).insert(link.token, Arc::clone(&link));
        self.watch_process(peer.pid);
        if let Err(error) = watch(&self.epoll, link.socket.as_fd(), link.token) {
            self.forget(&link);
            return Err(error);
        }
        // Whether it waits for too long is looked at now and then.
        self.kick();
        Ok(link)
    }

    /// Watches it no more.
    pub(crate) fn forget(&self, link: &Link) {
        if lock::mutex(&self.links).remove(&link.token).is_some() {
            let _ = epoll::delete(&self.epoll, &link.socket);
            let mut processes = lock::mutex(&self.processes);
            if let Some(watched) = processes.get_mut(&link.peer.pid) {
                watched.links -= 1;
                if watched.links == 0 {
                    processes.remove(&link.peer.pid);
                }
            }
        }
    }

    /// The socket of a dead process may live on in its children; its descriptor says that it is dead.
    fn watch_process(&self, pid: i32) {
        let mut processes = lock::mutex(&self.processes);
        let watched = processes.entry(pid).or_insert_with(|| {
            let own = rustix::process::getpid();
            let descriptor = rustix::process::Pid::from_raw(pid)
                .filter(|pid| *pid != own)
                .and_then(|pid| {
                    let flags = rustix::process::PidfdFlags::empty();
                    rustix::process::pidfd_open(pid, flags).ok()
                });
            if let Some(descriptor) = &descriptor {
                let token = PROCESS | u64::from(pid.unsigned_abs());
                // Without it, the end of the socket is all that tells.
                let _ = watch(&self.epoll, descriptor.as_fd(), token);
            }
            Watched {
                _descriptor: descriptor,
                links: 0,
            }
        });
        watched.links += 1;
    }

    pub(crate) fn add_listener(&self, hearing: &Arc<Hearing>) -> io::Result<()> {
        lock::mutex(&self.listeners).insert(hearing.token, Arc::clone(hearing));
        watch(&self.epoll, hearing.socket.as_fd(), hearing.token)
    }

    /// Wakes up for those who want to be let in, or does not.
    pub(crate) fn listen_to(&self, hearing: &Hearing, listens: bool) {
        let flags = match listens {
            true => epoll::EventFlags::IN,
            false => epoll::EventFlags::empty(),
        };
        let data = epoll::EventData::new_u64(hearing.token);
        // It may have been removed meanwhile.
        let _ = epoll::modify(&self.epoll, &hearing.socket, data, flags);
    }

    pub(crate) fn remove_listener(&self, hearing: &Hearing) {
        let _ = epoll::delete(&self.epoll, &hearing.socket);
        lock::mutex(&self.listeners).remove(&hearing.token);
    }

    pub(crate) fn add_queue(&self, queue: &Arc<Queue>) {
        let mut queues = lock::mutex(&self.queues);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(queue));
    }

    pub(crate) fn retry(&self, retry: Retry) {
        lock::mutex(&self.retries).push(retry);
        self.kick();
    }

    /// Whether the helper sleeps on the bell.
    #[inline]
    pub(crate) fn is_on_bell(&self) -> bool {
        self.on_bell.load(Ordering::Relaxed)
    }

    /// A program has begun to poll in a loop: the helper need not be woken any more.
    #[cold]
    pub(crate) fn relieve(&self) {
        if self.on_bell.swap(false, Ordering::Relaxed) {
            self.kick();
        }
    }

    /// Nobody will poll from now on: the helper takes over at once.
    pub(crate) fn take_over(&self) {
        let is_news = !self.recalled.swap(true, Ordering::SeqCst);
        if is_news && !self.is_on_bell() {
            self.kick();
        }
    }

    /// There may be something to be done.
    pub(crate) fn look(&self) {
        self.recalled.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// A message waits for a receive, and will not do so for ever.
    #[cold]
    pub(crate) fn be_impatient(&self) {
        if !self.impatient.swap(true, Ordering::Relaxed) {
            self.kick();
        }
    }

    fn kick(&self) {
        // A full counter is readable as it is.
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    fn queues(&self) -> Vec<Arc<Queue>> {
        let queues = lock::mutex(&self.queues);
        queues.iter().filter_map(Weak::upgrade).collect()
    }

    fn run(self: Arc<Self>) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut lease = SHORTEST_LEASE;
        // When to look at what waits, while others poll.
        let mut due = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            let queues = self.queues();
            let is_recalled = self.recalled.swap(false, Ordering::SeqCst);
            let (polled, idle): (Vec<_>, Vec<_>) =
                queues.iter().partition(|queue| queue.is_polled());
            if !polled.is_empty() && !is_recalled {
                self.bell.set_sleeping(false);
                // Nobody else moves these along.
                for queue in idle {
                    queue.drive();
                }
                drop(queues);
                let now = Instant::now();
                if now >= due {
                    let next = self.patience().unwrap_or(SOMETIMES);
                    due = now + next.min(REST);
                }
                self.sleep(&mut events, Some(lease));
                lease = (2 * lease).min(LONGEST_LEASE);
                continue;
            }
            lease = SHORTEST_LEASE;
            for queue in &queues {
                queue.note_sleep();
            }
            self.on_bell.store(true, Ordering::Relaxed);
            // Whoever writes to a ring of ours from here on rings the bell, or is seen now.
            self.bell.set_sleeping(true);
            let is_impatient = self.impatient.swap(false, Ordering::Relaxed);
            let mut any = false;
            for queue in queues {
                any |= queue.drive();
            }
            if any {
                continue;
            }
            let tick = match is_impatient {
                true => Some(IMPATIENCE),
                false => self.patience(),
            };
            self.sleep(&mut events, tick);
        }
        self.bell.set_sleeping(false);
        let links: Vec<_> = lock::mutex(&self.links).values().cloned().collect();
        for link in links {
            self.end(&link);
        }
    }

    /// Gives up what waits for too long; answers when to look again.
    fn patience(&self) -> Option<Duration> {
        let retries = std::mem::take(&mut *lock::mutex(&self.retries));
        for retry in retries {
            retry.again();
        }
        let now = Instant::now();
        let (overdue, waiting): (Vec<_>, Vec<_>) = {
            let links = lock::mutex(&self.links);
            let waiting = links.values().filter(|link| link.is_waiting());
            waiting.cloned().partition(|link| link.is_overdue(now))
        };
        for link in overdue {
            self.lose(&link);
        }
        let listeners: Vec<_> = lock::mutex(&self.listeners).values().cloned().collect();
        let mut rests = false;
        for hearing in listeners {
            match hearing.wakes(now) {
                Some(true) => self.listen_to(&hearing, true),
                Some(false) => rests = true,
                None => {}
            }
        }
        if !lock::mutex(&self.retries).is_empty() {
            return Some(IMPATIENCE);
        }
        if rests {
            return Some(REST);
        }
        (!waiting.is_empty()).then_some(SOMETIMES)
    }

    /// Sleeps until something happens, and does what is to be done at the sockets.
    fn sleep(self: &Arc<Self>, events: &mut Vec<epoll::Event>, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        events.clear();
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        );
        if waited.is_err() {
            return;
        }
        for event in events.iter() {
            match event.data.u64() {
                KICK => {
                    let _ = rustix::io::read(&self.kick, &mut [0; 8]);
                }
                BELL => self.bell.hush(),
                token if token & PROCESS != 0 => self.bury((token & !PROCESS) as i32),
                token => {
                    let link = lock::mutex(&self.links).get(&token).cloned();
                    if let Some(link) = link {
                        connect::handle(self, &link);
                        continue;
                    }
                    let hearing = lock::mutex(&self.listeners).get(&token).cloned();
                    if let Some(hearing) = hearing {
                        hearing.accept(self);
                    }
                }
            }
        }
    }

    /// A process has died.
    fn bury(self: &Arc<Self>, pid: i32) {
        let links: Vec<_> = {
            let links = lock::mutex(&self.links);
            let of_it = links.values().filter(|link| link.peer.pid == pid);
            of_it.cloned().collect()
        };
        for link in links {
            // What it said before it died comes first.
            connect::handle(self, &link);
            self.lose(&link);
        }
        lock::mutex(&self.processes).remove(&pid);
    }
}

fn watch(epoll: &OwnedFd, descriptor: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    let data = epoll::EventData::new_u64(token);
    Ok(epoll::add(epoll, descriptor, data, epoll::EventFlags::IN)?)
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

const KICK: u64 = 0;
const BELL: u64 = 1;
const FIRST: u64 = 2;
/// A bit of the tokens of processes.
const PROCESS: u64 = 1 << 63;
const EVENTS: usize = 64;
/// How long the helper stays away at first, and at most while polls keep coming.
const SHORTEST_LEASE: Duration = Duration::from_micros(200);
const LONGEST_LEASE: Duration = Duration::from_millis(2);
/// How often it looks at messages that will not wait for ever.
const IMPATIENCE: Duration = Duration::from_millis(1);
/// How often it looks whether somebody takes too long to connect.
const SOMETIMES: Duration = Duration::from_millis(500);
