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

/// The reference with bad luck by a seed.
struct Unlucky(u64);

impl Sut for Unlucky {
    fn open(&self) -> Result<Domain, Error> {
        Ok(Plain.open()?.hooked(Fault::seeded(self.0)))
    }
}

/// Reliable datagrams layered on connections.
struct Layered;

impl Sut for Layered {
    fn open(&self) -> Result<Domain, Error> {
        let registry = Registry::new().with(Loopback::without_rdm());
        registry.open("loopback", &registry.defaults())
    }
}

/// The same with bad luck by a seed.
struct UnluckyLayered(u64);

impl Sut for UnluckyLayered {
    fn open(&self) -> Result<Domain, Error> {
        Ok(Layered.open()?.hooked(Fault::seeded(self.0)))
    }
}

instantiate!(loopback: Plain);
instantiate!(layered: Layered);
instantiate!(layered_fault_seed_1: UnluckyLayered(1));
instantiate!(fault_seed_1: Unlucky(1));
instantiate!(fault_seed_2: Unlucky(2));
instantiate!(fault_seed_3: Unlucky(3));
