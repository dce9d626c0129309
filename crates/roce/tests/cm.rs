//! Connection management as traces: two managers, a wire that misbehaves, virtual time.

#[path = "support/cm_pair.rs"]
mod cm_pair;
#[path = "support/pcap.rs"]
#[expect(dead_code, reason = "only the payloads matter here")]
mod pcap;

use std::net::IpAddr;
use std::time::Duration;

use cm_pair::{A, B, Pair, SERVICE, address, connect_params, end, name, route};
use proptest::prelude::*;
use ringmail_roce::cm::{AcceptParams, Cm, CmError, CmEvent, Config, Mad, Route};
use ringmail_roce::time::Instant;
use ringmail_roce::wire::cm::{CommId, Message, RejectReason, ServiceId, SidrStatus};
use ringmail_roce::wire::extension::Offer;
use ringmail_roce::wire::mad::MAD_LEN;
use ringmail_roce::wire::{Guid, Headers, Psn, Qpn};

const MINUTES: Duration = Duration::from_secs(300);

#[test]
fn a_connection_comes_up_and_goes_down() {
    let mut pair = Pair::new();
    let id = pair.connect();
    pair.settle();
    assert_eq!(pair.heard(A), ["ConnectReply", "Established"]);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Established"]);

    pair.disconnect(A, id);
    pair.run(MINUTES);
    assert_eq!(pair.trace(), "A:REQ B:REP A:RTU A:DREQ B:DREP");
    assert_eq!(pair.heard(A)[2..], ["Disconnected", "Closed"]);
    assert_eq!(pair.heard(B)[2..], ["Disconnected", "Closed"]);
    assert!(
        pair.cm.iter().all(Cm::is_empty),
        "nothing is remembered for ever"
    );
}

#[test]
fn each_side_learns_of_the_other() {
    let mut pair = Pair::new();
    pair.connect();
    pair.settle();

    let (_, request) = pair.requested(B);
    assert_eq!(request.peer.end, end(A));
    assert_eq!((request.retry_count, request.ack_timeout), (7, 14));
    assert_eq!(request.private_data[..5], *b"hello");
    assert_eq!(request.private_data.len(), 56);
    let ip = request.ip.expect("a port was asked for");
    assert_eq!((ip.source(), ip.source_port), (address(A), 40_000));

    let (peer, private_data) = pair.replied(A);
    assert_eq!((peer.end.qpn, peer.end.psn), (end(B).qpn, end(B).psn));
    // B wants 8 READs outstanding, A can answer 4; B can answer 4, A wants 8.
    assert_eq!(
        (peer.end.initiator_depth, peer.end.responder_resources),
        (4, 4)
    );
    assert_eq!(private_data[..7], *b"welcome");
    assert!(
        private_data[7..].iter().all(|&byte| byte == 0),
        "the offer is not the application's"
    );
}

#[test]
fn software_peers_exchange_offers_and_strangers_never_see_one() {
    let config = |seed, window| Config {
        offer: Some(Offer {
            version: 1,
            flags: Offer::SACK,
            window,
        }),
        ..Config::new(seed)
    };
    let offer = |pair: &Pair, side: usize| {
        pair.events[side].iter().find_map(|event| match event {
            CmEvent::Established { offer, .. } => Some(offer.map(|offer| offer.window)),
            _ => None,
        })
    };

    let mut both = Pair::with(config(1, 11), config(2, 22));
    both.connect();
    both.settle();
    assert_eq!(both.requested(B).1.peer.extensions, Some(1));
    assert_eq!(both.replied(A).0.extensions, Some(1));
    assert_eq!(
        (offer(&both, A), offer(&both, B)),
        (Some(Some(22)), Some(Some(11)))
    );

    let stranger = |seed| Config::new(seed).without_extensions(Guid(0x5054_00FF_FE00_0001));
    for (a, b) in [(config(1, 11), stranger(2)), (stranger(1), config(2, 22))] {
        let mut pair = Pair::with(a, b).with_fate(|_, message| {
            let private_data = match message {
                Message::Req(req) => &req.private_data[36..],
                Message::Rep(rep) => &rep.private_data[..],
                Message::Rtu(rtu) => &rtu.private_data[..],
                _ => &[],
            };
            let marked = private_data.windows(3).any(|bytes| bytes == b"RML");
            assert!(!marked, "{} carries an offer to a stranger", message.name());
            vec![Duration::from_millis(1)]
        });
        pair.connect();
        pair.settle();
        assert_eq!((offer(&pair, A), offer(&pair, B)), (Some(None), Some(None)));
        assert_eq!(pair.requested(B).1.peer.extensions, None);
        assert_eq!(pair.replied(A).0.extensions, None);
    }
}

