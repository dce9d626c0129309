//! Completion queues: their room, their sharing.

use std::collections::HashSet;

use fabric::{PostError, Status, Work};

use crate::Skip;
use crate::bench::Bench;

type Tested = Result<(), Skip>;

/// Posts writes until the queue refuses one; answers how many were accepted.
fn fill(side: &crate::bench::Side, remote: fabric::RemoteRegion, most: usize) -> usize {
    let mut works: Vec<_> = (0..most as u64)
        .map(|context| side.aimed(Work::write(context, side.buf(b"x"), remote)))
        .collect();
    // A provider may also be full for a moment; only what is full of work stays so.
    let mut idle = 0;
    while idle < 1000 {
        let before = works.len();
        match side.endpoint.post(&mut works) {
            Ok(()) => panic!("all {most} were accepted, with nobody polling"),
            Err(PostError::QueueFull) if works.len() == before => idle += 1,
            Err(PostError::QueueFull) => idle = 0,
            Err(error) => panic!("{error}"),
        }
    }
    most - works.len()
}

pub(crate) fn a_completion_queue_is_never_overrun(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair_of(16, |builder| builder);
    let region = pair.b.region(8);
    let accepted = fill(&pair.a, region.remote(), 200);
    assert!(accepted >= 16, "a queue of 16 refused at {accepted}");
    assert!(accepted <= 64, "a queue of 16 accepted {accepted}");
    let contexts: HashSet<_> = (0..accepted).map(|_| pair.a.next().context).collect();
    assert_eq!(contexts.len(), accepted, "each is reported once");
    pair.a.quiet();
    pair.a
        .run(Work::write(1000, pair.a.buf(b"x"), region.remote()));
    Ok(())
}

pub(crate) fn an_endpoint_takes_no_more_than_its_depth(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair_with(|builder| builder.send_depth(8));
    let region = pair.b.region(8);
    let accepted = fill(&pair.a, region.remote(), 200);
    assert!(
        (8..=64).contains(&accepted),
        "a depth of 8 accepted {accepted}"
    );
    for _ in 0..accepted {
        assert_eq!(pair.a.next().status, Status::Success);
    }
    pair.a
        .run(Work::write(1000, pair.a.buf(b"x"), region.remote()));
    Ok(())
}

pub(crate) fn unsignalled_work_frees_its_room(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair_of(16, |builder| builder.send_depth(8));
    let region = pair.b.region(8);
    for value in 1..=500_u64 {
        let bytes = pair.a.buf(&value.to_ne_bytes());
        let work = Work::write(value, bytes, region.remote());
        // Hardware frees the room of what was not signalled with the next that was.
        if value % 4 == 0 {
            pair.a.run(work);
        } else {
            pair.a.post(work.unsignaled());
        }
    }
    assert_eq!(region.load(0), Ok(500));
    pair.a.quiet();
    Ok(())
}

pub(crate) fn endpoints_share_a_queue(bench: &Bench<'_>) -> Tested {
    let mut first = bench.pair();
    let mut second = bench.pair();
    // Both endpoints of the left side in one domain, reporting to one queue.
    let (a, b) = (&mut first.a, &mut second.a);
    b.domain = a.domain.clone();
    b.cq = a.cq.clone();
    b.stash = a.stash.clone();
    b.endpoint = a
        .domain
        .endpoint(bench.kind, &a.cq)
        .open()
        .expect("an endpoint opens");
    if bench.kind == fabric::EndpointKind::Msg {
        let fresh = bench.sibling(&second.b);
        bench.connect(&second.a, &fresh);
        second.b = fresh;
    } else {
        second.a.peer = Some(second.a.knows(&second.b.endpoint));
        second.b.peer = Some(second.b.knows(&second.a.endpoint));
    }
    let (one, two) = (first.b.region(8), second.b.region(8));
    first
        .a
        .post(Work::write(1, first.a.buf(b"one"), one.remote()));
    second
        .a
        .post(Work::write(2, second.a.buf(b"two"), two.remote()));
    let of_first = first.a.success(1);
    let of_second = first.a.success(2);
    assert_eq!(of_first.endpoint, first.a.endpoint.id());
    assert_eq!(of_second.endpoint, second.a.endpoint.id());
    Ok(())
}

pub(crate) fn a_queue_outlives_its_endpoint(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    pair.a
        .post(Work::write(1, pair.a.buf(b"x"), region.remote()));
    pair.a.success(1);
    pair.a.post(Work::recv(2, pair.a.buf(b"kept")));
    let crate::bench::Side { endpoint, cq, .. } = pair.a;
    drop(endpoint);
    let flushed = cq.next(pair.b.patience()).expect("it is reported");
    assert_eq!((flushed.context, flushed.status), (2, Status::Flushed));
    assert_eq!(
        &flushed.into_buf().expect("the buffer comes back")[..],
        b"kept"
    );
    Ok(())
}
