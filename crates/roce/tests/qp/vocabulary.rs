//! The words that the tests are written in.

use ringmail_roce::sim::node::Region;
use ringmail_roce::sim::{Config, Faults, World};
use ringmail_roce::verbs::{
    Access, Completion, Local, Operation, RecvWork, Remote, SendFlags, SendWork, Sge, SgeList,
    Status,
};
use ringmail_roce::wire::{Headers, Key, Opcode, Operation as Packet, Syndrome};

/// The key of all of each node's exposed memory, `0 .. EXPOSED`.
pub(crate) const KEY: Key = Key(0xE0);
pub(crate) const EXPOSED: u64 = 64 << 10;
/// Where node 0 keeps sources and results, and node 1 its receives.
pub(crate) const LOCAL: u64 = EXPOSED;

pub(crate) fn world(config: Config) -> World {
    world_with(config, Faults::none())
}

pub(crate) fn world_with(config: Config, faults: Faults) -> World {
    let mut world = World::new(&config, faults, 1, 256 << 10);
    for node in &mut world.nodes {
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        node.machine.regions.insert(
            KEY.0,
            Region {
                start: 0,
                end: EXPOSED,
                access,
            },
        );
    }
    for (index, byte) in world.nodes[0].machine.memory[LOCAL as usize..]
        .iter_mut()
        .enumerate()
    {
        *byte = (index % 251) as u8 + 1;
    }
    world.recorded = Some(Vec::new());
    world
}

pub(crate) fn gather(addr: u64, length: u32) -> Local {
    Local::Gather(
        SgeList::new(&[Sge {
            addr,
            length,
            lkey: Key(1),
        }])
        .expect("one piece"),
    )
}

pub(crate) fn at(addr: u64) -> Remote {
    Remote { addr, rkey: KEY }
}

/// Work on node 0's local memory, signaled.
pub(crate) fn work(wr_id: u64, operation: Operation, length: u32) -> SendWork {
    SendWork {
        wr_id,
        operation,
        flags: SendFlags::SIGNALED,
        local: gather(LOCAL, length),
        destination: None,
    }
}

pub(crate) fn post(world: &mut World, work: SendWork) {
    let node = &mut world.nodes[0];
    node.qp
        .post_send(work, &mut node.machine)
        .expect("the queue pair takes sends");
}

/// Posts a receive on node 1.
pub(crate) fn post_recv(world: &mut World, wr_id: u64, length: u32) {
    let Local::Gather(sges) = gather(LOCAL, length) else {
        unreachable!()
    };
    world.nodes[1]
        .machine
        .receives
        .push_back(RecvWork { wr_id, sges });
}

pub(crate) fn run(world: &mut World) {
    assert!(world.run(100_000), "the world comes to rest");
}

/// Node 0's send completions: id and status.
pub(crate) fn sent(world: &World) -> Vec<(u64, Status)> {
    ends(&world.nodes[0].machine.sent)
}

/// Node 1's receive completions: id and status.
pub(crate) fn received(world: &World) -> Vec<(u64, Status)> {
    ends(&world.nodes[1].machine.received)
}

fn ends(completions: &[Completion]) -> Vec<(u64, Status)> {
    completions
        .iter()
        .map(|completion| (completion.wr_id, completion.status))
        .collect()
}

/// What node `from` sent so far.
pub(crate) fn packets(world: &World, from: usize) -> Vec<Headers> {
    let recorded = world.recorded.as_ref().expect("recording");
    recorded
        .iter()
        .filter(|(sender, _)| *sender == from)
        .map(|(_, packet)| Headers::parse(packet).expect("a whole packet").0)
        .collect()
}

/// How many packets of that kind node `from` sent.
pub(crate) fn count(world: &World, from: usize, kind: Packet) -> usize {
    packets(world, from)
        .iter()
        .filter(|headers| headers.bth.opcode == Opcode::Rc(kind))
        .count()
}

/// The syndromes that node 1 answered with.
pub(crate) fn syndromes(world: &World) -> Vec<Syndrome> {
    packets(world, 1)
        .iter()
        .filter_map(|headers| headers.aeth.map(|aeth| aeth.syndrome))
        .collect()
}

/// Lets the packets vanish for which `is_lost` says so, given the sender, and how many the filter saw that matched.
pub(crate) fn lose(
    world: &mut World,
    mut is_lost: impl FnMut(usize, &Headers, usize) -> bool + 'static,
) {
    let mut seen = 0;
    world.censor = Some(Box::new(move |from, headers| {
        let lost = is_lost(from, headers, seen);
        seen += usize::from(lost);
        lost
    }));
}

/// Loses the first packet of `kind` from node `from`.
pub(crate) fn lose_first(world: &mut World, from: usize, kind: Packet) {
    lose(world, move |sender, headers, lost| {
        sender == from && headers.bth.opcode == Opcode::Rc(kind) && lost == 0
    });
}

/// Sends again, as from node 0, the newest packet of `kind` that it sent.
pub(crate) fn duplicate(world: &mut World, kind: Packet) {
    let recorded = world.recorded.as_ref().expect("recording");
    let packet = recorded.iter().rev().find(|(sender, packet)| {
        *sender == 0
            && Headers::parse(packet)
                .is_ok_and(|(headers, _)| headers.bth.opcode == Opcode::Rc(kind))
    });
    let packet = packet.expect("one was sent").1.clone();
    world.inject(1, packet);
}

pub(crate) fn memory(world: &World, node: usize, addr: u64, length: usize) -> &[u8] {
    &world.nodes[node].machine.memory[addr as usize..addr as usize + length]
}

/// The bytes that node 0 sends when it sends `length` from [`LOCAL`].
pub(crate) fn source(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8 + 1).collect()
}
