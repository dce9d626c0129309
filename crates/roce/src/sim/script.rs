//! Random work for two nodes, and the reference model of what it must do.
//!
//! Each node's exposed memory is changed only by the other node's work, so applying that work in posting order gives
//! what the memory must hold. A READ that later work could overtake is protected by a fence on that work, so its
//! result is the model's at posting.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::link::Faults;
use super::node::Region;
use super::rng::Rng;
use super::world::{Config, World};
use crate::verbs::{
    Access, Completion, CompletionKind, InlineBytes, Local, MAX_INLINE, Mtu, Operation, QpType,
    RecvWork, Remote, Retries, SendFlags, SendWork, Sge, SgeList, Status,
};
use crate::wire::{Key, Psn};

/// Words for atomics.
const WORDS: u64 = 8;
/// Exposed memory that writes and reads share, any overlap.
const SHARED: std::ops::Range<u64> = WORDS * 8..16 << 10;
/// Exposed memory for pairs of data and flag, each used once.
const PAIRS: std::ops::Range<u64> = 16 << 10..128 << 10;
/// Sources and read results, each used once.
const PRIVATE: std::ops::Range<u64> = 128 << 10..512 << 10;
/// Receive buffers, each used once.
const RECEIVES: std::ops::Range<u64> = 512 << 10..896 << 10;
/// Nobody's: must stay zero.
const MEMORY: usize = 960 << 10;

const EXPOSED_KEY: Key = Key(0xE0);
const LOCAL_KEY: Key = Key(0x10);
const FIRST_SPARE_KEY: u32 = 0x1000;

/// Bytes and where they lie.
type Bytes = (u64, Vec<u8>);

/// What one node does, and what must come of it.
#[derive(Default)]
struct Plan {
    work: Vec<Planned>,
    /// What each of the peer's receives must report, in order.
    messages: Vec<Message>,
}

struct Planned {
    work: SendWork,
    /// Bytes put into the node's own memory before posting.
    source: Option<Bytes>,
    /// What it does to the peer's exposed memory.
    effect: Option<Bytes>,
    /// What it brings into the node's own memory.
    result: Option<Bytes>,
}

struct Message {
    kind: CompletionKind,
    bytes: Vec<u8>,
    imm: Option<u32>,
    invalidated: Option<Key>,
}

/// Makes the configuration of a seed.
pub fn config(rng: &mut Rng, extensions: bool, unlimited: bool) -> Config {
    let mtu = Mtu::ALL[rng.below(if rng.clone().chance(0.1) { 5 } else { 3 }) as usize];
    let near_wrap = Psn::new(0u32.wrapping_sub(rng.below(60) as u32));
    let retries = |rng: &mut Rng| match unlimited {
        true => Retries::Unlimited,
        false => Retries::Limited(rng.below(8) as u8),
    };
    Config {
        qp_type: QpType::Rc,
        mtu,
        max_rd_atomic: 1 + rng.below(16) as u8,
        timeout: Some(Duration::from_micros(100 + rng.below(900))),
        retry_count: retries(rng),
        rnr_retry: retries(rng),
        min_rnr_timer: 1 + rng.below(12) as u8,
        psn: [near_wrap, Psn::new(rng.next_u64() as u32)],
        extensions,
        ack_delay: Duration::from_micros(rng.below(3) * 10),
        ipv6: rng.chance(0.3),
        burst: 1 + rng.below(40) as usize,
        // From a copy, so that the seeds of old still find what they found.
        parts: extensions && rng.clone().chance(0.5),
    }
}

/// Runs one seed to its end and compares everything with the model.
///
/// # Panics
/// When anything differs, or when it does not come to an end.
pub fn run(seed: u64, extensions: bool, unlimited: bool, most_faults: f64) {
    let mut rng = Rng::new(seed);
    let config = config(&mut rng, extensions, unlimited);
    let faults = Faults::random(&mut rng, most_faults);
    let plans = [plan(&mut rng, config.mtu), plan(&mut rng, config.mtu)];
    let mut world = World::new(&config, faults, seed, MEMORY);
    for index in [0, 1] {
        prepare(&mut world, index, &plans);
    }

    let mut posted = [0, 0];
    let mut receives = [0, 0];
    let mut app_next = world.now;
    for moments in 0.. {
        assert!(
            moments < 400_000,
            "seed {seed}: no end in sight: {config:?} {faults:?}\n{:?}\n{:?}",
            world.nodes[0].qp,
            world.nodes[1].qp
        );
        if app_next <= world.now {
            for index in 0..2 {
                post_some(
                    &mut world,
                    &mut rng,
                    index,
                    &plans,
                    &mut posted,
                    &mut receives,
                );
                world.flush(index);
            }
            app_next = world.now + Duration::from_nanos(1 + rng.below(30_000));
        }
        let app = (0..2).any(|index| {
            posted[index] < plans[index].work.len()
                || receives[index] < plans[1 - index].messages.len()
        });
        let next = world
            .next_moment()
            .into_iter()
            .chain(app.then_some(app_next))
            .min();
        match next {
            Some(moment) => world.advance_to(moment),
            None => break,
        }
    }
    for index in [0, 1] {
        check(&world, seed, index, &plans, posted[index], unlimited);
    }
}

