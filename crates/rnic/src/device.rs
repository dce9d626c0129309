//! A device: one address, one core, one helper thread, opened any number of times in a process.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use roce::time::Instant;
use roce::verbs::{MAX_INLINE, MAX_SGE, Mtu, Path, SendWork};
use roce::wire::{Key, ROCE_PORT};

use crate::address::{holder_of, interface_of, random_loopback};
use crate::capture::Writer;
use crate::clock;
use crate::config::{AddressChoice, DeviceConfig};
use crate::core::{Core, Parts};
use crate::counters::Counters;
use crate::cq::{CompletionChannel, Cq};
use crate::doorbell::Doorbells;
use crate::event::{AsyncEvent, EventQueue};
use crate::faults::Injector;
use crate::fork;
use crate::helper::{self, Helper};
use crate::lock::CoreLock;
use crate::mr::Pd;
use crate::qp::{PostError, QpInit, QpShared, reaches};
use crate::region::{PdId, Region};
use crate::udp::{self, Driver};

/// The device belongs to the process that opened it, and this is its child by `fork`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device was opened before this process was forked")]
pub struct DeviceLost;

/// Why a device was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody listens there already.
    #[error("UDP port 4791 of {address} is held by {holder}")]
    PortTaken {
        /// The address.
        address: IpAddr,
        /// Who, as far as the host tells.
        holder: String,
    },
    /// The address is none of this host's.
    #[error("{0} is not an address of this host")]
    NoSuchAddress(IpAddr),
    /// The device is open in this process with other settings.
    #[error("the device at {0} is open already, with other settings")]
    Conflict(IpAddr),
    /// The capture cannot be written.
    #[error("cannot write the capture {path}")]
    Capture {
        /// Where to.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The path MTU would be below 256.
    #[error("the interface of {0} is too small for RoCE packets")]
    MtuTooSmall(IpAddr),
    /// Anything else that the system refuses.
    #[error("cannot open a device at {address}")]
    Io {
        /// The address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
}

/// What a device can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attributes {
    /// Most pieces in a gather or scatter list.
    pub max_sge: usize,
    /// Most bytes of inline data.
    pub max_inline: usize,
    /// Most bytes of a message.
    pub max_message: u32,
    /// Most queue pairs.
    pub max_qp: u32,
    /// Most READs and atomics outstanding in either direction of a queue pair.
    pub max_rd_atomic: u8,
    /// The largest path MTU that the link carries.
    pub active_mtu: Mtu,
    /// Bytes of the receive buffer, as the kernel accounts them.
    pub receive_buffer: usize,
}

/// A handle to an open device. Clones, and devices opened with the same address, are handles to the same.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

/// Lives as long as any handle; ends the helper.
struct Inner {
    shared: Arc<Shared>,
    config: DeviceConfig,
    helper: Option<JoinHandle<()>>,
}

/// What the handles and the helper share.
pub(crate) struct Shared {
    pub(crate) core: CoreLock<Core>,
    pub(crate) doorbells: Doorbells<QpShared>,
    pub(crate) helper: Helper,
    /// When the engine's time began, by [`clock::nanos`].
    origin: u64,
    ip: IpAddr,
    mtu: Mtu,
    receive_buffer: usize,
    events: Arc<EventQueue>,
    next_pd: AtomicU32,
    generation: u32,
}

