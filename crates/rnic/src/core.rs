//! The heart of a device: engines, memory table, burst and driver, all under one lock.
//!
//! Whoever holds the lock moves the whole device along: takes what was posted, sends one burst, receives one batch, and
//! serves what timers are due. There is at most one send call and one receive call in each of these rounds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use roce::cm::{self, Cm};
use roce::host::Arrival;
use roce::qp::{ModifyError, Qp as Engine};
use roce::time::Instant;
use roce::verbs::{Completion, Mtu, QpAttr, QpState, QpType, SendWork, Status};
use roce::wire::cm::CommId;
use roce::wire::extension::{self, Offer};
use roce::wire::icrc::{IdBasis, Path as IcrcPath, Verdict};
use roce::wire::{Bth, Guid, Headers, ICRC_LEN, Qpn, ROCE_PORT};

use crate::capture::{Direction, Writer};
use crate::counters::Counters;
use crate::event::EventQueue;
use crate::faults::{Injector, Packet};
use crate::gsi::{Consequence, Gsi};
use crate::host::{QpHost, QpTransmit, Reported};
use crate::peers::Peers;
use crate::qp::{PostError, QpInit, QpShared};
use crate::region::{KeyHasher, PdId, RegionTable};
use crate::udp::{Burst, Driver, Sent};

/// All that the core lock guards.
pub(crate) struct Core {
    driver: Box<dyn Driver>,
    injector: Option<Injector>,
    nic: Nic,
    /// When the core was last driven by a poll.
    last_poll: Instant,
}

/// All but the ways in and out: what a packet changes.
struct Nic {
    ip: IpAddr,
    burst: Burst,
    regions: RegionTable,
    engines: Vec<Option<Box<Entry>>>,
    vacant: Vec<usize>,
    by_qpn: HashMap<u32, usize, BuildHasherDefault<KeyHasher>>,
    /// Queue pairs that may have something to send, each once.
    active: VecDeque<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// The host's queue was full; the burst is tried again then.
    retry_at: Option<Instant>,
    /// Bytes and pieces of work posted since the last burst.
    posted: usize,
    capture: Option<Writer>,
    scratch: Vec<u8>,
    paths: [Option<(SocketAddr, IcrcPath)>; PATHS],
    basis: IdBasis,
    budget: Budget,
    counters: Counters,
    events: Arc<EventQueue>,
    gsi: Gsi,
    peers: Peers,
    /// What the engine that is being called reports.
    completions: Vec<Reported>,
}

/// A queue pair in the core.
struct Entry {
    engine: Engine,
    shared: Arc<QpShared>,
    /// Work that the engine accepted.
    accepted: u64,
    is_active: bool,
    /// The earliest entry in the timers.
    timer: Option<Instant>,
    /// The period in which a packet last came.
    heard: u64,
    /// The connection that the first packet establishes.
    awaits: Option<CommId>,
    /// Whether the peer is software has been asked, or answered by the connection manager.
    is_settled: bool,
    is_extended: bool,
}

/// Divides the receive buffer among the queue pairs that peers are sending to.
struct Budget {
    bytes: u32,
    period: u64,
    /// Queue pairs heard in this period, and in the one before.
    heard: u32,
    heard_before: u32,
}

/// What a core is made of.
pub(crate) struct Parts {
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) ip: IpAddr,
    pub(crate) injector: Option<Injector>,
    pub(crate) capture: Option<Writer>,
    pub(crate) events: Arc<EventQueue>,
    /// Extensions are off.
    pub(crate) plain: bool,
    /// Random.
    pub(crate) seed: u64,
}

