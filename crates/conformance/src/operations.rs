//! Every operation does what it says, connected and to a peer.

use std::sync::atomic::{AtomicBool, Ordering};

use fabric::{Opcode, Operations, Segment, Segments, Work};

use crate::Skip;
use crate::bench::{Bench, bytes, pattern};

type Tested = Result<(), Skip>;

pub(crate) fn a_message_arrives_in_the_receive(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(64)));
    let sent = pair.a.run(Work::send(2, pair.a.buf(b"by ring mail")));
    assert_eq!((sent.opcode, sent.len), (Opcode::Send, 12));
    let received = pair.b.success(1);
    assert_eq!((received.opcode, received.len), (Opcode::Recv, 12));
    assert_eq!(received.data(), b"by ring mail");
    assert_eq!(received.immediate, None);
    assert_eq!(received.endpoint, pair.b.endpoint.id());
    Ok(())
}

pub(crate) fn an_empty_message_arrives(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, Segments::none()));
    pair.a.run(Work::send(2, Segments::none()));
    assert_eq!(pair.b.success(1).len, 0);
    Ok(())
}

pub(crate) fn an_immediate_value_arrives_with_a_message(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::IMMEDIATE)?;
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    let work = Work::send(2, pair.a.buf(b"x")).with_immediate(0x0102_0304);
    pair.a.run(work);
    let received = pair.b.success(1);
    assert_eq!(received.immediate, Some(0x0102_0304));
    assert_eq!(received.data(), b"x");
    Ok(())
}

pub(crate) fn a_write_places_its_bytes_and_no_others(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    for (offset, len) in [(0, 1), (3, 5), (8, 8), (17, 4096), (1, 9001)] {
        let region = pair.b.region(16_384);
        let data = pattern(len, offset);
        let remote = region.remote().at(offset as u64);
        let written = pair.a.run(Work::write(1, pair.a.buf(&data), remote));
        assert_eq!((written.opcode, written.len), (Opcode::Write, len));
        let all = bytes(&region);
        assert_eq!(&all[offset..offset + len], data, "{len} bytes at {offset}");
        assert!(all[..offset].iter().all(|&byte| byte == 0));
        assert!(all[offset + len..].iter().all(|&byte| byte == 0));
    }
    pair.b.quiet();
    Ok(())
}

pub(crate) fn a_write_with_immediate_consumes_a_receive_and_leaves_it_alone(
    bench: &Bench<'_>,
) -> Tested {
    bench.requires(Operations::IMMEDIATE)?;
    let pair = bench.pair();
    let region = pair.b.region(20_000);
    // In one packet, and in several.
    for len in [7, 3_000, 20_000] {
        pair.b.post(Work::recv(1, pair.b.buf(b"untouched")));
        let source = pattern(len, len);
        let work = Work::write(2, pair.a.buf(&source), region.remote()).with_immediate(7);
        pair.a.run(work);
        let received = pair.b.success(1);
        assert_eq!((received.opcode, received.len), (Opcode::RecvWrite, len));
        assert_eq!(received.immediate, Some(7));
        assert_eq!(
            &received.into_buf().expect("the receive's")[..],
            b"untouched"
        );
        assert_eq!(&bytes(&region)[..len], source);
    }
    Ok(())
}

pub(crate) fn a_read_fetches_its_bytes(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(20_000);
    region.write(0, &pattern(20_000, 3)).expect("in bounds");
    for (offset, len) in [(0, 1), (5, 7), (8, 4096), (999, 15_000)] {
        let remote = region.remote().at(offset as u64);
        let read = pair.a.run(Work::read(1, pair.a.empty(len), remote));
        assert_eq!((read.opcode, read.len), (Opcode::Read, len));
        assert_eq!(read.data(), &pattern(20_000, 3)[offset..offset + len]);
    }
    pair.b.quiet();
    Ok(())
}

pub(crate) fn one_sided_work_of_no_bytes_succeeds(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    pair.a
        .run(Work::write(1, Segments::none(), region.remote()));
    pair.a.run(Work::read(2, Segments::none(), region.remote()));
    Ok(())
}

pub(crate) fn fetch_and_add_answers_the_old_value(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::ATOMIC)?;
    let pair = bench.pair();
    let region = pair.b.region(32);
    region.store(8, 40).expect("in bounds");
    let word = region.remote().at(8);
    let added = pair.a.run(Work::fetch_add(1, pair.a.empty(8), word, 2));
    assert_eq!(
        (added.opcode, added.fetched()),
        (Opcode::FetchAdd, Some(40))
    );
    assert_eq!(region.load(8), Ok(42));
    let wrapped = pair
        .a
        .run(Work::fetch_add(2, pair.a.empty(8), word, u64::MAX));
    assert_eq!(wrapped.fetched(), Some(42));
    assert_eq!(
        (region.load(0), region.load(8), region.load(16)),
        (Ok(0), Ok(41), Ok(0))
    );
    Ok(())
}