#[test]
fn a_lost_request_is_repeated() {
    let mut pair = Pair::new().losing("REQ", 2);
    pair.connect();
    pair.settle();
    assert_eq!(pair.trace(), "A:REQ! A:REQ! A:REQ B:REP A:RTU");
}

#[test]
fn a_lost_reply_is_repeated_to_the_repeated_request() {
    let mut pair = Pair::new().losing("REP", 1);
    pair.connect();
    pair.settle();
    assert!(
        pair.trace().starts_with("A:REQ B:REP! A:REQ B:REP"),
        "{}",
        pair.trace()
    );
    assert_eq!(
        pair.heard(B),
        ["ConnectRequest", "Established"],
        "one request, one connection"
    );
    assert_eq!(pair.cm[B].len(), 1);
}

#[test]
fn a_duplicate_request_gets_the_same_reply() {
    let mut replies: Vec<Message> = Vec::new();
    let (tell, told) = std::sync::mpsc::channel();
    let mut pair = Pair::new().with_fate(move |_, message| {
        if let Message::Rep(_) = message {
            tell.send(*message).expect("the test listens");
            return Vec::new();
        }
        vec![Duration::from_millis(1), Duration::from_millis(2)]
    });
    pair.connect();
    pair.settle();
    replies.extend(told.try_iter());
    assert!(replies.len() >= 4, "{} replies", replies.len());
    assert!(
        replies.iter().all(|reply| *reply == replies[0]),
        "{replies:?}"
    );
    assert_eq!(pair.heard(B), ["ConnectRequest"]);
}

#[test]
fn a_lost_rtu_is_repeated_to_the_repeated_reply() {
    let mut pair = Pair::new().losing("RTU", 1);
    pair.connect();
    pair.settle();
    assert_eq!(pair.trace(), "A:REQ B:REP A:RTU! B:REP A:RTU");
    assert_eq!(pair.heard(B), ["ConnectRequest", "Established"]);
}

#[test]
fn data_before_a_lost_rtu_establishes() {
    let mut pair = Pair::new().losing("RTU", 99);
    pair.connect();
    pair.run(Duration::from_millis(10));
    let (id, _) = pair.requested(B);
    assert_eq!(pair.heard(B), ["ConnectRequest"]);
    pair.cm[B].establish(id).expect("the reply is sent");
    pair.run(MINUTES);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Established"]);
    assert_eq!(
        pair.trace(),
        "A:REQ B:REP A:RTU!",
        "the reply is not repeated any more"
    );
}

#[test]
fn a_release_before_a_lost_rtu_is_still_a_connection_that_ends() {
    let mut pair = Pair::new().losing("RTU", 99);
    let id = pair.connect();
    pair.run(Duration::from_millis(10));
    pair.disconnect(A, id);
    pair.run(MINUTES);
    assert_eq!(
        pair.heard(B),
        ["ConnectRequest", "Established", "Disconnected", "Closed"]
    );
}

#[test]
fn a_rejection_carries_reason_and_private_data() {
    let mut pair = Pair::new().manual().losing("REJ", 1);
    pair.connect();
    pair.run(Duration::from_millis(5));
    let (id, _) = pair.requested(B);
    let now = pair.now;
    pair.cm[B]
        .reject(now, id, RejectReason::Consumer, b"no")
        .expect("a request");
    pair.run(MINUTES);
    assert_eq!(
        pair.trace(),
        "A:REQ B:REJ! A:REQ B:REJ",
        "the repeated request is refused alike"
    );
    let [
        CmEvent::Rejected {
            reason,
            private_data,
            ..
        },
    ] = &pair.events[A][..]
    else {
        panic!("{:?}", pair.events[A]);
    };
    assert_eq!(
        (*reason, &private_data[..2]),
        (RejectReason::Consumer, &b"no"[..])
    );
    assert!(pair.cm.iter().all(Cm::is_empty));
}