fn prepare(world: &mut World, index: usize, plans: &[Plan; 2]) {
    let machine = &mut world.nodes[index].machine;
    let everything = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
    machine.regions.insert(
        EXPOSED_KEY.0,
        Region {
            start: 0,
            end: PAIRS.end,
            access: everything,
        },
    );
    for message in &plans[1 - index].messages {
        if let Some(key) = message.invalidated {
            machine.regions.insert(
                key.0,
                Region {
                    start: 0,
                    end: 0,
                    access: Access::empty(),
                },
            );
        }
    }
    // Each byte that ends a piece of data, with the data: when it is written, all before it must be there.
    let mut ends: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
    let mut data: Option<Bytes> = None;
    for (va, bytes) in plans[1 - index]
        .work
        .iter()
        .filter_map(|planned| planned.effect.as_ref())
    {
        if !PAIRS.contains(va) || bytes.is_empty() {
            continue;
        }
        let last = va + bytes.len() as u64 - 1;
        ends.insert(last, (*va, bytes.clone()));
        // A flag follows its data.
        match data.take() {
            Some((start, bytes)) => {
                ends.insert(*va, (start, bytes));
            }
            None => data = Some((*va, bytes.clone())),
        }
    }
    machine.watch = Some(Box::new(move |memory, va, length| {
        for (last, (start, bytes)) in ends.range(va..va + length as u64) {
            let there = &memory[*start as usize..*start as usize + bytes.len()];
            assert!(
                there == bytes,
                "address {last:#x} was written before all of {start:#x}+{:#x}",
                bytes.len()
            );
        }
    }));
}

fn post_some(
    world: &mut World,
    rng: &mut Rng,
    index: usize,
    plans: &[Plan; 2],
    posted: &mut [usize; 2],
    receives: &mut [usize; 2],
) {
    let node = &mut world.nodes[index];
    for _ in 0..rng.below(4) {
        let Some(planned) = plans[index].work.get(posted[index]) else {
            break;
        };
        if node.qp.send_queue_len() > 24 {
            break;
        }
        if let Some((addr, bytes)) = &planned.source {
            node.machine.memory[*addr as usize..*addr as usize + bytes.len()]
                .copy_from_slice(bytes);
        }
        node.qp
            .post_send(planned.work, &mut node.machine)
            .expect("legal work");
        posted[index] += 1;
    }
    for _ in 0..rng.below(3) {
        let number = receives[index];
        if number == plans[1 - index].messages.len() {
            break;
        }
        node.machine
            .receives
            .push_back(receive(number, &plans[1 - index]));
        node.qp.flush_receives(&mut node.machine);
        receives[index] += 1;
    }
}

/// The receive for message `number`: a buffer a little longer than needed, in two pieces.
fn receive(number: usize, peer: &Plan) -> RecvWork {
    let addr = receive_addr(number, peer);
    let room = peer.messages[number].bytes.len() as u32 + 16;
    let first = room / 3;
    let pieces = [
        Sge {
            addr,
            length: first,
            lkey: LOCAL_KEY,
        },
        Sge {
            addr: addr + u64::from(first),
            length: room - first,
            lkey: LOCAL_KEY,
        },
    ];
    RecvWork {
        wr_id: number as u64,
        sges: SgeList::new(&pieces).expect("two pieces"),
    }
}

fn receive_addr(number: usize, peer: &Plan) -> u64 {
    RECEIVES.start
        + peer.messages[..number]
            .iter()
            .map(|message| message.bytes.len() as u64 + 32)
            .sum::<u64>()
}

fn plan(rng: &mut Rng, mtu: Mtu) -> Plan {
    let mut planner = Planner {
        plan: Plan::default(),
        model: vec![0; PAIRS.end as usize],
        private: PRIVATE.start,
        pairs: PAIRS.start,
        receives: RECEIVES.start,
        reads: Vec::new(),
        mtu: u64::from(mtu.bytes()),
    };
    for number in 0..4 + rng.below(28) {
        planner.add(rng, number);
    }
    planner.plan
}

