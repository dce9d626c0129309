//! Goodput in virtual time: two engines on two cores, each with a socket, over a path that loses packets.
//!
//! What decides goodput under loss is time: what a send or receive call costs, how much a socket holds, how long
//! recovery waits. So every core here is busy while it sends and receives, packets leave in runs of equal size as a
//! segmented send carries them, loss takes single packets out of a run, and a run that finds the socket full is lost
//! whole. The same [`Trial`] gives the same [`Outcome`], down to the nanosecond.

use std::collections::VecDeque;
use std::time::Duration;

use super::link::Faults;
use super::node::Region;
use super::rng::Rng;
use super::world::{Config, World};
use crate::time::Instant;
use crate::verbs::{
    Access, Local, Mtu, Operation, Remote, SendFlags, SendWork, Sge, SgeList, Status,
};
use crate::wire::Key;

/// What a path and the machines at its ends cost.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// A run of packets at either end: a system call and its way through the stack.
    pub run: Duration,
    /// Picoseconds a byte at either end: copy and checksum.
    pub byte: u64,
    /// From one machine to the other.
    pub delay: Duration,
    /// Bytes a second that the path carries.
    pub bandwidth: u64,
    /// Bytes that a socket holds.
    pub socket: usize,
}

impl Costs {
    /// Two processes on one host.
    pub const LOOPBACK: Self = Self {
        run: Duration::from_nanos(2_300),
        byte: 70,
        delay: Duration::from_nanos(500),
        bandwidth: 100_000_000_000,
        socket: 212_992,
    };

    /// The same with all that root may have a socket hold.
    pub const ROOMY: Self = Self {
        socket: 8 << 20,
        ..Self::LOOPBACK
    };

    /// Two hosts on a local network of 10 Gbit/s.
    pub const NETWORK: Self = Self {
        delay: Duration::from_micros(40),
        bandwidth: 1_250_000_000,
        socket: 1 << 20,
        ..Self::LOOPBACK
    };
}

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Machines and path.
    pub costs: Costs,
    /// Whether both ends know the extensions.
    pub extensions: bool,
    /// Probability that a packet is lost, either way.
    pub loss: f64,
    /// READs rather than WRITEs.
    pub reads: bool,
    /// Bytes of one message.
    pub length: u32,
    /// Messages outstanding.
    pub depth: usize,
    /// Messages in all.
    pub messages: usize,
    /// How often the second machine's core is taken away, and for how long.
    pub pauses: Option<(Duration, Duration)>,
    /// Where randomness starts.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Virtual time from the first post to the last completion.
    pub took: Duration,
    /// Gigabits of messages a second.
    pub gbit: f64,
    /// Packets that the path lost.
    pub lost: u64,
    /// Packets that a full socket lost.
    pub overflown: u64,
    /// Packets that the first machine sent again.
    pub again: u64,
}

const MTU: Mtu = Mtu::B4096;
/// Bytes of one segmented send, and packets of all segmented sends of one call.
const RUN: usize = 65_000;
const BURST: usize = 60;
/// Runs of one receive call.
const BATCH: usize = 8;
const KEY: Key = Key(7);

/// A run of packets in a socket, or on its way there.
struct Run {
    at: Instant,
    packets: Vec<Vec<u8>>,
}

impl Run {
    fn bytes(&self) -> usize {
        self.packets.iter().map(Vec::len).sum()
    }
}

/// One machine: its core, and what is in front of its socket.
#[derive(Default)]
struct Station {
    /// The core is busy until then.
    free: Instant,
    /// The path takes the next run then.
    path: Instant,
    /// Its last round did something.
    was_busy: bool,
    arriving: VecDeque<Run>,
    socket: VecDeque<Run>,
}

