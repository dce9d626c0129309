//! States, transitions, and what is flushed.

use ringmail_roce::qp::{PostError, Qp};
use ringmail_roce::sim::Config;
use ringmail_roce::sim::node::Machine;
use ringmail_roce::verbs::{Operation, QpAttr, QpEvent, QpState, QpType, Status};
use ringmail_roce::wire::Qpn;

use crate::vocabulary::*;

fn to(state: QpState) -> QpAttr {
    QpAttr {
        state: Some(state),
        ..QpAttr::default()
    }
}

#[test]
fn sends_are_refused_before_ready_to_send() {
    let mut qp = Qp::new(QpType::Rc, Qpn::new(5));
    let mut machine = Machine::default();
    let error = qp
        .post_send(work(1, Operation::Send, 1), &mut machine)
        .unwrap_err();
    assert_eq!(error, PostError::State(QpState::Reset));
    assert_eq!(
        error.to_string(),
        "the queue pair is in state Reset, which takes no sends"
    );
}

#[test]
fn operations_that_the_service_lacks_are_refused() {
    let mut world = world(Config {
        qp_type: QpType::Uc,
        ..Config::default()
    });
    let node = &mut world.nodes[0];
    let error = node
        .qp
        .post_send(work(1, Operation::Read(at(0)), 1), &mut node.machine);
    assert_eq!(error, Err(PostError::Operation(QpType::Uc)));
}

#[test]
fn going_to_error_flushes_everything_that_is_posted() {
    let mut world = world(Config::default());
    post_recv(&mut world, 7, 100);
    post_recv(&mut world, 8, 100);
    let node = &mut world.nodes[1];
    node.qp
        .modify(&to(QpState::Err), &mut node.machine)
        .expect("always possible");
    assert_eq!(
        received(&world),
        [(7, Status::Flushed), (8, Status::Flushed)]
    );

    let node = &mut world.nodes[1];
    node.qp
        .post_send(work(3, Operation::Write(at(0)), 1), &mut node.machine)
        .expect("taken and flushed");
    assert_eq!(node.machine.sent[0].status, Status::Flushed);
}

#[test]
fn a_drained_send_queue_finishes_what_it_began_and_starts_nothing_new() {
    let mut world = world(Config::default());
    post(&mut world, work(1, Operation::Write(at(0)), 5_000));
    world.flush(0);
    let node = &mut world.nodes[0];
    node.qp
        .modify(&to(QpState::Sqd), &mut node.machine)
        .expect("from RTS");
    post(&mut world, work(2, Operation::Write(at(0)), 10));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(world.nodes[0].machine.events, [QpEvent::SendQueueDrained]);

    let node = &mut world.nodes[0];
    node.qp
        .modify(&to(QpState::Rts), &mut node.machine)
        .expect("from SQD");
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success), (2, Status::Success)]);
}

#[test]
fn the_first_packet_to_a_queue_pair_in_rtr_establishes_the_connection() {
    let mut world = world(Config::default());
    let node = &mut world.nodes[1];
    let attr = node.qp.attr();
    let everything = [
        to(QpState::Reset),
        QpAttr {
            pkey: attr.pkey,
            access: attr.access,
            ..to(QpState::Init)
        },
        QpAttr {
            path: attr.path,
            path_mtu: attr.path_mtu,
            dest_qpn: attr.dest_qpn,
            rq_psn: attr.rq_psn,
            max_dest_rd_atomic: attr.max_dest_rd_atomic,
            min_rnr_timer: attr.min_rnr_timer,
            ..to(QpState::Rtr)
        },
    ];
    for attr in everything {
        node.qp
            .modify(&attr, &mut node.machine)
            .expect("a legal transition");
    }
    post(&mut world, work(1, Operation::Write(at(0)), 5_000));
    run(&mut world);
    assert_eq!(
        world.nodes[1].machine.events,
        [QpEvent::CommunicationEstablished]
    );
    assert_eq!(sent(&world), [(1, Status::Success)], "RTR answers");
}
