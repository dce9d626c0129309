//! Connections brought up and down by the connection manager, over queue pair 1 of the same sockets.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ringmail_rnic::{Agreement, CmChannel, DeviceConfig};
use roce::cm::{AcceptParams, CmEvent, ConnectParams, End, Failure, Route};
use roce::verbs::{Mtu, Operation, QpType, Status};
use roce::wire::cm::{RejectReason, ServiceId, SidrStatus};
use roce::wire::{Psn, Qpn};
use support::{ALL, Side, until};

fn event(channel: &CmChannel) -> CmEvent {
    until(|| channel.try_event().unwrap())
}

fn params(a: &Side, b: &Side, service: ServiceId) -> ConnectParams {
    ConnectParams {
        route: Route {
            local: a.device.address(),
            remote: b.device.address(),
        },
        service,
        source_port: 40_000,
        end: a.qp.end(16, false),
        transport: QpType::Rc,
        path_mtu: Mtu::B4096,
        retry_count: 7,
        ack_timeout: 15,
        private_data: b"hello".to_vec(),
    }
}

/// Two sides, connected; the channels and the connections' names.
fn connected(config: &DeviceConfig) -> ((Side, CmChannel), (Side, CmChannel)) {
    let config = config.clone().fresh();
    let (a, b) = (
        Side::new(&config, QpType::Rc, 1 << 18),
        Side::new(&config, QpType::Rc, 1 << 18),
    );
    let (active, passive) = (
        CmChannel::new(&a.device).unwrap(),
        CmChannel::new(&b.device).unwrap(),
    );
    let listener = passive.listen(ServiceId::tcp(7471)).unwrap();
    a.qp.initialise(ALL).unwrap();
    b.qp.initialise(ALL).unwrap();

    let params = params(&a, &b, listener.service());
    let asked = active.connect(&params).unwrap();
    let CmEvent::ConnectRequest { id, request } = event(&passive) else {
        panic!("a request")
    };
    assert_eq!(request.private_data[..5], *b"hello");
    assert_eq!(request.route.remote, a.device.address());
    let ours = b.qp.end(16, false);
    b.qp.make_ready(&Agreement::of_request(&request, ours))
        .unwrap();
    passive
        .accept(
            id,
            &AcceptParams {
                end: ours,
                private_data: b"welcome".to_vec(),
            },
        )
        .unwrap();

    let CmEvent::ConnectReply {
        id,
        peer,
        private_data,
    } = event(&active)
    else {
        panic!("a reply")
    };
    assert_eq!((id, &private_data[..7]), (asked, &b"welcome"[..]));
    a.qp.make_ready(&Agreement::of_reply(&params, &peer))
        .unwrap();
    active.establish(id).unwrap();
    assert!(matches!(event(&active), CmEvent::Established { .. }));
    assert!(matches!(event(&passive), CmEvent::Established { .. }));
    ((a, active), (b, passive))
}

fn connects_and_moves(config: &DeviceConfig) -> bool {
    let ((a, active), (b, passive)) = connected(config);
    a.fill(0, 200_000, 3);
    a.post(1, Operation::Write(b.remote(0)), 0, 200_000);
    a.succeed();
    assert_eq!(b.bytes(0, 200_000), a.bytes(0, 200_000));
    let is_extended = a.qp.is_extended().unwrap();
    assert_eq!(is_extended, b.qp.is_extended().unwrap());
    drop(passive);
    assert!(matches!(event(&active), CmEvent::Disconnected { .. }));
    assert!(matches!(event(&active), CmEvent::Closed { .. }));
    is_extended
}

#[test]
fn each_end_starts_at_the_psn_that_the_other_asked_for() {
    // Both ends took the PSN in a message for the one that its sender starts at: they agreed with each other, and with
    // nobody else.
    let end = |psn| End {
        qpn: Qpn::new(psn),
        psn: Psn::new(psn),
        responder_resources: 1,
        initiator_depth: 1,
        rnr_retry_count: 7,
        srq: false,
    };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let agreement = Agreement {
        route: Route {
            local: here,
            remote: here,
        },
        ours: end(10),
        theirs: end(20),
        path_mtu: Mtu::B1024,
        retry_count: 7,
        ack_timeout: 14,
    };
    assert_eq!(
        agreement.ready_to_receive(QpType::Rc).rq_psn,
        Some(Psn::new(10))
    );
    assert_eq!(
        agreement.ready_to_send(QpType::Rc).sq_psn,
        Some(Psn::new(20))
    );
}

#[test]
fn software_peers_connect_move_data_and_part() {
    assert!(
        connects_and_moves(&DeviceConfig::default()),
        "both offer the extensions"
    );
}

