//! The provider on shared memory: between the processes of one user on one Linux machine.
//!
//! Messages travel through rings that both processes map; one-sided work is done by the process that posted it, in the memory
//! of the other, which may be asleep. Isolation is per user, not per key: who runs as the same user is trusted not to write to
//! what it was not given a key for, but whatever it writes, nothing here panics or touches memory that was not exposed.

#[cfg(target_os = "linux")]
mod address;
#[cfg(target_os = "linux")]
mod bell;
#[cfg(target_os = "linux")]
mod config;
#[cfg(target_os = "linux")]
mod connect;
#[cfg(target_os = "linux")]
mod cq;
#[cfg(target_os = "linux")]
mod domain;
#[cfg(target_os = "linux")]
mod ep;
#[cfg(target_os = "linux")]
mod fork;
#[cfg(target_os = "linux")]
mod helper;
#[cfg(all(test, target_os = "linux"))]
mod hostile;
#[cfg(target_os = "linux")]
mod listener;
#[cfg(target_os = "linux")]
mod local;
#[cfg(target_os = "linux")]
mod lock;
#[cfg(target_os = "linux")]
mod mapping;
#[cfg(target_os = "linux")]
mod peer;
#[cfg(target_os = "linux")]
mod ready;
#[cfg(target_os = "linux")]
mod recv;
#[cfg(target_os = "linux")]
mod region;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
mod send;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(target_os = "linux")]
mod socket;
#[cfg(all(test, target_os = "linux"))]
mod strangers;
#[cfg(target_os = "linux")]
mod wire;

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::Arc;
    use std::time::Duration;

    use fabric::provider::{self, Provider};
    use fabric::{Atomics, Capabilities, Config, Error, Info, Kinds, Operations, Reach, Setting};

    use crate::{Shm, config, domain, send, wire};

    impl Provider for Shm {
        fn name(&self) -> &'static str {
            NAME
        }

        fn settings(&self) -> &'static [Setting] {
            &config::SETTINGS
        }

        fn discover(&self, _: &Config) -> Result<Vec<Info>, Error> {
            Ok(vec![info()])
        }

        fn open(&self, info: &Info, config: &Config) -> Result<Arc<dyn provider::Domain>, Error> {
            let geometry = config::geometry(config)?;
            Ok(Arc::new(domain::Domain::open(info.clone(), geometry)?))
        }
    }

    fn info() -> Info {
        Info {
            provider: NAME,
            device: "memory".to_owned(),
            address: None,
            description:
                "shared memory between processes of this user; isolation is per user, not per key"
                    .to_owned(),
            // Below what reaches other users and machines: a server that nobody told what to use is for them, too.
            rank: 150,
            capabilities: Capabilities {
                kinds: Kinds::MSG,
                operations: Operations::all(),
                reach: Reach::Host,
                atomics: Atomics::Processor,
                ordered_placement: true,
                max_message: MAX_MESSAGE,
                max_datagram: 0,
                max_inline: send::MAX_INLINE,
                max_segments: 16,
                max_depth: 65_536,
                max_private_data: wire::MAX_PRIVATE_DATA,
                faults: false,
                capture: false,
                registers_private_memory: false,
            },
        }
    }

    pub(crate) const NAME: &str = "shm";
    /// Longest message, in bytes.
    pub(crate) const MAX_MESSAGE: usize = 1 << 31;
    /// How long a peer that has connected may take to say what it wants.
    pub(crate) const HEARING: Duration = Duration::from_secs(5);
    /// How long a program may take to answer a request.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
}

/// Elsewhere there is nothing to be found.
#[cfg(not(target_os = "linux"))]
impl fabric::provider::Provider for Shm {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn discover(&self, _: &fabric::Config) -> Result<Vec<fabric::Info>, fabric::Error> {
        Err(fabric::Error::Absent {
            provider: "shm".to_owned(),
            reason: "it needs Linux".to_owned(),
        })
    }

    fn open(
        &self,
        _: &fabric::Info,
        config: &fabric::Config,
    ) -> Result<std::sync::Arc<dyn fabric::provider::Domain>, fabric::Error> {
        self.discover(config)?;
        unreachable!("nothing was discovered")
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{HEARING, MAX_MESSAGE, NAME, PATIENCE};

/// The provider; see the crate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shm;

impl Shm {
    /// The provider.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}
