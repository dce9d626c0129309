//! One for each device of the process: takes what the device tells beside completions, and finds whom it concerns.
//!
//! A device has one queue of asynchronous events, and connections happen while nobody calls: a thread sleeps on both. It
//! outlives the last domain a little, so that a goodbye that got lost is said again.

use std::collections::{HashMap, HashSet};
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::{Duration, Instant};

use fabric::{Error, Event};
use rnic::{AsyncEvent, CmChannel, Device, SrqId};
use roce::verbs::QpEvent;
use roce::wire::cm::{CommId, ServiceId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connect;
use crate::cq::lock;
use crate::ep::Core;
use crate::listener::Hearing;
use crate::shared::SharedReceive;

/// What domains, endpoints and listeners of one device share. The last to drop it ends the thread.
pub(crate) struct Adapter {
    pub(crate) inner: Arc<Inner>,
    wake: Mutex<PipeWriter>,
    /// A forked child must leave the parent's thread alone.
    process: u32,
}

/// What the thread also has.
pub(crate) struct Inner {
    pub(crate) device: Device,
    pub(crate) channel: CmChannel,
    endpoints: Mutex<HashMap<u32, Weak<Core>>>,
    shared: Mutex<HashMap<SrqId, Weak<SharedReceive>>>,
    pub(crate) listeners: Mutex<HashMap<ServiceId, Arc<Hearing>>>,
    /// Connections and attempts, by their name.
    pub(crate) connections: Mutex<HashMap<CommId, Weak<Core>>>,
    /// Goodbyes that were not answered yet.
    pub(crate) leaving: Mutex<HashSet<CommId>>,
    /// Queue pairs that still have to answer a request that failed, and until when.
    answering: Mutex<Vec<(Instant, Arc<Core>)>>,
}

impl Adapter {
    /// The adapter of a device, of which there is one.
    pub(crate) fn of(device: &Device) -> Result<Arc<Self>, Error> {
        static ADAPTERS: LazyLock<Mutex<Vec<Weak<Adapter>>>> = LazyLock::new(Mutex::default);
        let mut adapters = lock(&ADAPTERS);
        adapters.retain(|adapter| adapter.strong_count() > 0);
        let known = adapters
            .iter()
            .filter_map(Weak::upgrade)
            .find(|adapter| adapter.inner.device.is_same(device));
        if let Some(known) = known {
            return Ok(known);
        }
        let adapter = Arc::new(Self::start(device)?);
        adapters.push(Arc::downgrade(&adapter));
        Ok(adapter)
    }

    fn start(device: &Device) -> Result<Self, Error> {
        let failed = |error| Error::io("preparing for connections", error);
        let channel = CmChannel::new(device).map_err(failed)?;
        let (woken, wake) = std::io::pipe().map_err(failed)?;
        let inner = Arc::new(Inner {
            device: device.clone(),
            channel,
            endpoints: Mutex::default(),
            shared: Mutex::default(),
            listeners: Mutex::default(),
            connections: Mutex::default(),
            leaving: Mutex::default(),
            answering: Mutex::default(),
        });
        let own = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("ringmail-events".into())
            .stack_size(256 << 10)
            .spawn(move || own.run(woken))
            .map_err(failed)?;
        Ok(Self {
            inner,
            wake: Mutex::new(wake),
            process: std::process::id(),
        })
    }

    /// The device's address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.inner.device.address()
    }

    /// Tells an endpoint of its events from now on.
    pub(crate) fn watch(&self, endpoint: &Arc<Core>) {
        let number = endpoint.qp.qpn().value();
        lock(&self.inner.endpoints).insert(number, Arc::downgrade(endpoint));
    }

    /// Does so no more.
    pub(crate) fn forget(&self, endpoint: &Core) {
        lock(&self.inner.endpoints).remove(&endpoint.qp.qpn().value());
    }

    /// Tells a shared receive queue when it runs low.
    pub(crate) fn watch_shared(&self, shared: &Arc<SharedReceive>) {
        let mut known = lock(&self.inner.shared);
        known.retain(|_, shared| shared.strong_count() > 0);
        known.insert(shared.srq.id(), Arc::downgrade(shared));
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.wake(STOP);
    }
}