#[test]
fn a_reply_can_be_refused() {
    let mut pair = Pair::new().manual();
    let id = pair.connect();
    pair.run(Duration::from_millis(5));
    let (asked, _) = pair.requested(B);
    pair.accept(B, asked);
    pair.run(Duration::from_millis(5));
    let now = pair.now;
    pair.cm[A]
        .reject(now, id, RejectReason::Consumer, b"changed my mind")
        .expect("a reply");
    pair.run(MINUTES);
    assert_eq!(pair.trace(), "A:REQ B:REP A:REJ");
    assert_eq!(pair.heard(B), ["ConnectRequest", "Rejected(Consumer)"]);
    assert!(pair.cm.iter().all(Cm::is_empty));
}

#[test]
fn nobody_listens() {
    let mut pair = Pair::new();
    pair.cm[B].unlisten(SERVICE);
    pair.connect();
    pair.settle();
    assert_eq!(pair.heard(A), ["Rejected(InvalidServiceId)"]);
    assert!(pair.cm[B].is_empty(), "a refused stranger costs no memory");
    assert_eq!(pair.cm[A].listen(SERVICE), Ok(()));
    assert_eq!(pair.cm[A].listen(SERVICE), Err(CmError::InUse(SERVICE)));
}

#[test]
fn an_attempt_at_nobody_fails_in_bounded_time() {
    let mut pair = Pair::new().losing("REQ", 99);
    pair.connect();
    pair.run(Duration::from_secs(70));
    assert_eq!(pair.heard(A), ["Failed(Unreachable)"]);
    assert_eq!(
        pair.trace.iter().filter(|sent| *sent == "A:REQ!").count(),
        16
    );
    assert_eq!(pair.trace.last().map(String::as_str), Some("A:REJ"));
    assert!(pair.cm.iter().all(Cm::is_empty));
}

#[test]
fn a_passive_side_whose_peer_is_gone_gives_up() {
    let mut pair = Pair::new().losing("REP", 99);
    pair.connect();
    pair.run(Duration::from_millis(5));
    // The peer dies: it does not even say that it gives up.
    pair.cm[A] = Cm::new(Config::new(77));
    pair.run(MINUTES);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Failed(Unreachable)"]);
    assert!(pair.cm[B].is_empty());
}

#[test]
fn an_attempt_that_is_given_up_ends_on_the_other_side_too() {
    let mut pair = Pair::new().manual();
    let id = pair.connect();
    pair.run(Duration::from_millis(5));
    pair.disconnect(A, id);
    pair.run(MINUTES);
    assert_eq!(pair.trace(), "A:REQ A:REJ");
    assert_eq!(pair.heard(B), ["ConnectRequest", "Rejected(Timeout)"]);
    let (asked, _) = pair.requested(B);
    let params = AcceptParams {
        end: end(B),
        private_data: Vec::new(),
    };
    let now = pair.now;
    assert_eq!(
        pair.cm[B].accept(now, asked, &params),
        Err(CmError::Unknown(asked))
    );
}

#[test]
fn a_slow_application_is_waited_for() {
    let mut pair = Pair::new().manual();
    pair.connect();
    pair.run(Duration::from_secs(100));
    assert_eq!(pair.heard(A), [""; 0], "the attempt is still on");
    let repetitions = pair.trace.iter().filter(|sent| *sent == "A:REQ").count();
    assert!(
        repetitions < 20,
        "who is told to wait does not ask again and again: {repetitions}"
    );

    let (id, _) = pair.requested(B);
    pair.accept(B, id);
    pair.run(Duration::from_secs(30));
    assert_eq!(pair.heard(A), ["ConnectReply"]);
    let id = only_id(&pair.events[A]);
    pair.cm[A].establish(id).expect("a reply");
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.heard(B), ["ConnectRequest", "Established"]);
}