/// Moves all messages and says how long that took.
///
/// # Panics
/// When a message fails or arrives changed, or nothing more happens before all have completed.
pub fn run(trial: &Trial) -> Outcome {
    let config = Config {
        mtu: MTU,
        max_rd_atomic: 16,
        timeout: Some(Duration::from_millis(134)),
        extensions: false,
        ..Config::default()
    };
    let span = trial.length as usize * trial.depth;
    let mut world = World::new(&config, Faults::none(), trial.seed, span);
    let start = world.now;
    for (index, node) in world.nodes.iter_mut().enumerate() {
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
        let region = Region {
            start: 0,
            end: span as u64,
            access,
        };
        node.machine.regions.insert(KEY.0, region);
        if (index == 0) != trial.reads {
            for (at, byte) in node.machine.memory.iter_mut().enumerate() {
                *byte = (at % 251) as u8 + 1;
            }
        }
        let budget = (trial.costs.socket / 4 * 3) as u32;
        node.qp.set_receive_budget(budget);
        if trial.extensions {
            node.qp.use_extensions(budget);
        }
    }
    let mut bench = Bench {
        trial,
        rng: Rng::new(trial.seed),
        stations: Default::default(),
        next_pause: start + trial.pauses.map_or(Duration::MAX, |(every, _)| every),
        posted: 0,
        lost: 0,
        overflown: 0,
    };
    for station in &mut bench.stations {
        (station.free, station.path, station.was_busy) = (start, start, true);
    }
    let mut idle = 0;
    while world.nodes[0].machine.sent.len() < trial.messages {
        let index = bench.next(&world);
        world.now = world.now.max(bench.stations[index].free);
        idle = if bench.poll(&mut world, index) {
            0
        } else {
            idle + 1
        };
        assert!(idle < 100_000, "{trial:?}: nothing happens any more");
    }
    let sent = &world.nodes[0].machine.sent;
    let failed = sent.iter().find(|done| done.status != Status::Success);
    assert!(failed.is_none(), "{trial:?}: {failed:?}");
    assert!(
        world.nodes[0].machine.memory == world.nodes[1].machine.memory,
        "{trial:?}: the bytes differ"
    );
    let took = bench.stations[0].free - start;
    let bits = trial.messages as f64 * f64::from(trial.length) * 8.0;
    Outcome {
        took,
        gbit: bits / took.as_secs_f64() / 1e9,
        lost: bench.lost,
        overflown: bench.overflown,
        again: world.nodes[0].qp.counters().retransmitted,
    }
}

struct Bench<'a> {
    trial: &'a Trial,
    rng: Rng,
    stations: [Station; 2],
    next_pause: Instant,
    posted: usize,
    lost: u64,
    overflown: u64,
}