impl Core {
    /// A core without queue pairs.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            driver,
            ip,
            injector,
            capture,
            events,
            plain,
            seed,
        } = parts;
        let burst = Burst::new(driver.source(), driver.max_segments());
        // A quarter is left for the kernel's bookkeeping, which it accounts to the buffer.
        let bytes = u32::try_from(driver.receive_buffer() / 4 * 3).unwrap_or(u32::MAX);
        let window = u16::try_from(bytes / Mtu::B4096.bytes()).unwrap_or(u16::MAX);
        let offer = Offer {
            version: extension::VERSION,
            flags: Offer::SACK,
            window,
        };
        let config = cm::Config {
            offer: Some(offer),
            // A peer that is not there is given up after 6.4 s: seven requests, the last one 3.2 s after the one before.
            retries: 6,
            ..cm::Config::new(seed)
        };
        let config = if plain {
            // Locally administered, and of nobody in particular.
            config.without_extensions(Guid(0x0200_0000_0000_0000 | seed >> 16))
        } else {
            config
        };
        let nic = Nic {
            gsi: Gsi::new(ip, Cm::new(config)),
            peers: Peers::new((!plain).then_some(offer), seed.rotate_left(17)),
            ip,
            burst,
            regions: RegionTable::default(),
            engines: Vec::new(),
            vacant: Vec::new(),
            by_qpn: HashMap::default(),
            active: VecDeque::new(),
            timers: BinaryHeap::new(),
            retry_at: None,
            posted: 0,
            capture,
            scratch: Vec::with_capacity(8192),
            paths: [None; PATHS],
            basis: IdBasis::new(),
            budget: Budget {
                bytes,
                period: 1,
                heard: 0,
                heard_before: 0,
            },
            counters: Counters::default(),
            completions: Vec::with_capacity(256),
            events,
        };
        Self {
            driver,
            injector,
            nic,
            last_poll: Instant::ZERO,
        }
    }

    /// The memory table.
    pub(crate) const fn regions(&mut self) -> &mut RegionTable {
        &mut self.nic.regions
    }

    /// Queue pair 1. What it then has to send or tell is seen to by [`Core::has_work`] and [`Core::send`].
    pub(crate) const fn gsi(&mut self) -> &mut Gsi {
        &mut self.nic.gsi
    }

    /// The engine in `slot`, which is in use.
    pub(crate) fn engine(&self, slot: usize) -> &Engine {
        &self.nic.engines[slot].as_ref().expect(LIVE).engine
    }

    /// Whether the queue pair in `slot` uses the extensions with its peer.
    pub(crate) fn is_extended(&self, slot: usize) -> bool {
        self.nic.engines[slot].as_ref().expect(LIVE).is_extended
    }

    /// What the device counted.
    pub(crate) fn counters(&self) -> Counters {
        let live = self.nic.engines.iter().flatten();
        let resent: u64 = live
            .map(|entry| entry.engine.counters().retransmitted)
            .sum();
        Counters {
            retransmitted: self.nic.counters.retransmitted + resent,
            faults: self
                .injector
                .as_ref()
                .map(Injector::counters)
                .unwrap_or_default(),
            ..self.nic.counters.with_driver(self.driver.counters())
        }
    }

    /// Bytes of the receive buffer, as the kernel accounts them.
    pub(crate) fn receive_buffer(&self) -> usize {
        self.driver.receive_buffer()
    }

    /// The receiving socket.
    pub(crate) fn receiving_fd(&self) -> i32 {
        self.driver.receiving_fd()
    }

    /// Makes a queue pair with a number that `random` draws.
    pub(crate) fn insert_qp(
        &mut self,
        pd: PdId,
        init: &QpInit<'_>,
        mut random: impl FnMut() -> u32,
    ) -> Arc<QpShared> {
        let nic = &mut self.nic;
        let qpn = loop {
            let qpn = Qpn::new(random());
            // 0 and 1 are the management queue pairs, the last is the multicast one.
            if (2..0xFF_FFFF).contains(&qpn.value()) && !nic.by_qpn.contains_key(&qpn.value()) {
                break qpn;
            }
        };
        let slot = nic.vacant.pop().unwrap_or_else(|| {
            nic.engines.push(None);
            nic.engines.len() - 1
        });
        let shared = Arc::new(QpShared::new(qpn, slot, pd, init));
        let mut engine = Engine::new(init.qp_type, qpn);
        engine.set_receive_budget(nic.budget.share());
        nic.engines[slot] = Some(Box::new(Entry {
            engine,
            shared: Arc::clone(&shared),
            accepted: 0,
            is_active: false,
            timer: None,
            heard: 0,
            awaits: None,
            is_settled: init.qp_type != QpType::Rc,
            is_extended: false,
        }));
        nic.by_qpn.insert(qpn.value(), slot);
        // Room for everyone, so that nothing grows on the way of a packet.
        let everyone = nic.engines.len();
        nic.active
            .reserve(everyone.saturating_sub(nic.active.len()));
        nic.timers
            .reserve((4 * everyone).saturating_sub(nic.timers.len()));
        shared
    }

    /// Destroys a queue pair: nothing of it is sent or received any more.
    pub(crate) fn remove_qp(&mut self, shared: &QpShared) {
        let slot = shared.slot;
        self.nic.by_qpn.remove(&shared.qpn.value());
        self.nic.active.retain(|at| *at != slot);
        self.nic.timers.retain(|Reverse((_, at))| *at != slot);
        if let Some(entry) = self.nic.engines[slot].take() {
            self.nic.counters.retransmitted += entry.engine.counters().retransmitted;
        }
        self.nic.vacant.push(slot);
    }

    /// Changes a queue pair's state or attributes.
    pub(crate) fn modify(&mut self, shared: &QpShared, attr: &QpAttr) -> Result<(), ModifyError> {
        self.nic.modify(shared, attr)
    }

    /// Hands work to an engine, after what waits in its ring.
    #[inline]
    pub(crate) fn post(&mut self, shared: &QpShared, work: SendWork) -> Result<(), PostError> {
        self.nic.accept_waiting(shared.slot);
        Ok(self.nic.accept(shared.slot, work)?)
    }

    /// Takes what was posted while the core was held, from a queue pair that rang.
    pub(crate) fn answer_ring(&mut self, shared: &Arc<QpShared>) {
        let slot = shared.slot;
        // It may have been destroyed since, and its slot given to another.
        let lives = self.nic.engines.get(slot).is_some_and(|entry| {
            entry
                .as_ref()
                .is_some_and(|entry| Arc::ptr_eq(&entry.shared, shared))
        });
        if lives {
            self.nic.accept_waiting(slot);
            self.nic.touch(slot);
        }
    }

    /// Whether what was posted should leave now rather than with the next poll: as `is_alone` or enough has gathered.
    #[inline]
    pub(crate) fn should_send(&self, is_alone: bool) -> bool {
        is_alone || self.nic.posted >= COALESCE_AT_MOST
    }

    /// Sends one burst of what the engines have. Whether anything was sent.
    pub(crate) fn send(&mut self, now: Instant) -> bool {
        let nic = &mut self.nic;
        nic.posted = 0;
        if nic.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        nic.retry_at = None;
        nic.see_to_gsi(now);
        nic.fill_burst(now);
        if nic.burst.is_empty() {
            return false;
        }
        nic.counters.bursts += 1;
        if nic.capture.is_some() {
            nic.capture_burst();
        }
        if self.driver.send(&mut nic.burst) == Sent::Blocked {
            nic.burst.detach();
            nic.retry_at = Some(now + RETRY_AFTER);
        }
        true
    }

    /// Receives one batch and hands it to the engines. Whether anything came.
    pub(crate) fn receive(&mut self, now: Instant) -> bool {
        let arrivals = self.driver.receive();
        let Self {
            driver,
            injector,
            nic,
            ..
        } = self;
        for arrival in (0..arrivals).map(|index| driver.arrival(index)) {
            for (index, bytes) in arrival.bytes.chunks(arrival.segment).enumerate() {
                let packet = Packet {
                    source: arrival.source,
                    index: index as u16,
                    bytes,
                };
                match injector {
                    None => nic.handle(now, packet),
                    Some(injector) => {
                        injector.pass(now, packet, &mut |packet| nic.handle(now, packet))
                    }
                }
            }
        }
        arrivals > 0
    }

    /// Serves the timers that are due. Whether any was.
    pub(crate) fn serve_timers(&mut self, now: Instant) -> bool {
        let Self { injector, nic, .. } = self;
        let mut any = false;
        if let Some(injector) = injector
            && injector.next_release().is_some_and(|at| at <= now)
        {
            injector.release(now, &mut |packet| nic.handle(now, packet));
            any = true;
        }
        any |= nic.gsi.handle_timeout(now);
        if nic.peers.poll_timeout().is_some_and(|at| at <= now) {
            let Nic { peers, gsi, .. } = nic;
            peers.repeat(now, |peer, hello| gsi.say(peer, hello));
            any = true;
        }
        nic.serve_timers(now) || any
    }

    /// When something has to be done next, if nothing happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.nic.timers.peek().map(|Reverse((at, _))| *at);
        let release = self.injector.as_ref().and_then(Injector::next_release);
        let (cm, peers) = (self.nic.gsi.poll_timeout(), self.nic.peers.poll_timeout());
        [timer, release, cm, peers, self.nic.retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether something could be sent at once.
    pub(crate) fn has_work(&self) -> bool {
        (!self.nic.active.is_empty() || self.nic.gsi.has_work()) && self.nic.retry_at.is_none()
    }

    /// One round for a program that polls: what it receives now is answered with what it posts next, or by its next
    /// poll; at once where it is `eager` or polls are far apart.
    pub(crate) fn poll(&mut self, now: Instant, eager: bool) {
        self.send(now);
        let received = self.receive(now);
        let due = self.serve_timers(now);
        if (received || due) && (eager || now.since(self.last_poll) > SPARSE) {
            self.send(now);
        }
        self.last_poll = now;
        self.flush_capture();
    }

    /// One round for nobody in particular: everything is answered at once. Whether there was anything to do.
    pub(crate) fn serve(&mut self, now: Instant) -> bool {
        let received = self.receive(now);
        let due = self.serve_timers(now);
        let sent = self.send(now);
        self.flush_capture();
        received || due || sent
    }

    fn flush_capture(&mut self) {
        if let Some(capture) = &mut self.nic.capture {
            capture.flush();
        }
    }
}