#[test]
fn both_sides_may_disconnect_at_once() {
    let mut pair = Pair::new();
    let id = pair.connect();
    pair.settle();
    let (other, _) = pair.requested(B);
    let now = pair.now;
    pair.cm[A].disconnect(now, id).expect("up");
    pair.cm[B].disconnect(now, other).expect("up");
    pair.run(MINUTES);
    for side in [A, B] {
        assert_eq!(pair.heard(side)[2..], ["Disconnected", "Closed"]);
    }
    assert!(pair.cm.iter().all(Cm::is_empty));
}

#[test]
fn the_passive_side_may_disconnect_and_lost_messages_are_repeated() {
    for lost in ["DREQ", "DREP"] {
        let mut pair = Pair::new().losing(lost, 2);
        pair.connect();
        pair.settle();
        let (id, _) = pair.requested(B);
        pair.disconnect(B, id);
        pair.run(MINUTES);
        for side in [A, B] {
            assert_eq!(pair.heard(side)[2..], ["Disconnected", "Closed"], "{lost}");
        }
    }
}

#[test]
fn a_peer_that_is_gone_does_not_hold_a_disconnect_for_ever() {
    let mut pair = Pair::new().losing("DREQ", 99);
    let id = pair.connect();
    pair.settle();
    pair.disconnect(A, id);
    pair.run(MINUTES);
    assert_eq!(pair.heard(A)[2..], ["Disconnected", "Closed"]);
    assert!(pair.cm[A].is_empty());
}

#[test]
fn a_restarted_peer_finds_its_stale_connection_gone_on_the_second_try() {
    let mut pair = Pair::new();
    pair.connect();
    pair.settle();
    // A dies and comes back, and draws the same queue pair number.
    pair.cm[A] = Cm::new(Config::new(99));
    pair.connect();
    pair.settle();
    assert_eq!(pair.heard(A)[2..], ["Rejected(StaleConnection)"]);
    assert_eq!(
        pair.heard(B)[2..],
        ["Disconnected"],
        "the old connection is ended"
    );
    pair.connect();
    pair.settle();
    assert_eq!(pair.heard(A)[3..], ["ConnectReply", "Established"]);
}

#[test]
fn requests_that_cross_are_two_connections() {
    let mut pair = Pair::new();
    pair.cm[A].listen(SERVICE).expect("nobody listens yet");
    // The queue pairs of requests and replies differ, as they do when each has one of its own.
    let mut params = connect_params(B);
    params.end.qpn = Qpn::new(0x333);
    let now = pair.now;
    pair.cm[A].connect(now, &connect_params(A)).expect("valid");
    pair.cm[B].connect(now, &params).expect("valid");
    pair.accept_with_queue_pairs_from(0x444);
    for side in [A, B] {
        let heard = pair.heard(side);
        assert_eq!(
            heard.iter().filter(|event| *event == "Established").count(),
            2,
            "{heard:?}"
        );
    }
}

impl Pair {
    /// Both applications accept with a queue pair of its own for each request.
    fn accept_with_queue_pairs_from(&mut self, first_qpn: u32) {
        self.obliging = false;
        self.run(Duration::from_millis(5));
        for side in [A, B] {
            let (id, _) = self.requested(side);
            let mut end = end(side);
            end.qpn = Qpn::new(first_qpn + side as u32);
            let params = AcceptParams {
                end,
                private_data: Vec::new(),
            };
            let now = self.now;
            self.cm[side].accept(now, id, &params).expect("a request");
        }
        self.obliging = true;
        self.settle();
    }
}

