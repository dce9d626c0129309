//! What is not permitted is answered as hardware answers it, and touches nothing.

use ringmail_roce::sim::node::Region;
use ringmail_roce::sim::{Config, World};
use ringmail_roce::verbs::{Access, Operation, QpEvent, QpState, Remote, Status};
use ringmail_roce::wire::Key;

use crate::vocabulary::*;

/// Does one piece of forbidden work with another behind it, and checks both sides; returns node 1's events.
fn refused(mut world: World, operation: Operation, length: u32, status: Status) -> Vec<QpEvent> {
    post_recv(&mut world, 7, 100);
    let before = world.nodes[1].machine.memory.clone();
    post(&mut world, work(1, operation, length));
    post(&mut world, work(2, Operation::Write(at(0)), 10));
    run(&mut world);

    assert_eq!(sent(&world), [(1, status), (2, Status::Flushed)]);
    assert_eq!(
        world.nodes.each_ref().map(|node| node.qp.state()),
        [QpState::Err; 2]
    );
    assert!(
        world.nodes[1].machine.memory == before,
        "no byte was written"
    );
    assert_eq!(received(&world).len(), 1, "the receive is reported");
    std::mem::take(&mut world.nodes[1].machine.events)
}

fn with_region(key: u32, access: Access) -> World {
    let mut world = world(Config::default());
    world.nodes[1].machine.regions.insert(
        key,
        Region {
            start: 0,
            end: 4_096,
            access,
        },
    );
    world
}

#[test]
fn a_wrong_key_is_refused() {
    for operation in [Operation::Write, Operation::Read] {
        let remote = Remote {
            addr: 0,
            rkey: Key(0xBAD),
        };
        let events = refused(
            world(Config::default()),
            operation(remote),
            3_000,
            Status::RemoteAccess,
        );
        assert_eq!(events, [QpEvent::AccessError]);
    }
}

#[test]
fn an_access_beyond_the_region_is_refused() {
    for addr in [EXPOSED - 10, EXPOSED, u64::MAX - 5] {
        refused(
            world(Config::default()),
            Operation::Write(at(addr)),
            11,
            Status::RemoteAccess,
        );
        refused(
            world(Config::default()),
            Operation::Read(at(addr)),
            11,
            Status::RemoteAccess,
        );
    }
}

#[test]
fn an_access_beyond_the_region_is_refused_before_its_first_byte() {
    // The first packet lies within the region, the request as a whole does not.
    let start = at(EXPOSED - 2_048);
    refused(
        world(Config::default()),
        Operation::Write(start),
        3_000,
        Status::RemoteAccess,
    );
}

#[test]
fn a_write_in_parts_is_refused_as_a_whole() {
    let config = Config {
        extensions: true,
        parts: true,
        ..Config::default()
    };
    refused(
        world(config),
        Operation::Write(at(EXPOSED - 2_048)),
        3_000,
        Status::RemoteAccess,
    );
}

#[test]
fn a_missing_right_is_refused() {
    let remote = Remote {
        addr: 0,
        rkey: Key(5),
    };
    let all = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    let without = |right| with_region(5, all - right);
    refused(
        without(Access::REMOTE_WRITE),
        Operation::Write(remote),
        10,
        Status::RemoteAccess,
    );
    refused(
        without(Access::REMOTE_READ),
        Operation::Read(remote),
        10,
        Status::RemoteAccess,
    );
    refused(
        without(Access::REMOTE_ATOMIC),
        Operation::FetchAdd { remote, add: 1 },
        8,
        Status::RemoteAccess,
    );
}

#[test]
fn an_unaligned_atomic_is_refused() {
    let operation = Operation::CompareSwap {
        remote: at(4),
        compare: 0,
        swap: 1,
    };
    let events = refused(
        world(Config::default()),
        operation,
        8,
        Status::RemoteInvalidRequest,
    );
    assert_eq!(events, [QpEvent::RequestError]);
}

#[test]
fn a_message_longer_than_the_receive_ends_both_sides() {
    let mut world = world(Config::default());
    post_recv(&mut world, 7, 100);
    post(&mut world, work(1, Operation::Send, 101));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::RemoteInvalidRequest)]);
    assert_eq!(received(&world), [(7, Status::LocalLength)]);
}

#[test]
fn a_zero_length_request_needs_no_valid_key() {
    let mut world = world(Config::default());
    let remote = Remote {
        addr: 1,
        rkey: Key(0xBAD),
    };
    post(&mut world, work(1, Operation::Write(remote), 0));
    post(&mut world, work(2, Operation::Read(remote), 0));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success), (2, Status::Success)]);
}

#[test]
fn local_memory_that_does_not_resolve_fails_the_work_in_its_turn() {
    let mut world = world(Config::default());
    post(&mut world, work(1, Operation::Write(at(0)), 10));
    let mut bad = work(2, Operation::Write(at(0)), 10);
    bad.local = gather(u64::MAX - 100, 10);
    post(&mut world, bad);
    post(&mut world, work(3, Operation::Write(at(0)), 10));
    run(&mut world);
    assert_eq!(
        sent(&world),
        [
            (1, Status::Success),
            (2, Status::LocalProtection),
            (3, Status::Flushed)
        ]
    );
}

#[test]
fn a_region_revoked_before_the_response_is_sent_is_refused() {
    let mut world = world(Config {
        burst: 1,
        ..Config::default()
    });
    post(&mut world, work(1, Operation::Read(at(0)), 10));
    world.flush(0);
    let now = world.next_moment().expect("the request is on its way");
    // The request arrives and is accepted; then the region goes away; then the response is made.
    let packet = world.recorded.as_ref().expect("recording")[0].1.clone();
    let source = world.nodes[0].address;
    world.nodes[1].receive(now, source, &packet);
    world.nodes[1].machine.regions.clear();
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::RemoteAccess)]);
}

#[test]
fn packets_from_another_address_are_ignored() {
    let mut world = world(Config::default());
    post(&mut world, work(1, Operation::Write(at(0)), 10));
    world.flush(0);
    let packet = world.recorded.as_ref().expect("recording")[0].1.clone();
    let mut forged = World::new(
        &Config::default(),
        ringmail_roce::sim::Faults::none(),
        1,
        1 << 10,
    );
    forged.nodes[1].receive(forged.now, "10.0.0.9".parse().expect("an address"), &packet);
    assert_eq!(
        forged.nodes[1].damaged, 1,
        "the checksum covers the address"
    );
    assert_eq!(forged.nodes[1].qp.counters().dropped, 0);
}
