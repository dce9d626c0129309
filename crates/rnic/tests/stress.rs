//! Post, poll, create, destroy and the helper's take-over at once, over real sockets.
//!
//! Run it under ThreadSanitizer with
//! `RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread cargo test -Zbuild-std --target x86_64-unknown-linux-gnu -p
//! ringmail-rnic --test stress`. `STRESS_SECONDS` makes it longer.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mem::Memory;
use ringmail_rnic::{DeviceConfig, PostError, QpInit};
use roce::verbs::{Local, Operation, QpAttr, QpState, QpType, Remote, SgeList, Status};
use support::{ALL, Side, connect, init, pair_with, to_rtr, to_rts, work};

fn seconds() -> Duration {
    let seconds = std::env::var("STRESS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2.0);
    Duration::from_secs_f64(seconds)
}

/// Several threads post on one queue pair and several poll its completion queue, with pauses in which the helper
/// takes over.
fn posters_and_pollers(config: &DeviceConfig) {
    const POSTERS: u64 = 3;
    let (a, b) = pair_with(config, QpType::Rc, 1 << 16);
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let seen: Vec<AtomicU64> = (0..POSTERS).map(|_| AtomicU64::new(0)).collect();
    let remote = b.remote(0);
    let posted: u64 = std::thread::scope(|scope| {
        let posters: Vec<_> = (0..POSTERS)
            .map(|poster| {
                let (a, stop, seen) = (&a, &stop, &seen);
                scope.spawn(move || {
                    let mut posted = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        // Slots come free though nobody polls, where the helper is at it: the completion queue holds
                        // what three posters leave.
                        if posted - seen[poster as usize].load(Ordering::Relaxed) >= 256 {
                            std::thread::yield_now();
                            continue;
                        }
                        let at = Remote {
                            addr: remote.addr + 8 * poster,
                            ..remote
                        };
                        let operation = match posted % 3 {
                            0 => Operation::Write(at),
                            1 => Operation::Read(at),
                            _ => Operation::FetchAdd { remote: at, add: 1 },
                        };
                        let local = a.local(1024 + 8 * poster, 8);
                        match a
                            .qp
                            .post_send(work(poster << 32 | posted, operation, local))
                        {
                            Ok(()) => posted += 1,
                            Err(PostError::QueueFull) => std::thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    posted
                })
            })
            .collect();
        for poller in 0..2 {
            let (a, stop, done, seen) = (&a, &stop, &done, &seen);
            scope.spawn(move || {
                let (mut out, mut round) = (Vec::with_capacity(64), 0u64);
                loop {
                    out.clear();
                    let before = stop.load(Ordering::Relaxed);
                    a.cq.poll(&mut out, 32).unwrap();
                    for completion in &out {
                        assert_eq!(completion.status, Status::Success);
                        seen[(completion.wr_id >> 32) as usize].fetch_add(1, Ordering::Relaxed);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    if before && out.is_empty() && a.qp.outstanding() == 0 {
                        return;
                    }
                    round += 1;
                    // Now and then nobody polls for longer than a lease.
                    if poller == 0 && round % 50_000 == 0 {
                        std::thread::park_timeout(Duration::from_millis(5));
                    }
                }
            });
        }
        let end = Instant::now() + seconds();
        while Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(20));
            let _ = a.device.counters();
        }
        stop.store(true, Ordering::Relaxed);
        posters
            .into_iter()
            .map(|poster| poster.join().unwrap())
            .sum()
    });
    // A slot is free a moment before its completion shows: the pollers may have left between the two.
    let end = Instant::now() + Duration::from_secs(5);
    while done.load(Ordering::Relaxed) < posted && Instant::now() < end {
        if let Some(completion) = a.cq.poll_one().unwrap() {
            assert_eq!(completion.status, Status::Success);
            seen[(completion.wr_id >> 32) as usize].fetch_add(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    assert_eq!(done.load(Ordering::Relaxed), posted);
    assert!(posted > 100, "only {posted}");
    assert_eq!(a.qp.outstanding(), 0);
    assert!(a.cq.poll_one().unwrap().is_none(), "a completion too many");
}

#[test]
fn threads_share_a_queue_pair_and_a_completion_queue() {
    posters_and_pollers(&DeviceConfig::default());
}

#[test]
fn threads_share_a_queue_pair_while_packets_are_lost() {
    let faults = "loss=1%,dup=1%,reorder=2%,corrupt=0.5%,seed=3"
        .parse()
        .unwrap();
    posters_and_pollers(&DeviceConfig {
        faults,
        ..DeviceConfig::default()
    });
}

/// Regions and queue pairs come and go while peers write into what was.
#[test]
fn objects_are_destroyed_while_peers_use_them() {
    let config = DeviceConfig::default().fresh();
    let (a, b) = (
        Side::new(&config, QpType::Rc, 4096),
        Side::new(&config, QpType::Rc, 4096),
    );
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for poller in [&a, &b] {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    poller.device.drive().unwrap();
                }
            });
        }
        for thread in 0..2u32 {
            let (a, b, stop) = (&a, &b, &stop);
            scope.spawn(move || {
                let (mut rounds, mut refused) = (0u32, 0u32);
                while !stop.load(Ordering::Relaxed) || refused == 0 {
                    refused += u32::from(one_life(a, b, thread << 16 | rounds & 0xFFFF));
                    rounds += 1;
                }
                assert!(rounds > 2, "{rounds} rounds");
            });
        }
        let end = Instant::now() + seconds();
        while Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Connects two queue pairs, writes, deregisters the target in the middle, destroys everything. Whether the peer was
/// refused.
fn one_life(a: &Side, b: &Side, seed: u32) -> bool {
    let cq = a.device.create_cq(64, None).unwrap();
    let near = a.pd.create_qp(&QpInit::new(QpType::Rc, &cq)).unwrap();
    let far = b.pd.create_qp(&QpInit::new(QpType::Rc, &b.cq)).unwrap();
    let target = b.pd.register(Memory::allocate(4096), None, ALL).unwrap();
    for (qp, side, peer, peer_qp) in [(&near, a, b, &far), (&far, b, a, &near)] {
        qp.modify(&init()).unwrap();
        let rtr = QpAttr {
            dest_qpn: Some(peer_qp.qpn()),
            ..to_rtr(side, peer.device.address(), peer_qp.qpn(), seed)
        };
        qp.modify(&rtr).unwrap();
        qp.modify(&to_rts(QpType::Rc, seed)).unwrap();
    }
    let remote = Remote {
        addr: target.iova(),
        rkey: target.rkey(),
    };
    let local = Local::Gather(SgeList::new(&[a.mr.sge(0, 2000)]).unwrap());
    let mut posted = 0;
    for wr_id in 0..16 {
        posted += u32::from(
            near.post_send(work(wr_id, Operation::Write(remote), local))
                .is_ok(),
        );
    }
    let memory = target.deregister();
    assert!(
        mem::Buf::try_from(memory).is_ok(),
        "somebody still has the memory"
    );
    for wr_id in 16..20 {
        posted += u32::from(
            near.post_send(work(wr_id, Operation::Write(remote), local))
                .is_ok(),
        );
    }
    if seed.is_multiple_of(3) {
        // Destroyed with all its work in flight.
        return false;
    }
    let mut statuses = Vec::new();
    while statuses.len() < posted as usize {
        statuses.push(support::complete(&cq).status);
    }
    let successes = statuses
        .iter()
        .take_while(|status| **status == Status::Success)
        .count();
    assert_eq!(
        statuses.get(successes),
        Some(&Status::RemoteAccess),
        "{statuses:?}"
    );
    assert!(
        statuses[successes + 1..]
            .iter()
            .all(|status| *status == Status::Flushed),
        "{statuses:?}"
    );
    assert_eq!(near.state(), QpState::Err);
    true
}

/// Four pairs of devices in one process, each with its own two threads.
#[test]
fn devices_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for seed in 0..4u8 {
            scope.spawn(move || {
                let config = DeviceConfig::default().fresh();
                let (a, b) = (
                    Side::new(&config, QpType::Rc, 1 << 16),
                    Side::new(&config, QpType::Rc, 1 << 16),
                );
                connect(&a, b.device.address(), b.qp.qpn(), 1, 2);
                connect(&b, a.device.address(), a.qp.qpn(), 2, 1);
                a.fill(0, 40_000, seed);
                for wr_id in 0..200 {
                    a.post(wr_id, Operation::Write(b.remote(0)), 0, 40_000);
                    a.succeed();
                }
                assert_eq!(b.bytes(0, 40_000), support::pattern(40_000, seed));
            });
        }
    });
}