#[test]
fn datagram_services_are_resolved_also_over_loss() {
    for lost in ["", "SIDR_REQ", "SIDR_REP"] {
        let service = ServiceId::udp(7174);
        let mut pair = Pair::new().losing(if lost.is_empty() { "-" } else { lost }, 1);
        pair.cm[B].listen(service).expect("nobody listens yet");
        let now = pair.now;
        let id = pair.cm[A]
            .resolve(now, route(A), service, 40_000, b"who?")
            .expect("fits");
        pair.run(Duration::from_millis(60));
        let [
            CmEvent::ResolveRequest {
                id: asked,
                private_data,
                ip: Some(ip),
                ..
            },
        ] = &pair.events[B][..]
        else {
            panic!("{:?}", pair.events[B]);
        };
        assert_eq!(
            (&private_data[..4], ip.source()),
            (&b"who?"[..], address(A))
        );
        let (asked, now) = (*asked, pair.now);
        let served = Ok((Qpn::new(0x77), 0x0123_4567));
        pair.cm[B]
            .resolve_reply(now, asked, served, b"me")
            .expect("a request");
        assert!(
            pair.cm[B].resolve_reply(now, asked, served, b"me").is_err(),
            "once"
        );
        pair.run(MINUTES);
        let [
            CmEvent::Resolved {
                id: resolved,
                qpn,
                qkey,
                private_data,
            },
        ] = &pair.events[A][..]
        else {
            panic!("{:?}", pair.events[A]);
        };
        assert_eq!((*resolved, *qpn, *qkey), (id, Qpn::new(0x77), 0x0123_4567));
        assert_eq!(private_data[..2], *b"me");
        assert!(pair.cm.iter().all(Cm::is_empty));
    }
}

#[test]
fn unknown_datagram_services_are_refused_and_silence_ends() {
    let mut pair = Pair::new();
    let (now, service) = (pair.now, ServiceId::udp(9));
    pair.cm[A]
        .resolve(now, route(A), service, 1, b"")
        .expect("fits");
    pair.settle();
    let [CmEvent::ResolveRefused { status, .. }] = &pair.events[A][..] else {
        panic!("{:?}", pair.events[A]);
    };
    assert_eq!(*status, SidrStatus::UnknownService);

    let mut pair = Pair::new().losing("SIDR_REQ", 99);
    pair.cm[A]
        .resolve(now, route(A), service, 1, b"")
        .expect("fits");
    pair.run(MINUTES);
    assert_eq!(pair.heard(A), ["Failed(Unreachable)"]);
}

#[test]
fn private_data_that_does_not_fit_is_refused() {
    let mut cm = Cm::new(Config::new(1));
    let mut params = connect_params(A);
    params.private_data = vec![0; 57];
    let refused = cm.connect(Instant::ZERO, &params);
    assert_eq!(
        refused,
        Err(CmError::PrivateDataTooLong { most: 56, got: 57 })
    );
    params.service = ServiceId(9);
    params.private_data = vec![0; 92];
    assert!(cm.connect(Instant::ZERO, &params).is_ok());
}

#[test]
fn a_flood_of_requests_is_bounded_and_newer_ones_get_through() {
    let config = Config {
        max_half_open: 100,
        ..Config::new(2)
    };
    let mut flooded = Cm::new(config);
    flooded.listen(SERVICE).expect("nobody listens yet");
    for seed in 0..1000 {
        let mut peer = Cm::new(Config::new(seed));
        let mut params = connect_params(A);
        params.end.qpn = Qpn::new(seed as u32);
        peer.connect(Instant::ZERO, &params).expect("valid");
        let (_, mad) = peer.poll_transmit().expect("a request");
        flooded.handle_mad(Instant::ZERO, route(B), &mad);
        assert!(flooded.len() <= 100);
    }
    assert_eq!(flooded.counters().evicted, 900);
    let requests = std::iter::from_fn(|| flooded.poll_event())
        .filter(|event| matches!(event, CmEvent::ConnectRequest { .. }));
    assert_eq!(
        requests.count(),
        100,
        "what was given up unheard stays unheard"
    );
}

