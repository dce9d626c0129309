//! The five sentences of the provider contract, one by one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use fabric::{Status, Work};

use crate::Skip;
use crate::bench::{Bench, Pair, bytes, drain, require};

type Tested = Result<(), Skip>;

/// Sentence one: memory is touched only between an accepted post and its completion, or the endpoint's drop.
pub(crate) fn a_receive_of_a_dropped_endpoint_is_never_written(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(64);
    pair.b
        .post(Work::recv(1, region.slice(0..64).expect("in bounds")));
    pair.b.post(Work::recv(2, pair.b.buf(b"private")));
    let Pair { a, b } = pair;
    // The peer sends all the while.
    let stop = AtomicBool::new(false);
    let (endpoint, domain, peer) = (&a.endpoint, &a.domain, a.peer);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut work = Work::send(1, domain.buf_from(&[7; 64]).expect("a buffer"));
                work.peer = peer;
                // Refused or failed is as good as sent.
                let _ = endpoint.post_one(work);
                a.cq.poll(&mut Vec::new(), 16);
            }
        });
        let crate::bench::Side { endpoint, cq, .. } = b;
        drop(endpoint);
        let after = bytes(&region);
        let drained = drain(&cq).into_iter();
        let mut ends: HashMap<_, _> = drained.map(|end| (end.context, end)).collect();
        for _ in 0..1000 {
            assert_eq!(bytes(&region), after, "written after the drop returned");
        }
        assert_eq!(
            ends.len(),
            2,
            "both receives were reported by the time the drop returned"
        );
        let private = ends.remove(&2).expect("reported");
        if private.status == Status::Flushed {
            assert_eq!(&private.into_buf().expect("comes back")[..], b"private");
        }
        stop.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Sentence one, for what is sent: the bytes are those of the buffer until its completion, whatever happens to it afterwards.
pub(crate) fn a_buffer_may_be_reused_after_its_completion(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8 * 256);
    let mut buf = pair.a.empty(8);
    for round in 0..256_u64 {
        buf.copy_from_slice(&round.to_ne_bytes());
        let remote = region.remote().at(round * 8);
        let done = pair.a.run(Work::write(round, buf, remote));
        buf = done.into_buf().expect("the buffer comes back");
        buf.fill(0xff);
    }
    for round in 0..256 {
        assert_eq!(region.load(round as usize * 8), Ok(round));
    }
    Ok(())
}

/// Sentence two: each context is reported exactly once, whatever becomes of it.
pub(crate) fn each_context_is_reported_exactly_once(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(4096);
    let mut bad = region.remote();
    bad.key ^= 0x100;
    for context in 0..40 {
        pair.b.post(Work::recv(context, pair.b.empty(8)));
    }
    // Successes, a failure in the middle, what is flushed behind it, and what is posted after.
    for context in 0..100_u64 {
        let work = match context {
            50 => Work::write(context, pair.a.buf(b"bad"), bad),
            _ if context % 3 == 0 => Work::send(context, pair.a.buf(b"message")),
            _ if context % 3 == 1 => Work::write(context, pair.a.buf(b"x"), region.remote()),
            _ => Work::read(context, pair.a.empty(64), region.remote()),
        };
        pair.a.post(work);
    }
    let Pair { a, b } = pair;
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for _ in 0..100 {
        *seen.entry(a.next().context).or_default() += 1;
    }
    a.quiet();
    assert!(
        (0..100).all(|context| seen.get(&context) == Some(&1)),
        "{seen:?}"
    );
    let crate::bench::Side { endpoint, cq, .. } = b;
    drop(endpoint);
    let mut ends: Vec<_> = drain(&cq).iter().map(|end| end.context).collect();
    ends.sort_unstable();
    assert_eq!(ends, (0..40).collect::<Vec<_>>(), "the receiver's contexts");
    Ok(())
}

/// Sentence two, at the end: what is outstanding when an endpoint drops is reported, with its buffers.
pub(crate) fn work_of_a_dropped_endpoint_is_reported(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    for context in 0..5 {
        pair.a
            .post(Work::send(context, pair.a.buf(b"never received")));
        pair.a.post(Work::recv(100 + context, pair.a.empty(8)));
    }
    let crate::bench::Side { endpoint, cq, .. } = pair.a;
    drop(endpoint);
    let mut contexts = Vec::new();
    for completion in drain(&cq) {
        assert_eq!(completion.status, Status::Flushed);
        contexts.push(completion.context);
        completion.into_buf().expect("its buffer comes back");
    }
    contexts.sort_unstable();
    assert_eq!(contexts, [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]);
    Ok(())
}

