//! RDMA on every machine: the API of [`ringmail_fabric`](fabric) with every provider there is.
//!
//! ```
//! let registry = ringmail::registry();
//! let domain = registry.open("loopback", &registry.config()?)?;
//! let region = domain.register(ringmail::Memory::allocate(4096), ringmail::Access::REMOTE_WRITE)?;
//! println!("peers may write to {:?}", region.remote());
//! # Ok::<(), ringmail::Error>(())
//! ```
//!
//! What this crate does not do: anything of its own. It adds providers to the registry, one line each.

#![forbid(unsafe_code)]

pub use fabric::*;

/// The providers of this build.
#[must_use]
pub fn registry() -> Registry {
    Registry::new()
        .with(shm::Shm::new())
        .with(softroce::Softroce::new())
        .with(loopback::Loopback::new())
}

/// The program in README.md is run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
