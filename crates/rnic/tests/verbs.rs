//! Every verb between two devices over real sockets.

mod support;

use std::time::Duration;

use mem::Memory;
use ringmail_rnic::{
    AddressChoice, Ah, AsyncEvent, CompletionChannel, Device, DeviceConfig, PostError, QpInit,
    RegisterError, UdpKind,
};
use roce::verbs::{
    Access, CompletionKind, InlineBytes, Local, Operation, Path, QpAttr, QpState, QpType, RecvWork,
    Remote, SendFlags, SendWork, SgeList, Status, UdDestination,
};
use roce::wire::Key;
use support::{ALL, Side, complete, connect, pair, pair_with, pattern, until, work};

fn every_operation(config: &DeviceConfig) {
    let (a, b) = pair_with(config, QpType::Rc, 1 << 20);
    a.fill(0, 1 << 19, 1);

    // WRITE, of many packets, of few, of none.
    for (wr_id, len) in [(1, 300_001), (2, 5), (3, 0)] {
        a.post(wr_id, Operation::Write(b.remote(0)), 0, len);
        let done = a.succeed();
        assert_eq!((done.wr_id, done.kind), (wr_id, CompletionKind::Write));
        assert_eq!(b.bytes(0, len as usize), pattern(len as usize, 1));
    }

    // SEND with immediate into a receive of two pieces.
    let sges = SgeList::new(&[b.mr.sge(0x8_0000, 1000), b.mr.sge(0x9_0000, 100_000)]).unwrap();
    b.qp.post_recv(&RecvWork { wr_id: 7, sges }).unwrap();
    a.post(4, Operation::SendWithImm(0xABCD), 0, 50_000);
    let got = b.succeed();
    assert_eq!(
        (got.wr_id, got.kind, got.byte_len, got.imm),
        (7, CompletionKind::Recv, 50_000, Some(0xABCD))
    );
    assert_eq!(
        [b.bytes(0x8_0000, 1000), b.bytes(0x9_0000, 49_000)].concat(),
        pattern(50_000, 1)
    );
    a.succeed();

    // WRITE with immediate.
    b.post_recv(8, 0, 0);
    a.post(5, Operation::WriteWithImm(b.remote(100), 9), 0, 64);
    let got = b.succeed();
    assert_eq!(
        (got.kind, got.byte_len, got.imm),
        (CompletionKind::RecvWriteWithImm, 64, Some(9))
    );
    a.succeed();

    // READ.
    b.fill(0, 200_000, 3);
    a.post(6, Operation::Read(b.remote(0)), 0x8_0000, 200_000);
    let done = a.succeed();
    assert_eq!((done.kind, done.byte_len), (CompletionKind::Read, 200_000));
    assert_eq!(a.bytes(0x8_0000, 200_000), pattern(200_000, 3));

    // Atomics.
    b.mr.memory().store_u64(64, 40).unwrap();
    a.post(
        7,
        Operation::FetchAdd {
            remote: b.remote(64),
            add: 2,
        },
        8,
        8,
    );
    a.succeed();
    assert_eq!(
        (
            a.mr.memory().load_u64(8).unwrap(),
            b.mr.memory().load_u64(64).unwrap()
        ),
        (40, 42)
    );
    a.post(
        8,
        Operation::CompareSwap {
            remote: b.remote(64),
            compare: 42,
            swap: 1,
        },
        8,
        8,
    );
    a.succeed();
    assert_eq!(
        (
            a.mr.memory().load_u64(8).unwrap(),
            b.mr.memory().load_u64(64).unwrap()
        ),
        (42, 1)
    );

    // Inline, unsignaled, fenced; the last one's completion covers all.
    let inline = Local::Inline(InlineBytes::new(b"inline").unwrap());
    let quiet = SendWork {
        flags: SendFlags::empty(),
        ..work(9, Operation::Write(b.remote(0)), inline)
    };
    a.qp.post_send(quiet).unwrap();
    let flags = SendFlags::SIGNALED | SendFlags::FENCE;
    a.qp.post_send(SendWork {
        flags,
        ..work(10, Operation::Write(b.remote(6)), inline)
    })
    .unwrap();
    assert_eq!(a.succeed().wr_id, 10);
    assert_eq!(b.bytes(0, 12), b"inlineinline");
    assert_eq!(a.qp.outstanding(), 0);
    for side in [&a, &b] {
        let counters = side.device.counters().unwrap();
        // Corruption of the ICRC's own masked bits goes unnoticed, rightly.
        assert!(
            counters.bad_icrc <= counters.faults.corrupted,
            "{counters:?}"
        );
        assert_eq!(
            (counters.malformed, counters.unknown_qp),
            (0, 0),
            "{counters:?}"
        );
        assert!(counters.packets_received > 0);
    }
}

