//! What may be seen when: fences, limits on READs, and the order that selective repeat keeps.

use ringmail_roce::host::Arrival;
use ringmail_roce::sim::Config;
use ringmail_roce::verbs::{Mtu, Operation, SendFlags, Status};
use ringmail_roce::wire::{Headers, Opcode, Operation as Packet};

use crate::vocabulary::*;

fn selective() -> Config {
    Config {
        extensions: true,
        ..Config::default()
    }
}

/// Lets packets arrive until the wire is empty, without letting node 0 send anything again.
fn deliver_once(world: &mut ringmail_roce::sim::World) {
    world.flush(0);
    let moment = world.next_moment().expect("packets are on their way");
    world.advance_to(moment);
}

#[test]
fn the_last_packet_of_a_write_is_never_placed_ahead_of_a_gap() {
    let mut world = world(selective());
    lose(&mut world, |_, headers, lost| {
        headers.bth.opcode == Opcode::Rc(Packet::WriteMiddle) && lost == 0
    });
    post(&mut world, work(1, Operation::Write(at(0)), 5 * 1_024));
    deliver_once(&mut world);

    assert_eq!(
        memory(&world, 1, 1_024, 1_024),
        [0; 1_024],
        "the second packet was lost"
    );
    assert_ne!(
        memory(&world, 1, 2_048, 2_048),
        [0; 2_048],
        "the middle packets behind it are placed"
    );
    assert_eq!(
        memory(&world, 1, 4_096, 1_024),
        [0; 1_024],
        "the last one waits"
    );
    run(&mut world);
    assert_eq!(memory(&world, 1, 0, 5_120), source(5_120));
    assert_eq!(sent(&world), [(1, Status::Success)]);
}

#[test]
fn the_packets_of_a_write_in_parts_are_alike_and_wait_behind_a_lost_one() {
    let mut world = world(Config {
        parts: true,
        ..selective()
    });
    lose(&mut world, |_, headers, lost| {
        headers.reth.is_some_and(|reth| reth.va == 1_024) && lost == 0
    });
    post(&mut world, work(1, Operation::Write(at(0)), 5 * 1_024));
    deliver_once(&mut world);
    assert_eq!(memory(&world, 1, 0, 1_024), source(1_024));
    assert_eq!(memory(&world, 1, 1_024, 4_096), [0; 4_096]);
    run(&mut world);
    assert_eq!(memory(&world, 1, 0, 5_120), source(5_120));
    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(count(&world, 0, Packet::WriteOnly), 5 + 1);
}

/// It once went in parts, and the receiver reported the length of the last.
#[test]
fn a_write_with_immediate_reports_the_whole_length_where_writes_go_in_parts() {
    let mut world = world(Config {
        parts: true,
        ..selective()
    });
    post_recv(&mut world, 7, 0);
    post(
        &mut world,
        work(1, Operation::WriteWithImm(at(0), 9), 3_000),
    );
    run(&mut world);
    let lengths = world.nodes[1]
        .machine
        .received
        .iter()
        .map(|end| end.byte_len);
    assert_eq!(lengths.collect::<Vec<_>>(), [3_000]);
    assert_eq!(memory(&world, 1, 0, 3_000), source(3_000));
}

#[test]
fn a_write_behind_a_lost_one_is_not_seen_before_it() {
    let mut world = world(selective());
    lose_first(&mut world, 0, Packet::WriteLast);
    post(&mut world, work(1, Operation::Write(at(0)), 2_000));
    post(&mut world, work(2, Operation::Write(at(4_096)), 4_000));
    deliver_once(&mut world);
    assert_eq!(memory(&world, 1, 4_096, 4_000), [0; 4_000]);
    run(&mut world);
    assert_eq!(memory(&world, 1, 4_096, 4_000), source(4_000));
    assert_eq!(
        count(&world, 0, Packet::WriteLast),
        2 + 1,
        "only the lost packet went twice"
    );
}

