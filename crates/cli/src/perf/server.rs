//! The side that is measured against: one session for each client, one case after the other.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use fabric::{Address, ConnectionRequest, Domain, Error, Listener, RemoteRegion};

use super::case::{Case, Found, Ground};
use super::control::{Account, Control, Purpose, Reply, Request, counted, counted_since};
use super::cpu::{self, Cores};
use super::latency::Limit;
use super::plan::Plan;
use crate::protocol::Token;

/// Who serves measurements.
pub(super) struct Server {
    domain: Domain,
    listener: Listener,
    token: Token,
    /// Where sessions run.
    cores: Option<Cores>,
    /// The client is a thread of this process.
    is_within: bool,
}

/// Where the lanes of each session go.
type Sessions = Arc<Mutex<HashMap<u64, Sender<(u32, ConnectionRequest)>>>>;

impl Server {
    /// Listens for clients that show `token`.
    ///
    /// # Errors
    /// What listening answers.
    pub(super) fn open(domain: &Domain, listen: &Address, token: Token) -> anyhow::Result<Self> {
        let provider = domain.info().provider;
        let listener = domain
            .listen(listen.clone())
            .with_context(|| format!("cannot listen over {provider}"))?;
        Ok(Self {
            domain: domain.clone(),
            listener,
            token,
            cores: None,
            is_within: false,
        })
    }

    /// In a thread of the client's process, on those cores.
    pub(super) fn within(self, cores: Option<Cores>) -> Self {
        Self {
            cores,
            is_within: true,
            ..self
        }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Address {
        self.listener.address()
    }

    /// Serves everybody, for ever.
    ///
    /// # Errors
    /// What the device answers when it cannot go on.
    pub(super) fn serve_all(&self) -> anyhow::Result<ExitCode> {
        if let Some(cores) = self.cores {
            cores.pin()?;
        }
        let sessions = Sessions::default();
        loop {
            let request = match self.listener.next(Duration::from_secs(3600)) {
                Ok(request) => request,
                Err(Error::TimedOut) => continue,
                Err(error) => return Err(error.into()),
            };
            match Purpose::parse(request.private_data(), self.token) {
                Ok(Purpose::Control) => self.begin(request, &sessions),
                Ok(Purpose::Lane { session, lane }) => {
                    let sessions = sessions.lock().expect("nothing under the lock panics");
                    // A lane of nobody is rejected as it drops.
                    if let Some(session) = sessions.get(&session) {
                        let _ = session.send((lane, request));
                    }
                }
                Err(reason) => {
                    let _ = request.reject(reason.as_bytes());
                }
            }
        }
    }

    /// Starts a session.
    fn begin(&self, request: ConnectionRequest, sessions: &Sessions) {
        let from = request.from().clone();
        let mut number = [0; 8];
        let drawn = getrandom::fill(&mut number);
        let number = u64::from_ne_bytes(number);
        let (sender, lanes) = mpsc::channel();
        {
            let mut sessions = sessions.lock().expect("nothing under the lock panics");
            if drawn.is_err() || sessions.len() >= MAX_SESSIONS {
                let _ = request.reject(b"there are too many clients");
                return;
            }
            sessions.insert(number, sender);
        }
        let session = Session {
            domain: self.domain.clone(),
            is_within: self.is_within,
            lanes,
        };
        let known = Arc::clone(sessions);
        let started = thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                if let Err(error) = session.serve(request, number) {
                    tracing::debug!(%from, "a client has ended: {error:#}");
                }
                forget(&known, number);
            });
        if started.is_err() {
            forget(sessions, number);
        }
    }
}

fn forget(sessions: &Sessions, number: u64) {
    let mut sessions = sessions.lock().expect("nothing under the lock panics");
    sessions.remove(&number);
}

/// One client.
struct Session {
    domain: Domain,
    is_within: bool,
    lanes: Receiver<(u32, ConnectionRequest)>,
}

