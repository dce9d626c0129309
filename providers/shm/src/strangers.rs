//! Tests: peers that connect and say nothing, or too little room to let them in.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use fabric::{Domain, EndpointKind, Listener, Registry};

use crate::{Shm, socket};

/// Tells this executable that it may use up what a process has.
const ALONE: &str = "RINGMAIL_SHM_TEST_ALONE";
const PATIENCE: Duration = Duration::from_secs(20);

fn listen() -> (Domain, Listener) {
    let registry = Registry::new().with(Shm::new());
    let domain = registry.open("shm", &registry.defaults()).unwrap();
    let listener = domain.listen("").unwrap();
    (domain, listener)
}

/// Connects and says nothing.
fn silent(listener: &Listener) -> io::Result<OwnedFd> {
    Ok(socket::connect(listener.address().as_str())?.0)
}

/// A peer that does all right is connected.
fn assert_lets_in(domain: &Domain, listener: &Listener) {
    let cq = domain.completion_queue(4).unwrap();
    let open = || domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
    let (near, far) = (open(), open());
    near.start_connect(&listener.address(), b"").unwrap();
    let request = listener.next(PATIENCE).expect("it is heard");
    request.accept(&far, b"").unwrap();
    near.wait_connected(PATIENCE).unwrap();
}

#[test]
fn who_says_nothing_is_given_up_also_while_the_program_polls() {
    let (domain, listener) = listen();
    let cq = domain.completion_queue(4).unwrap();
    let silent = silent(&listener).unwrap();
    let start = Instant::now();
    loop {
        assert!(cq.poll_one().is_none());
        match socket::receive(silent.as_fd()) {
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
        assert!(
            start.elapsed() < crate::HEARING + Duration::from_secs(5),
            "it is not given up"
        );
    }
}

#[test]
fn many_who_say_nothing_do_not_take_all_descriptors() {
    let (domain, listener) = listen();
    let mut all = Vec::new();
    let mut since = Instant::now();
    while all.len() < 450 && since.elapsed() < Duration::from_secs(1) {
        match silent(&listener) {
            Ok(one) => {
                all.push(one);
                since = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    assert!(all.len() < 450, "all were let in");
    drop(all);
    assert_lets_in(&domain, &listener);
}

#[test]
fn without_descriptors_nobody_is_let_in_and_nobody_spins() {
    if !is_alone("strangers::without_descriptors_nobody_is_let_in_and_nobody_spins") {
        return;
    }
    let (domain, listener) = listen();
    // What waiting needs is there already.
    assert!(listener.next(Duration::from_millis(1)).is_err());
    limit(libc::RLIMIT_NOFILE, 64);
    let mut all = Vec::new();
    while let Ok(one) = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC) {
        all.push(one);
    }
    all.pop();
    let waits = silent(&listener).expect("the last descriptor");
    let before = cpu_time();
    assert!(listener.next(Duration::from_millis(500)).is_err());
    let used = cpu_time() - before;
    assert!(
        used < Duration::from_millis(100),
        "{used:?} of half a second"
    );
    drop((all, waits));
    assert_lets_in(&domain, &listener);
}

/// Of this process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes a record.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(read, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn without_address_space_a_domain_says_so() {
    if !is_alone("strangers::without_address_space_a_domain_says_so") {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').next().unwrap().parse().unwrap();
    limit(libc::RLIMIT_AS, pages * 4096 + (32 << 20));
    let registry = Registry::new().with(Shm::new());
    let refused = registry.open("shm", &registry.defaults());
    assert!(refused.is_err(), "there is no room for its table");
}

/// Whether this is a process for the test of this name only. Otherwise runs it in one.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(ALONE, "")
        .status();
    assert!(status.unwrap().success());
    false
}

/// Limits this process.
fn limit(what: libc::__rlimit_resource_t, to: u64) {
    let limit = libc::rlimit {
        rlim_cur: to,
        rlim_max: to,
    };
    // SAFETY: reads a record.
    let done = unsafe { libc::setrlimit(what, &raw const limit) };
    assert_eq!(done, 0);
}