#[test]
fn a_message_behind_a_gap_is_not_received_before_it_is_filled() {
    let mut world = world(selective());
    post_recv(&mut world, 7, 100);
    lose_first(&mut world, 0, Packet::WriteOnly);
    post(&mut world, work(1, Operation::Write(at(0)), 8));
    post(&mut world, work(2, Operation::Send, 50));
    deliver_once(&mut world);
    assert_eq!(received(&world), []);
    run(&mut world);
    assert_eq!(received(&world), [(7, Status::Success)]);
    assert_eq!(
        count(&world, 0, Packet::SendOnly),
        1,
        "it waited at the receiver, and told by that what is missing"
    );
}

#[test]
fn what_waits_behind_a_gap_is_bounded() {
    let mut world = world(Config {
        mtu: Mtu::B4096,
        ..selective()
    });
    lose(&mut world, |_, headers, lost| {
        headers.bth.opcode == Opcode::Rc(Packet::WriteOnly) && lost == 0
    });
    let first = work(0, Operation::Write(at(0)), 4_096);
    post(&mut world, first);
    world.flush(0);
    // As many packets ahead of the gap as a peer that knows no limit would send.
    let (now, source) = (world.now, world.nodes[0].address);
    let mut headers = packets(&world, 0)[0];
    headers.bth.pad = 0;
    let arrival = Arrival {
        source,
        destination: world.nodes[1].address,
        traffic_class: 0,
        hop_limit: 64,
        udp_length: 0,
    };
    let expected = headers.bth.psn;
    let node = &mut world.nodes[1];
    for ahead in 1..1_000 {
        headers.bth.psn = expected + ahead;
        node.qp
            .handle_packet(now, &arrival, &headers, &[1; 4_096], &mut node.machine);
    }
    // What waited counts when the gap is filled.
    headers.bth.psn = expected;
    node.qp
        .handle_packet(now, &arrival, &headers, &[1; 4_096], &mut node.machine);
    let mut acknowledged = None;
    node.transmit(now, 16, |_, packet| {
        acknowledged = Headers::parse(&packet)
            .ok()
            .map(|(headers, _)| headers.bth.psn)
    });
    let waited = acknowledged.expect("an acknowledgement").since(expected);
    assert_eq!(waited, 256, "1 MiB of payload waits, no more");
}

#[test]
fn fenced_work_starts_after_every_earlier_read_has_finished() {
    let mut world = world(Config::default());
    world.nodes[1].machine.memory[..2_000].fill(1);
    let mut write = work(2, Operation::Write(at(0)), 2_000);
    write.flags |= SendFlags::FENCE;
    write.local = gather(LOCAL + 10_000, 2_000);
    post(&mut world, work(1, Operation::Read(at(0)), 2_000));
    post(&mut world, write);
    world.flush(0);
    assert_eq!(packets(&world, 0).len(), 1, "only the read was sent");
    run(&mut world);
    assert_eq!(
        memory(&world, 0, LOCAL, 2_000),
        [1; 2_000],
        "the read saw what was there before"
    );
    assert_eq!(sent(&world), [(1, Status::Success), (2, Status::Success)]);
}

#[test]
fn no_more_reads_are_outstanding_than_were_agreed() {
    let mut world = world(Config {
        max_rd_atomic: 2,
        ..Config::default()
    });
    for id in 0..5 {
        post(&mut world, work(id, Operation::Read(at(0)), 100));
    }
    world.flush(0);
    assert_eq!(count(&world, 0, Packet::ReadRequest), 2);
    run(&mut world);
    assert_eq!(sent(&world).len(), 5);
}

#[test]
fn unsignaled_work_reports_only_failure() {
    let mut world = world(Config::default());
    let quiet = |id, addr| {
        let mut work = work(id, Operation::Write(at(addr)), 10);
        work.flags = SendFlags::empty();
        work
    };
    post(&mut world, quiet(1, 0));
    post(&mut world, work(2, Operation::Write(at(0)), 10));
    run(&mut world);
    assert_eq!(sent(&world), [(2, Status::Success)]);
    post(&mut world, quiet(3, EXPOSED));
    post(&mut world, quiet(4, 0));
    run(&mut world);
    assert_eq!(
        sent(&world)[1..],
        [(3, Status::RemoteAccess), (4, Status::Flushed)]
    );
}
