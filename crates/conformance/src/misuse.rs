//! Misuse is answered as hardware answers it: the right status on the right side, and no byte written.

use fabric::{Access, Op, Operations, PostError, RemoteAddr, Segment, Segments, Status, Work};

use crate::Skip;
use crate::bench::{Bench, Pair, bytes, require};

type Tested = Result<(), Skip>;

/// Posts one-sided work that must be refused by the other side, with work behind it that is then flushed.
fn refused_by_the_peer(pair: &Pair, work: Work, expected: Status) {
    let harmless = pair.b.region(8);
    let behind = Work::write(1001, pair.a.buf(b"behind"), harmless.remote());
    pair.b.post(Work::recv(2000, pair.b.empty(8)));
    let context = work.context;
    pair.a.post_all(vec![work, behind]);
    assert_eq!(pair.a.done(context).status, expected);
    let behind = pair.a.done(1001).status;
    if pair.a.peer.is_none() {
        assert_eq!(behind, Status::Flushed, "work behind a failure");
        assert_eq!(harmless.load(0), Ok(0), "work behind a failure was done");
        let status = pair
            .a
            .fate(Work::write(1002, pair.a.buf(b"later"), harmless.remote()));
        assert_eq!(status, Status::Flushed, "work after a failure");
        assert_eq!(harmless.load(0), Ok(0), "work after a failure was done");
        let receive = pair.b.done(2000);
        assert_eq!(receive.status, Status::Flushed, "the peer's receive");
    } else {
        // Other than a connection, an endpoint with many peers goes on: only what was outstanding may be flushed.
        assert!(
            matches!(behind, Status::Flushed | Status::Success),
            "{behind}"
        );
        pair.a
            .run(Work::write(1002, pair.a.buf(b"later"), harmless.remote()));
        pair.a.run(Work::send(1003, pair.a.buf(b"alive")));
        assert_eq!(pair.b.success(2000).data(), b"alive");
    }
}

pub(crate) fn a_wrong_key_is_refused(bench: &Bench<'_>) -> Tested {
    for operation in 0..2 {
        let pair = bench.pair();
        let region = pair.b.region(64);
        let mut remote = region.remote().at(0);
        remote.key ^= 0x100;
        let work = match operation {
            0 => Work::write(1, pair.a.buf(b"bad"), remote),
            _ => Work::read(1, pair.a.buf(b"bad"), remote),
        };
        refused_by_the_peer(&pair, work, Status::RemoteAccess);
        assert_eq!(bytes(&region), [0; 64]);
    }
    Ok(())
}

pub(crate) fn a_range_that_leaves_the_region_is_refused_whole(bench: &Bench<'_>) -> Tested {
    for offset in [57_i64, 64, -1, i64::MAX] {
        let pair = bench.pair();
        let region = pair.b.region(64);
        let remote = RemoteAddr {
            addr: region.remote().addr.wrapping_add_signed(offset),
            key: region.remote().key,
        };
        let work = Work::write(1, pair.a.buf(&[7; 8]), remote);
        refused_by_the_peer(&pair, work, Status::RemoteAccess);
        assert_eq!(bytes(&region), [0; 64], "at offset {offset}");
    }
    Ok(())
}

pub(crate) fn a_long_range_that_leaves_the_region_writes_nothing(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(20_000);
    let work = Work::write(1, pair.a.buf(&[7; 20_000]), region.remote().at(1));
    refused_by_the_peer(&pair, work, Status::RemoteAccess);
    assert!(bytes(&region).iter().all(|&byte| byte == 0));
    Ok(())
}

pub(crate) fn a_right_that_was_not_given_is_refused(bench: &Bench<'_>) -> Tested {
    let atomic = bench.requires(Operations::ATOMIC).is_ok();
    for missing in [
        Access::REMOTE_READ,
        Access::REMOTE_WRITE,
        Access::REMOTE_ATOMIC,
    ] {
        if missing == Access::REMOTE_ATOMIC && !atomic {
            continue;
        }
        let pair = bench.pair();
        let region = pair.b.region_with(64, Access::all() - missing);
        let remote = region.remote();
        let work = if missing == Access::REMOTE_READ {
            Work::read(1, pair.a.empty(8), remote)
        } else if missing == Access::REMOTE_WRITE {
            Work::write(1, pair.a.buf(&[7; 8]), remote)
        } else {
            Work::fetch_add(1, pair.a.empty(8), remote, 1)
        };
        refused_by_the_peer(&pair, work, Status::RemoteAccess);
        assert_eq!(bytes(&region), [0; 64], "without {missing:?}");
    }
    Ok(())
}

pub(crate) fn an_unaligned_atomic_is_refused(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::ATOMIC)?;
    let pair = bench.pair();
    let region = pair.b.region(64);
    let work = Work::fetch_add(1, pair.a.empty(8), region.remote().at(4), 1);
    refused_by_the_peer(&pair, work, Status::RemoteInvalidRequest);
    assert_eq!(bytes(&region), [0; 64]);
    Ok(())
}

pub(crate) fn a_revoked_region_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(64);
    let remote = region.remote();
    pair.a.run(Work::write(5, pair.a.buf(b"before"), remote));
    let buf = region.revoke().expect("the last handle");
    refused_by_the_peer(
        &pair,
        Work::write(1, pair.a.buf(b"after!"), remote),
        Status::RemoteAccess,
    );
    assert_eq!(&buf[..8], b"before\0\0");
    Ok(())
}

pub(crate) fn a_dropped_region_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let remote = pair.b.region(64).remote();
    refused_by_the_peer(
        &pair,
        Work::read(1, pair.a.empty(8), remote),
        Status::RemoteAccess,
    );
    Ok(())
}

