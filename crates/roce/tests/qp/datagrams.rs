//! The unreliable services.

use ringmail_roce::sim::{Config, World};
use ringmail_roce::verbs::{Completion, Operation, Path, QpType, SendWork, Status, UdDestination};
use ringmail_roce::wire::{Grh, Opcode, Operation as Packet, Qpn};

use crate::vocabulary::*;

fn datagram(world: &World, length: u32, qkey: u32) -> SendWork {
    let path = Path::new(world.nodes[0].address, world.nodes[1].address);
    let destination = Some(UdDestination {
        path,
        qpn: Qpn::new(0x12),
        qkey,
    });
    SendWork {
        destination,
        ..work(1, Operation::SendWithImm(9), length)
    }
}

fn ud(ipv6: bool) -> World {
    world(Config {
        qp_type: QpType::Ud,
        ipv6,
        ..Config::default()
    })
}

#[test]
fn a_datagram_arrives_behind_forty_bytes_of_addressing() {
    for ipv6 in [false, true] {
        let mut world = ud(ipv6);
        post_recv(&mut world, 7, 200);
        let work = datagram(&world, 101, 0x1111);
        post(&mut world, work);
        run(&mut world);

        assert_eq!(sent(&world), [(1, Status::Success)]);
        let [
            Completion {
                byte_len: 141,
                imm: Some(9),
                has_grh: true,
                source_qpn,
                ..
            },
        ] = world.nodes[1].machine.received[..]
        else {
            panic!("{:?}", world.nodes[1].machine.received)
        };
        assert_eq!(source_qpn, Qpn::new(0x11));
        assert_eq!(memory(&world, 1, LOCAL + 40, 101), source(101));
        let (grh, _) = Grh::parse(memory(&world, 1, LOCAL, 40)).expect("a GRH");
        assert_eq!(matches!(grh, Grh::V6(_)), ipv6);
    }
}

#[test]
fn a_datagram_with_a_wrong_qkey_is_dropped() {
    let mut world = ud(false);
    post_recv(&mut world, 7, 200);
    let work = datagram(&world, 10, 0x2222);
    post(&mut world, work);
    run(&mut world);
    assert_eq!(received(&world), []);
    assert_eq!(world.nodes[1].qp.counters().dropped, 1);
}

#[test]
fn the_top_bit_of_a_qkey_stands_for_the_sender_s_own() {
    let mut world = ud(false);
    post_recv(&mut world, 7, 200);
    let work = datagram(&world, 10, 0x8000_0000);
    post(&mut world, work);
    run(&mut world);
    assert_eq!(received(&world), [(7, Status::Success)]);
}

#[test]
fn a_datagram_longer_than_the_path_mtu_fails_its_work() {
    let mut world = world(Config {
        qp_type: QpType::Ud,
        ..Config::default()
    });
    let work = datagram(&world, 4_097, 0x1111);
    post(&mut world, work);
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::LocalLength)]);
}

#[test]
fn a_datagram_that_finds_no_receive_or_too_small_a_one_harms_nobody() {
    let mut world = ud(false);
    let work = datagram(&world, 100, 0x1111);
    post(&mut world, work);
    run(&mut world);
    post_recv(&mut world, 7, 139);
    post(&mut world, work);
    run(&mut world);
    assert_eq!(received(&world), [(7, Status::LocalLength)]);
    post_recv(&mut world, 8, 140);
    post(&mut world, work);
    run(&mut world);
    assert_eq!(received(&world)[1], (8, Status::Success));
}

#[test]
fn an_unreliable_message_with_a_lost_packet_is_dropped_whole_and_the_next_arrives() {
    let mut world = world(Config {
        qp_type: QpType::Uc,
        ..Config::default()
    });
    post_recv(&mut world, 7, 4_000);
    lose(&mut world, |_, headers, lost| {
        headers.bth.opcode == Opcode::Uc(Packet::SendMiddle) && lost == 0
    });
    post(&mut world, work(1, Operation::Send, 4_000));
    run(&mut world);
    assert_eq!(received(&world), []);
    post(&mut world, work(2, Operation::Send, 3_000));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success), (2, Status::Success)]);
    assert_eq!(
        received(&world),
        [(7, Status::Success)],
        "the receive serves the next message"
    );
    assert_eq!(memory(&world, 1, LOCAL, 3_000), source(3_000));
}

#[test]
fn an_unreliable_write_without_right_is_dropped_silently() {
    let mut world = world(Config {
        qp_type: QpType::Uc,
        ..Config::default()
    });
    post(&mut world, work(1, Operation::Write(at(EXPOSED)), 3_000));
    post(&mut world, work(2, Operation::Write(at(0)), 3_000));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success), (2, Status::Success)]);
    assert_eq!(memory(&world, 1, 0, 3_000), source(3_000));
}