pub(crate) fn compare_and_swap_swaps_only_what_was_expected(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::ATOMIC)?;
    let pair = bench.pair();
    let region = pair.b.region(16);
    region.store(8, 5).expect("in bounds");
    let word = region.remote().at(8);
    let refused = pair
        .a
        .run(Work::compare_swap(1, pair.a.empty(8), word, 4, 9));
    assert_eq!(
        (refused.opcode, refused.fetched()),
        (Opcode::CompareSwap, Some(5))
    );
    assert_eq!(region.load(8), Ok(5));
    let swapped = pair
        .a
        .run(Work::compare_swap(2, pair.a.empty(8), word, 5, 9));
    assert_eq!(swapped.fetched(), Some(5));
    assert_eq!(region.load(8), Ok(9));
    Ok(())
}

pub(crate) fn atomics_of_both_sides_lose_nothing(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::ATOMIC)?;
    let pair = bench.pair();
    let domain = bench.open();
    let coherent = domain.capabilities().atomics == fabric::Atomics::Processor;
    crate::bench::require!(coherent, "its atomics do not exclude the processors'");
    let region = pair.b.region(8);
    let stop = AtomicBool::new(false);
    let local = std::thread::scope(|scope| {
        let adder = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                region.fetch_add(0, 1).expect("in bounds");
                count += 1;
            }
            count
        });
        for context in 0..200 {
            let work = Work::fetch_add(context, pair.a.empty(8), region.remote(), 1);
            pair.a.run(work);
        }
        stop.store(true, Ordering::Relaxed);
        adder.join().expect("the adder ends")
    });
    assert_eq!(region.load(0), Ok(200 + local));
    Ok(())
}

pub(crate) fn a_gather_list_is_sent_and_a_scatter_list_filled_in_order(
    bench: &Bench<'_>,
) -> Tested {
    let pair = bench.pair();
    let region = pair.a.region(32);
    region.write(8, b"-region-").expect("in bounds");
    let gather = vec![
        Segment::Buf(pair.a.buf(b"first")),
        region.slice(8..16).expect("in bounds"),
    ];
    let into = pair.b.region(64);
    let scatter = vec![
        Segment::Buf(pair.b.empty(3)),
        into.slice(5..11).expect("in bounds"),
        Segment::Buf(pair.b.empty(20)),
    ];
    pair.b.post(Work::recv(1, scatter));
    pair.a.run(Work::send(2, gather));
    let received = pair.b.success(1);
    assert_eq!(received.len, 13);
    let bufs: Vec<_> = received
        .local
        .into_iter()
        .filter_map(Segment::into_buf)
        .collect();
    assert_eq!(&bufs[0][..], b"fir");
    assert_eq!(&bytes(&into)[4..12], b"\0st-reg\0");
    assert_eq!(&bufs[1][..4], b"ion-");
    Ok(())
}

pub(crate) fn a_read_fills_a_scatter_list_and_a_write_gathers(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let remote = pair.b.region(32);
    let gather = vec![
        Segment::Buf(pair.a.buf(b"abc")),
        Segment::Buf(pair.a.buf(b"defgh")),
    ];
    pair.a.run(Work::write(1, gather, remote.remote().at(1)));
    assert_eq!(&bytes(&remote)[..10], b"\0abcdefgh\0");
    let into = pair.a.region(16);
    let scatter = vec![
        into.slice(12..16).expect("in bounds"),
        Segment::Buf(pair.a.empty(4)),
    ];
    let read = pair.a.run(Work::read(2, scatter, remote.remote().at(1)));
    assert_eq!(&bytes(&into)[12..], b"abcd");
    let buf = read.into_buf().expect("the second segment");
    assert_eq!(&buf[..], b"efgh");
    Ok(())
}

pub(crate) fn inline_bytes_are_taken_at_post(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let max = pair.a.domain.capabilities().max_inline;
    crate::bench::require!(max >= 8, "inline work is at most {max} bytes");
    let region = pair.a.region(8);
    region.write(0, b"as it is").expect("in bounds");
    // Without a receive the message has to wait.
    pair.a
        .post(Work::send(1, region.slice(0..8).expect("in bounds")).inlined());
    region.write(0, b"changed!").expect("in bounds");
    pair.b.post(Work::recv(2, pair.b.empty(8)));
    pair.a.success(1);
    assert_eq!(pair.b.success(2).data(), b"as it is");
    Ok(())
}

pub(crate) fn unsignalled_work_is_done_and_not_reported(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(64);
    let writes = (0..8_u64).map(|index| {
        let remote = region.remote().at(index * 8);
        let work = Work::write(index, pair.a.buf(&[index as u8 + 1; 8]), remote);
        if index < 7 { work.unsignaled() } else { work }
    });
    pair.a.post_all(writes.collect());
    assert_eq!(pair.a.next().context, 7);
    pair.a.quiet();
    for (index, eight) in bytes(&region).chunks(8).enumerate() {
        assert_eq!(eight, [index as u8 + 1; 8]);
    }
    Ok(())
}