struct Planner {
    plan: Plan,
    model: Vec<u8>,
    private: u64,
    pairs: u64,
    receives: u64,
    /// What reads since the last fence look at.
    reads: Vec<(u64, u64)>,
    mtu: u64,
}

impl Planner {
    fn add(&mut self, rng: &mut Rng, number: u64) {
        match rng.below(10) {
            0..=2 => self.write(rng, None),
            3 => self.write(rng, Some(number as u32)),
            4 | 5 => self.read(rng),
            6 => self.atomic(rng),
            7 => self.pair(rng),
            _ => self.send(rng, number as u32),
        }
    }

    /// Mostly a few packets, at times many, at times none.
    fn length(&self, rng: &mut Rng) -> u64 {
        match rng.below(12) {
            0 => 0,
            1 => self.mtu * rng.below(20),
            2 => self.mtu,
            _ => rng.below(self.mtu * 4),
        }
        .min(12 << 10)
    }

    fn bytes(rng: &mut Rng, length: u64) -> Vec<u8> {
        (0..length)
            .map(|_| 1 + (rng.next_u64() % 255) as u8)
            .collect()
    }

    fn source(&mut self, rng: &mut Rng, bytes: &[u8]) -> Option<(Local, Option<Bytes>)> {
        if bytes.len() <= MAX_INLINE && rng.chance(0.3) {
            return Some((Local::Inline(InlineBytes::new(bytes)?), None));
        }
        let addr = self.take_private(bytes.len() as u64)?;
        Some((
            Local::Gather(two_pieces(rng, addr, bytes.len() as u64)),
            Some((addr, bytes.to_vec())),
        ))
    }

    fn take_private(&mut self, length: u64) -> Option<u64> {
        let addr = self.private;
        self.private += length + 16;
        (self.private < PRIVATE.end).then_some(addr)
    }

    /// Puts work into the plan; a change of what an unfenced read looks at is fenced.
    fn push(
        &mut self,
        rng: &mut Rng,
        operation: Operation,
        local: Local,
        planned: [Option<Bytes>; 3],
    ) {
        let [source, effect, result] = planned;
        let mut flags = SendFlags::empty();
        flags.set(SendFlags::SIGNALED, rng.chance(0.7));
        if let Some((va, bytes)) = &effect {
            let end = va + bytes.len() as u64;
            let overtakes = self
                .reads
                .iter()
                .any(|&(start, stop)| start < end && *va < stop);
            if overtakes || rng.chance(0.05) {
                flags |= SendFlags::FENCE;
                self.reads.clear();
            }
            self.model[*va as usize..end as usize].copy_from_slice(bytes);
        }
        let wr_id = self.plan.work.len() as u64;
        let work = SendWork {
            wr_id,
            operation,
            flags,
            local,
            destination: None,
        };
        self.plan.work.push(Planned {
            work,
            source,
            effect,
            result,
        });
    }

    fn write(&mut self, rng: &mut Rng, imm: Option<u32>) {
        let length = self.length(rng);
        let va = SHARED.start + rng.below(SHARED.end - SHARED.start - length);
        self.write_to(rng, va, length, imm);
    }

    fn write_to(&mut self, rng: &mut Rng, va: u64, length: u64, imm: Option<u32>) {
        let bytes = Self::bytes(rng, length);
        let Some((local, source)) = self.source(rng, &bytes) else {
            return;
        };
        let remote = Remote {
            addr: va,
            rkey: EXPOSED_KEY,
        };
        let operation = match imm {
            None => Operation::Write(remote),
            Some(imm) => {
                if !self.message(
                    CompletionKind::RecvWriteWithImm,
                    length,
                    Vec::new(),
                    Some(imm),
                    None,
                ) {
                    return;
                }
                Operation::WriteWithImm(remote, imm)
            }
        };
        self.push(rng, operation, local, [source, Some((va, bytes)), None]);
    }

    /// Data, then a flag, both where nothing else is written.
    fn pair(&mut self, rng: &mut Rng) {
        let length = 1 + self.length(rng);
        let (data, flag) = (self.pairs, self.pairs + length + 8);
        if flag + 16 > PAIRS.end || self.private + length + 64 > PRIVATE.end {
            return;
        }
        self.pairs = flag + 16;
        self.write_to(rng, data, length, None);
        self.write_to(rng, flag, 8, None);
    }