impl Device {
    /// Opens the device at the configured address, or another handle to it where this process has it open.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: &DeviceConfig) -> Result<Self, OpenError> {
        fork::watch();
        let mut open = registry();
        let known = match config.address {
            AddressChoice::Fresh => None,
            choice => open
                .get(&(choice, fork::generation()))
                .and_then(Weak::upgrade),
        };
        if let Some(inner) = known {
            let alike = DeviceConfig {
                address: inner.config.address,
                ..config.clone()
            };
            if inner.config != alike {
                return Err(OpenError::Conflict(inner.shared.ip));
            }
            return Ok(Self { inner });
        }
        // One that this process has just closed may still have the port for a moment.
        let is_closing = open.contains_key(&(config.address, fork::generation()));
        let patience = if is_closing { CLOSING } else { Duration::ZERO };
        let start = std::time::Instant::now();
        let device = loop {
            match Self::create(config) {
                Err(OpenError::PortTaken { .. }) if start.elapsed() < patience => {
                    std::thread::yield_now();
                }
                created => break created?,
            }
        };
        open.retain(|_, inner| inner.strong_count() > 0);
        for choice in [config.address, AddressChoice::Ip(device.address())] {
            if choice != AddressChoice::Fresh {
                open.insert((choice, fork::generation()), Arc::downgrade(&device.inner));
            }
        }
        Ok(device)
    }

    fn create(config: &DeviceConfig) -> Result<Self, OpenError> {
        let (ip, driver) = match config.address {
            AddressChoice::Ip(ip) => (ip, open_driver(ip, config)?),
            AddressChoice::Loopback => open_own_loopback(config)?,
            AddressChoice::Fresh => open_fresh_loopback(config)?,
        };
        let failed = |source| OpenError::Io {
            address: ip,
            source,
        };
        let mtu = Mtu::for_link(interface_of(ip).mtu).ok_or(OpenError::MtuTooSmall(ip))?;
        let capture = match &config.capture {
            None => None,
            Some(path) => Some(Writer::create(path).map_err(|source| OpenError::Capture {
                path: path.display().to_string(),
                source,
            })?),
        };
        let stream = u64::from(driver.source().port());
        let injector = (!config.faults.is_none()).then(|| Injector::new(config.faults, stream));
        let events = Arc::new(EventQueue::new().map_err(failed)?);
        let seed = u64::from(random_u32()) << 32 | u64::from(random_u32());
        let core = Core::new(Parts {
            driver,
            ip,
            injector,
            capture,
            events: Arc::clone(&events),
            plain: config.plain,
            seed,
        });
        let shared = Arc::new(Shared {
            helper: Helper::new(core.receiving_fd()).map_err(failed)?,
            receive_buffer: core.receive_buffer(),
            core: CoreLock::new(core),
            doorbells: Doorbells::new(),
            origin: clock::nanos(),
            ip,
            mtu,
            events,
            next_pd: AtomicU32::new(1),
            generation: fork::generation(),
        });
        let helper = helper::start(Arc::clone(&shared)).map_err(failed)?;
        tracing::debug!(%ip, receive_buffer = shared.receive_buffer, "device opened");
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                config: config.clone(),
                helper: Some(helper),
            }),
        })
    }

    /// Its address, which is its GID.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.shared().ip
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &DeviceConfig {
        &self.inner.config
    }

    /// What it can do.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        Attributes {
            max_sge: MAX_SGE,
            max_inline: MAX_INLINE,
            max_message: 1 << 31,
            max_qp: 1 << 20,
            max_rd_atomic: 255,
            active_mtu: self.shared().mtu,
            receive_buffer: self.shared().receive_buffer,
        }
    }

    /// What it counted.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn counters(&self) -> Result<Counters, DeviceLost> {
        let counters = self.with_core(|core| core.counters())?;
        Ok(Counters {
            contended: self.shared().core.refused(),
            ..counters
        })
    }

    /// Whether `other` is a handle to the same device.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Makes a protection domain.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn alloc_pd(&self) -> Result<Pd, DeviceLost> {
        self.alive()?;
        let id = PdId(self.shared().next_pd.fetch_add(1, Ordering::Relaxed));
        Ok(Pd::new(self.clone(), id))
    }

    /// Makes a completion queue of at least `depth` completions, which tells `channel` of news when armed.
    ///
    /// # Errors
    /// [`DeviceLost`].
    pub fn create_cq(
        &self,
        depth: usize,
        channel: Option<&CompletionChannel>,
    ) -> Result<Cq, DeviceLost> {
        self.alive()?;
        Ok(Cq::new(self.clone(), depth, channel))
    }

    /// Takes the oldest asynchronous event.
    #[must_use]
    pub fn take_event(&self) -> Option<AsyncEvent> {
        self.shared().events.take()
    }

    /// Takes the oldest asynchronous event, for which it waits up to `timeout` (`None`: for ever).
    #[must_use]
    pub fn wait_event(&self, timeout: Option<Duration>) -> Option<AsyncEvent> {
        self.shared().events.wait(timeout)
    }

    /// Where its objects put asynchronous events.
    pub(crate) fn events(&self) -> &EventQueue {
        &self.shared().events
    }

    /// Readable while there are asynchronous events.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.shared().events.fd()
    }

    /// Moves the device along: sends what is due, receives what has come. Polling an empty completion queue does the
    /// same. Never waits: where another thread is at it, returns at once.
    ///
    /// # Errors
    /// [`DeviceLost`].
    #[inline]
    pub fn drive(&self) -> Result<(), DeviceLost> {
        self.alive()?;
        let shared = self.shared();
        if let Some(mut core) = shared.core.try_lock() {
            shared.helper.note_poll();
            shared.answer_doorbells(&mut core);
            core.poll(|| shared.now(), !shared.helper.is_polled());
            shared.wake_for_deadline(&core);
            drop(core);
            shared.look_again();
        }
        Ok(())
    }

    /// Fails in a child that inherited the device.
    #[inline]
    pub(crate) fn alive(&self) -> Result<(), DeviceLost> {
        if self.shared().generation == fork::generation() {
            Ok(())
        } else {
            Err(DeviceLost)
        }
    }

    /// Whether packets from here can go along `path`.
    #[inline]
    pub(crate) fn reaches(&self, path: &Path) -> bool {
        reaches(self.shared().ip, path)
    }

    /// The program is about to sleep on a channel: nobody polls from now on.
    pub(crate) fn expect_sleep(&self) {
        self.shared().helper.take_over();
    }

    /// Runs `f` on the core, waiting for it. For the control path.
    pub(crate) fn with_core<T>(&self, f: impl FnOnce(&mut Core) -> T) -> Result<T, DeviceLost> {
        self.alive()?;
        let shared = self.shared();
        let mut core = shared.core.lock();
        let result = f(&mut core);
        if core.has_work() {
            core.send(shared.now());
        }
        shared.wake_for_deadline(&core);
        drop(core);
        shared.look_again();
        Ok(result)
    }

    /// Hands send work to the core, or leaves it for the core's holder.
    #[inline]
    pub(crate) fn post(
        &self,
        qp: &Arc<QpShared>,
        works: &[SendWork],
    ) -> (usize, Result<(), PostError>) {
        match self.shared().core.try_lock() {
            Some(core) => self.post_to(core, qp, works),
            None => self.leave(qp, works),
        }
    }

    #[inline]
    fn post_to(
        &self,
        mut core: MutexGuard<'_, Core>,
        qp: &Arc<QpShared>,
        works: &[SendWork],
    ) -> (usize, Result<(), PostError>) {
        let shared = self.shared();
        // Who posts much also polls, but may find completions often enough not to drive the device.
        shared.helper.note_poll();
        let is_polled = shared.helper.is_polled();
        let outstanding = qp.outstanding();
        let before = outstanding.saturating_sub(works.len() as u64);
        let posted = core.post(qp, works, is_polled, || shared.now());
        if core.should_send(before, outstanding, is_polled) {
            core.send(shared.now());
        }
        shared.wake_for_deadline(&core);
        drop(core);
        shared.look_again();
        posted
    }

    /// Leaves work for the core's holder.
    #[cold]
    fn leave(&self, qp: &Arc<QpShared>, works: &[SendWork]) -> (usize, Result<(), PostError>) {
        let mut left = 0;
        while let Some(work) = works.get(left) {
            if qp.waiting.push(*work).is_ok() {
                left += 1;
                self.ring(qp);
                continue;
            }
            // The ring is full and the core taken: one of the two changes within a few microseconds.
            std::hint::spin_loop();
            if let Some(core) = self.shared().core.try_lock() {
                let (posted, outcome) = self.post_to(core, qp, &works[left..]);
                return (left + posted, outcome);
            }
        }
        (left, Ok(()))
    }

    /// Tells the core's holder that a queue pair has news, or serves it.
    #[inline]
    pub(crate) fn ring(&self, qp: &Arc<QpShared>) {
        let shared = self.shared();
        shared.doorbells.ring(qp);
        shared.look_again();
    }

    /// Registers a region.
    pub(crate) fn insert_region(&self, region: Region) -> Result<Key, DeviceLost> {
        self.with_core(|core| core.regions().insert(region, random_u32))
    }

    /// Replaces a region in one step.
    pub(crate) fn replace_region(&self, old: Key, region: Region) -> Result<Key, DeviceLost> {
        self.with_core(|core| {
            core.regions().remove(old);
            core.regions().insert(region, random_u32)
        })
    }

    /// Deregisters. In a forked child there is nothing to do: the device is another process's.
    pub(crate) fn remove_region(&self, key: Key) {
        // The memory is dropped after the lock.
        drop(self.with_core(|core| core.regions().remove(key)));
    }

    /// Makes a queue pair.
    pub(crate) fn insert_qp(
        &self,
        pd: PdId,
        init: &QpInit<'_>,
    ) -> Result<Arc<QpShared>, DeviceLost> {
        self.with_core(|core| core.insert_qp(pd, init, random_u32))
    }

    /// Destroys a queue pair; in a forked child there is nothing to do.
    pub(crate) fn remove_qp(&self, qp: &Arc<QpShared>) {
        let _ = self.with_core(|core| core.remove_qp(qp));
    }

    /// The engine's time.
    pub(crate) fn now(&self) -> Instant {
        self.shared().now()
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.generation != fork::generation() {
            // The helper runs in the parent only; what the lock guards may be in the middle of anything.
            std::mem::forget(Arc::clone(&self.shared));
            std::mem::forget(self.helper.take());
            return;
        }
        self.shared.helper.stop();
        if let Some(helper) = self.helper.take() {
            // It never panics, and if it did there is nothing to be done about it here.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// The engine's time.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        // From one, as zero means "never" in places.
        Instant::from_nanos(clock::nanos().wrapping_sub(self.origin) + 1)
    }

    /// Takes what was posted while the core was held.
    #[inline]
    pub(crate) fn answer_doorbells(&self, core: &mut Core) {
        if self.doorbells.any() {
            self.doorbells.take(|qp| core.answer_ring(&qp));
        }
    }

    /// Serves who rang while the core was held, after it was given up.
    ///
    /// No ring is lost: a poster rings and then tries the lock; the holder gives the lock up and then looks for
    /// rings. Both sides have a full fence in between, so at least one of them sees the other's first step.
    #[inline]
    pub(crate) fn look_again(&self) {
        loop {
            fence(Ordering::SeqCst);
            if !self.doorbells.any() {
                return;
            }
            let Some(mut core) = self.core.try_lock() else {
                return;
            };
            self.answer_doorbells(&mut core);
            if core.has_work() {
                core.send(self.now());
            }
            self.wake_for_deadline(&core);
        }
    }

    /// Whether somebody drives the device at this moment, or did just now.
    pub(crate) fn is_at_it(&self) -> bool {
        match self.core.try_lock() {
            Some(core) => self.now().since(core.last_poll()) < JUST_NOW,
            None => true,
        }
    }

    /// Wakes the helper where it would sleep past the next deadline.
    #[inline]
    pub(crate) fn wake_for_deadline(&self, core: &Core) {
        if self.helper.is_on_socket() {
            self.helper.wake_for(core.next_deadline(), core.has_work());
        }
    }
}

