//! The provider conforms: between domains, within one, and in bad luck.
#![cfg(target_os = "linux")]

use std::sync::OnceLock;

use conformance::{Sut, instantiate};
use fabric::hook::Fault;
use fabric::{Domain, Error, Registry};
use ringmail_shm::Shm;

/// Each side a domain of its own, as two processes have them.
struct Domains;

impl Sut for Domains {
    fn open(&self) -> Result<Domain, Error> {
        let registry = Registry::new().with(Shm::new());
        registry.open("shm", &registry.defaults())
    }
}

instantiate!(domains: Domains);

/// Both sides in one domain.
struct OneDomain;

impl Sut for OneDomain {
    fn open(&self) -> Result<Domain, Error> {
        static DOMAIN: OnceLock<Domain> = OnceLock::new();
        Ok(DOMAIN
            .get_or_init(|| Domains.open().expect("a domain opens"))
            .clone())
    }

    fn skip(&self, test: &str) -> Option<String> {
        const NEED_ANOTHER: [&str; 2] = [
            "memory_of_another_domain_is_refused",
            "a_region_of_another_domain_is_refused",
        ];
        NEED_ANOTHER
            .contains(&test)
            .then(|| "there is no other domain here".to_owned())
    }
}

instantiate!(one_domain: OneDomain);

/// With bad luck by a seed.
struct Unlucky(u64);

impl Sut for Unlucky {
    fn open(&self) -> Result<Domain, Error> {
        Ok(Domains.open()?.hooked(Fault::seeded(self.0)))
    }
}

instantiate!(fault_seed_1: Unlucky(1));
instantiate!(fault_seed_2: Unlucky(2));
instantiate!(fault_seed_3: Unlucky(3));

/// Two queues in one domain, of which only one is polled: the other moves along all the same.
#[test]
fn a_queue_that_nobody_polls_moves_along_beside_one_that_is_polled() {
    use fabric::{EndpointKind, Work};
    use std::time::{Duration, Instant};

    let patience = Duration::from_secs(20);
    let (near, far) = (Domains.open().unwrap(), Domains.open().unwrap());
    let (sent, received) = (
        near.completion_queue(16).unwrap(),
        far.completion_queue(16).unwrap(),
    );
    let polled = far.completion_queue(16).unwrap();
    let sender = near.endpoint(EndpointKind::Msg, &sent).open().unwrap();
    let receiver = far.endpoint(EndpointKind::Msg, &received).open().unwrap();
    let listener = far.listen("").unwrap();
    sender.start_connect(&listener.address(), b"").unwrap();
    let request = listener.next(patience).unwrap();
    request.accept(&receiver, b"").unwrap();
    sender.wait_connected(patience).unwrap();
    receiver
        .post_one(Work::recv(1, fabric::Buf::zeroed(8)))
        .unwrap();
    sender
        .post_one(Work::send(2, fabric::Buf::from(&b"message"[..])))
        .unwrap();
    let start = Instant::now();
    // The receiver's program polls something else all the while.
    while sent.poll_one().is_none() {
        assert!(polled.poll_one().is_none());
        assert!(start.elapsed() < patience, "nobody took the message");
    }
    assert_eq!(received.poll_one().map(|end| end.context), Some(1));
}
