//! Waiting: with a timeout, by a descriptor, for what was solicited.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fabric::Work;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Skip;
use crate::bench::{Bench, Side};

type Tested = Result<(), Skip>;

/// Whether the descriptor is, or within `timeout` becomes, readable.
fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).expect("a short time");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("poll works") == 1
}

/// Arms, and polls until there is nothing left that came before.
fn arm(side: &Side) {
    while side.cq.arm().expect("armed") {
        assert!(side.cq.poll_one().is_none(), "nothing was expected yet");
    }
}

pub(crate) fn a_wait_for_nothing_times_out(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let start = Instant::now();
    let timeout = Duration::from_millis(5);
    assert!(
        !pair.a.cq.wait(timeout).expect("waits"),
        "nothing was posted"
    );
    assert!(start.elapsed() >= timeout, "the wait was cut short");
    assert!(!pair.a.cq.wait(Duration::ZERO).expect("waits"));
    Ok(())
}

pub(crate) fn a_wait_ends_with_a_completion(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    std::thread::scope(|scope| {
        let patience = pair.b.patience();
        let cq = pair.b.cq.clone();
        let waiter = scope.spawn(move || {
            while cq.poll_one().is_none() {
                assert!(cq.wait(patience).expect("waits"), "nothing came");
            }
        });
        pair.a.run(Work::send(2, pair.a.buf(b"wake up")));
        waiter.join().expect("the waiter was woken");
    });
    Ok(())
}

pub(crate) fn a_queue_that_is_not_empty_need_not_be_waited_for(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(8);
    pair.a
        .post(Work::write(1, pair.a.buf(b"x"), region.remote()));
    while !pair.a.cq.wait(pair.a.patience()).expect("waits") {}
    assert!(
        pair.a.cq.wait(Duration::ZERO).expect("waits"),
        "it is still there"
    );
    pair.a.success(1);
    Ok(())
}

pub(crate) fn the_descriptor_is_readable_after_a_completion(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    arm(&pair.b);
    let fd = pair.b.cq.fd().expect("a descriptor");
    assert!(!readable(fd, Duration::ZERO), "nothing came yet");
    pair.a.run(Work::send(2, pair.a.buf(b"ring")));
    assert!(
        readable(fd, pair.b.patience()),
        "the completion does not show"
    );
    assert_eq!(pair.b.success(1).data(), b"ring");
    // Armed again and empty, it is quiet again.
    arm(&pair.b);
    assert!(!readable(fd, Duration::ZERO), "what was polled still shows");
    Ok(())
}

pub(crate) fn arming_answers_what_is_there_already(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(8)));
    pair.a.run(Work::send(2, pair.a.buf(b"before")));
    while !pair.b.cq.wait(pair.b.patience()).expect("waits") {}
    assert!(pair.b.cq.arm().expect("armed"), "a wake-up was lost");
    pair.b.success(1);
    Ok(())
}

pub(crate) fn only_solicited_completions_wake_those_who_want_no_others(
    bench: &Bench<'_>,
) -> Tested {
    let pair = bench.pair();
    pair.b.post_all(
        (1..3)
            .map(|context| Work::recv(context, pair.b.empty(8)))
            .collect(),
    );
    let fd = pair.b.cq.fd().expect("a descriptor");
    while pair.b.cq.arm_solicited().expect("armed") {
        assert!(pair.b.cq.poll_one().is_none(), "nothing was expected yet");
    }
    pair.a.run(Work::send(5, pair.a.buf(b"quietly")));
    // The sender's completion says that the message is there; it shows nothing, since it was not solicited.
    assert!(
        !readable(fd, Duration::ZERO),
        "woken by what was not solicited"
    );
    pair.a.run(Work::send(6, pair.a.buf(b"loudly")).solicited());
    assert!(
        readable(fd, pair.b.patience()),
        "not woken by what was solicited"
    );
    pair.b.success(1);
    pair.b.success(2);
    Ok(())
}

pub(crate) fn the_descriptor_of_events_shows_them(bench: &Bench<'_>) -> Tested {
    let (a, b) = (
        bench.side(16, |builder| builder),
        bench.side(16, |builder| builder),
    );
    let listener = bench.listen(&b.domain);
    let fd = listener.events().fd().expect("a descriptor");
    assert!(!readable(fd, Duration::ZERO), "nobody asked yet");
    a.endpoint
        .start_connect(&listener.address(), b"")
        .expect("starts");
    assert!(readable(fd, b.patience()), "the request does not show");
    drop(listener.next(b.patience()).expect("it is there"));
    assert!(!readable(fd, Duration::ZERO), "what was taken still shows");
    Ok(())
}
