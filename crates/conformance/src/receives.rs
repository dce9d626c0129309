//! Receives: their order, their absence, their sharing.

use fabric::{Event, EventQueue, Operations, Segments, Status, Work};

use crate::Skip;
use crate::bench::{Bench, drain, post_shared, require};

type Tested = Result<(), Skip>;

pub(crate) fn a_message_waits_for_its_receive(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.a.post(Work::send(1, pair.a.buf(b"early")));
    pair.a.quiet();
    pair.b.post(Work::recv(2, pair.b.empty(8)));
    assert_eq!(pair.b.success(2).data(), b"early");
    pair.a.success(1);
    Ok(())
}

pub(crate) fn a_write_with_immediate_waits_for_its_receive(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::IMMEDIATE)?;
    let pair = bench.pair();
    let region = pair.b.region(8);
    let work = Work::write(1, pair.a.buf(b"early"), region.remote()).with_immediate(3);
    pair.a.post(work);
    pair.a.quiet();
    pair.b.post(Work::recv(2, Segments::none()));
    assert_eq!(pair.b.success(2).immediate, Some(3));
    pair.a.success(1);
    Ok(())
}

pub(crate) fn work_behind_a_waiting_message_waits_too(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    pair.a.post(Work::send(1, pair.a.buf(b"first")));
    pair.a
        .post(Work::write(2, pair.a.buf(b"second"), region.remote()));
    pair.a.quiet();
    assert_eq!(
        region.load(0),
        Ok(0),
        "the write overtook the message before it"
    );
    pair.b.post(Work::recv(3, pair.b.empty(8)));
    pair.b.success(3);
    pair.a.success(1);
    pair.a.success(2);
    assert_ne!(region.load(0), Ok(0));
    Ok(())
}

pub(crate) fn a_sender_that_does_not_wait_fails(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair_with(|builder| builder.rnr_retries(Some(0)));
    let status = pair.a.fate(Work::send(1, pair.a.buf(b"nobody")));
    assert_eq!(status, Status::RnrRetryExceeded);
    Ok(())
}

pub(crate) fn a_sender_that_waits_a_little_fails_after_that(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair_with(|builder| builder.rnr_retries(Some(2)));
    let status = pair.a.fate(Work::send(1, pair.a.buf(b"nobody")));
    assert_eq!(status, Status::RnrRetryExceeded);
    Ok(())
}

pub(crate) fn receives_can_be_reported_to_a_queue_of_their_own(bench: &Bench<'_>) -> Tested {
    let mut a = bench.side(64, |builder| builder);
    let mut b = bench.side(64, |builder| builder);
    let receives = b.domain.completion_queue(64).expect("a queue");
    b.endpoint = b
        .domain
        .endpoint(bench.kind, &b.cq)
        .receive_queue(&receives)
        .open()
        .expect("an endpoint opens");
    if bench.kind == fabric::EndpointKind::Msg {
        bench.connect(&a, &b);
    } else {
        a.peer = Some(a.knows(&b.endpoint));
        b.peer = Some(b.knows(&a.endpoint));
    }
    b.post(Work::recv(1, b.empty(8)));
    a.run(Work::send(2, a.buf(b"apart")));
    let received = receives.next(b.patience()).expect("it arrives");
    assert_eq!((received.context, received.data()), (1, &b"apart"[..]));
    a.post(Work::recv(3, a.empty(8)));
    b.run(Work::send(4, b.buf(b"answer")));
    assert_eq!(a.success(3).data(), b"answer");
    assert!(drain(&receives).is_empty());
    Ok(())
}

pub(crate) fn shared_receives_serve_several_endpoints(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::SHARED_RECEIVE)?;
    let mut server = bench.side(64, |builder| builder);
    let shared = server
        .domain
        .shared_receive(16, &EventQueue::new())
        .expect("a shared queue");
    post_shared(
        &shared,
        (0..8)
            .map(|index| Work::recv(index, server.empty(16)))
            .collect(),
    );
    let mut clients = Vec::new();
    let mut endpoints = Vec::new();
    for number in 0..4_u8 {
        server.endpoint = server
            .domain
            .endpoint(bench.kind, &server.cq)
            .shared_receive(&shared)
            .open()
            .expect("an endpoint opens");
        let mut client = bench.side(16, |builder| builder);
        if bench.kind == fabric::EndpointKind::Msg {
            bench.connect(&client, &server);
        } else {
            client.peer = Some(client.knows(&server.endpoint));
        }
        let second = server
            .domain
            .endpoint(bench.kind, &server.cq)
            .open()
            .expect("an endpoint opens");
        let id = server.endpoint.id();
        endpoints.push(std::mem::replace(&mut server.endpoint, second));
        client.run(Work::send(1, client.buf(&[number; 5])));
        let received = server.next();
        received.local.first().expect("its memory");
        assert_eq!(received.endpoint, id, "the completion names who received");
        assert_eq!(received.data(), [number; 5]);
        clients.push(client);
    }
    let refused = endpoints[0].post_one(Work::recv(9, server.empty(8)));
    assert_eq!(
        refused.expect_err("its receives are shared").error,
        fabric::PostError::SharedReceive
    );
    Ok(())
}

pub(crate) fn a_shared_queue_that_runs_low_says_so_once(bench: &Bench<'_>) -> Tested {
    bench.requires(Operations::SHARED_RECEIVE)?;
    let client = bench.side(16, |builder| builder);
    let mut server = bench.side(64, |builder| builder);
    let events = EventQueue::new();
    let shared = server
        .domain
        .shared_receive(16, &events)
        .expect("a shared queue");
    server.endpoint = server
        .domain
        .endpoint(bench.kind, &server.cq)
        .shared_receive(&shared)
        .open()
        .expect("an endpoint opens");
    let mut client = client;
    if bench.kind == fabric::EndpointKind::Msg {
        bench.connect(&client, &server);
    } else {
        client.peer = Some(client.knows(&server.endpoint));
    }
    post_shared(
        &shared,
        (0..4)
            .map(|index| Work::recv(index, server.empty(8)))
            .collect(),
    );
    shared.arm_limit(3);
    require!(
        events.poll().is_none(),
        "it counts receives that were taken ahead"
    );
    client.run(Work::send(1, client.buf(b"one")));
    server.next();
    assert!(
        events.poll().is_none(),
        "three are left, which is not fewer than three"
    );
    client.run(Work::send(2, client.buf(b"two")));
    server.next();
    let event = events.wait(server.patience());
    assert!(matches!(event, Some(Event::ReceiveLimit)), "{event:?}");
    client.run(Work::send(3, client.buf(b"three")));
    server.next();
    assert!(events.poll().is_none(), "the event comes once");
    Ok(())
}
