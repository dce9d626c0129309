//! Datagrams: they may be lost, but what arrives is what was sent.

use std::time::Duration;

use fabric::{Op, PostError, RemoteAddr, Work};

use crate::Skip;
use crate::bench::{Bench, pattern};

type Tested = Result<(), Skip>;

pub(crate) fn a_datagram_arrives_with_its_sender(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let len = pair.a.domain.capabilities().max_datagram;
    for size in [0, 1, 100, len] {
        pair.b.post(Work::recv(1, pair.b.empty(len)));
        // One may be lost; a hundred are not.
        let mut received = None;
        for _ in 0..100 {
            pair.a.run(Work::send(2, pair.a.buf(&pattern(size, 5))));
            if let Ok(completion) = pair.b.cq.next(Duration::from_millis(200)) {
                received = Some(completion);
                break;
            }
        }
        let received = received.expect("a datagram arrives");
        assert_eq!(received.len, size);
        assert_eq!(received.data(), pattern(size, 5));
        assert_eq!(received.peer, pair.b.peer);
    }
    Ok(())
}

pub(crate) fn a_datagram_carries_an_immediate_value(bench: &Bench<'_>) -> Tested {
    bench.requires(fabric::Operations::IMMEDIATE)?;
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(64)));
    for _ in 0..100 {
        pair.a
            .run(Work::send(2, pair.a.buf(b"x")).with_immediate(9));
        if let Ok(completion) = pair.b.cq.next(Duration::from_millis(200)) {
            assert_eq!(completion.immediate, Some(9));
            return Ok(());
        }
    }
    panic!("no datagram arrives");
}

pub(crate) fn a_datagram_without_a_receive_is_dropped(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    for context in 0..10 {
        pair.a.run(Work::send(context, pair.a.buf(b"to nobody")));
    }
    pair.b.quiet();
    Ok(())
}

pub(crate) fn a_datagram_longer_than_any_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let len = pair.a.domain.capabilities().max_datagram;
    let refused = pair.a.refused(Work::send(1, pair.a.empty(len + 1)));
    assert_eq!(refused.error, PostError::MessageTooLong);
    Ok(())
}

pub(crate) fn a_datagram_endpoint_has_no_one_sided_work(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let remote = RemoteAddr { addr: 0, key: 0 };
    for op in [
        Op::Read { remote },
        Op::Write {
            remote,
            immediate: None,
        },
        Op::FetchAdd { remote, add: 1 },
    ] {
        let refused = pair.a.refused(Work::new(1, op, pair.a.empty(8)));
        assert_eq!(refused.error, PostError::Unsupported, "{op:?}");
    }
    Ok(())
}