impl Nic {
    fn modify(&mut self, shared: &QpShared, attr: &QpAttr) -> Result<(), ModifyError> {
        let slot = shared.slot;
        self.accept_waiting(slot);
        let (engine, mut host, _) = self.parts(slot);
        let modified = engine.modify(attr, &mut host);
        if engine.state() == QpState::Reset {
            // Reset forgets: work without a completion, receives included.
            while shared.receives.pop().is_some() {}
        }
        if attr.state == Some(QpState::Reset) {
            let entry = self.entry(slot);
            entry.awaits = None;
            (entry.is_settled, entry.is_extended) = (false, false);
        }
        self.activate(slot);
        self.touch(slot);
        modified
    }

    #[inline]
    fn accept(&mut self, slot: usize, work: SendWork) -> Result<(), roce::qp::PostError> {
        let bytes = work.local.total() as usize;
        let (engine, mut host, _) = self.parts(slot);
        engine.post_send(work, &mut host)?;
        self.entry(slot).accepted += 1;
        self.posted = self.posted.saturating_add(bytes.max(COALESCE_AT_MOST / 64));
        self.activate(slot);
        self.touch(slot);
        Ok(())
    }

    /// Moves work from a queue pair's ring to its engine.
    #[inline]
    fn accept_waiting(&mut self, slot: usize) {
        let entry = self.engines[slot].as_ref().expect(LIVE);
        if entry.shared.waiting.is_empty() {
            return;
        }
        let shared = Arc::clone(&entry.shared);
        while let Some(work) = shared.waiting.pop() {
            let (wr_id, kind) = (work.wr_id, work.operation.completion_kind());
            if self.accept(slot, work).is_err() {
                // Whoever posted it was told that it was taken: the refusal becomes its completion.
                let completion = Completion::of(wr_id, shared.qpn, kind, Status::LocalQpOperation);
                self.completions.push(Reported::Send(completion));
                self.entry(slot).accepted += 1;
                self.touch(slot);
            }
        }
    }