#[test]
fn every_operation_over_the_best_driver() {
    every_operation(&DeviceConfig::default());
}

#[test]
fn every_operation_over_the_portable_driver() {
    every_operation(&DeviceConfig {
        udp: UdpKind::Portable,
        ..DeviceConfig::default()
    });
}

#[test]
fn every_operation_with_faults() {
    let faults = "loss=3%,dup=2%,reorder=4%,corrupt=1%,delay=50us,seed=11"
        .parse()
        .unwrap();
    every_operation(&DeviceConfig {
        faults,
        ..DeviceConfig::default()
    });
}

#[test]
fn the_target_sleeps_while_its_memory_is_accessed() {
    let (a, b) = pair(QpType::Rc);
    a.fill(0, 100_000, 5);
    // Nobody polls for b; its helper does the work.
    a.post(1, Operation::Write(b.remote(0)), 0, 100_000);
    a.succeed();
    a.post(2, Operation::Read(b.remote(0)), 0x8_0000, 100_000);
    a.succeed();
    assert_eq!(a.bytes(0x8_0000, 100_000), pattern(100_000, 5));
}

#[test]
fn nobody_polls_and_a_channel_tells() {
    let config = DeviceConfig::default().fresh();
    let (mut a, mut b) = (
        Side::new(&config, QpType::Rc, 4096),
        Side::new(&config, QpType::Rc, 4096),
    );
    let channel = CompletionChannel::new().unwrap();
    for side in [&mut a, &mut b] {
        side.cq = side.device.create_cq(16, Some(&channel)).unwrap();
        side.qp = side
            .pd
            .create_qp(&QpInit::new(QpType::Rc, &side.cq))
            .unwrap();
    }
    connect(&a, b.device.address(), b.qp.qpn(), 1, 2);
    connect(&b, a.device.address(), a.qp.qpn(), 2, 1);
    for round in 0..50 {
        b.post_recv(round, 0, 64);
        a.cq.arm(false).unwrap();
        b.cq.arm(true).unwrap();
        let solicited = SendFlags::SIGNALED | SendFlags::SOLICITED;
        a.qp.post_send(SendWork {
            flags: solicited,
            ..work(round, Operation::Send, a.local(0, 64))
        })
        .unwrap();
        let mut told = [channel.wait(None).unwrap(), channel.wait(None).unwrap()];
        told.sort_by_key(|id| *id != a.cq.id());
        assert_eq!(told, [a.cq.id(), b.cq.id()]);
        let mut out = Vec::new();
        assert_eq!(a.cq.poll(&mut out, 8), Ok(1));
        assert_eq!(b.cq.poll(&mut out, 8), Ok(1));
        assert!(
            out.iter()
                .all(|done| done.wr_id == round && done.status == Status::Success)
        );
    }
    assert_eq!(channel.try_event(), None);
}

#[test]
fn an_unreliable_connection_moves_messages() {
    let (a, b) = pair(QpType::Uc);
    a.fill(0, 10_000, 2);
    b.post_recv(1, 0, 10_000);
    a.post(1, Operation::Send, 0, 10_000);
    a.succeed();
    assert_eq!(b.succeed().byte_len, 10_000);
    assert_eq!(b.bytes(0, 10_000), pattern(10_000, 2));
    b.post_recv(2, 0, 0);
    a.post(2, Operation::WriteWithImm(b.remote(50_000), 4), 0, 9_000);
    assert_eq!(b.succeed().imm, Some(4));
    assert_eq!(b.bytes(50_000, 9_000), pattern(9_000, 2));
}

