//! The test suite that every Ringmail provider passes.
//!
//! A test is a function over any provider; [`instantiate`] makes `#[test]`s of all of them for one:
//!
//! ```
//! # extern crate fabric as ringmail_fabric;
//! use ringmail_conformance::{Sut, instantiate};
//! use ringmail_fabric::{Domain, Error, Registry, loopback::Loopback};
//!
//! struct Local;
//!
//! impl Sut for Local {
//!     fn open(&self) -> Result<Domain, Error> {
//!         let registry = Registry::new().with(Loopback::new());
//!         registry.open("loopback", &registry.defaults())
//!     }
//! }
//!
//! instantiate!(loopback: Local);
//! # fn main() {}
//! ```
//!
//! A test that a provider cannot take (an operation it does not have) is skipped with its reason, which is printed. What is not
//! tested here: packets, other implementations, loss; those are the providers' own.

#[macro_use]
mod list;

mod bench;
mod connecting;
mod datagrams;
mod memory;
mod misuse;
mod operations;
mod peers;
mod queues;
mod receives;
mod sentences;
mod waiting;

use std::time::Duration;

use fabric::{Address, Domain, EndpointKind, Error};

/// A provider under test.
pub trait Sut: Sync {
    /// Opens a domain of its own: each test opens two, which must reach each other.
    ///
    /// # Errors
    /// What the provider answers; the test then fails.
    fn open(&self) -> Result<Domain, Error>;

    /// Where a listener in one domain is reached from the other.
    fn listen_address(&self) -> Address {
        Address::ANY
    }

    /// Why a test is not for this provider, though it has the capability. Reviewed like code.
    fn skip(&self, test: &str) -> Option<String> {
        let _ = test;
        None
    }

    /// How long anything may take before the test fails.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// Why a test did not run.
#[derive(Debug)]
pub struct Skip(String);

/// A test: panics if what its name says is not so.
type Test = fn(&bench::Bench<'_>) -> Result<(), Skip>;

/// Runs a test by name over a provider; what [`instantiate`] expands to.
///
/// # Panics
/// If the test fails, or does not exist.
#[doc(hidden)]
pub fn run(sut: &dyn Sut, kind: EndpointKind, group: &str, name: &str) {
    let test = TESTS
        .iter()
        .find(|(known, in_group, called, _)| {
            *known == kind && *in_group == group && *called == name
        })
        .map(|(_, _, _, test)| test)
        .expect("the macro lists what the table has");
    if let Some(reason) = sut.skip(name) {
        println!("skipped: {reason}");
        return;
    }
    let bench = bench::Bench { sut, kind };
    if let Err(Skip(reason)) = bench.check_kind().and_then(|()| test(&bench)) {
        println!("skipped: {reason}");
    }
}

/// Makes `#[test]`s in a module of this name of all tests, for one provider: `instantiate!(name: SUT)`, where `SUT` is an
/// expression whose value is a [`Sut`].
#[macro_export]
macro_rules! instantiate {
    ($module:ident: $sut:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            $crate::__all_tests! { $crate::__instantiate, $sut }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __instantiate {
    ($sut:expr; $($kind:ident as $module:ident { $($group:ident { $($name:ident,)* })* })*) => {
        $(mod $module {
            #[allow(unused_imports)]
            use super::*;
            $(mod $group {
                #[allow(unused_imports)]
                use super::*;
                $(#[test]
                fn $name() {
                    $crate::run(
                        &$sut,
                        $crate::__EndpointKind::$kind,
                        stringify!($group),
                        stringify!($name),
                    );
                })*
            })*
        })*
    };
}

macro_rules! table {
    ($unused:expr; $($kind:ident as $module:ident { $($group:ident { $($name:ident,)* })* })*) => {
        const TESTS: &[(EndpointKind, &str, &str, Test)] = &[
            $($($((EndpointKind::$kind, stringify!($group), stringify!($name), $group::$name),)*)*)*
        ];
    };
}

__all_tests! { table, () }

#[doc(hidden)]
pub use fabric::EndpointKind as __EndpointKind;
