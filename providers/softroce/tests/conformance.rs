//! The provider conforms: between two devices, within one, in bad luck, and over a bad network.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::time::Instant;

use conformance::{Sut, instantiate};
use fabric::hook::Fault;
use fabric::{Domain, Error, Registry};
use ringmail_softroce::Softroce;
use rustix::fs::{FlockOperation, flock};

fn open(settings: &[(&str, &str)]) -> Result<Domain, Error> {
    let registry = Registry::new().with(Softroce::new());
    let mut config = registry.defaults();
    for (name, value) in settings {
        config.set(name, value)?;
    }
    registry.open("softroce", &config)
}

/// Each domain on a device of its own.
struct Devices;

impl Sut for Devices {
    fn open(&self) -> Result<Domain, Error> {
        open(&[("address", "fresh")])
    }

    fn skip(&self, test: &str) -> Option<String> {
        needs_one_address(test)
    }
}

instantiate!(devices: Devices);

/// Why a test is not for devices of their own; those that share one take it.
fn needs_one_address(test: &str) -> Option<String> {
    const TAKE_AN_ADDRESS_AGAIN: [&str; 2] = [
        "a_peer_that_came_back_is_reached_and_reaches",
        "an_address_belongs_to_one_endpoint",
    ];
    TAKE_AN_ADDRESS_AGAIN
        .contains(&test)
        .then(|| "a new domain has a new address here, and cannot take an old one's".to_owned())
}

/// All domains on the one device of the process.
struct OneDevice;

impl Sut for OneDevice {
    fn open(&self) -> Result<Domain, Error> {
        open(&[])
    }
}

instantiate!(one_device: OneDevice);

/// With bad luck by a seed.
struct Unlucky(u64);

impl Sut for Unlucky {
    fn open(&self) -> Result<Domain, Error> {
        Ok(OneDevice.open()?.hooked(Fault::seeded(self.0)))
    }
}

instantiate!(fault_seed_1: Unlucky(1));
instantiate!(fault_seed_2: Unlucky(2));
instantiate!(fault_seed_3: Unlucky(3));

/// What a bad network does to packets.
const FAULTS: &str = "loss=2%,dup=1%,reorder=3%,corrupt=1%,seed=1";

/// Over a bad network, with what software peers have beyond the standard.
struct Lossy;

impl Sut for Lossy {
    fn open(&self) -> Result<Domain, Error> {
        open(&[("address", "fresh"), ("faults", FAULTS)])
    }

    fn skip(&self, test: &str) -> Option<String> {
        needs_one_address(test)
    }
}

instantiate!(lossy: Lossy);

/// Over a bad network, by the letter of the standard, on one device.
struct LossyStandard;

impl Sut for LossyStandard {
    fn open(&self) -> Result<Domain, Error> {
        open(&[
            ("address", address_of_its_own()),
            ("extensions", "off"),
            ("faults", FAULTS),
        ])
    }
}

/// The device of the process has other settings where all tests run in one: here is another address, the same each time.
fn address_of_its_own() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| {
        let [a, b, c, ..] = RandomState::new().hash_one(0).to_ne_bytes();
        format!("127.{}.{b}.{}", 1 + a % 254, 1 + c % 254)
    })
}

instantiate!(lossy_standard: LossyStandard);

/// Over IPv6, where the host has but one loopback address: whoever runs these has it alone for a while.
struct Ipv6;

impl Sut for Ipv6 {
    fn open(&self) -> Result<Domain, Error> {
        hold_ipv6_loopback();
        // A process that has just ended may still have the port for a moment, and so may a test of something else.
        let start = Instant::now();
        loop {
            match open(&[("address", "::1")]) {
                Err(_) if start.elapsed() < self.patience() => std::thread::yield_now(),
                opened => return opened,
            }
        }
    }
}

instantiate!(ipv6: Ipv6);

/// Waits until no other process tests at `::1`, and keeps it until this process ends.
fn hold_ipv6_loopback() {
    static HELD: OnceLock<File> = OnceLock::new();
    HELD.get_or_init(|| {
        let path = std::env::temp_dir().join("ringmail-softroce-ipv6-loopback.lock");
        let file = File::create(path).expect("the temporary directory is writable");
        flock(&file, FlockOperation::LockExclusive).expect("files can be locked");
        file
    });
}