#[test]
fn datagrams_carry_their_addresses() {
    let config = DeviceConfig::default().fresh();
    let sides = [
        Side::new(&config, QpType::Ud, 8192),
        Side::new(&config, QpType::Ud, 8192),
    ];
    for side in &sides {
        let init = QpAttr {
            state: Some(QpState::Init),
            pkey: Some(0xFFFF),
            qkey: Some(0x1111),
            ..QpAttr::default()
        };
        side.qp.modify(&init).unwrap();
        side.qp
            .modify(&QpAttr {
                state: Some(QpState::Rtr),
                ..QpAttr::default()
            })
            .unwrap();
        side.qp.modify(&support::to_rts(QpType::Ud, 5)).unwrap();
    }
    let [a, b] = &sides;
    a.fill(0, 1000, 9);
    b.post_recv(3, 0, 2048);
    let ah = Ah::new(&a.pd, Path::new(a.device.address(), b.device.address())).unwrap();
    let destination = Some(UdDestination {
        path: ah.path(),
        qpn: b.qp.qpn(),
        qkey: 0x1111,
    });
    a.qp.post_send(SendWork {
        destination,
        ..work(1, Operation::SendWithImm(5), a.local(0, 1000))
    })
    .unwrap();
    a.succeed();
    let got = b.succeed();
    assert_eq!(
        (got.byte_len, got.imm, got.source_qpn, got.has_grh),
        (1040, Some(5), a.qp.qpn(), true)
    );
    assert_eq!(b.bytes(40, 1000), pattern(1000, 9));
    // The kernel's soft-RoCE puts the IPv4 header into the last 20 of the 40 bytes; source and destination close it.
    let std::net::IpAddr::V4(source) = a.device.address() else {
        panic!("loopback is IPv4")
    };
    assert_eq!(b.bytes(32, 4), source.octets());

    let stray = Path::new(b.device.address(), a.device.address());
    assert_eq!(Ah::new(&a.pd, stray).err(), Some(PostError::Unreachable));
}