    fn read(&mut self, rng: &mut Rng) {
        let length = self.length(rng);
        let va = rng.below(SHARED.end - length);
        let Some(addr) = self.take_private(length) else {
            return;
        };
        let expected = self.model[va as usize..(va + length) as usize].to_vec();
        let local = Local::Gather(two_pieces(rng, addr, length));
        self.reads.push((va, va + length));
        let remote = Remote {
            addr: va,
            rkey: EXPOSED_KEY,
        };
        self.push(
            rng,
            Operation::Read(remote),
            local,
            [None, None, Some((addr, expected))],
        );
    }

    fn atomic(&mut self, rng: &mut Rng) {
        let va = 8 * rng.below(WORDS);
        let Some(addr) = self.take_private(8) else {
            return;
        };
        let word = &self.model[va as usize..va as usize + 8];
        let original = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        let remote = Remote {
            addr: va,
            rkey: EXPOSED_KEY,
        };
        let (operation, new) = if rng.chance(0.5) {
            let add = rng.next_u64();
            (
                Operation::FetchAdd { remote, add },
                original.wrapping_add(add),
            )
        } else {
            let swap = rng.next_u64();
            let compare = if rng.chance(0.7) {
                original
            } else {
                rng.next_u64()
            };
            (
                Operation::CompareSwap {
                    remote,
                    compare,
                    swap,
                },
                if compare == original { swap } else { original },
            )
        };
        let local = Local::Gather(two_pieces(rng, addr, 8));
        let effect = Some((va, new.to_ne_bytes().to_vec()));
        self.push(
            rng,
            operation,
            local,
            [None, effect, Some((addr, original.to_ne_bytes().to_vec()))],
        );
    }

    fn send(&mut self, rng: &mut Rng, number: u32) {
        let length = self.length(rng);
        let bytes = Self::bytes(rng, length);
        let Some((local, source)) = self.source(rng, &bytes) else {
            return;
        };
        let (operation, imm, invalidated) = match rng.below(3) {
            0 => (Operation::Send, None, None),
            1 => (Operation::SendWithImm(number), Some(number), None),
            _ => {
                let key = Key(FIRST_SPARE_KEY + number);
                (Operation::SendWithInvalidate(key), None, Some(key))
            }
        };
        if self.message(CompletionKind::Recv, length, bytes, imm, invalidated) {
            self.push(rng, operation, local, [source, None, None]);
        }
    }

    fn message(
        &mut self,
        kind: CompletionKind,
        length: u64,
        bytes: Vec<u8>,
        imm: Option<u32>,
        invalidated: Option<Key>,
    ) -> bool {
        self.receives += length + 32;
        let fits = self.receives < RECEIVES.end;
        if fits {
            self.plan.messages.push(Message {
                kind,
                bytes,
                imm,
                invalidated,
            });
        }
        fits
    }
}

fn two_pieces(rng: &mut Rng, addr: u64, length: u64) -> SgeList {
    let first = rng.below(length + 1);
    let piece = |addr, length| Sge {
        addr,
        length: length as u32,
        lkey: LOCAL_KEY,
    };
    SgeList::new(&[piece(addr, first), piece(addr + first, length - first)]).expect("two pieces")
}

/// Compares what one node reported, and what its memory holds, with the model.
fn check(
    world: &World,
    seed: u64,
    index: usize,
    plans: &[Plan; 2],
    posted: usize,
    must_succeed: bool,
) {
    let node = &world.nodes[index];
    let (own, peer) = (&plans[index], &plans[1 - index]);
    let finished = check_sends(seed, index, own, posted, &node.machine.sent, must_succeed);
    let received = check_receives(seed, index, peer, &node.machine.received, must_succeed);

    // What surely happened, and, byte by byte, what else may have.
    let mut certain = vec![0; MEMORY];
    let mut possible: HashMap<usize, Vec<u8>> = HashMap::new();
    let mut apply = |addr: u64, bytes: &[u8], surely: bool| {
        let start = addr as usize;
        if surely {
            certain[start..start + bytes.len()].copy_from_slice(bytes);
        } else {
            for (step, byte) in bytes.iter().enumerate() {
                possible.entry(start + step).or_default().push(*byte);
            }
        }
    };
    let peer_finished = finished_sends(peer, &world.nodes[1 - index].machine.sent);
    for (number, planned) in peer.work.iter().enumerate() {
        if let Some((addr, bytes)) = &planned.effect {
            apply(*addr, bytes, number < peer_finished);
        }
    }
    for (number, planned) in own.work.iter().enumerate() {
        if let Some((addr, bytes)) = &planned.source {
            apply(*addr, bytes, number < posted);
        }
        if let Some((addr, bytes)) = &planned.result {
            apply(*addr, bytes, number < finished);
        }
    }
    for (number, message) in peer.messages.iter().enumerate() {
        apply(
            receive_addr(number, peer),
            &message.bytes,
            number < received,
        );
    }
    if node.machine.memory == certain {
        return;
    }
    for (addr, (byte, certain)) in node.machine.memory.iter().zip(&certain).enumerate() {
        let fits = byte == certain
            || possible
                .get(&addr)
                .is_some_and(|possible| possible.contains(byte));
        assert!(
            fits,
            "seed {seed}: node {index} holds {byte:#x} at {addr:#x}, where {certain:#x} is expected"
        );
    }
}

