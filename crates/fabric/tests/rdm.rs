//! What reliable datagrams over connections promise beyond what every provider's conformance shows.

use std::time::Duration;

use ringmail_fabric::loopback::Loopback;
use ringmail_fabric::{
    CompletionQueue, Domain, Endpoint, EndpointKind, Event, Kinds, Registry, Status, Work,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn open(max_connections: usize) -> Domain {
    let registry = Registry::new().with(Loopback::without_rdm());
    let limit = max_connections.to_string();
    let config = registry.defaults().with("rdm.max-connections", limit);
    registry
        .open("loopback", &config.expect("a number"))
        .expect("loopback opens")
}

fn endpoint(domain: &Domain) -> (Endpoint, CompletionQueue) {
    let cq = domain.completion_queue(256).unwrap();
    (domain.endpoint(EndpointKind::Rdm, &cq).open().unwrap(), cq)
}

#[test]
fn the_kind_that_is_layered_shows_in_what_is_found() {
    let registry = Registry::new().with(Loopback::without_rdm());
    let (_, devices) = registry.discover(&registry.defaults()).remove(0);
    assert!(devices.unwrap()[0].capabilities.kinds.contains(Kinds::RDM));
}

#[test]
fn more_peers_than_connections_are_served_by_closing_idle_ones() {
    let limited = open(2);
    let (server, server_cq) = endpoint(&limited);
    let others = open(100);
    let peers: Vec<_> = (0..6).map(|_| endpoint(&others)).collect();
    for round in 0..3_u8 {
        for (number, (other, cq)) in peers.iter().enumerate() {
            let peer = server
                .addresses()
                .insert(&other.address().unwrap())
                .unwrap();
            other
                .post_one(Work::recv(1, others.buf(2).unwrap()))
                .unwrap();
            let message = limited.buf_from(&[number as u8, round]).unwrap();
            server.post_one(Work::send(2, message).to(peer)).unwrap();
            server_cq
                .next(PATIENCE)
                .unwrap()
                .ok()
                .expect("the send succeeds");
            let received = cq.next(PATIENCE).unwrap().ok().expect("it is received");
            assert_eq!(received.data(), [number as u8, round]);
        }
    }
}

#[test]
fn a_stranger_is_refused_while_every_connection_is_busy() {
    let limited = open(2);
    let (server, server_cq) = endpoint(&limited);
    let others = open(100);
    let peers: Vec<_> = (0..2).map(|_| endpoint(&others)).collect();
    // Their messages wait for a receive, so neither connection is idle.
    for (other, _) in &peers {
        let address = other.address().unwrap();
        let peer = server.addresses().insert(&address).unwrap();
        let message = limited.buf_from(b"waits").unwrap();
        server.post_one(Work::send(1, message).to(peer)).unwrap();
    }
    // What goes the other way shows that both are connected.
    for (other, cq) in &peers {
        server
            .post_one(Work::recv(2, limited.buf(1).unwrap()))
            .unwrap();
        let peer = other
            .addresses()
            .insert(&server.address().unwrap())
            .unwrap();
        let message = others.buf_from(b"x").unwrap();
        other.post_one(Work::send(3, message).to(peer)).unwrap();
        cq.next(PATIENCE).unwrap().ok().expect("it is connected");
        server_cq.next(PATIENCE).unwrap().ok().expect("received");
    }
    server
        .post_one(Work::recv(4, limited.buf(1).unwrap()))
        .unwrap();
    let (stranger, cq) = endpoint(&others);
    let peer = stranger
        .addresses()
        .insert(&server.address().unwrap())
        .unwrap();
    let knock = || {
        let message = others.buf_from(b"x").unwrap();
        stranger.post_one(Work::send(5, message).to(peer)).unwrap();
        cq.next(PATIENCE).unwrap().status
    };
    assert_eq!(knock(), Status::RetryExceeded, "there is no room");
    let (other, other_cq) = &peers[0];
    other
        .post_one(Work::recv(6, others.buf(5).unwrap()))
        .unwrap();
    other_cq.next(PATIENCE).unwrap().ok().expect("received");
    server_cq.next(PATIENCE).unwrap().ok().expect("sent");
    assert_eq!(knock(), Status::Success, "one connection is idle");
}

#[test]
fn endpoints_that_connect_to_each_other_at_once_lose_nothing() {
    for _ in 0..50 {
        let domains = [open(16), open(16)];
        let ends = [endpoint(&domains[0]), endpoint(&domains[1])];
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for side in 0..2 {
                let (ends, domains, start) = (&ends, &domains, &start);
                scope.spawn(move || {
                    let (own, other) = (&ends[side].0, &ends[1 - side].0);
                    let peer = own.addresses().insert(&other.address().unwrap()).unwrap();
                    for context in 0..8 {
                        own.post_one(Work::recv(context, domains[side].buf(1).unwrap()))
                            .unwrap();
                    }
                    start.wait();
                    for number in 0..8 {
                        let message = domains[side].buf_from(&[number]).unwrap();
                        own.post_one(Work::send(100, message).to(peer)).unwrap();
                    }
                });
            }
        });
        for (_, cq) in &ends {
            let mut next = 0;
            for _ in 0..16 {
                let done = cq.next(PATIENCE).unwrap().ok().expect("all succeed");
                if done.opcode.is_receive() {
                    assert_eq!(done.data(), [next], "in order, once");
                    next += 1;
                }
            }
            assert!(cq.poll_one().is_none());
        }
    }
}

#[test]
fn a_stranger_who_does_not_speak_the_layer_is_refused() {
    let domain = open(16);
    let (server, _cq) = endpoint(&domain);
    let cq = domain.completion_queue(16).unwrap();
    let stranger = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
    stranger
        .start_connect(&server.address().unwrap(), b"hello?")
        .unwrap();
    let event = stranger.events().wait(PATIENCE);
    assert!(matches!(event, Some(Event::Rejected { .. })), "{event:?}");
}

#[test]
fn work_for_nobody_fails_once_each() {
    let domain = open(16);
    let (sender, cq) = endpoint(&domain);
    let nobody = sender
        .addresses()
        .insert(&"loopback:nobody".into())
        .unwrap();
    for context in 0..10 {
        sender
            .post_one(Work::send(context, domain.buf_from(b"x").unwrap()).to(nobody))
            .unwrap();
    }
    let mut contexts = Vec::new();
    for _ in 0..10 {
        let done = cq.next(PATIENCE).unwrap();
        assert!(
            matches!(done.status, Status::RetryExceeded | Status::Flushed),
            "{}",
            done.status
        );
        contexts.push(done.context);
    }
    assert_eq!(contexts, (0..10).collect::<Vec<_>>());
    assert!(cq.poll_one().is_none());
}
