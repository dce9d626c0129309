//! What hooks see and do, over the reference provider.

use std::sync::Arc;

use ringmail_fabric::hook::{Counts, Fault, Stats};
use ringmail_fabric::loopback::Loopback;
use ringmail_fabric::{
    Access, Domain, EndpointKind, Error, Memory, Peer, PostError, Registry, Status, Work,
};

fn open() -> Domain {
    let registry = Registry::new().with(Loopback::new());
    registry
        .open("loopback", &registry.defaults())
        .expect("loopback opens")
}

/// Posts eight writes to itself over the domain, polls all, and answers each try to post and each poll as one line.
fn diary(domain: &Domain) -> Vec<String> {
    let cq = domain.completion_queue(16).unwrap();
    let endpoint = domain.endpoint(EndpointKind::Rdm, &cq).open().unwrap();
    let own: Peer = endpoint
        .addresses()
        .insert(&endpoint.address().unwrap())
        .unwrap();
    let region = domain.register(Memory::allocate(8), Access::all()).unwrap();
    let mut works: Vec<_> = (0..8)
        .map(|context| {
            Work::write(context, domain.buf_from(b"x").unwrap(), region.remote()).to(own)
        })
        .collect();
    let mut lines = Vec::new();
    while let Err(error) = endpoint.post(&mut works) {
        assert_eq!(error, PostError::QueueFull);
        lines.push(format!("{} left", works.len()));
    }
    let mut done = Vec::new();
    while done.len() < 8 {
        let count = cq.poll(&mut done, 4);
        lines.push(format!("{count} done"));
    }
    let contexts: Vec<_> = done.iter().map(|end| end.context).collect();
    assert_eq!(
        contexts,
        (0..8).collect::<Vec<_>>(),
        "one endpoint's completions keep their order"
    );
    assert!(done.iter().all(|end| end.status == Status::Success));
    lines
}

#[test]
fn bad_luck_is_the_same_for_the_same_seed() {
    let first = diary(&open().hooked(Fault::seeded(5)));
    assert_eq!(first, diary(&open().hooked(Fault::seeded(5))));
    let others = (6..12).map(|seed| diary(&open().hooked(Fault::seeded(seed))));
    assert!(
        others.into_iter().any(|other| other != first),
        "all seeds are alike"
    );
}

#[test]
fn bad_luck_refuses_splits_and_delays() {
    let lines: Vec<_> = (0..20)
        .flat_map(|seed| diary(&open().hooked(Fault::seeded(seed))))
        .collect();
    for expected in ["8 left", "4 left", "0 done", "1 done", "4 done"] {
        assert!(
            lines.iter().any(|line| line == expected),
            "never {expected}: {lines:?}"
        );
    }
    assert_eq!(
        diary(&open()),
        ["4 done", "4 done"],
        "without the hook nothing of that happens"
    );
}

#[test]
fn stats_count_what_passes() {
    let stats = Arc::new(Stats::default());
    diary(&open().hooked(Arc::clone(&stats)));
    let expected = Counts {
        posted: 8,
        posts: 1,
        succeeded: 8,
        bytes: 8,
        polls: 2,
        ..Counts::default()
    };
    assert_eq!(stats.snapshot(), expected);
}

#[test]
fn hooks_are_named_by_a_setting() {
    let registry = Registry::new().with(Loopback::new());
    let config = registry.defaults().with("hooks", "trace, fault:3").unwrap();
    diary(
        &registry
            .open("loopback", &config)
            .expect("both hooks exist"),
    );
    let wrong = registry.defaults().with("hooks", "gremlins").unwrap();
    let error = registry
        .open("loopback", &wrong)
        .expect_err("there is no such hook");
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert_eq!(
        error.to_string(),
        "hooks=gremlins is not a hook: trace or fault:SEED"
    );
}