#[test]
fn a_plain_device_connects_without_extensions() {
    assert!(!connects_and_moves(&DeviceConfig {
        plain: true,
        ..DeviceConfig::default()
    }));
}

#[test]
fn lost_datagrams_do_not_keep_peers_apart() {
    let faults = "loss=20%,dup=10%,reorder=5%,seed=5".parse().unwrap();
    connects_and_moves(&DeviceConfig {
        faults,
        ..DeviceConfig::default()
    });
}

#[test]
fn a_refusal_says_why() {
    let config = DeviceConfig::default().fresh();
    let (a, b) = (
        Side::new(&config, QpType::Rc, 64),
        Side::new(&config, QpType::Rc, 64),
    );
    let (active, passive) = (
        CmChannel::new(&a.device).unwrap(),
        CmChannel::new(&b.device).unwrap(),
    );
    let nobody = active.connect(&params(&a, &b, ServiceId::tcp(1))).unwrap();
    let CmEvent::Rejected { id, reason, .. } = event(&active) else {
        panic!("nobody listens")
    };
    assert_eq!((id, reason), (nobody, RejectReason::InvalidServiceId));

    let listener = passive.listen(ServiceId::tcp(2)).unwrap();
    active.connect(&params(&a, &b, ServiceId::tcp(2))).unwrap();
    let CmEvent::ConnectRequest { id, .. } = event(&passive) else {
        panic!("a request")
    };
    passive
        .reject(id, RejectReason::Consumer, b"not today")
        .unwrap();
    let CmEvent::Rejected {
        reason,
        private_data,
        ..
    } = event(&active)
    else {
        panic!("a refusal")
    };
    assert_eq!(
        (reason, &private_data[..9]),
        (RejectReason::Consumer, &b"not today"[..])
    );

    drop(listener);
    active.connect(&params(&a, &b, ServiceId::tcp(2))).unwrap();
    assert!(matches!(
        event(&active),
        CmEvent::Rejected {
            reason: RejectReason::InvalidServiceId,
            ..
        }
    ));
}

#[test]
fn a_sleeping_channel_is_woken() {
    let config = DeviceConfig::default().fresh();
    let (a, b) = (
        Side::new(&config, QpType::Rc, 64),
        Side::new(&config, QpType::Rc, 64),
    );
    let (active, passive) = (
        CmChannel::new(&a.device).unwrap(),
        CmChannel::new(&b.device).unwrap(),
    );
    let _listener = passive.listen(ServiceId::tcp(3)).unwrap();
    let id = active.connect(&params(&a, &b, ServiceId::tcp(3))).unwrap();
    let Some(CmEvent::ConnectRequest { id: asked, .. }) = passive.wait(None).unwrap() else {
        panic!("a request")
    };
    active.disconnect(id).unwrap();
    let ended = passive.wait(Some(Duration::from_secs(10))).unwrap();
    assert!(
        matches!(ended, Some(CmEvent::Rejected { id, .. } | CmEvent::Failed { id, why: Failure::TooSlow }) if id == asked),
        "{ended:?}"
    );
}

#[test]
fn datagram_services_are_resolved() {
    let config = DeviceConfig::default().fresh();
    let (a, b) = (
        Side::new(&config, QpType::Ud, 64),
        Side::new(&config, QpType::Ud, 64),
    );
    let (active, passive) = (
        CmChannel::new(&a.device).unwrap(),
        CmChannel::new(&b.device).unwrap(),
    );
    let _listener = passive.listen(ServiceId::udp(9)).unwrap();
    let route = Route {
        local: a.device.address(),
        remote: b.device.address(),
    };
    for accept in [true, false] {
        active
            .resolve(route, ServiceId::udp(9), 1, b"who?")
            .unwrap();
        let CmEvent::ResolveRequest { id, .. } = event(&passive) else {
            panic!("a request")
        };
        let answer = if accept {
            Ok((b.qp.qpn(), 0x1234))
        } else {
            Err(SidrStatus::Rejected)
        };
        passive.resolve_reply(id, answer, b"").unwrap();
        match event(&active) {
            CmEvent::Resolved { qpn, qkey, .. } if accept => {
                assert_eq!((qpn, qkey), (b.qp.qpn(), 0x1234))
            }
            CmEvent::ResolveRefused { status, .. } if !accept => {
                assert_eq!(status, SidrStatus::Rejected)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn peers_that_never_met_the_connection_manager_recognise_each_other() {
    let (a, b) = support::pair(QpType::Rc);
    for wr_id in 0.. {
        a.post(wr_id, Operation::Write(b.remote(0)), 0, 8);
        assert_eq!(a.complete().status, Status::Success);
        if a.qp.is_extended().unwrap() && b.qp.is_extended().unwrap() {
            break;
        }
        assert!(wr_id < 100_000, "no recognition");
    }
}