/// Sentence three: no access after `deregister` returns.
pub(crate) fn no_write_lands_after_a_region_was_revoked(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(4096);
    let remote = region.remote();
    pair.a.run(Work::write(0, pair.a.buf(&[1; 4096]), remote));
    let mut context = 1;
    // Writes are in flight, and go on, while the region goes.
    for _ in 0..32 {
        pair.a.post(Work::write(
            context,
            pair.a.buf(&[context as u8; 4096]),
            remote,
        ));
        context += 1;
    }
    let buf = region.revoke().expect("the last handle");
    let at_revoke = buf.to_vec();
    for _ in 0..32 {
        pair.a.post(Work::write(
            context,
            pair.a.buf(&[context as u8; 4096]),
            remote,
        ));
        context += 1;
    }
    let ends = pair.a.collect(64);
    assert!(buf[..] == at_revoke, "a write landed after revoke returned");
    let last = ends.last().expect("there are 64");
    assert!(
        !last.status.is_success(),
        "a write to a revoked region succeeded"
    );
    Ok(())
}

/// Sentence four, as far as it shows: words of exposed memory are never torn, whoever writes them.
pub(crate) fn words_of_exposed_memory_are_whole(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let word = region.load(0).expect("in bounds");
                let whole = word == 0
                    || word == u64::from_ne_bytes([0x11; 8])
                    || word == u64::from_ne_bytes([0xee; 8]);
                assert!(whole, "{word:#x} was never written");
            }
        });
        for context in 0..300 {
            let byte = if context % 2 == 0 { 0x11 } else { 0xee };
            pair.a.run(Work::write(
                context,
                pair.a.buf(&[byte; 8]),
                region.remote(),
            ));
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("every word was whole");
    });
    Ok(())
}

/// Sentence five: a flag written after data is never seen before the data.
pub(crate) fn a_flag_written_after_the_data_publishes_the_data(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let ordered = pair.b.domain.capabilities().ordered_placement;
    require!(ordered, "memory is not placed in order");
    const LEN: usize = 24_000;
    let data = pair.b.region(LEN);
    let flag = pair.b.region(8);
    let rounds = 100_u64;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut copy = vec![0; LEN];
            loop {
                let seen = flag.load(0).expect("in bounds");
                data.read(0, &mut copy).expect("in bounds");
                let oldest = copy
                    .chunks_exact(8)
                    .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
                    .min();
                assert!(
                    oldest >= Some(seen),
                    "flag {seen} was seen before data {oldest:?}"
                );
                if seen == rounds {
                    return;
                }
                std::thread::yield_now();
            }
        });
        for round in 1..=rounds {
            let words: Vec<u8> = round.to_ne_bytes().repeat(LEN / 8);
            pair.a.post_all(vec![
                Work::write(round, pair.a.buf(&words), data.remote()),
                Work::write(
                    1000 + round,
                    pair.a.buf(&round.to_ne_bytes()),
                    flag.remote(),
                ),
            ]);
            pair.a.success(round);
            pair.a.success(1000 + round);
        }
        reader.join().expect("no flag was early");
    });
    Ok(())
}

/// Sentence five within one write: its end is the flag.
pub(crate) fn the_end_of_a_write_publishes_its_beginning(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let ordered = pair.b.domain.capabilities().ordered_placement;
    require!(ordered, "memory is not placed in order");
    const LEN: usize = 24_000;
    let region = pair.b.region(LEN);
    let rounds = 100_u64;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut copy = vec![0; LEN];
            loop {
                let seen = region.load(LEN - 8).expect("in bounds");
                region.read(0, &mut copy).expect("in bounds");
                let oldest = copy
                    .chunks_exact(8)
                    .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
                    .min();
                assert!(
                    oldest >= Some(seen),
                    "the end {seen} was seen before {oldest:?}"
                );
                if seen == rounds {
                    return;
                }
                std::thread::yield_now();
            }
        });
        for round in 1..=rounds {
            let words: Vec<u8> = round.to_ne_bytes().repeat(LEN / 8);
            pair.a
                .run(Work::write(round, pair.a.buf(&words), region.remote()));
        }
        reader.join().expect("no end was early");
    });
    Ok(())
}
