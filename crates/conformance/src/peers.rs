//! Reliable datagrams: many peers through one endpoint.

use fabric::{Access, Address, PostError, Status, Work};

use crate::Skip;
use crate::bench::{Bench, Side, bytes};

type Tested = Result<(), Skip>;

fn several(bench: &Bench<'_>, count: usize) -> Vec<Side> {
    (0..count)
        .map(|_| bench.side(1024, |builder| builder))
        .collect()
}

pub(crate) fn the_sender_is_named_and_can_be_answered(bench: &Bench<'_>) -> Tested {
    let sides = several(bench, 3);
    let server = &sides[0];
    for client in &sides[1..] {
        let peer = client.knows(&server.endpoint);
        server.post(Work::recv(1, server.empty(8)));
        client.post(Work::recv(2, client.empty(8)));
        client.run(Work::send(3, client.buf(b"hello")).to(peer));
        let received = server.success(1);
        let source = received.peer.expect("the sender is named");
        let address = server.endpoint.addresses().lookup(source);
        assert_eq!(address, client.endpoint.address().ok());
        server.run(Work::send(4, server.buf(b"you too")).to(source));
        let answer = client.success(2);
        assert_eq!(answer.data(), b"you too");
        assert_eq!(answer.peer, Some(peer), "one peer has one handle");
    }
    Ok(())
}

