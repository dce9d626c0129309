//! Acknowledgements, duplicates, gaps, receivers that are not ready, silence.

use std::time::Duration;

use ringmail_roce::sim::{Config, Faults, Rng};
use ringmail_roce::verbs::{Operation, QpState, Retries, Status};
use ringmail_roce::wire::{NakCode, Opcode, Operation as Packet, Syndrome};

use crate::vocabulary::*;

const READY: Syndrome = Syndrome::ACK;

#[test]
fn a_write_in_several_packets_is_acknowledged_once() {
    let mut world = world(Config::default());
    post(&mut world, work(1, Operation::Write(at(100)), 3_000));
    run(&mut world);

    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(memory(&world, 1, 100, 3_000), source(3_000));
    let opcodes: Vec<_> = packets(&world, 0)
        .iter()
        .map(|headers| headers.bth.opcode)
        .collect();
    let expected = [Packet::WriteFirst, Packet::WriteMiddle, Packet::WriteLast].map(Opcode::Rc);
    assert_eq!(opcodes, expected);
    assert_eq!(syndromes(&world), [READY]);
}

#[test]
fn a_burst_of_small_writes_is_acknowledged_once() {
    let mut world = world(Config::default());
    for id in 0..10 {
        post(&mut world, work(id, Operation::Write(at(8 * id)), 8));
    }
    run(&mut world);
    assert_eq!(sent(&world).len(), 10);
    assert_eq!(syndromes(&world), [READY]);
}

#[test]
fn a_duplicate_write_is_acknowledged_and_not_written_again() {
    let mut world = world(Config::default());
    post(&mut world, work(1, Operation::Write(at(0)), 64));
    run(&mut world);
    world.nodes[1].machine.memory[..64].fill(0xCC);
    duplicate(&mut world, Packet::WriteOnly);
    run(&mut world);

    assert_eq!(memory(&world, 1, 0, 64), [0xCC; 64]);
    assert_eq!(syndromes(&world), [READY, READY]);
}

#[test]
fn a_duplicate_atomic_is_answered_from_the_saved_result() {
    let mut world = world(Config::default());
    lose_first(&mut world, 1, Packet::AtomicAcknowledge);
    post(
        &mut world,
        work(
            1,
            Operation::FetchAdd {
                remote: at(8),
                add: 5,
            },
            8,
        ),
    );
    run(&mut world);

    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(
        count(&world, 0, Packet::FetchAdd),
        2,
        "it was asked for twice"
    );
    assert_eq!(
        memory(&world, 1, 8, 8),
        5u64.to_ne_bytes(),
        "and executed once"
    );
    assert_eq!(memory(&world, 0, LOCAL, 8), 0u64.to_ne_bytes());
}

#[test]
fn a_lost_read_response_is_asked_for_again_from_where_it_broke_off() {
    let mut world = world(Config::default());
    world.nodes[1].machine.memory[..4_096].copy_from_slice(&source(4_096));
    world.nodes[0].machine.memory[LOCAL as usize..LOCAL as usize + 4_096].fill(0);
    lose_first(&mut world, 1, Packet::ReadResponseMiddle);
    post(&mut world, work(1, Operation::Read(at(0)), 4_096));
    run(&mut world);

    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(memory(&world, 0, LOCAL, 4_096), source(4_096));
    let requests: Vec<_> = packets(&world, 0)
        .iter()
        .filter_map(|headers| headers.reth)
        .collect();
    assert_eq!(requests.len(), 2);
    assert_eq!((requests[1].va, requests[1].length), (1_024, 3_072));
}

#[test]
fn a_long_read_is_asked_for_in_pieces_with_consecutive_psns() {
    let config = Config {
        mtu: ringmail_roce::verbs::Mtu::B256,
        ..Config::default()
    };
    let mut world = world(config);
    world.nodes[1].machine.memory[..65_536].copy_from_slice(&source(65_536));
    post(&mut world, work(1, Operation::Read(at(0)), 65_536));
    run(&mut world);

    assert_eq!(memory(&world, 0, LOCAL, 65_536), source(65_536));
    let requests = packets(&world, 0);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].bth.psn.since(requests[0].bth.psn), 240);
    assert_eq!(
        requests[1].reth.map(|reth| (reth.va, reth.length)),
        Some((61_440, 4_096))
    );
}