    /// Lets queue pairs in turn fill the burst.
    fn fill_burst(&mut self, now: Instant) {
        let before = (self.burst.packets(), self.burst.bytes());
        self.gsi.fill(&mut self.burst);
        self.count_sent(before);
        let mut rounds = self.active.len();
        while rounds > 0 && self.burst.has_room() {
            let Some(slot) = self.active.pop_front() else {
                return;
            };
            rounds -= 1;
            let before = (self.burst.packets(), self.burst.bytes());
            self.entry(slot).is_active = false;
            let (engine, mut host, burst) = self.parts(slot);
            let mut out = QpTransmit {
                regions: host.regions,
                pd: host.qp.pd,
                burst,
            };
            let left = engine.poll_transmit(now, &mut host, &mut out);
            self.count_sent(before);
            if left {
                self.activate(slot);
            } else {
                self.set_timer(slot);
            }
            self.touch(slot);
        }
    }

    #[inline]
    const fn count_sent(&mut self, (packets, bytes): (usize, usize)) {
        self.counters.packets_sent += (self.burst.packets() - packets) as u64;
        self.counters.bytes_sent += (self.burst.bytes() - bytes) as u64;
    }

    /// Notes when an engine that has nothing to send wants to be called next.
    #[inline]
    fn set_timer(&mut self, slot: usize) {
        let Self {
            engines, timers, ..
        } = self;
        let entry = engines[slot].as_mut().expect(LIVE);
        // Most deadlines move back and back: a later one is found when the earlier comes due.
        if let Some(due) = entry.engine.poll_timeout()
            && entry.timer.is_none_or(|set| due < set)
        {
            entry.timer = Some(due);
            timers.push(Reverse((due, slot)));
        }
    }

