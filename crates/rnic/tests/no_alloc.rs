//! After set-up and a first round, nothing on the way of work allocates: not in posting, not in polling, not in the
//! helper.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ringmail_rnic::QpInit;
use roce::verbs::{Operation, QpType, RecvWork, SgeList};
use support::{Side, init, pair, to_rtr, to_rts};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counts are the whole process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

const DEPTH: u64 = 64;

fn round(a: &Side, b: &Side, out: &mut Vec<roce::verbs::Completion>) {
    type Kind = fn(&Side) -> (Operation, u32);
    let kinds: [Kind; 5] = [
        |b| (Operation::Write(b.remote(0)), 8),
        |b| (Operation::Write(b.remote(0)), 40_000),
        |b| (Operation::Read(b.remote(0)), 40_000),
        |b| {
            (
                Operation::FetchAdd {
                    remote: b.remote(0),
                    add: 1,
                },
                8,
            )
        },
        |_| (Operation::Send, 3000),
    ];
    for kind in kinds {
        let (operation, length) = kind(b);
        let mut received = DEPTH;
        if operation == Operation::Send {
            received = 0;
            for wr_id in 0..DEPTH {
                let sges = SgeList::new(&[b.mr.sge(0, 4096)]).unwrap();
                b.qp.post_recv(&RecvWork { wr_id, sges }).unwrap();
            }
        }
        for wr_id in 0..DEPTH {
            a.post(wr_id, operation, 0, length);
        }
        let mut done = 0;
        while done < DEPTH || received < DEPTH {
            out.clear();
            done += a.cq.poll(out, 16).unwrap() as u64;
            received += b.cq.poll(out, 16).unwrap() as u64;
        }
    }
}

#[test]
fn work_allocates_nothing_after_the_first_rounds() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (a, b) = pair(QpType::Rc);
    let mut out = Vec::with_capacity(64);
    for _ in 0..20 {
        round(&a, &b, &mut out);
    }
    // Loss on a busy machine may still find a buffer that was never needed before; a habit shows in every try.
    let fewest = (0..5)
        .map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..20 {
                round(&a, &b, &mut out);
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        })
        .min();
    assert_eq!(
        fewest,
        Some(0),
        "allocations in {} operations",
        20 * 5 * DEPTH
    );
}

#[test]
fn an_idle_queue_pair_is_small() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const QPS: u64 = 512;
    let (a, b) = pair(QpType::Rc);
    let make = || {
        let qp = a.pd.create_qp(&QpInit::new(QpType::Rc, &a.cq)).unwrap();
        qp.modify(&init()).unwrap();
        qp.modify(&to_rtr(&a, b.device.address(), b.qp.qpn(), 1))
            .unwrap();
        qp.modify(&to_rts(QpType::Rc, 1)).unwrap();
        qp
    };
    let before = LIVE.load(Ordering::Relaxed);
    let qps: Vec<_> = (0..QPS).map(|_| make()).collect();
    let each = (LIVE.load(Ordering::Relaxed) - before) / QPS;
    println!("{each} bytes a connected queue pair of 128 sends and 128 receives");
    assert!(each < 16 << 10, "{each} bytes");
    drop(qps);
}
