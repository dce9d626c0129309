//! Connections: how they begin, are refused, and end.

use fabric::{Address, EndpointKind, Error, Event, EventQueue, PostError, Status, Work};

use crate::Skip;
use crate::bench::{Bench, require};

type Tested = Result<(), Skip>;

pub(crate) fn private_data_travels_both_ways(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), b"who is there?")
        .expect("starts");
    let request = listener.next(b.patience()).expect("arrives");
    assert!(request.private_data().starts_with(b"who is there?"));
    assert!(request.private_data()[13..].iter().all(|&byte| byte == 0));
    request.accept(&b.endpoint, b"me").expect("accepted");
    let answer = a.endpoint.wait_connected(a.patience()).expect("connected");
    assert!(answer.starts_with(b"me"));
    assert!(answer[2..].iter().all(|&byte| byte == 0));
    b.endpoint.wait_connected(b.patience()).expect("connected");
    Ok(())
}

pub(crate) fn a_rejected_request_says_why(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    let request = listener.next(b.patience()).expect("arrives");
    request.reject(b"full").expect("rejected");
    match a.endpoint.wait_connected(a.patience()) {
        Err(Error::Rejected { private_data }) => assert!(private_data.starts_with(b"full")),
        other => panic!("{other:?}"),
    }
    Ok(())
}

pub(crate) fn a_request_that_is_dropped_is_rejected(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    drop(listener.next(b.patience()).expect("arrives"));
    let outcome = a.endpoint.wait_connected(a.patience());
    assert!(
        matches!(outcome, Err(Error::Rejected { .. })),
        "{outcome:?}"
    );
    Ok(())
}

pub(crate) fn an_endpoint_that_was_rejected_may_try_again(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    drop(listener.next(b.patience()).expect("arrives"));
    assert!(a.endpoint.wait_connected(a.patience()).is_err());
    bench.connect(&a, &b);
    b.post(Work::recv(1, b.empty(8)));
    a.run(Work::send(2, a.buf(b"at last")));
    b.success(1);
    Ok(())
}

pub(crate) fn nobody_listening_is_unreachable(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    let address = listener.address();
    drop(listener);
    let outcome = a.endpoint.connect(&address, b"", a.patience());
    assert!(
        matches!(outcome, Err(Error::Unreachable(_) | Error::Rejected { .. })),
        "{outcome:?}"
    );
    Ok(())
}

pub(crate) fn an_address_is_listened_to_once(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    let listener = bench.listen(&side.domain);
    let second = side.domain.listen(listener.address());
    assert!(matches!(second, Err(Error::AddressInUse(_))), "{second:?}");
    let address = listener.address();
    drop(listener);
    side.domain.listen(address).expect("free again");
    Ok(())
}

pub(crate) fn an_address_that_makes_no_sense_is_refused(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    require!(
        side.domain.info().provider != "loopback",
        "any text is an address to loopback"
    );
    let nonsense = Address::from("nonsense, not an address");
    let outcome = side.endpoint.start_connect(&nonsense, b"");
    assert!(
        matches!(outcome, Err(Error::BadAddress { .. })),
        "{outcome:?}"
    );
    let outcome = side.domain.listen(nonsense);
    assert!(
        matches!(outcome, Err(Error::BadAddress { .. })),
        "{outcome:?}"
    );
    Ok(())
}

pub(crate) fn too_much_private_data_is_refused(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    let listener = bench.listen(&side.domain);
    let max = side.domain.capabilities().max_private_data;
    let outcome = side
        .endpoint
        .start_connect(&listener.address(), &vec![0; max + 1]);
    assert!(matches!(outcome, Err(Error::Limit { .. })), "{outcome:?}");
    Ok(())
}

pub(crate) fn as_much_private_data_as_promised_travels(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let data: Vec<u8> = (1..=a.domain.capabilities().max_private_data)
        .map(|byte| byte as u8)
        .collect();
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), &data)
        .expect("starts");
    let request = listener.next(b.patience()).expect("arrives");
    assert!(request.private_data().starts_with(&data));
    request.accept(&b.endpoint, &data).expect("accepted");
    let answer = a.endpoint.wait_connected(a.patience()).expect("connected");
    assert!(answer.starts_with(&data));
    Ok(())
}

pub(crate) fn an_endpoint_connects_once(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let listener = bench.listen(&pair.b.domain);
    let outcome = pair.a.endpoint.start_connect(&listener.address(), b"");
    assert!(matches!(outcome, Err(Error::WrongState(_))), "{outcome:?}");
    let other = bench.side(16, |builder| builder);
    other
        .endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    let request = listener.next(pair.b.patience()).expect("arrives");
    let outcome = request.accept(&pair.b.endpoint, b"");
    assert!(matches!(outcome, Err(Error::WrongState(_))), "{outcome:?}");
    let outcome = other.endpoint.wait_connected(other.patience());
    assert!(
        matches!(outcome, Err(Error::Rejected { .. })),
        "{outcome:?}"
    );
    Ok(())
}

pub(crate) fn one_listener_serves_many(bench: &Bench<'_>) -> Tested {
    let server = bench.side(1024, |builder| builder);
    let listener = bench.listen(&server.domain);
    let clients: Vec<_> = (0..10).map(|_| bench.side(16, |builder| builder)).collect();
    for (number, client) in clients.iter().enumerate() {
        client
            .endpoint
            .start_connect(&listener.address(), &[number as u8 + 1])
            .expect("starts");
    }
    let mut served = Vec::new();
    for _ in &clients {
        let request = listener.next(server.patience()).expect("arrives");
        let number = request.private_data()[0];
        let side = bench.sibling(&server);
        side.post(Work::recv(number.into(), side.empty(1)));
        request.accept(&side.endpoint, &[]).expect("accepted");
        served.push((number, side));
    }
    for (number, client) in clients.iter().enumerate() {
        client
            .endpoint
            .wait_connected(client.patience())
            .expect("connected");
        client.run(Work::send(1, client.buf(&[number as u8 + 1])));
    }
    for (number, side) in &served {
        assert_eq!(side.success((*number).into()).data(), [*number]);
    }
    Ok(())
}