#[test]
fn a_gap_is_refused_once_and_everything_behind_it_sent_again() {
    let mut world = world(Config::default());
    lose_first(&mut world, 0, Packet::WriteMiddle);
    post(&mut world, work(1, Operation::Write(at(0)), 6_000));
    run(&mut world);

    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(memory(&world, 1, 0, 6_000), source(6_000));
    assert_eq!(
        syndromes(&world),
        [Syndrome::Nak(NakCode::PsnSequence), READY]
    );
    assert_eq!(
        packets(&world, 0).len(),
        6 + 5,
        "all but the first packet went twice"
    );
}

#[test]
fn selective_repeat_sends_only_what_is_missing() {
    let mut world = world(Config {
        extensions: true,
        ..Config::default()
    });
    lose_first(&mut world, 0, Packet::WriteMiddle);
    post(&mut world, work(1, Operation::Write(at(0)), 20_000));
    run(&mut world);

    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(memory(&world, 1, 0, 20_000), source(20_000));
    assert_eq!(packets(&world, 0).len(), 20 + 1);
}

/// A world of software peers, and the virtual time in which `ids` writes or reads of `length` bytes complete after
/// `censor` decided what is lost. Without a measured round trip the first probe comes after 4 ms.
fn time_to_recover(
    operation: Operation,
    ids: std::ops::Range<u64>,
    length: u32,
    censor: impl FnMut(usize, &ringmail_roce::wire::Headers, usize) -> bool + 'static,
) -> (Duration, u64) {
    let mut world = world(Config {
        extensions: true,
        timeout: Some(Duration::from_millis(134)),
        max_rd_atomic: 16,
        ..Config::default()
    });
    lose(&mut world, censor);
    let before = world.now;
    let count = ids.clone().count();
    for id in ids {
        post(&mut world, work(id, operation, length));
    }
    run(&mut world);
    assert_eq!(sent(&world).len(), count);
    assert!(sent(&world).iter().all(|done| done.1 == Status::Success));
    (
        world.now - before,
        world.nodes[0].qp.counters().retransmitted,
    )
}

#[test]
fn a_repetition_that_was_lost_is_told_by_what_was_sent_after_it() {
    let mut first = None;
    let (took, again) = time_to_recover(
        Operation::Write(at(0)),
        0..40,
        8_000,
        move |_, headers, lost| {
            let is_it = headers.bth.opcode == Opcode::Rc(Packet::WriteMiddle)
                && *first.get_or_insert(headers.bth.psn) == headers.bth.psn;
            is_it && lost < 3
        },
    );
    assert!(took < Duration::from_millis(1), "{took:?}");
    assert!(again <= 4, "{again}");
}

#[test]
fn a_lost_read_request_is_told_by_the_next_request() {
    let (took, again) =
        time_to_recover(Operation::Read(at(0)), 0..3, 20_000, |_, headers, lost| {
            headers.bth.opcode == Opcode::Rc(Packet::ReadRequest) && lost == 0
        });
    assert!(took < Duration::from_millis(1), "{took:?}");
    assert_eq!(again, 1);
}

#[test]
fn lost_responses_are_told_by_later_ones_and_asked_for_alone() {
    let (took, again) =
        time_to_recover(Operation::Read(at(0)), 0..3, 20_000, |_, headers, lost| {
            headers.bth.opcode == Opcode::Rc(Packet::ReadResponseMiddle) && lost < 2
        });
    assert!(took < Duration::from_millis(1), "{took:?}");
    assert_eq!(again, 1, "both with one request");
}

#[test]
fn a_last_packet_that_was_lost_is_asked_about_after_two_round_trips() {
    let mut world = world(Config {
        extensions: true,
        timeout: Some(Duration::from_millis(134)),
        ..Config::default()
    });
    post(&mut world, work(0, Operation::Write(at(0)), 8));
    run(&mut world);
    for kind in [Packet::WriteLast, Packet::WriteOnly] {
        let before = world.now;
        lose_first(&mut world, 0, kind);
        let length = if kind == Packet::WriteOnly { 8 } else { 3_000 };
        post(&mut world, work(1, Operation::Write(at(0)), length));
        run(&mut world);
        let took = world.now - before;
        assert!(took < Duration::from_micros(300), "{kind:?}: {took:?}");
    }
    assert_eq!(sent(&world).len(), 3);
}