    /// A packet that arrived, faults and all.
    fn handle(&mut self, now: Instant, packet: Packet<'_>) {
        self.counters.packets_received += 1;
        self.counters.bytes_received += packet.bytes.len() as u64;
        let identification = self.identification(packet);
        if let Some(capture) = &mut self.capture {
            let destination = SocketAddr::new(self.ip, ROCE_PORT);
            capture.packet(
                Direction::Received,
                packet.source,
                destination,
                identification.unwrap_or_default(),
                packet.bytes,
            );
        }
        let Some(identification) = identification else {
            self.counters.bad_icrc += 1;
            return;
        };
        let Ok((headers, payload)) = Headers::parse(packet.bytes) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(&slot) = self.by_qpn.get(&headers.bth.dest_qp.value()) else {
            let is_gsi = headers.bth.dest_qp == Qpn::GSI;
            if !is_gsi || !self.gsi.handle(now, packet.source.ip(), &headers, payload) {
                self.counters.unknown_qp += 1;
            }
            return;
        };
        let arrival = Arrival {
            source: packet.source.ip(),
            destination: self.ip,
            traffic_class: 0,
            hop_limit: 64,
            udp_length: (packet.bytes.len() + 8) as u16,
        };
        // A software peer's datagrams carry the number of a segment. Believing it any other Identification would let
        // one damaged packet in 65,536 pass for a good one.
        if self.entry(slot).is_extended && identification > MOST_SEGMENTS {
            self.counters.bad_icrc += 1;
            return;
        }
        let (engine, mut host, _) = self.parts(slot);
        engine.handle_packet(now, &arrival, &headers, payload, &mut host);
        self.count_heard(now, slot);
        self.activate(slot);
        self.touch(slot);
        let entry = self.entry(slot);
        if entry.awaits.is_some() || !entry.is_settled {
            self.get_acquainted(now, slot, packet.source);
        }
    }

    /// A packet came for a queue pair of whose peer something is to be found out.
    #[cold]
    fn get_acquainted(&mut self, now: Instant, slot: usize, source: SocketAddr) {
        let is_on = self.peers.is_on();
        let entry = self.entry(slot);
        let is_peer = entry
            .engine
            .attr()
            .path
            .is_some_and(|path| path.destination == source.ip());
        if !is_peer {
            return;
        }
        let awaits = entry.awaits.take();
        let is_suspect =
            !entry.is_settled && is_on && extension::is_marked(source.ip(), source.port());
        entry.is_settled = true;
        if let Some(id) = awaits {
            // The peer has our reply, or it would not send: its own word may be late or lost.
            let _ = self.gsi.establish(id);
        }
        if is_suspect && let Some(hello) = self.peers.ask(now, source.ip()) {
            self.gsi.say(source.ip(), &hello);
        }
    }

    /// Draws the consequences of what came to queue pair 1.
    #[inline]
    fn see_to_gsi(&mut self, now: Instant) {
        while let Some(consequence) = self.gsi.next_consequence() {
            self.see_to(now, consequence);
        }
    }