/// The number of pieces of work, from the first on, that surely were carried out.
fn finished_sends(plan: &Plan, completions: &[Completion]) -> usize {
    let failed = completions
        .iter()
        .find(|completion| completion.status != Status::Success);
    match failed {
        Some(failed) => failed.wr_id as usize,
        None => plan.work.len(),
    }
}

fn check_sends(
    seed: u64,
    index: usize,
    plan: &Plan,
    posted: usize,
    completions: &[Completion],
    must_succeed: bool,
) -> usize {
    let mut expected = plan.work[..posted]
        .iter()
        .filter(|planned| planned.work.flags.contains(SendFlags::SIGNALED));
    let mut failed = None;
    for completion in completions {
        let planned = match failed {
            None if completion.status == Status::Success => expected
                .next()
                .unwrap_or_else(|| panic!("seed {seed}: node {index}: unexpected {completion:?}")),
            // From the first failure on everything is reported, also what did not ask for it.
            _ => &plan.work[completion.wr_id as usize],
        };
        assert_eq!(
            planned.work.wr_id, completion.wr_id,
            "seed {seed}: node {index}: in posting order"
        );
        assert_eq!(
            planned.work.operation.completion_kind(),
            completion.kind,
            "seed {seed}: node {index}"
        );
        if let Some(last) = failed {
            assert_eq!(
                completion.wr_id,
                last + 1,
                "seed {seed}: node {index}: flushed in order, once"
            );
            assert_eq!(
                completion.status,
                Status::Flushed,
                "seed {seed}: node {index}"
            );
        } else if completion.status != Status::Success {
            let permitted = [
                Status::RetryExceeded,
                Status::RnrRetryExceeded,
                Status::Flushed,
            ];
            assert!(
                !must_succeed && permitted.contains(&completion.status),
                "seed {seed}: node {index}: {completion:?}"
            );
        }
        if failed.is_some() || completion.status != Status::Success {
            failed = Some(completion.wr_id);
        }
    }
    match failed {
        Some(last) => assert_eq!(
            last + 1,
            posted as u64,
            "seed {seed}: node {index}: everything ends"
        ),
        None => assert!(
            expected.next().is_none(),
            "seed {seed}: node {index}: everything ends"
        ),
    }
    finished_sends(plan, completions)
}

fn check_receives(
    seed: u64,
    index: usize,
    peer: &Plan,
    completions: &[Completion],
    must_succeed: bool,
) -> usize {
    let mut good = 0;
    for (number, completion) in completions.iter().enumerate() {
        assert_eq!(
            completion.wr_id, number as u64,
            "seed {seed}: node {index}: receives in order, once"
        );
        if completion.status != Status::Success {
            assert!(
                !must_succeed && completion.status == Status::Flushed,
                "seed {seed}: node {index}: {completion:?}"
            );
            continue;
        }
        assert_eq!(
            good, number,
            "seed {seed}: node {index}: nothing is received after an error"
        );
        good += 1;
        let message = &peer.messages[number];
        assert_eq!(completion.kind, message.kind, "seed {seed}: node {index}");
        assert_eq!(completion.imm, message.imm, "seed {seed}: node {index}");
        assert_eq!(
            completion.invalidated, message.invalidated,
            "seed {seed}: node {index}"
        );
        if message.kind == CompletionKind::Recv {
            assert_eq!(
                completion.byte_len as usize,
                message.bytes.len(),
                "seed {seed}: node {index}"
            );
        }
    }
    if must_succeed {
        assert_eq!(
            good,
            peer.messages.len(),
            "seed {seed}: node {index}: every message arrives"
        );
    }
    good
}
