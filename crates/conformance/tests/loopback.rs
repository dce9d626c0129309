//! The reference provider conforms.

use fabric::hook::Fault;
use fabric::loopback::Loopback;
use fabric::{Domain, Error, Registry};
use ringmail_conformance::{Sut, instantiate};

struct Plain;

impl Sut for Plain {
    fn open(&self) -> Result<Domain, Error> {
        let registry = Registry::new().with(Loopback::new());
        registry.open("loopback", &registry.defaults())
    }
}

/// The same with bad luck by a seed.
struct Unlucky(u64);

impl Sut for Unlucky {
    fn open(&self) -> Result<Domain, Error> {
        Ok(Plain.open()?.hooked(Fault::seeded(self.0)))
    }
}

instantiate!(loopback: Plain);
instantiate!(fault_seed_1: Unlucky(1));
instantiate!(fault_seed_2: Unlucky(2));
instantiate!(fault_seed_3: Unlucky(3));