pub(crate) fn a_region_of_another_domain_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let own = pair.a.region(64);
    let work = Work::write(1, pair.a.buf(b"stray"), own.remote());
    refused_by_the_peer(&pair, work, Status::RemoteAccess);
    assert_eq!(bytes(&own), [0; 64]);
    Ok(())
}

pub(crate) fn a_message_too_long_for_its_receive_fails_on_both_sides(bench: &Bench<'_>) -> Tested {
    for len in [9, 30_000] {
        let pair = bench.pair();
        pair.b.post(Work::recv(1, pair.b.empty(8)));
        let status = pair.a.fate(Work::send(2, pair.a.buf(&vec![7; len])));
        assert_eq!(
            status,
            Status::RemoteInvalidRequest,
            "the sender of {len} bytes"
        );
        assert_eq!(
            pair.b.done(1).status,
            Status::LocalLength,
            "the receiver of {len} bytes"
        );
    }
    Ok(())
}

pub(crate) fn work_before_the_connection_is_refused(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    let refused = side.refused(Work::send(1, side.buf(b"to nobody")));
    assert_eq!(refused.error, PostError::NotConnected);
    let buf = refused
        .work
        .local
        .into_iter()
        .next()
        .and_then(Segment::into_buf);
    assert_eq!(&buf.expect("the buffer comes back")[..], b"to nobody");
    Ok(())
}

pub(crate) fn receives_may_be_posted_before_the_connection(bench: &Bench<'_>) -> Tested {
    let a = bench.side(16, |builder| builder);
    let b = bench.side(16, |builder| builder);
    b.post(Work::recv(1, b.empty(8)));
    bench.connect(&a, &b);
    a.run(Work::send(2, a.buf(b"at once")));
    assert_eq!(b.success(1).data(), b"at once");
    Ok(())
}

pub(crate) fn work_after_a_failure_is_flushed(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let mut remote = pair.b.region(8).remote();
    remote.key ^= 0x100;
    assert_eq!(
        pair.a.fate(Work::write(1, pair.a.buf(b"x"), remote)),
        Status::RemoteAccess
    );
    for context in 2..5 {
        let flushed = pair.a.fate(Work::send(context, pair.a.buf(b"y")));
        assert_eq!(flushed, Status::Flushed);
    }
    assert_eq!(pair.a.fate(Work::recv(9, pair.a.empty(8))), Status::Flushed);
    Ok(())
}

pub(crate) fn local_memory_that_was_revoked_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.a.region(64);
    let range = region.slice(0..8).expect("in bounds");
    region.revoke().expect_err("the range is a handle, too");
    assert_eq!(
        pair.a.refused(Work::send(1, range)).error,
        PostError::Revoked
    );
    Ok(())
}

pub(crate) fn a_range_outside_local_memory_is_never_made(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    let region = side.region(64);
    for range in [0..65, 60..70, 65..65] {
        assert!(region.slice(range.clone()).is_err(), "{range:?}");
    }
    assert!(
        region.slice(64..64).is_ok(),
        "nothing, at the end, is in bounds"
    );
    Ok(())
}

pub(crate) fn too_many_segments_are_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let max = pair.a.domain.capabilities().max_segments;
    let segments = |count| -> Segments { (0..count).map(|_| pair.a.buf(b"x").into()).collect() };
    let refused = pair.a.refused(Work::send(1, segments(max + 1)));
    assert_eq!(refused.error, PostError::TooManySegments);
    pair.b.post(Work::recv(2, pair.b.empty(max)));
    let send = || drop(pair.a.run(Work::send(3, segments(max))));
    send();
    assert_eq!(bench.arrival(&pair, 2, send).len, max);
    Ok(())
}

pub(crate) fn too_many_inline_bytes_are_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let max = pair.a.domain.capabilities().max_inline;
    let work = Work::send(1, pair.a.buf(&vec![1; max + 1])).inlined();
    assert_eq!(pair.a.refused(work).error, PostError::InlineTooLong);
    Ok(())
}

pub(crate) fn a_message_longer_than_any_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let max = match bench.kind {
        fabric::EndpointKind::Dgram => pair.a.domain.capabilities().max_datagram,
        _ => pair.a.domain.capabilities().max_message,
    };
    require!(max < 1 << 31, "messages may be {max} bytes");
    // Untouched pages cost nothing.
    let work = Work::send(1, pair.a.empty(max + 1));
    assert_eq!(pair.a.refused(work).error, PostError::MessageTooLong);
    Ok(())
}

pub(crate) fn an_atomic_needs_eight_local_bytes(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::ATOMIC)?;
    let pair = bench.pair();
    let remote = pair.b.region(8).remote();
    for len in [0, 4, 16] {
        let work = Work::fetch_add(1, pair.a.empty(len), remote, 1);
        assert_eq!(
            pair.a.refused(work).error,
            PostError::AtomicLength,
            "{len} bytes"
        );
    }
    Ok(())
}

pub(crate) fn accepted_work_before_refused_work_is_done(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    let mut works = vec![
        pair.a
            .aimed(Work::write(1, pair.a.buf(b"good"), region.remote())),
        pair.a
            .aimed(Work::fetch_add(2, pair.a.empty(3), region.remote(), 1)),
        pair.a
            .aimed(Work::write(3, pair.a.buf(b"late"), region.remote())),
    ];
    let mut error = pair.a.endpoint.post(&mut works);
    while error == Err(PostError::QueueFull) {
        error = pair.a.endpoint.post(&mut works);
    }
    assert!(error.is_err());
    assert_eq!(works.len(), 2, "the accepted one was taken out");
    assert!(
        matches!(works[0].op, Op::FetchAdd { .. }),
        "the refused one is first"
    );
    pair.a.success(1);
    assert_eq!(&bytes(&region)[..4], b"good");
    pair.a.quiet();
    Ok(())
}