impl Bench<'_> {
    /// Whose turn it is; its core is then free no earlier than it has something to do.
    fn next(&mut self, world: &World) -> usize {
        let due = [0, 1].map(|index| {
            let station = &self.stations[index];
            let arrival = station.arriving.front().map(|run| run.at);
            let socket = (!station.socket.is_empty()).then_some(station.free);
            let timer = world.nodes[index].qp.poll_timeout();
            // A core that has just done something looks once more, for what that made possible.
            let again = station.was_busy.then_some(station.free);
            let event = [arrival, socket, timer, again].into_iter().flatten().min();
            event.map_or(Instant::from_nanos(u64::MAX), |at| at.max(station.free))
        });
        let index = usize::from(due[1] < due[0]);
        self.stations[index].free = due[index];
        if index == 1
            && let Some((every, length)) = self.trial.pauses
            && due[1] >= self.next_pause
        {
            self.stations[1].free += length;
            self.next_pause = self.stations[1].free + every;
            return usize::from(self.stations[1].free < due[0]);
        }
        index
    }

    /// One round of a polling core: one send call, one receive call, timers. Whether it did anything.
    fn poll(&mut self, world: &mut World, index: usize) -> bool {
        let mut now = self.stations[index].free;
        world.now = now;
        if index == 0 {
            self.post(world);
        }
        let mut busy = self.send(world, index, &mut now);
        busy |= self.receive(world, index, &mut now);
        let node = &mut world.nodes[index];
        if node.qp.poll_timeout().is_some_and(|due| due <= now) {
            node.qp.handle_timeout(now, &mut node.machine);
            busy = true;
        }
        // A round that finds nothing still takes a look at the socket.
        let station = &mut self.stations[index];
        (station.free, station.was_busy) = (now.max(station.free + LOOK), busy);
        busy
    }

    fn post(&mut self, world: &mut World) {
        let node = &mut world.nodes[0];
        while self.posted < self.trial.messages && node.qp.send_queue_len() < self.trial.depth {
            let addr = (self.posted % self.trial.depth) as u64 * u64::from(self.trial.length);
            let remote = Remote { addr, rkey: KEY };
            let sge = Sge {
                addr,
                length: self.trial.length,
                lkey: KEY,
            };
            let work = SendWork {
                wr_id: self.posted as u64,
                operation: if self.trial.reads {
                    Operation::Read(remote)
                } else {
                    Operation::Write(remote)
                },
                flags: SendFlags::SIGNALED,
                local: Local::Gather(SgeList::new(&[sge]).expect("one piece")),
                destination: None,
            };
            node.qp
                .post_send(work, &mut node.machine)
                .expect("the queue pair takes sends");
            self.posted += 1;
        }
    }

    fn send(&mut self, world: &mut World, index: usize, now: &mut Instant) -> bool {
        let mut runs: Vec<Vec<Vec<u8>>> = Vec::new();
        world.nodes[index].transmit_once(*now, BURST, |_, packet| {
            let joins = runs.last().is_some_and(|run| {
                let (first, last) = (run[0].len(), run[run.len() - 1].len());
                last == first && packet.len() <= first && (run.len() + 1) * first <= RUN
            });
            if joins {
                runs.last_mut().expect("just seen").push(packet);
            } else {
                runs.push(vec![packet]);
            }
        });
        let costs = self.trial.costs;
        for packets in &runs {
            let bytes: usize = packets.iter().map(Vec::len).sum();
            *now += costs.run + per_byte(bytes, costs.byte);
        }
        let any = !runs.is_empty();
        for packets in runs {
            let bytes: usize = packets.iter().map(Vec::len).sum();
            let path = &mut self.stations[index].path;
            *path = (*path).max(*now) + per_byte(bytes, 1_000_000_000_000 / costs.bandwidth);
            let at = *path + costs.delay;
            let before = packets.len();
            let packets: Vec<_> = packets
                .into_iter()
                .filter(|_| !self.rng.chance(self.trial.loss))
                .collect();
            self.lost += (before - packets.len()) as u64;
            self.stations[1 - index]
                .arriving
                .push_back(Run { at, packets });
        }
        any
    }

    fn receive(&mut self, world: &mut World, index: usize, now: &mut Instant) -> bool {
        let costs = self.trial.costs;
        let station = &mut self.stations[index];
        let mut held: usize = station.socket.iter().map(Run::bytes).sum();
        while station.arriving.front().is_some_and(|run| run.at <= *now) {
            let run = station.arriving.pop_front().expect("just seen");
            if held + run.bytes() > costs.socket {
                self.overflown += run.packets.len() as u64;
                continue;
            }
            held += run.bytes();
            station.socket.push_back(run);
        }
        let source = world.nodes[1 - index].address;
        let count = station.socket.len().min(BATCH);
        for run in station.socket.drain(..count) {
            *now += costs.run + per_byte(run.bytes(), costs.byte);
            for packet in &run.packets {
                world.nodes[index].receive(*now, source, packet);
            }
        }
        count > 0
    }
}

fn per_byte(bytes: usize, picos: u64) -> Duration {
    Duration::from_nanos(bytes as u64 * picos / 1_000)
}

/// A receive call that finds nothing.
const LOOK: Duration = Duration::from_nanos(300);