#[test]
fn a_software_peer_that_stands_still_for_three_seconds_keeps_its_connection() {
    for operation in [Operation::Write(at(0)), Operation::Read(at(0))] {
        let mut world = world(Config {
            extensions: true,
            timeout: Some(Duration::from_millis(134)),
            retry_count: Retries::Limited(7),
            ..Config::default()
        });
        post(&mut world, work(0, operation, 20_000));
        run(&mut world);
        lose(&mut world, |from, _, _| from == 1);
        let before = world.now;
        post(&mut world, work(1, operation, 20_000));
        world.flush(0);
        while world.now - before < Duration::from_secs(3) {
            let moment = world.next_moment().expect("somebody waits");
            world.advance_to(moment);
        }
        world.censor = None;
        run(&mut world);
        assert_eq!(
            sent(&world),
            [(0, Status::Success), (1, Status::Success)],
            "{operation:?}"
        );
        let again = world.nodes[0].qp.counters().retransmitted;
        assert!(again < 60, "{operation:?}: asked {again} times");
    }
}

#[test]
fn a_long_path_is_learned_and_nothing_is_sent_again_on_it() {
    // The first guess at the round trip was too short for any path of more than a few milliseconds, and as everything was sent
    // again before its answer could come, no better one was ever made.
    for operation in [Operation::Write(at(0)), Operation::Read(at(0))] {
        let delay = Duration::from_millis(20);
        let config = Config {
            extensions: true,
            timeout: Some(Duration::from_secs(1)),
            ..Config::default()
        };
        let mut world = world_with(
            config,
            Faults {
                delay,
                ..Faults::none()
            },
        );
        let mut again = Vec::new();
        for id in 0..20 {
            post(&mut world, work(id, operation, 60_000));
            run(&mut world);
            again.push(world.nodes[0].qp.counters().retransmitted);
        }
        assert_eq!(sent(&world).len(), 20);
        assert_eq!(
            again[5], again[19],
            "{operation:?}: still learning: {again:?}"
        );
        let round_trip = world.nodes[0].qp.round_trip().expect("measured");
        assert!(round_trip < 3 * delay, "{operation:?}: {round_trip:?}");
    }
}

#[test]
fn a_window_of_few_packets_is_never_full_of_packets_that_ask_for_nothing() {
    // Every sixteenth packet asked for an acknowledgement: a smaller window ended in silence and a probe.
    let mut world = world(Config {
        extensions: true,
        ..Config::default()
    });
    world.nodes[0].qp.use_extensions(1);
    post(&mut world, work(1, Operation::Write(at(0)), 30_000));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(world.nodes[0].qp.counters().retransmitted, 0);
}

#[test]
fn a_loss_before_both_sides_use_the_extensions_costs_no_timeout() {
    for extended in [0, 1] {
        let timeout = Duration::from_millis(500);
        let mut world = world(Config {
            timeout: Some(timeout),
            ..Config::default()
        });
        world.nodes[extended].qp.use_extensions(200 << 10);
        lose_first(&mut world, 0, Packet::WriteMiddle);
        let before = world.now;
        post(&mut world, work(1, Operation::Write(at(0)), 20_000));
        run(&mut world);

        assert_eq!(sent(&world), [(1, Status::Success)]);
        assert_eq!(memory(&world, 1, 0, 20_000), source(20_000));
        let took = world.now - before;
        assert!(
            took < Duration::from_millis(1),
            "with node {extended} extended: {took:?}"
        );
    }
}

#[test]
fn losses_farther_back_than_a_report_reaches_are_found_out() {
    // A first flight of 440 packets of which the receiver's socket took but a few.
    let mut world = world(Config {
        timeout: Some(Duration::from_millis(100)),
        ..Config::default()
    });
    for node in &mut world.nodes {
        node.qp.set_receive_budget(1 << 20);
        node.qp.use_extensions(1 << 20);
    }
    lose(&mut world, |from, _, lost| from == 0 && lost < 400);
    let before = world.now;
    for id in 0..11 {
        post(&mut world, work(id, Operation::Write(at(0)), 40_000));
    }
    run(&mut world);
    let all: Vec<_> = (0..11).map(|id| (id, Status::Success)).collect();
    assert_eq!(sent(&world), all);
    assert!(memory(&world, 1, 0, 40_000) == source(40_000));
    let took = world.now - before;
    println!("took {took:?}");
    assert!(took < Duration::from_millis(50), "{took:?}");
}