    #[cold]
    fn see_to(&mut self, now: Instant, consequence: Consequence) {
        match consequence {
            Consequence::AwaitsData(qpn, id) => {
                if let Some(&slot) = self.by_qpn.get(&qpn.value()) {
                    self.entry(slot).awaits = Some(id);
                    self.entry(slot).is_settled = true;
                }
            }
            Consequence::Established(qpn, offer) => {
                if let Some(&slot) = self.by_qpn.get(&qpn.value()) {
                    self.entry(slot).awaits = None;
                    self.entry(slot).is_settled = true;
                    if let Some(offer) = offer {
                        self.extend(slot, offer);
                    }
                }
            }
            Consequence::Hello(from, hello) if hello.is_reply => {
                if self.peers.is_proof(from, &hello) {
                    let theirs: Vec<usize> = self.connected_to(from).collect();
                    for slot in theirs {
                        self.extend(slot, hello.offer);
                    }
                }
            }
            Consequence::Hello(from, hello) => {
                if let Some(reply) = self.peers.reply(&hello) {
                    self.gsi.say(from, &reply);
                }
                // Who asks is likely to answer. But who has no business with us is not asked.
                if self.connected_to(from).next().is_some()
                    && let Some(hello) = self.peers.ask(now, from)
                {
                    self.gsi.say(from, &hello);
                }
            }
        }
    }

    /// The queue pairs that are connected to `peer` without extensions.
    fn connected_to(&self, peer: IpAddr) -> impl Iterator<Item = usize> {
        self.engines
            .iter()
            .enumerate()
            .filter_map(move |(slot, entry)| {
                let entry = entry.as_ref().filter(|entry| !entry.is_extended)?;
                let attr = entry.engine.attr();
                let is_up = matches!(attr.state, Some(QpState::Rtr | QpState::Rts));
                let is_theirs = attr.path.is_some_and(|path| path.destination == peer);
                (entry.engine.qp_type() == QpType::Rc && is_up && is_theirs).then_some(slot)
            })
    }

    /// Uses the extensions with the peer of a queue pair.
    fn extend(&mut self, slot: usize, offer: Offer) {
        if offer.version != extension::VERSION || offer.flags & Offer::SACK == 0 {
            return;
        }
        let entry = self.entry(slot);
        let mtu = entry.engine.attr().path_mtu.unwrap_or(Mtu::B1024).bytes();
        entry.engine.use_extensions(u32::from(offer.window) * mtu);
        entry.is_extended = true;
        self.activate(slot);
    }

    /// Checks the ICRC and returns the Identification that it was made with, 0 over IPv6; `None` if it is wrong. The
    /// one that the datagram had is not visible: its position in a coalesced run is the best guess, and over IPv4 any
    /// other that explains the checksum is accepted.
    fn identification(&mut self, packet: Packet<'_>) -> Option<u16> {
        let (covered, &received) = packet.bytes.split_last_chunk::<ICRC_LEN>()?;
        let (bth, behind) = covered.split_at_checked(Bth::LEN)?;
        let path = self.path_from(packet.source)?;
        let computed = path
            .start(packet.bytes.len(), packet.index)
            .headers(bth)
            .payload(behind);
        if computed.finish() == received {
            return Some(if path.is_ipv4() { packet.index } else { 0 });
        }
        if !path.is_ipv4() {
            return None;
        }
        match self.basis.explain(computed, received, packet.bytes.len()) {
            Verdict::Identified(difference) => Some(packet.index ^ difference),
            _ => None,
        }
    }

    #[inline]
    fn path_from(&mut self, source: SocketAddr) -> Option<IcrcPath> {
        let at = usize::from(source.port()) % PATHS;
        match &self.paths[at] {
            Some((cached, path)) if *cached == source => Some(*path),
            _ => {
                let path = IcrcPath::new(source, SocketAddr::new(self.ip, ROCE_PORT)).ok()?;
                self.paths[at] = Some((source, path));
                Some(path)
            }
        }
    }

    fn serve_timers(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(&Reverse((at, slot))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            // A later entry than the earliest is a leftover.
            if self.entry(slot).timer != Some(at) {
                continue;
            }
            self.entry(slot).timer = None;
            let (engine, mut host, _) = self.parts(slot);
            if engine.poll_timeout().is_some_and(|due| due <= now) {
                engine.handle_timeout(now, &mut host);
                any = true;
                self.activate(slot);
                self.touch(slot);
            } else {
                self.set_timer(slot);
            }
        }
        any
    }