#[test]
fn the_kernels_request_is_understood() {
    let packet = pcap::read("rxe_cm_ipv4").remove(0);
    let (_, mad) = Headers::parse(&packet.udp_payload).expect("a packet");
    let mut cm = Cm::new(Config::new(1));
    let service = ServiceId::tcp(7174);
    cm.listen(service).expect("nobody listens yet");
    let route = Route {
        local: packet.destination.ip(),
        remote: packet.source.ip(),
    };
    cm.handle_mad(Instant::ZERO, route, mad);

    let Some(CmEvent::ConnectRequest { id, request }) = cm.poll_event() else {
        panic!("no request: {:?}", cm.counters());
    };
    assert_eq!(
        (request.service, request.peer.end.qpn),
        (service, Qpn::new(0x11))
    );
    assert_eq!(request.peer.end.psn, Psn::new(0xC9_743B));
    // It is the one at which the kernel's passive side then starts, not the active side.
    let first = pcap::read("rxe_cm_ipv4")
        .into_iter()
        .filter(|later| later.source.ip() == packet.destination.ip())
        .find_map(|later| {
            let (headers, _) = Headers::parse(&later.udp_payload).expect("a packet");
            (headers.bth.dest_qp == request.peer.end.qpn && headers.aeth.is_none())
                .then_some(headers.bth.psn)
        });
    assert_eq!(first, Some(request.peer.end.psn));
    assert_eq!(request.peer.extensions, None, "rxe is a stranger");
    let params = AcceptParams {
        end: end(B),
        private_data: Vec::new(),
    };
    cm.accept(Instant::ZERO, id, &params).expect("a request");
    let (_, mad) = cm.poll_transmit().expect("a reply");
    let Ok((transaction, Message::Rep(rep))) = Message::parse(&mad) else {
        panic!("not a reply");
    };
    assert_eq!(
        (transaction, rep.remote),
        (0x0000_0002_fda1_2b4d, CommId(0x4d2b_a1fd))
    );
}

#[test]
fn any_mixture_of_loss_duplication_and_delay_ends_well() {
    for seed in 0..2000 {
        let mut random = Random(seed);
        let mut pair = Pair::with(Config::new(seed), Config::new(seed + 1_000_000)).with_fate({
            let mut random = Random(seed ^ 0xFEED);
            move |_, _| {
                let copies = match random.below(10) {
                    0..3 => 0,
                    3..5 => 2,
                    _ => 1,
                };
                (0..copies)
                    .map(|_| Duration::from_millis(1 + random.below(200)))
                    .collect()
            }
        });
        let id = pair.connect();
        pair.run(Duration::from_secs(60));
        assert_eq!(
            pair.heard(A),
            ["ConnectReply", "Established"],
            "seed {seed}: {}",
            pair.trace()
        );
        assert_eq!(
            pair.heard(B),
            ["ConnectRequest", "Established"],
            "seed {seed}"
        );

        let (other, _) = pair.requested(B);
        match random.below(3) {
            0 => pair.disconnect(A, id),
            1 => pair.disconnect(B, other),
            _ => {
                pair.disconnect(A, id);
                pair.disconnect(B, other);
            }
        }
        pair.run(MINUTES);
        for side in [A, B] {
            assert_eq!(
                pair.heard(side)[2..],
                ["Disconnected", "Closed"],
                "seed {seed}"
            );
            assert!(pair.cm[side].is_empty(), "seed {seed}");
            assert_eq!(pair.cm[side].poll_timeout(), None, "seed {seed}");
        }
    }
}

/// A step of the fuzz test.
#[derive(Debug, Clone)]
enum Step {
    /// Random bytes.
    Noise(Vec<u8>),
    /// A message that one side has sent, with some bytes changed, to either side.
    Mangled {
        which: usize,
        to: usize,
        changes: Vec<(usize, u8)>,
    },
    /// A command on some connection.
    Command { side: usize, kind: u8, which: usize },
    /// Time passes.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..64usize, any::<u8>());
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Step::Noise),
        (
            any::<usize>(),
            0..2usize,
            proptest::collection::vec(change, 0..3)
        )
            .prop_map(|(which, to, changes)| Step::Mangled { which, to, changes }),
        (0..2usize, 0..8u8, any::<usize>()).prop_map(|(side, kind, which)| Step::Command {
            side,
            kind,
            which
        }),
        (0..10_000u64).prop_map(Step::Pass),
    ]
}

/// As many cases as `PROPTEST_CASES` asks for, and `cases` without being asked.
fn at_least(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.max(cases),
        ..config
    }
}

