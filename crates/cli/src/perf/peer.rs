//! Who is measured against: a process started for it, a thread where the device reaches no other process, or someone else.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fabric::{Address, Config, Domain, Reach};

use super::cpu::Cores;
use super::server::Server;
use crate::child::Responder;
use crate::protocol::Token;

/// Who is measured against. Dropping it ends what was started.
pub(super) struct Peer {
    pub(super) address: Address,
    pub(super) token: Token,
    process: Option<Responder>,
}

impl Peer {
    /// Someone else.
    pub(super) fn elsewhere(address: Address) -> Self {
        Self {
            address,
            token: Token::default(),
            process: None,
        }
    }

    /// Starts one on this machine.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn start(
        config: &Config,
        domain: &Domain,
        cores: Option<Cores>,
    ) -> anyhow::Result<Self> {
        if domain.capabilities().reach == Reach::Process {
            let token = Token::random();
            let server = Server::open(domain, &Address::ANY, token)?.within(cores);
            let address = server.address();
            thread::Builder::new()
                .name("server".to_owned())
                .spawn(move || server.serve_all())
                .context("cannot start a thread")?;
            return Ok(Self {
                address,
                token,
                process: None,
            });
        }
        let mut arguments = vec!["perf".into(), "--for-parent".into()];
        if let Some(cores) = cores {
            arguments.extend(["--pin".into(), cores.to_string().into()]);
        }
        let process = Responder::start(&arguments, config, domain)?;
        Ok(Self {
            address: process.address.clone(),
            token: process.token,
            process: Some(process),
        })
    }

    /// Whether it is a process of its own, started by us.
    pub(super) fn is_process(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it lives, as far as can be seen without asking it.
    ///
    /// # Errors
    /// That it has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match &mut self.process {
            Some(process) => process.check(),
            None => Ok(()),
        }
    }

    /// The same for one that may be ending just now.
    pub(super) fn check_soon(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.process.is_some() && start.elapsed() < SOON {
            self.check()?;
            thread::yield_now();
        }
        self.check()
    }
}

/// A process that dies takes its connections along a moment before its parent can know.
const SOON: Duration = Duration::from_millis(50);