#[test]
fn losses_towards_a_peer_that_goes_back_cost_few_timeouts() {
    // The peer never learnt that extensions are spoken. It throws away what is behind a gap, says so once, and is then
    // silent: where that one word is lost, too, only the question for the oldest packet is ever answered.
    let timeout = Duration::from_millis(100);
    let mut worst = Duration::ZERO;
    for seed in 0..40 {
        let mut world = world(Config {
            timeout: Some(timeout),
            retry_count: Retries::Unlimited,
            ..Config::default()
        });
        world.nodes[0].qp.use_extensions(200 << 10);
        let mut rng = Rng::new(seed);
        lose(&mut world, move |from, _, _| {
            rng.chance(if from == 0 { 0.07 } else { 0.3 })
        });
        let before = world.now;
        post(&mut world, work(1, Operation::Write(at(0)), 40_000));
        run(&mut world);
        assert_eq!(sent(&world), [(1, Status::Success)]);
        assert!(memory(&world, 1, 0, 40_000) == source(40_000));
        worst = worst.max(world.now - before);
    }
    println!("worst: {worst:?}");
    assert!(
        worst < 25 * timeout,
        "{worst:?}: more than one for two packets"
    );
}

#[test]
fn a_send_waits_for_a_receive_as_long_as_the_receiver_asks() {
    let mut world = world(Config {
        min_rnr_timer: 14,
        ..Config::default()
    });
    post(&mut world, work(1, Operation::Send, 2_000));
    world.flush(0);
    let moment = world.next_moment().expect("a packet is on its way");
    world.advance_to(moment);
    assert_eq!(syndromes(&world), [Syndrome::RnrNak { timer: 14 }]);

    post_recv(&mut world, 7, 2_000);
    let before = world.now;
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::Success)]);
    assert_eq!(received(&world), [(7, Status::Success)]);
    assert_eq!(memory(&world, 1, LOCAL, 2_000), source(2_000));
    assert!(
        world.now - before >= Duration::from_millis(1),
        "code 14 is 1.28 ms"
    );
}

#[test]
fn a_receiver_that_never_gets_ready_ends_the_send_after_the_agreed_tries() {
    let mut world = world(Config {
        rnr_retry: Retries::Limited(3),
        ..Config::default()
    });
    post(&mut world, work(1, Operation::Send, 10));
    post(&mut world, work(2, Operation::Write(at(0)), 10));
    run(&mut world);

    assert_eq!(
        sent(&world),
        [(1, Status::RnrRetryExceeded), (2, Status::Flushed)]
    );
    assert_eq!(count(&world, 0, Packet::SendOnly), 1 + 3);
    assert_eq!(world.nodes[0].qp.state(), QpState::Err);
}

#[test]
fn silence_ends_the_work_after_the_agreed_tries() {
    for extensions in [false, true] {
        let timeout = Duration::from_micros(500);
        let config = Config {
            retry_count: Retries::Limited(4),
            timeout: Some(timeout),
            extensions,
            ..Config::default()
        };
        let mut world = world(config);
        lose(&mut world, |from, _, _| from == 1);
        let before = world.now;
        post(&mut world, work(1, Operation::Write(at(0)), 10));
        post(&mut world, work(2, Operation::Write(at(0)), 10));
        run(&mut world);

        assert_eq!(
            sent(&world),
            [(1, Status::RetryExceeded), (2, Status::Flushed)]
        );
        let took = world.now - before;
        // Between software peers a try may take all of the four timeouts that IBA allows it.
        let tries = if extensions { 5 * 4 } else { 5 };
        assert!(
            took >= timeout * tries && took <= timeout * (tries + 2),
            "extensions {extensions}: gave up after {took:?}"
        );
    }
}

#[test]
fn a_refusal_that_got_lost_is_said_again() {
    let mut world = world(Config::default());
    lose_first(&mut world, 1, Packet::Acknowledge);
    post(&mut world, work(1, Operation::Write(at(EXPOSED)), 10));
    run(&mut world);
    assert_eq!(sent(&world), [(1, Status::RemoteAccess)]);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_says_nothing() {
    let mut world = world(Config::default());
    lose(&mut world, |from, _, _| from == 0);
    post(&mut world, work(1, Operation::Write(at(0)), 10));
    world.flush(0);
    let mut forged = packets(&world, 0)[0];
    forged.bth.opcode = Opcode::Rc(Packet::Acknowledge);
    forged.reth = None;
    forged.aeth = Some(ringmail_roce::wire::Aeth {
        syndrome: READY,
        msn: 1,
    });
    for ahead in [1, 2, 1_000, 1 << 22] {
        forged.bth.psn = packets(&world, 0)[0].bth.psn + ahead;
        let arrival = ringmail_roce::host::Arrival {
            source: world.nodes[1].address,
            destination: world.nodes[0].address,
            traffic_class: 0,
            hop_limit: 64,
            udp_length: 28,
        };
        let node = &mut world.nodes[0];
        node.qp
            .handle_packet(world.now, &arrival, &forged, &[], &mut node.machine);
    }
    assert_eq!(sent(&world), []);
}
