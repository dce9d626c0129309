//! What a packet changes: queue pairs, memory table, timers, budget, and the burst that is being filled.
//!
//! Everything of a device but the ways in and out, which are the core's. Checks what arrived, hands it to its
//! queue pair's engine, draws the consequences of every call to an engine, and lets the engines fill the burst.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use roce::cm::{self, Cm};
use roce::host::Arrival;
use roce::qp::{ModifyError, Qp as Engine};
use roce::time::Instant;
use roce::verbs::{Completion, Mtu, QpAttr, QpState, QpType, SendWork, Status};
use roce::wire::cm::CommId;
use roce::wire::extension::{self, Offer};
use roce::wire::icrc::{Icrc, IdBasis, Path as IcrcPath, RecentStarts, Starts, Verdict};
use roce::wire::{Bth, Guid, Headers, ICRC_LEN, Qpn, ROCE_PORT};

use crate::capture::{Direction, Writer};
use crate::counters::Counters;
use crate::event::EventQueue;
use crate::faults::Packet;
use crate::gsi::{Consequence, Gsi};
use crate::host::{QpHost, QpTransmit, Reported};
use crate::load::{Loads, Share};
use crate::peers::Peers;
use crate::qp::{QpInit, QpShared};
use crate::region::{KeyHasher, PdId, RegionTable};
use crate::udp::{Burst, Driver};

/// All but the ways in and out: what a packet changes.
pub(crate) struct Nic {
    ip: IpAddr,
    pub(crate) burst: Burst,
    pub(crate) regions: RegionTable,
    pub(crate) engines: Vec<Option<Box<Entry>>>,
    vacant: Vec<usize>,
    by_qpn: HashMap<u32, usize, BuildHasherDefault<KeyHasher>>,
    /// Queue pairs that may have something to send, each once.
    pub(crate) active: VecDeque<usize>,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// The host's queue was full; the burst is tried again then.
    pub(crate) retry_at: Option<Instant>,
    /// A request came since the last burst: what is posted next is likely to be the answer.
    pub(crate) was_asked: bool,
    /// A program drives the device, and will again in a moment.
    pub(crate) is_polled: bool,
    /// Bytes and pieces of work posted since the last burst.
    pub(crate) posted: usize,
    pub(crate) capture: Option<Writer>,
    scratch: Vec<u8>,
    paths: [Option<Origin>; PATHS],
    basis: IdBasis,
    budget: Budget,
    loads: Loads,
    pub(crate) counters: Counters,
    events: Arc<EventQueue>,
    pub(crate) gsi: Gsi,
    pub(crate) peers: Peers,
    /// What the engine that is being called reports.
    completions: Vec<Reported>,
    /// Whose packets are being handled.
    hearing: Option<Hearing>,
}

/// A queue pair to which packets came, the consequences of which are still to be drawn: once for all that follow each other.
#[derive(Clone, Copy)]
struct Hearing {
    qpn: Qpn,
    slot: usize,
    source: SocketAddr,
}

/// What is the same for packets of one origin.
struct Origin {
    source: SocketAddr,
    starts: RecentStarts,
}

/// A queue pair in the core.
pub(crate) struct Entry {
    pub(crate) engine: Engine,
    pub(crate) shared: Arc<QpShared>,
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
    pub(crate) is_extended: bool,
    /// Its part of what is in flight to a software peer.
    share: Option<Share>,
}