proptest! {
    #![proptest_config(at_least(500))]

    #[test]
    fn nothing_a_peer_sends_panics(steps in proptest::collection::vec(step(), 1..200)) {
        let config = |seed| Config { max_half_open: 8, ..Config::new(seed) };
        let mut cm = [Cm::new(config(1)), Cm::new(config(2))];
        let mut now = Instant::ZERO;
        let mut mads: Vec<Mad> = Vec::new();
        let mut ids = [vec![CommId(1)], vec![CommId(1)]];
        for one in &mut cm {
            one.listen(SERVICE).expect("nobody listens yet");
        }
        for step in steps {
            match step {
                Step::Noise(bytes) => cm[A].handle_mad(now, route(A), &bytes),
                Step::Mangled { which, to, changes } if !mads.is_empty() => {
                    let mut mad = mads[which % mads.len()];
                    for (at, value) in changes {
                        mad[at] = value;
                    }
                    cm[to].handle_mad(now, route(to), &mad);
                }
                Step::Mangled { .. } => {}
                Step::Command { side, kind, which } => {
                    let id = ids[side][which % ids[side].len()];
                    command(&mut cm[side], now, side, kind, id);
                }
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    cm[A].handle_timeout(now);
                    cm[B].handle_timeout(now);
                }
            }
            for side in [A, B] {
                mads.extend(std::iter::from_fn(|| cm[side].poll_transmit()).map(|(_, mad)| mad));
                while let Some(event) = cm[side].poll_event() {
                    ids[side].extend(event_id(&event));
                }
                prop_assert!(cm[side].poll_timeout().is_none_or(|at| at > now));
            }
        }
        // Whatever happened: an hour later nothing is under way, only what is established remains.
        for _ in 0..60 {
            now += Duration::from_secs(60);
            for one in &mut cm {
                one.handle_timeout(now);
                while one.poll_transmit().is_some() {}
                while one.poll_event().is_some() {}
            }
        }
        for one in &cm {
            prop_assert_eq!(one.poll_timeout(), None);
        }
    }
}

fn command(cm: &mut Cm, now: Instant, side: usize, kind: u8, id: CommId) {
    // Refused commands are part of the test: what is asked is that none panics.
    let accept = AcceptParams {
        end: end(side),
        private_data: Vec::new(),
    };
    let _: Result<(), CmError> = match kind {
        0 => cm.connect(now, &connect_params(side)).map(drop),
        1 => cm.accept(now, id, &accept),
        2 => cm.reject(now, id, RejectReason::Consumer, b"no"),
        3 => cm.establish(id),
        4 | 5 => cm.disconnect(now, id),
        6 => cm.resolve(now, route(side), SERVICE, 1, b"").map(drop),
        _ => cm.resolve_reply(now, id, Ok((Qpn::new(1), 2)), b""),
    };
}

fn event_id(event: &CmEvent) -> Option<CommId> {
    match event {
        CmEvent::ConnectRequest { id, .. }
        | CmEvent::ConnectReply { id, .. }
        | CmEvent::Established { id, .. }
        | CmEvent::ResolveRequest { id, .. } => Some(*id),
        _ => None,
    }
}