impl Session {
    fn serve(self, request: ConnectionRequest, number: u64) -> anyhow::Result<()> {
        let mut control = Control::new(&self.domain)?;
        request.accept(control.endpoint(), &number.to_be_bytes())?;
        control.endpoint().wait_connected(HANDSHAKE)?;
        let mut case: Option<Case> = None;
        let mut silent = Duration::ZERO;
        loop {
            let Some(request) = control.hear(PAUSE)? else {
                silent += PAUSE;
                match &case {
                    Some(case) => case.beat(&mut control)?,
                    None if silent < PATIENCE => {}
                    None => bail!("it says nothing"),
                }
                continue;
            };
            silent = Duration::ZERO;
            let outcome = match request {
                Request::Prepare { plan, region } => {
                    // The memory of the case before is given back first.
                    drop(case.take());
                    self.prepare(&mut control, plan, region).map(|ready| {
                        case = Some(ready);
                        Reply::Ready
                    })
                }
                Request::Run => match &mut case {
                    Some(case) => self.run(&mut control, case).map(Reply::Ran),
                    None => Err(anyhow!("nothing was prepared")),
                },
            };
            match outcome {
                Ok(reply) => control.say(&reply)?,
                Err(error) => {
                    tracing::debug!("cannot serve a case: {error:#}");
                    case = None;
                    control.say(&Reply::Failed(format!("{error:#}")))?;
                }
            }
        }
    }

    fn prepare(
        &self,
        control: &mut Control,
        plan: Plan,
        remote: RemoteRegion,
    ) -> anyhow::Result<Case> {
        let fits = plan
            .check()
            .and_then(|()| plan.check_device(self.domain.capabilities()));
        fits.map_err(|reason| anyhow!(reason))?;
        // Lanes of a case that came to nothing.
        while self.lanes.try_recv().is_ok() {}
        let ground = Ground::new(&self.domain, plan)?;
        control.say(&Reply::Prepared {
            region: ground.region.remote(),
        })?;
        let mut lanes = Vec::with_capacity(plan.qps);
        let deadline = Instant::now() + HANDSHAKE;
        for expected in 0..plan.qps {
            let left = deadline.saturating_duration_since(Instant::now());
            let (number, request) = self
                .lanes
                .recv_timeout(left)
                .map_err(|_| anyhow!("queue pair {expected} was not connected"))?;
            if number as usize != expected {
                bail!("queue pair {number} came instead of {expected}");
            }
            let endpoint = ground.endpoint(&self.domain, expected)?;
            let lane = ground.lane(endpoint, expected, false, remote)?;
            request.accept(lane.endpoint(), &[])?;
            lanes.push(lane);
        }
        for lane in &lanes {
            lane.endpoint().wait_connected(HANDSHAKE)?;
        }
        Ok(ground.connected(lanes, false, remote))
    }

    fn run(&self, control: &mut Control, case: &mut Case) -> anyhow::Result<Account> {
        case.begin();
        let (before, started) = (counted(&self.domain), cpu::time());
        control.say(&Reply::Running)?;
        // The client says when it is over.
        let limit = Limit::Count(0);
        let found = case.run(limit, control, || Ok(()))?;
        let spent = cpu::time().saturating_sub(started);
        let mut account = Account {
            cpu: (!self.is_within).then_some(spent.as_nanos() as u64),
            counted: counted_since(&self.domain, &before),
            ..Account::default()
        };
        if self.is_within {
            account.counted.clear();
        }
        for one in found {
            if let Found::Flow(flow) = one {
                account.messages += flow.messages;
                account.elapsed = account.elapsed.max(flow.elapsed.as_nanos() as u64);
            }
        }
        Ok(account)
    }
}

const MAX_SESSIONS: usize = 64;
/// A client that has not connected all by then has given up.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How often a client that says nothing is asked whether it is there.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a client that has nothing to measure may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);
