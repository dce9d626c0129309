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