/// Divides the receive buffer among the queue pairs that peers are sending to.
struct Budget {
    bytes: u32,
    period: u64,
    /// Queue pairs heard in this period, and in the one before.
    heard: u32,
    heard_before: u32,
}
impl Nic {
    /// Without queue pairs.
    pub(crate) fn new(
        driver: &dyn Driver,
        ip: IpAddr,
        capture: Option<Writer>,
        events: Arc<EventQueue>,
        plain: bool,
        seed: u64,
    ) -> Self {
        let burst = Burst::new(driver.source(), driver.max_segments());
        // A quarter is left for the kernel's bookkeeping, which it accounts to the buffer.
        let bytes = u32::try_from(driver.receive_buffer() / 4 * 3).unwrap_or(u32::MAX);
        let window = u16::try_from(bytes / Mtu::B4096.bytes()).unwrap_or(u16::MAX);
        let offer = Offer {
            version: extension::VERSION,
            flags: Offer::SACK | Offer::PARTS,
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
        Self {
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
            was_asked: false,
            is_polled: false,
            posted: 0,
            capture,
            scratch: Vec::with_capacity(8192),
            paths: [const { None }; PATHS],
            basis: IdBasis::new(),
            budget: Budget {
                bytes,
                period: 1,
                heard: 0,
                heard_before: 0,
            },
            loads: Loads::default(),
            counters: Counters::default(),
            completions: Vec::with_capacity(1024),
            hearing: None,
            events,
        }
    }

    /// Makes a queue pair with a number that `random` draws.
    pub(crate) fn insert_qp(
        &mut self,
        pd: PdId,
        init: &QpInit<'_>,
        mut random: impl FnMut() -> u32,
    ) -> Arc<QpShared> {
        let qpn = loop {
            let qpn = Qpn::new(random());
            // 0 and 1 are the management queue pairs, the last is the multicast one.
            if (2..0xFF_FFFF).contains(&qpn.value()) && !self.by_qpn.contains_key(&qpn.value()) {
                break qpn;
            }
        };
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.engines.push(None);
            self.engines.len() - 1
        });
        let shared = Arc::new(QpShared::new(qpn, slot, pd, init));
        let mut engine = Engine::new(init.qp_type, qpn);
        engine.set_receive_budget(self.budget.share());
        if self.peers.is_on() {
            engine.accept_parts();
        }
        self.engines[slot] = Some(Box::new(Entry {
            engine,
            shared: Arc::clone(&shared),
            accepted: 0,
            is_active: false,
            timer: None,
            heard: 0,
            awaits: None,
            is_settled: init.qp_type != QpType::Rc,
            is_extended: false,
            share: None,
        }));
        self.by_qpn.insert(qpn.value(), slot);
        // Room for everyone, so that nothing grows on the way of a packet.
        let everyone = self.engines.len();
        self.active
            .reserve(everyone.saturating_sub(self.active.len()));
        self.timers
            .reserve((4 * everyone).saturating_sub(self.timers.len()));
        shared
    }

    /// Destroys a queue pair: nothing of it is sent or received any more.
    pub(crate) fn remove_qp(&mut self, shared: &QpShared) {
        let slot = shared.slot;
        self.by_qpn.remove(&shared.qpn.value());
        self.active.retain(|at| *at != slot);
        self.timers.retain(|Reverse((_, at))| *at != slot);
        if let Some(entry) = self.engines[slot].take() {
            self.counters.retransmitted += entry.engine.counters().retransmitted;
            if let Some(share) = entry.share {
                self.loads.leave(share, slot);
            }
        }
        self.vacant.push(slot);
    }

    pub(crate) fn modify(&mut self, shared: &QpShared, attr: &QpAttr) -> Result<(), ModifyError> {
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
            if let Some(share) = entry.share.take() {
                self.loads.leave(share, slot);
            }
        }
        self.activate(slot);
        self.touch(slot);
        modified
    }

    #[inline]
    pub(crate) fn accept(
        &mut self,
        slot: usize,
        work: &SendWork,
    ) -> Result<(), roce::qp::PostError> {
        let bytes = work.local.total() as usize;
        let (engine, mut host, _) = self.parts(slot);
        engine.post_send(work, &mut host)?;
        self.entry(slot).accepted += 1;
        self.posted = self.posted.saturating_add(bytes.max(COALESCE_AT_MOST / 64));
        self.activate(slot);
        // Only in error states something comes of it at once.
        if !self.completions.is_empty() {
            self.touch(slot);
        }
        Ok(())
    }

    /// Moves work from a queue pair's ring to its engine.
    #[inline]
    pub(crate) fn accept_waiting(&mut self, slot: usize) {
        let entry = self.engines[slot].as_ref().expect(LIVE);
        if entry.shared.waiting.is_empty() {
            return;
        }
        let shared = Arc::clone(&entry.shared);
        while let Some(work) = shared.waiting.pop() {
            let (wr_id, kind) = (work.wr_id, work.operation.completion_kind());
            if self.accept(slot, &work).is_err() {
                // Whoever posted it was told that it was taken: the refusal becomes its completion.
                let completion = Completion::of(wr_id, shared.qpn, kind, Status::LocalQpOperation);
                self.completions.push(Reported::Send(completion));
                self.entry(slot).accepted += 1;
                self.touch(slot);
            }
        }
    }

    /// Lets queue pairs in turn fill the burst.
    pub(crate) fn fill_burst(&mut self, now: Instant) {
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
            let is_polled = self.is_polled;
            let share = self.entry(slot).share.take();
            let allowance = share
                .as_ref()
                .map_or(u32::MAX, |share| self.loads.allowance(share));
            let (engine, mut host, burst) = self.parts(slot);
            let mut out = QpTransmit {
                regions: host.regions,
                pd: host.qp.pd,
                burst,
                is_polled,
                allowance,
            };
            let left = engine.poll_transmit(now, &mut host, &mut out);
            let (in_flight, has_more) = (engine.in_flight(), engine.has_unsent());
            self.count_sent(before);
            if let Some(mut share) = share {
                self.loads.note(&mut share, in_flight);
                if has_more && !left {
                    self.loads.park(&mut share, slot);
                }
                self.entry(slot).share = Some(share);
            }
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
    pub(crate) fn handle(&mut self, now: Instant, packet: Packet<'_>) {
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
        let qpn = headers.bth.dest_qp;
        let slot = match self.hearing {
            Some(hearing) if hearing.qpn == qpn && hearing.source == packet.source => hearing.slot,
            _ => {
                self.end_hearing(now);
                let Some(&slot) = self.by_qpn.get(&qpn.value()) else {
                    let is_gsi = qpn == Qpn::GSI;
                    if !is_gsi || !self.gsi.handle(now, packet.source.ip(), &headers, payload) {
                        self.counters.unknown_qp += 1;
                    }
                    return;
                };
                slot
            }
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
        if identification > MOST_SEGMENTS && self.entry(slot).is_extended {
            self.counters.bad_icrc += 1;
            return;
        }
        let (engine, mut host, _) = self.parts(slot);
        engine.handle_packet(now, &arrival, &headers, payload, &mut host);
        self.was_asked |= headers
            .bth
            .opcode
            .operation()
            .is_some_and(|operation| !operation.is_response());
        self.hearing = Some(Hearing {
            qpn,
            slot,
            source: packet.source,
        });
    }

    /// Draws the consequences of the packets that came to one queue pair. To be called when the last of a batch was handled.
    #[inline]
    pub(crate) fn end_hearing(&mut self, now: Instant) {
        let Some(Hearing { slot, source, .. }) = self.hearing.take() else {
            return;
        };
        self.count_heard(now, slot);
        self.activate(slot);
        self.touch(slot);
        let entry = self.entry(slot);
        if entry.awaits.is_some() || !entry.is_settled {
            self.get_acquainted(now, slot, source);
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
        // The word that data stands in for would have brought the peer's offer: it is asked for as well.
        let is_unknown = !entry.is_settled || awaits.is_some();
        let is_suspect = is_unknown
            && !entry.is_extended
            && is_on
            && extension::is_marked(source.ip(), source.port());
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
    pub(crate) fn see_to_gsi(&mut self, now: Instant) {
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
        let window = u32::from(offer.window) * mtu;
        entry.engine.use_extensions(window);
        if offer.flags & Offer::PARTS != 0 {
            entry.engine.send_parts();
        }
        entry.is_extended = true;
        let peer = entry.engine.attr().path.map(|path| path.destination);
        if let Some(peer) = peer
            && entry.share.is_none()
        {
            let share = self.loads.join(peer, window);
            self.entry(slot).share = Some(share);
        }
        self.activate(slot);
    }

    /// Checks the ICRC and returns the Identification that it was made with, 0 over IPv6; `None` if it is wrong. The
    /// one that the datagram had is not visible: its position in a coalesced run is the best guess, and over IPv4 any
    /// other that explains the checksum is accepted.
    fn identification(&mut self, packet: Packet<'_>) -> Option<u16> {
        let len = packet.bytes.len();
        let (covered, &received) = packet.bytes.split_last_chunk::<ICRC_LEN>()?;
        let (bth, behind) = covered.split_at_checked(Bth::LEN)?;
        let starts = self.starts_from(packet.source, len)?;
        let start = starts.at(packet.index);
        let computed = if covered.len() <= Icrc::SMALL {
            start.small_packet(covered)
        } else {
            start.headers(bth).payload(behind)
        };
        let is_ipv4 = self.ip.is_ipv4();
        if computed.finish() == received {
            return Some(if is_ipv4 { packet.index } else { 0 });
        }
        if !is_ipv4 {
            return None;
        }
        match self.basis.explain(computed, received, len) {
            Verdict::Identified(difference) => Some(packet.index ^ difference),
            _ => None,
        }
    }

    /// What the checksums of packets of `len` bytes from `source` start with.
    #[inline]
    fn starts_from(&mut self, source: SocketAddr, len: usize) -> Option<Starts> {
        let known = &mut self.paths[usize::from(source.port()) % PATHS];
        match known {
            Some(origin) if origin.source == source => Some(origin.starts.of(len)),
            _ => {
                let path = IcrcPath::new(source, SocketAddr::new(self.ip, ROCE_PORT)).ok()?;
                let mut starts = RecentStarts::new(path);
                let start = starts.of(len);
                *known = Some(Origin { source, starts });
                Some(start)
            }
        }
    }

    pub(crate) fn serve_timers(&mut self, now: Instant) -> bool {
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
    pub(crate) fn touch(&mut self, slot: usize) {
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
        self.call_parked(slot);
    }

    /// Calls queue pairs that wait for what the one in `slot` no longer has in flight.
    #[inline]
    fn call_parked(&mut self, slot: usize) {
        let Self { engines, loads, .. } = self;
        let Some(Entry {
            engine,
            share: Some(share),
            ..
        }) = engines[slot].as_deref_mut()
        else {
            return;
        };
        loads.note(share, engine.in_flight());
        if let Some(called) = loads.call(share) {
            if let Some(share) = &mut self.entry(called).share {
                share.is_called();
            }
            self.activate(called);
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
        // Whether there were any, and a solicited one among them.
        let (mut sends, mut receives) = (None, None);
        for reported in completions.drain(..) {
            let (queue, solicited, completion) = match reported {
                Reported::Send(completion) => (&qp.send_cq, &mut sends, completion),
                Reported::Recv(completion) => (&qp.recv_cq, &mut receives, completion),
            };
            *solicited = Some(queue.push(completion, events) | solicited.unwrap_or(false));
        }
        for (queue, reported) in [(&qp.send_cq, sends), (&qp.recv_cq, receives)] {
            if let Some(solicited) = reported {
                queue.notify(solicited);
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
    pub(crate) fn capture_burst(&mut self) {
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
            copied: &mut self.counters.bytes_copied,
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

pub(crate) const LIVE: &str = "the slot of a live queue pair";
/// Work, in bytes, that gathers before it is sent without a poll: 64 small pieces, or what fills a burst.
pub(crate) const COALESCE_AT_MOST: usize = 240 << 10;
/// Most segments of one datagram that a software peer sends (and Linux takes).
const MOST_SEGMENTS: u16 = 128;
/// Peers whose checksum prefix is remembered.
const PATHS: usize = 8;
/// Nanoseconds in which a queue pair that is sent to is heard at least once.
const BUDGET_PERIOD: u64 = 2_000_000;
