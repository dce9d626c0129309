//! Messages and the room in the ring: its smallest sizes, and senders that wait for it.
#![cfg(target_os = "linux")]

use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use fabric::{CompletionQueue, Domain, Endpoint, EndpointKind, Registry, Work};
use ringmail_shm::Shm;

const PATIENCE: Duration = Duration::from_secs(10);

struct Side {
    _domain: Domain,
    cq: CompletionQueue,
    endpoint: Endpoint,
}

fn pair(settings: &[(&str, &str)]) -> (Side, Side) {
    let open = || {
        let registry = Registry::new().with(Shm::new());
        let mut config = registry.defaults();
        for (name, value) in settings {
            config = config.with(name, *value).unwrap();
        }
        let domain = registry.open("shm", &config).unwrap();
        let cq = domain.completion_queue(64).unwrap();
        let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
        Side {
            _domain: domain,
            cq,
            endpoint,
        }
    };
    let (near, far) = (open(), open());
    let listener = far._domain.listen("").unwrap();
    near.endpoint
        .start_connect(&listener.address(), b"")
        .unwrap();
    let request = listener.next(PATIENCE).unwrap();
    request.accept(&far.endpoint, b"").unwrap();
    near.endpoint.wait_connected(PATIENCE).unwrap();
    (near, far)
}

#[test]
fn the_smallest_buffer_carries_messages_of_all_lengths() {
    let (near, far) = pair(&[("shm.buffer", "4kb"), ("shm.cells", "16")]);
    for len in [100, 3000, 5000, 4096, 1, 4000, 64, 100_000, 2100] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        far.endpoint
            .post_one(Work::recv(1, fabric::Buf::zeroed(len)))
            .unwrap();
        near.endpoint
            .post_one(Work::send(2, fabric::Buf::from(&bytes[..])))
            .unwrap();
        let end = far
            .cq
            .next(PATIENCE)
            .unwrap_or_else(|error| panic!("{len}: {error}"));
        assert!(end.into_buf().unwrap()[..] == bytes[..]);
        near.cq.next(PATIENCE).unwrap();
    }
}

#[test]
fn a_sender_that_sleeps_is_woken_in_the_middle_of_its_message() {
    let (near, far) = pair(&[]);
    for len in [20 << 20, 300 << 10, 257 << 10] {
        far.endpoint
            .post_one(Work::recv(1, fabric::Buf::zeroed(len)))
            .unwrap();
        near.endpoint
            .post_one(Work::send(2, fabric::Buf::zeroed(len)))
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Sleeps on the descriptor alone.
                while !near.cq.arm().unwrap() {
                    let mut poll = libc::pollfd {
                        fd: near.cq.fd().unwrap().as_raw_fd(),
                        events: libc::POLLIN,
                        revents: 0,
                    };
                    // SAFETY: one record.
                    let woken = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
                    assert_eq!(woken, 1, "{len} not woken");
                }
                near.cq.poll_one().unwrap();
            });
            let start = Instant::now();
            while far.cq.poll_one().is_none() {
                assert!(start.elapsed() < PATIENCE, "{len}");
            }
        });
    }
}