pub(crate) fn events_can_go_to_one_queue(bench: &Bench<'_>) -> Tested {
    let client = bench.side(16, |builder| builder);
    let server = bench.side(16, |builder| builder);
    let events = EventQueue::new();
    let listener = server
        .domain
        .listen_on(bench.sut.listen_address(), &events)
        .expect("listens");
    let endpoint = server
        .domain
        .endpoint(EndpointKind::Msg, &server.cq)
        .events(&events)
        .open()
        .expect("an endpoint opens");
    client
        .endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    match events.wait(server.patience()) {
        Some(Event::ConnectionRequest(request)) => {
            request.accept(&endpoint, b"").expect("accepted")
        }
        other => panic!("{other:?}"),
    }
    client
        .endpoint
        .wait_connected(client.patience())
        .expect("connected");
    let event = events.wait(server.patience()).expect("an event");
    assert!(matches!(event, Event::Connected { .. }), "{event:?}");
    assert_eq!(event.endpoint(), Some(endpoint.id()));
    drop(client);
    let event = events.wait(server.patience()).expect("an event");
    assert!(matches!(event, Event::Disconnected { .. }), "{event:?}");
    assert_eq!(event.endpoint(), Some(endpoint.id()));
    Ok(())
}

pub(crate) fn a_disconnect_flushes_and_tells_both_sides(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.a.post(Work::recv(1, pair.a.empty(8)));
    pair.b.post(Work::recv(2, pair.b.empty(8)));
    pair.a.endpoint.disconnect();
    for (side, context) in [(&pair.a, 1), (&pair.b, 2)] {
        assert_eq!(side.done(context).status, Status::Flushed);
        let event = side.endpoint.events().wait(side.patience());
        assert!(
            matches!(event, Some(Event::Disconnected { .. })),
            "{event:?}"
        );
        assert!(side.endpoint.events().poll().is_none(), "it is told once");
        assert_eq!(side.fate(Work::send(9, side.buf(b"late"))), Status::Flushed);
    }
    Ok(())
}

pub(crate) fn a_dropped_endpoint_disconnects_its_peer(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    drop(pair.a);
    assert_eq!(pair.b.done(1).status, Status::Flushed);
    let event = pair.b.endpoint.events().wait(pair.b.patience());
    assert!(
        matches!(event, Some(Event::Disconnected { .. })),
        "{event:?}"
    );
    Ok(())
}

pub(crate) fn work_in_flight_ends_when_the_peer_is_dropped(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    // Nobody receives, so these wait.
    pair.a.post_all(
        (0..8)
            .map(|context| Work::send(context, pair.a.buf(b"waiting")))
            .collect(),
    );
    drop(pair.b);
    for completion in pair.a.collect(8) {
        assert!(
            !completion.status.is_success(),
            "context {} succeeded",
            completion.context
        );
        assert_eq!(&completion.into_buf().expect("its buffer")[..], b"waiting");
    }
    Ok(())
}

pub(crate) fn a_failed_connection_tells_both_sides(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let mut remote = pair.b.region(8).remote();
    remote.key ^= 0x100;
    assert_eq!(
        pair.a.fate(Work::read(1, pair.a.empty(8), remote)),
        Status::RemoteAccess
    );
    for side in [&pair.a, &pair.b] {
        let event = side.endpoint.events().wait(side.patience());
        assert!(
            matches!(event, Some(Event::Disconnected { .. })),
            "{event:?}"
        );
    }
    Ok(())
}

pub(crate) fn a_new_endpoint_connects_after_a_failure(bench: &Bench<'_>) -> Tested {
    let mut pair = bench.pair();
    pair.a.endpoint.disconnect();
    pair.a = bench.sibling(&pair.a);
    pair.b = bench.sibling(&pair.b);
    bench.connect(&pair.a, &pair.b);
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    pair.a.run(Work::send(2, pair.a.buf(b"again")));
    assert_eq!(pair.b.success(1).data(), b"again");
    Ok(())
}

pub(crate) fn two_endpoints_of_one_domain_connect(bench: &Bench<'_>) -> Tested {
    let a = bench.side(64, |builder| builder);
    let b = bench.sibling(&a);
    bench.connect(&a, &b);
    let region = b.region(8);
    a.run(Work::write(1, a.buf(b"inside"), region.remote()));
    assert_eq!(region.load(0).map(|word| word == 0), Ok(false));
    Ok(())
}

pub(crate) fn a_peer_that_gave_up_cannot_be_accepted_to_work(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    a.endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    let request = listener.next(b.patience()).expect("arrives");
    drop(a);
    b.post(Work::recv(1, b.empty(8)));
    // Either the provider knows already, or the endpoint learns it in time.
    if request.accept(&b.endpoint, b"").is_ok() {
        assert_eq!(b.done(1).status, Status::Flushed);
        let refused = b.endpoint.post_one(Work::send(2, b.buf(b"x")));
        if let Err(refused) = refused {
            let expected = [PostError::NotConnected, PostError::QueueFull];
            assert!(expected.contains(&refused.error), "{refused}");
        }
    }
    Ok(())
}