type Registry = HashMap<(AddressChoice, u32), Weak<Inner>>;

/// The devices that this process has open.
fn registry() -> MutexGuard<'static, Registry> {
    static OPEN: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_driver(ip: IpAddr, config: &DeviceConfig) -> Result<Box<dyn Driver>, OpenError> {
    udp::open(ip, interface_of(ip).scope, config.udp, config.buffer).map_err(|source| match source
        .kind()
    {
        io::ErrorKind::AddrInUse => OpenError::PortTaken {
            address: ip,
            holder: holder_of(ip, ROCE_PORT).unwrap_or_else(|| "another program".to_owned()),
        },
        io::ErrorKind::AddrNotAvailable => OpenError::NoSuchAddress(ip),
        _ => OpenError::Io {
            address: ip,
            source,
        },
    })
}

/// Opens the loopback address of this process, which is drawn the first time.
fn open_own_loopback(config: &DeviceConfig) -> Result<(IpAddr, Box<dyn Driver>), OpenError> {
    static OWN: Mutex<Option<(u32, IpAddr)>> = Mutex::new(None);
    let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    match *own {
        Some((generation, ip)) if generation == fork::generation() => {
            Ok((ip, open_driver(ip, config)?))
        }
        _ => {
            let (ip, driver) = open_fresh_loopback(config)?;
            *own = Some((fork::generation(), ip));
            Ok((ip, driver))
        }
    }
}

fn open_fresh_loopback(config: &DeviceConfig) -> Result<(IpAddr, Box<dyn Driver>), OpenError> {
    let mut tries = 0;
    loop {
        let ip = random_loopback().map_err(|source| OpenError::Io {
            address: Ipv4Addr::LOCALHOST.into(),
            source,
        })?;
        match open_driver(ip, config) {
            Err(OpenError::PortTaken { .. }) if tries < 100 => tries += 1,
            opened => return opened.map(|driver| (ip, driver)),
        }
    }
}

/// How long ago a poll may have begun that counts as going on.
const JUST_NOW: Duration = Duration::from_micros(50);
/// How long a device that this process has closed may take to give its port back.
const CLOSING: Duration = Duration::from_secs(1);

fn random_u32() -> u32 {
    getrandom::u32().expect("the system had randomness when the device was opened")
}