    /// Draws the consequences of a call to an engine: state and free places first, then the completions, so that
    /// whoever sees a completion also sees what came of it.
    #[inline]
    fn touch(&mut self, slot: usize) {
        let entry = self.entry(slot);
        let state = entry.engine.state();
        let retired = entry.accepted - entry.engine.send_queue_len() as u64;
        entry.shared.publish(retired, state);
        if state == QpState::Err {
            self.flush_receives(slot);
        }
        if !self.completions.is_empty() {
            self.report(slot);
        }
    }

    #[inline]
    fn report(&mut self, slot: usize) {
        let Self {
            engines,
            completions,
            events,
            ..
        } = self;
        let qp = &engines[slot].as_ref().expect(LIVE).shared;
        for reported in completions.drain(..) {
            match reported {
                Reported::Send(completion) => qp.send_cq.push(completion, events),
                Reported::Recv(completion) => qp.recv_cq.push(completion, events),
            }
        }
    }

    /// In error, receives that were posted since are flushed.
    #[cold]
    fn flush_receives(&mut self, slot: usize) {
        // SeqCst: pairs with `Qp::post_recv`, which looks at the state after its push.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let (engine, mut host, _) = self.parts(slot);
        engine.flush_receives(&mut host);
    }

    #[inline]
    fn activate(&mut self, slot: usize) {
        let entry = self.entry(slot);
        if !entry.is_active {
            entry.is_active = true;
            self.active.push_back(slot);
        }
    }

    /// Divides the receive buffer anew where a queue pair is heard for the first time in a while.
    #[inline]
    fn count_heard(&mut self, now: Instant, slot: usize) {
        let period = now.as_nanos() / BUDGET_PERIOD;
        let Self {
            budget, engines, ..
        } = self;
        if budget.period != period {
            let is_next = budget.period + 1 == period;
            budget.heard_before = if is_next { budget.heard } else { 0 };
            (budget.period, budget.heard) = (period, 0);
        }
        let entry = engines[slot].as_mut().expect(LIVE);
        if entry.heard != period {
            entry.heard = period;
            budget.heard += 1;
            entry.engine.set_receive_budget(budget.share());
        }
    }

    /// Adds the packets of the burst to the capture.
    #[cold]
    fn capture_burst(&mut self) {
        let Some(capture) = &mut self.capture else {
            return;
        };
        let source = self.burst.source();
        for group in self.burst.unsent() {
            let destination = SocketAddr::new(group.to().ip, ROCE_PORT);
            for index in 0..group.count() {
                self.burst.packet(group, index, &mut self.scratch);
                let identification = if source.is_ipv4() { index as u16 } else { 0 };
                capture.packet(
                    Direction::Sent,
                    source,
                    destination,
                    identification,
                    &self.scratch,
                );
            }
        }
    }

    /// An engine, what it sees of the device, and the burst.
    #[inline]
    fn parts(&mut self, slot: usize) -> (&mut Engine, QpHost<'_>, &mut Burst) {
        let Entry { engine, shared, .. } = &mut **self.engines[slot].as_mut().expect(LIVE);
        let host = QpHost {
            regions: &self.regions,
            qp: shared,
            events: &self.events,
            completions: &mut self.completions,
        };
        (engine, host, &mut self.burst)
    }

    #[inline]
    fn entry(&mut self, slot: usize) -> &mut Entry {
        self.engines[slot].as_mut().expect(LIVE)
    }
}

impl Budget {
    /// What one queue pair may have in flight towards us.
    fn share(&self) -> u32 {
        self.bytes / self.heard.max(self.heard_before).max(1)
    }
}

const LIVE: &str = "the slot of a live queue pair";
/// Pieces of work, as bytes, that gather before they are sent without a poll: 64 small ones, or 64 KiB.
const COALESCE_AT_MOST: usize = 64 << 10;
/// Most segments of one datagram that a software peer sends (and Linux takes).
const MOST_SEGMENTS: u16 = 128;
/// How long a burst waits that found the host's queue full.
const RETRY_AFTER: Duration = Duration::from_micros(100);
/// Polls farther apart than this do not answer for one another.
const SPARSE: Duration = Duration::from_micros(20);
/// Peers whose checksum prefix is remembered.
const PATHS: usize = 8;
/// Nanoseconds in which a queue pair that is sent to is heard at least once.
const BUDGET_PERIOD: u64 = 2_000_000;