impl Adapter {
    /// Keeps a failed queue pair until its peer says goodbye, having heard the answer to the request that failed; at the latest
    /// for as long as a peer asks again.
    pub(crate) fn let_answer(&self, core: &Arc<Core>) {
        let until = Instant::now() + core.tuning.patience();
        lock(&self.inner.answering).push((until, Arc::clone(core)));
        self.wake(LOOK);
    }

    fn wake(&self, why: u8) {
        if self.process == std::process::id() {
            // It fails only if the thread has ended, and then there is nobody to wake.
            let _ = lock(&self.wake).write_all(&[why]);
        }
    }
}

impl Inner {
    /// The thread.
    fn run(&self, mut woken: PipeReader) {
        let mut stopped: Option<Instant> = None;
        loop {
            if let Some(since) = stopped
                && (lock(&self.leaving).is_empty() || since.elapsed() >= LINGER)
            {
                return;
            }
            let due = self.end_answers();
            let (channel, events) = (self.channel.as_fd(), self.device.event_fd());
            let mut fds = [
                PollFd::new(&channel, PollFlags::IN),
                PollFd::new(&events, PollFlags::IN),
                PollFd::new(&woken, PollFlags::IN),
            ];
            let due = due.map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = match (due, stopped) {
                (None, None) => None,
                (Some(due), None) => Some(due),
                (_, Some(_)) => Some(GLANCE),
            };
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            // Interrupted by a signal, it looks around like any other time.
            let _ = poll(&mut fds, timeout.as_ref());
            let is_woken = !fds[2].revents().is_empty();
            let mut why = [LOOK];
            // There is a byte, or the end: then nobody is left to write one.
            if is_woken && (woken.read(&mut why).unwrap_or(0) == 0 || why == [STOP]) {
                stopped.get_or_insert_with(Instant::now);
            }
            self.take_events();
        }
    }

    /// Lets go of queue pairs whose peer has had time enough; answers when the next one is due.
    fn end_answers(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut answering = lock(&self.answering);
        let done: Vec<_> = answering
            .extract_if(.., |(until, _)| *until <= now)
            .collect();
        let due = answering.iter().map(|(until, _)| *until).min();
        drop(answering);
        for (_, core) in done {
            connect::end(&core);
        }
        due
    }

    /// The peer has said goodbye: it waits for no answer.
    pub(crate) fn stop_answering(&self, core: &Arc<Core>) {
        let mut answering = lock(&self.answering);
        let done: Vec<_> = answering
            .extract_if(.., |(_, answers)| Arc::ptr_eq(answers, core))
            .collect();
        drop(answering);
        drop(done);
    }

    fn take_events(&self) {
        // In this order, so that a connection is up before it fails. In a forked child there is no thread.
        while let Ok(Some(event)) = self.channel.try_event() {
            connect::handle(self, event);
        }
        while let Some(event) = self.device.take_event() {
            self.handle_async(event);
        }
    }

    fn handle_async(&self, event: AsyncEvent) {
        match event {
            AsyncEvent::Qp(qpn, event) => {
                let failed = matches!(
                    event,
                    QpEvent::RequestError | QpEvent::AccessError | QpEvent::Fatal
                );
                let endpoint = lock(&self.endpoints)
                    .get(&qpn.value())
                    .and_then(Weak::upgrade);
                if let Some(endpoint) = endpoint
                    && failed
                {
                    tracing::debug!(endpoint = %endpoint.id, ?event, "queue pair failed");
                    endpoint.refuse();
                }
            }
            AsyncEvent::SrqLimit(id) => {
                let shared = lock(&self.shared).get(&id).and_then(Weak::upgrade);
                if let Some(shared) = shared {
                    shared.events.push(Event::ReceiveLimit);
                }
            }
            AsyncEvent::CqOverrun(id) => {
                // Room is reserved before anything is posted.
                tracing::error!(?id, "a completion queue lost completions");
            }
        }
    }

    /// The endpoint of a connection.
    pub(crate) fn endpoint(&self, id: CommId) -> Option<Arc<Core>> {
        lock(&self.connections).get(&id).and_then(Weak::upgrade)
    }
}

/// How long unanswered goodbyes are repeated after the last domain is gone.
const LINGER: Duration = Duration::from_secs(2);
/// How often the thread looks whether they were answered.
const GLANCE: Duration = Duration::from_millis(5);
/// Why the thread is woken.
const STOP: u8 = 0;
const LOOK: u8 = 1;