fn only_id(events: &[CmEvent]) -> CommId {
    events
        .iter()
        .find_map(event_id)
        .unwrap_or_else(|| panic!("no id in {:?}", events.iter().map(name).collect::<Vec<_>>()))
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn requests_for_other_addresses_packets_are_refused() {
    // A request whose connection's packets would go to a third party.
    let mut peer = Cm::new(Config::new(1));
    peer.connect(Instant::ZERO, &connect_params(A))
        .expect("valid");
    let (_, mad) = peer.poll_transmit().expect("a request");
    let mut cm = Cm::new(Config::new(2));
    cm.listen(SERVICE).expect("nobody listens yet");
    let elsewhere = Route {
        local: address(B),
        remote: IpAddr::from([10, 0, 0, 9]),
    };
    cm.handle_mad(Instant::ZERO, elsewhere, &mad);
    let (_, answer) = cm.poll_transmit().expect("a refusal");
    let Ok((_, Message::Rej(rej))) = Message::parse(&answer[..MAD_LEN]) else {
        panic!("not a refusal");
    };
    assert_eq!(rej.reason, RejectReason::PrimaryGid);
    assert!(cm.is_empty());
}

#[test]
fn messages_from_another_address_touch_no_connection() {
    // Each message of a whole life, once more from an address that is not the peer's, before the real one.
    let stranger = IpAddr::from([10, 0, 0, 9]);
    let mut cm = [Cm::new(Config::new(1)), Cm::new(Config::new(2))];
    cm[B].listen(SERVICE).expect("nobody listens yet");
    let id = cm[A]
        .connect(Instant::ZERO, &connect_params(A))
        .expect("valid");
    let mut heard = [Vec::new(), Vec::new()];
    for round in 0..20 {
        for side in [A, B] {
            while let Some((way, mad)) = cm[side].poll_transmit() {
                if way.remote != address(1 - side) {
                    continue;
                }
                let spoofed = Route {
                    local: address(1 - side),
                    remote: stranger,
                };
                cm[1 - side].handle_mad(Instant::ZERO, spoofed, &mad);
                let events: Vec<_> = std::iter::from_fn(|| cm[1 - side].poll_event()).collect();
                assert!(events.is_empty(), "{events:?}");
                cm[1 - side].handle_mad(Instant::ZERO, route(1 - side), &mad);
            }
            while let Some(event) = cm[side].poll_event() {
                let accept = AcceptParams {
                    end: end(side),
                    private_data: Vec::new(),
                };
                match &event {
                    CmEvent::ConnectRequest { id, .. } => {
                        cm[side]
                            .accept(Instant::ZERO, *id, &accept)
                            .expect("a request");
                    }
                    CmEvent::ConnectReply { id, .. } => cm[side].establish(*id).expect("a reply"),
                    _ => {}
                }
                heard[side].push(name(&event));
            }
        }
        if round == 10 {
            cm[A].disconnect(Instant::ZERO, id).expect("up");
        }
    }
    assert_eq!(heard[A], ["ConnectReply", "Established", "Disconnected"]);
    assert_eq!(heard[B], ["ConnectRequest", "Established", "Disconnected"]);
}

#[test]
fn a_slow_application_asks_for_time_before_the_peer_asks_again() {
    let patient = Config {
        first_repeat: Duration::from_secs(4),
        ..Config::new(1)
    };
    let mut pair = Pair::with(patient, Config::new(2)).manual();
    pair.connect();
    // The peer waits 4.3 s for an answer; half of it has passed.
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.trace(), "A:REQ B:MRA");
}

#[test]
fn a_lost_drep_is_repeated_to_the_repeated_dreq() {
    let mut pair = Pair::new().losing("DREP", 1);
    let id = pair.connect();
    pair.settle();
    pair.disconnect(A, id);
    pair.run(Duration::from_millis(200));
    assert_eq!(pair.trace[3..].join(" "), "A:DREQ B:DREP! A:DREQ B:DREP");
}

#[test]
fn an_acceptance_that_was_lost_and_taken_back_ends_the_attempt() {
    let mut pair = Pair::new().losing("REP", 1);
    pair.connect();
    pair.run(Duration::from_millis(5));
    let (id, _) = pair.requested(B);
    pair.disconnect(B, id);
    pair.run(MINUTES);
    assert_eq!(pair.heard(A), ["Rejected(StaleConnection)"]);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Disconnected", "Closed"]);
    assert!(pair.cm.iter().all(Cm::is_empty));
}

#[test]
fn an_application_that_never_answers_is_not_waited_for_for_ever() {
    let mut pair = Pair::new().manual();
    pair.connect();
    pair.run(MINUTES);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Failed(TooSlow)"]);
    assert_eq!(pair.heard(A), ["Rejected(Timeout)"]);

    let mut pair = Pair::new().manual();
    pair.connect();
    pair.run(Duration::from_millis(5));
    let (id, _) = pair.requested(B);
    pair.accept(B, id);
    pair.run(MINUTES);
    assert_eq!(pair.heard(A), ["ConnectReply", "Failed(TooSlow)"]);
    assert_eq!(pair.heard(B), ["ConnectRequest", "Rejected(Timeout)"]);
    assert!(pair.cm.iter().all(Cm::is_empty));
}
