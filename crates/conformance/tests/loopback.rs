//! The reference provider conforms.

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

instantiate!(loopback: Plain);