pub(crate) fn unsignalled_work_that_fails_is_reported(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let mut remote = pair.b.region(8).remote();
    remote.key ^= 0x55;
    let work = Work::write(1, pair.a.buf(b"x"), remote).unsignaled();
    assert_eq!(pair.a.fate(work), fabric::Status::RemoteAccess);
    Ok(())
}

pub(crate) fn fenced_work_sees_what_was_read_before_it(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let (source, target) = (pair.b.region(4096), pair.b.region(4096));
    source.write(0, &pattern(4096, 1)).expect("in bounds");
    let through = pair.a.region(4096);
    let whole = || through.slice(0..4096).expect("in bounds");
    pair.a.post_all(vec![
        Work::read(1, whole(), source.remote()),
        Work::write(2, whole(), target.remote()).fenced(),
    ]);
    pair.a.success(1);
    pair.a.success(2);
    assert_eq!(
        bytes(&target),
        pattern(4096, 1),
        "the write left before the read came"
    );
    Ok(())
}

pub(crate) fn a_key_named_by_a_send_is_revoked_when_it_arrives(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::INVALIDATE)?;
    let pair = bench.pair();
    let region = pair.b.region(8);
    let key = region.remote().key;
    pair.a
        .run(Work::write(1, pair.a.buf(b"x"), region.remote()));
    pair.b.post(Work::recv(2, pair.b.empty(8)));
    pair.a
        .run(Work::send(3, pair.a.buf(b"done")).invalidating(key));
    assert_eq!(pair.b.success(2).invalidated, Some(key));
    let status = pair
        .a
        .fate(Work::write(4, pair.a.buf(b"y"), region.remote()));
    assert_eq!(status, fabric::Status::RemoteAccess);
    assert_eq!(bytes(&region)[0], b'x');
    Ok(())
}

pub(crate) fn a_long_message_is_whole(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let len = pair.a.domain.capabilities().max_message.min(3_000_001);
    let data = pattern(len, 9);
    pair.b.post(Work::recv(1, pair.b.empty(len)));
    pair.a.run(Work::send(2, pair.a.buf(&data)));
    assert!(
        pair.b.success(1).data() == data,
        "the message changed on the way"
    );
    let region = pair.b.region(len);
    pair.a
        .run(Work::write(3, pair.a.buf(&data), region.remote()));
    assert!(bytes(&region) == data, "the write changed on the way");
    let read = pair
        .a
        .run(Work::read(4, pair.a.empty(len), region.remote()));
    assert!(read.data() == data, "the read changed on the way");
    Ok(())
}

pub(crate) fn messages_arrive_in_the_order_they_were_posted(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let count = 500;
    let mut next = 0;
    for batch in 0..count / 50 {
        let receives = (0..50).map(|index| Work::recv(batch * 50 + index, pair.b.empty(8)));
        pair.b.post_all(receives.collect());
        let sends = (0..50).map(|index| {
            let number: u64 = batch * 50 + index;
            Work::send(number, pair.a.buf(&number.to_be_bytes()))
        });
        pair.a.post_all(sends.collect());
        for _ in 0..50 {
            let received = pair.b.next();
            assert_eq!(received.context, next, "receives end in the order posted");
            assert_eq!(received.data(), next.to_be_bytes());
            assert_eq!(pair.a.next().context, next, "sends end in the order posted");
            next += 1;
        }
    }
    Ok(())
}

pub(crate) fn both_sides_talk_at_once(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    for side in [&pair.a, &pair.b] {
        side.post_all(
            (0..64)
                .map(|index| Work::recv(index, side.empty(3000)))
                .collect(),
        );
    }
    for index in 0..64 {
        for (side, seed) in [(&pair.a, 1), (&pair.b, 2)] {
            let data = pattern(3000, seed * 100 + index as usize);
            side.post(Work::send(1000 + index, side.buf(&data)));
        }
    }
    for (side, seed) in [(&pair.a, 2), (&pair.b, 1)] {
        for index in 0..64 {
            let received = side.success(index);
            assert_eq!(received.data(), pattern(3000, seed * 100 + index as usize));
            side.success(1000 + index);
        }
    }
    Ok(())
}

pub(crate) fn a_mix_of_operations_keeps_its_order(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    for round in 0..50_u64 {
        pair.b.post(Work::recv(round, pair.b.empty(8)));
        let value = round.to_ne_bytes();
        pair.a.post_all(vec![
            Work::write(1, pair.a.buf(&value), region.remote()),
            Work::read(2, pair.a.empty(8), region.remote()),
            Work::send(3, pair.a.buf(b"written")),
        ]);
        pair.b.success(round);
        assert_eq!(
            region.load(0),
            Ok(round),
            "the message came before the write"
        );
        pair.a.success(1);
        assert_eq!(
            pair.a.success(2).data(),
            value,
            "the read came before the write"
        );
        pair.a.success(3);
    }
    Ok(())
}