pub(crate) fn everybody_talks_to_everybody_at_once(bench: &Bench<'_>) -> Tested {
    let sides = several(bench, 4);
    for side in &sides {
        side.post_all(
            (0..60)
                .map(|context| Work::recv(context, side.empty(2)))
                .collect(),
        );
    }
    // Each pair connects from both ends at the same time.
    std::thread::scope(|scope| {
        for (number, side) in sides.iter().enumerate() {
            let others: Vec<_> = (0..sides.len())
                .filter(|&other| other != number)
                .map(|other| {
                    side.endpoint
                        .addresses()
                        .insert(&sides[other].endpoint.address().expect("an address"))
                })
                .collect();
            let (endpoint, domain) = (&side.endpoint, &side.domain);
            scope.spawn(move || {
                for round in 0..20_u8 {
                    for peer in &others {
                        let peer = *peer.as_ref().expect("there is room");
                        let mut work = Work::send(
                            1000,
                            domain.buf_from(&[number as u8, round]).expect("a buffer"),
                        )
                        .to(peer);
                        while let Err(refused) = endpoint.post_one(work) {
                            assert_eq!(refused.error, PostError::QueueFull);
                            work = *refused.work;
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
    });
    for side in &sides {
        let mut next = std::collections::HashMap::new();
        let completions = (0..120).map(|_| side.next());
        for completion in completions {
            assert_eq!(completion.status, Status::Success);
            if !completion.opcode.is_receive() {
                continue;
            }
            let &[from, round] = completion.data() else {
                panic!("two bytes were sent")
            };
            let expected = next.entry(from).or_insert(0);
            assert_eq!(round, *expected, "order is kept for each peer");
            *expected += 1;
            let known = completion
                .peer
                .and_then(|peer| side.endpoint.addresses().lookup(peer));
            assert_eq!(known, sides[from as usize].endpoint.address().ok());
        }
        assert!(next.values().all(|&rounds| rounds == 20), "{next:?}");
    }
    Ok(())
}

pub(crate) fn a_slow_peer_delays_no_other(bench: &Bench<'_>) -> Tested {
    let sides = several(bench, 3);
    let (sender, slow, quick) = (&sides[0], &sides[1], &sides[2]);
    let (to_slow, to_quick) = (sender.knows(&slow.endpoint), sender.knows(&quick.endpoint));
    for context in 0..4 {
        sender.post(Work::send(context, sender.buf(b"for the slow one")).to(to_slow));
    }
    quick.post(Work::recv(1, quick.empty(16)));
    sender.run(Work::send(100, sender.buf(b"for the quick on")).to(to_quick));
    assert_eq!(quick.success(1).data(), b"for the quick on");
    for context in 0..4 {
        slow.post(Work::recv(context, slow.empty(16)));
        slow.success(context);
        sender.success(context);
    }
    Ok(())
}

pub(crate) fn one_sided_work_goes_to_the_peer_that_is_named(bench: &Bench<'_>) -> Tested {
    let sides = several(bench, 3);
    let peers: Vec<_> = sides[1..]
        .iter()
        .map(|side| sides[0].knows(&side.endpoint))
        .collect();
    let regions: Vec<_> = sides[1..].iter().map(|side| side.region(8)).collect();
    for (index, (peer, region)) in peers.iter().zip(&regions).enumerate() {
        let data = [index as u8 + 1; 8];
        sides[0].run(Work::write(1, sides[0].buf(&data), region.remote()).to(*peer));
    }
    for (index, region) in regions.iter().enumerate() {
        assert_eq!(bytes(region), [index as u8 + 1; 8]);
    }
    Ok(())
}

pub(crate) fn a_peer_that_is_not_known_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let mut work = Work::send(1, pair.a.buf(b"x"));
    work.peer = None;
    let refused = loop {
        match pair.a.endpoint.post_one(work) {
            Err(refused) if refused.error == PostError::QueueFull => work = *refused.work,
            other => break other,
        }
    };
    assert_eq!(
        refused.expect_err("without a peer").error,
        PostError::NoPeer
    );
    let peer = pair.a.peer.expect("a datagram endpoint");
    pair.a.endpoint.addresses().remove(peer);
    let refused = pair.a.refused(Work::send(2, pair.a.buf(b"x")));
    assert_eq!(refused.error, PostError::NoPeer);
    Ok(())
}

pub(crate) fn work_for_a_peer_that_is_gone_fails_and_other_work_goes_on(
    bench: &Bench<'_>,
) -> Tested {
    let mut sides = several(bench, 3);
    let gone = sides.pop().expect("three");
    let (sender, alive) = (&sides[0], &sides[1]);
    let (to_gone, to_alive) = (sender.knows(&gone.endpoint), sender.knows(&alive.endpoint));
    gone.post(Work::recv(1, gone.empty(8)));
    sender.run(Work::send(1, sender.buf(b"there?")).to(to_gone));
    gone.success(1);
    sender.post(Work::send(2, sender.buf(b"waits")).to(to_gone));
    drop(gone);
    let waited = sender.done(2);
    assert!(
        !waited.status.is_success(),
        "there was nobody to receive it"
    );
    assert_eq!(waited.peer, Some(to_gone));
    assert_eq!(&waited.into_buf().expect("its buffer")[..], b"waits");
    let status = sender.fate(Work::send(3, sender.buf(b"anybody?")).to(to_gone));
    assert!(!status.is_success(), "there is nobody");
    alive.post(Work::recv(1, alive.empty(8)));
    sender.run(Work::send(4, sender.buf(b"you?")).to(to_alive));
    assert_eq!(alive.success(1).data(), b"you?");
    Ok(())
}

pub(crate) fn a_peer_that_came_back_is_reached_and_reaches(bench: &Bench<'_>) -> Tested {
    let a = bench.side(64, |builder| builder);
    let mut b = bench.side(64, |builder| builder);
    let to_b = a.knows(&b.endpoint);
    let address: Address = b.endpoint.address().expect("an address");
    let to_a = b.knows(&a.endpoint);
    for life in 0..3_u8 {
        b.post(Work::recv(1, b.empty(8)));
        a.run(Work::send(1, a.buf(&[life])).to(to_b));
        assert_eq!(b.success(1).data(), [life]);
        let _ = to_a;
        let back = b.knows(&a.endpoint);
        a.post(Work::recv(2, a.empty(8)));
        b.run(Work::send(2, b.buf(&[life])).to(back));
        assert_eq!(a.success(2).data(), [life]);
        // The endpoint ends and another takes its address.
        let Side {
            endpoint,
            domain,
            cq,
            ..
        } = b;
        drop(endpoint);
        drop((domain, cq));
        b = bench.side(64, |builder| builder.address(address.clone()));
        // What a had outstanding to the old one has ended; a send that meets the change may fail once.
        b.post(Work::recv(7, b.empty(8)));
        let mut status = a.fate(Work::send(8, a.buf(b"again?")).to(to_b));
        for _ in 0..3 {
            if status.is_success() {
                break;
            }
            status = a.fate(Work::send(8, a.buf(b"again?")).to(to_b));
        }
        assert_eq!(status, Status::Success, "the restarted peer is not reached");
        assert_eq!(b.success(7).data(), b"again?");
    }
    Ok(())
}

pub(crate) fn an_endpoint_sends_to_itself(bench: &Bench<'_>) -> Tested {
    let side = bench.side(64, |builder| builder);
    let own = side.knows(&side.endpoint);
    let region = side.region_with(8, Access::all());
    side.post(Work::recv(1, side.empty(8)));
    side.post(Work::send(2, side.buf(b"myself")).to(own));
    assert_eq!(side.success(1).data(), b"myself");
    side.success(2);
    side.run(Work::write(3, side.buf(b"me"), region.remote()).to(own));
    assert_eq!(&bytes(&region)[..2], b"me");
    Ok(())
}

pub(crate) fn an_address_belongs_to_one_endpoint(bench: &Bench<'_>) -> Tested {
    let side = bench.side(64, |builder| builder);
    let address = side.endpoint.address().expect("an address");
    let second = side
        .domain
        .endpoint(bench.kind, &side.cq)
        .address(address.clone())
        .open();
    assert!(
        matches!(second, Err(fabric::Error::AddressInUse(_))),
        "{second:?}"
    );
    drop(side);
    bench.side(64, |builder| builder.address(address.clone()));
    Ok(())
}