#[test]
fn misuse_is_answered_on_both_sides_and_touches_nothing() {
    type Case = (&'static str, fn(&Side) -> Remote, Status);
    let wrong: [Case; 3] = [
        (
            "a key that does not exist",
            |b| Remote {
                rkey: Key(b.mr.rkey().0 ^ 1),
                ..b.remote(0)
            },
            Status::RemoteAccess,
        ),
        (
            "an address beyond the region",
            |b| b.remote((1 << 20) - 4),
            Status::RemoteAccess,
        ),
        (
            "an address before the region",
            |b| Remote {
                addr: b.mr.iova() - 4,
                rkey: b.mr.rkey(),
            },
            Status::RemoteAccess,
        ),
    ];
    for (what, remote, status) in wrong {
        let (a, b) = pair(QpType::Rc);
        a.fill(0, 64, 1);
        a.post(1, Operation::Write(remote(&b)), 0, 64);
        a.post(2, Operation::Write(b.remote(0)), 0, 64);
        assert_eq!(a.complete().status, status, "{what}");
        assert_eq!(a.complete().status, Status::Flushed, "{what}: the rest");
        assert_eq!(a.qp.state(), QpState::Err);
        assert!(
            b.bytes(0, 1 << 20).iter().all(|&byte| byte == 0),
            "{what}: a byte was written"
        );
        a.post_recv(3, 0, 64);
        assert_eq!(
            a.complete().status,
            Status::Flushed,
            "a receive posted in error"
        );
        let event = until(|| b.device.take_event());
        assert!(
            matches!(event, AsyncEvent::Qp(qpn, _) if qpn == b.qp.qpn()),
            "{event:?}"
        );
    }
}

#[test]
fn a_deregistered_region_refuses_peers_at_once() {
    let (a, mut b) = pair(QpType::Rc);
    a.post(1, Operation::Write(b.remote(0)), 0, 8);
    a.succeed();
    let old = b.remote(0);
    let fresh = b.pd.register(Memory::allocate(64), None, ALL).unwrap();
    let memory = std::mem::replace(&mut b.mr, fresh).deregister();
    let before = b.bytes(0, 8);
    a.fill(0, 8, 99);
    a.post(2, Operation::Write(old), 0, 8);
    assert_eq!(a.complete().status, Status::RemoteAccess);
    let mut after = vec![0; 8];
    memory.copy_out(0, &mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn a_local_key_without_the_right_fails_locally() {
    let (a, b) = pair(QpType::Rc);
    let readable =
        a.pd.register(Memory::allocate(64), None, Access::empty())
            .unwrap();
    let list = |mr: &ringmail_rnic::Mr| Local::Gather(SgeList::new(&[mr.sge(0, 64)]).unwrap());
    a.qp.post_send(work(1, Operation::Write(b.remote(0)), list(&readable)))
        .unwrap();
    a.succeed();
    a.qp.post_send(work(2, Operation::Read(b.remote(0)), list(&readable)))
        .unwrap();
    assert_eq!(a.complete().status, Status::LocalProtection);
    let remote = Access::REMOTE_WRITE;
    let refused = a.pd.register(Memory::allocate(64), None, remote).err();
    assert_eq!(refused, Some(RegisterError::RemoteWithoutLocal));
}

#[test]
fn a_full_send_queue_refuses_and_recovers() {
    let (a, b) = pair(QpType::Rc);
    let mut posted = 0;
    let refused = loop {
        // A receive is missing: nothing completes.
        match a.qp.post_send(work(posted, Operation::Send, a.local(0, 8))) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
        assert!(posted < 10_000);
    };
    assert_eq!((refused, posted), (PostError::QueueFull, 128));
    for wr_id in 0..posted {
        b.post_recv(wr_id, 0, 8);
    }
    for wr_id in 0..posted {
        assert_eq!(a.succeed().wr_id, wr_id);
    }
    b.post_recv(0, 0, 8);
    a.post(0, Operation::Send, 0, 8);
    a.succeed();
}

#[test]
fn a_shared_receive_queue_serves_several_and_says_when_it_runs_low() {
    let config = DeviceConfig::default().fresh();
    let (a, mut b) = (
        Side::new(&config, QpType::Rc, 4096),
        Side::new(&config, QpType::Rc, 4096),
    );
    let srq = b.pd.create_srq(8, 1);
    b.qp =
        b.pd.create_qp(&QpInit {
            srq: Some(&srq),
            ..QpInit::new(QpType::Rc, &b.cq)
        })
        .unwrap();
    connect(&a, b.device.address(), b.qp.qpn(), 1, 2);
    connect(&b, a.device.address(), a.qp.qpn(), 2, 1);
    for wr_id in 0..4 {
        let sges = SgeList::new(&[b.mr.sge(64 * wr_id, 64)]).unwrap();
        srq.post_recv(&RecvWork { wr_id, sges }).unwrap();
    }
    srq.arm_limit(3);
    for wr_id in 0..2 {
        a.post(wr_id, Operation::Send, 0, 64);
        assert_eq!(b.succeed().wr_id, wr_id);
    }
    assert_eq!(b.device.take_event(), Some(AsyncEvent::SrqLimit(srq.id())));
    assert_eq!((srq.len(), srq.limit()), (2, 0));
    // Armed when it is due already, it is told at once.
    srq.arm_limit(3);
    assert_eq!(srq.limit(), 0);
    let own = RecvWork {
        wr_id: 0,
        sges: SgeList::EMPTY,
    };
    assert_eq!(b.qp.post_recv(&own), Err(PostError::SharedReceives));
}

#[test]
fn a_completion_queue_that_overruns_says_so() {
    let config = DeviceConfig::default().fresh();
    let (mut a, b) = (
        Side::new(&config, QpType::Rc, 4096),
        Side::new(&config, QpType::Rc, 4096),
    );
    a.cq = a.device.create_cq(2, None).unwrap();
    a.qp = a.pd.create_qp(&QpInit::new(QpType::Rc, &a.cq)).unwrap();
    connect(&a, b.device.address(), b.qp.qpn(), 1, 2);
    connect(&b, a.device.address(), a.qp.qpn(), 2, 1);
    for wr_id in 0..3 {
        a.post(wr_id, Operation::Write(b.remote(0)), 0, 8);
    }
    let event = until(|| {
        a.device.drive().unwrap();
        a.device.take_event()
    });
    assert_eq!(event, AsyncEvent::CqOverrun(a.cq.id()));
    assert_eq!(a.cq.lost(), 1);
    assert_eq!([complete(&a.cq).wr_id, complete(&a.cq).wr_id], [0, 1]);
}

#[test]
fn a_dead_peer_ends_in_an_error() {
    let (a, b) = pair(QpType::Rc);
    let remote = b.remote(0);
    drop(b);
    a.post(1, Operation::Write(remote), 0, 8);
    a.post(2, Operation::Write(remote), 0, 8);
    assert_eq!(a.complete().status, Status::RetryExceeded);
    assert_eq!(a.complete().status, Status::Flushed);
}

#[test]
fn one_address_is_one_device_in_a_process() {
    let first = Device::open(&DeviceConfig::default()).unwrap();
    let again = Device::open(&DeviceConfig::default()).unwrap();
    assert!(first.is_same(&again));
    let by_ip = AddressChoice::Ip(first.address());
    let other = DeviceConfig {
        udp: UdpKind::Portable,
        ..DeviceConfig::default()
    };
    assert!(
        Device::open(&other)
            .unwrap_err()
            .to_string()
            .contains("other settings")
    );
    let fresh = Device::open(&DeviceConfig::default().fresh()).unwrap();
    assert!(!fresh.is_same(&first) && fresh.address() != first.address());
    drop((first, again));
    // With the last handle the device is gone, and its address free.
    let reopened = Device::open(&DeviceConfig {
        address: by_ip,
        ..DeviceConfig::default()
    });
    assert!(reopened.is_ok(), "{reopened:?}");
}

#[test]
fn who_holds_the_port_is_said() {
    let device = Device::open(&DeviceConfig::default().fresh()).unwrap();
    let ip = device.address();
    drop(device);
    let holder = std::net::UdpSocket::bind((ip, 4791)).unwrap();
    let address = AddressChoice::Ip(ip);
    let config = DeviceConfig {
        address,
        ..DeviceConfig::default()
    };
    let refused = Device::open(&config).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
    drop(holder);
    Device::open(&config).unwrap();
    let nowhere = AddressChoice::Ip([192, 0, 2, 1].into());
    let refused = Device::open(&DeviceConfig {
        address: nowhere,
        ..DeviceConfig::default()
    })
    .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "192.0.2.1 is not an address of this host"
    );
}

#[test]
fn destroying_a_queue_pair_with_work_in_flight_is_quiet() {
    let (mut a, b) = pair(QpType::Rc);
    for wr_id in 0..64 {
        a.post(wr_id, Operation::Write(b.remote(0)), 0, 8000);
    }
    a.qp = a.pd.create_qp(&QpInit::new(QpType::Rc, &a.cq)).unwrap();
    let memory = std::mem::replace(
        &mut a.mr,
        a.pd.register(Memory::allocate(8), None, ALL).unwrap(),
    )
    .deregister();
    assert!(
        mem::Buf::try_from(memory).is_ok(),
        "the device kept a handle"
    );
    let deadline = std::time::Instant::now() + Duration::from_millis(20);
    until(|| {
        while let Some(done) = a.cq.poll_one().unwrap() {
            assert_eq!(done.status, Status::Success);
        }
        (std::time::Instant::now() > deadline).then_some(())
    });
}
