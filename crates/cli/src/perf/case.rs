//! One side of a case: its memory, its teams, and a run of them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fabric::RemoteRegion;
use fabric::{Access, CompletionQueue, Domain, Endpoint, EndpointKind, Memory, MemoryRegion};

use super::bandwidth::{self, Flow};
use super::control::Control;
use super::lane::{Lane, Parts};
use super::latency::{self, Limit, Times};
use super::plan::{Mode, Plan};
use super::team::{Aborted, Team, Watch};

/// Memory and queues, before there are connections.
pub(super) struct Ground {
    pub(super) plan: Plan,
    pub(super) region: MemoryRegion,
    queues: Vec<CompletionQueue>,
}

/// One side of a case, connected.
pub(super) struct Case {
    plan: Plan,
    is_client: bool,
    region: MemoryRegion,
    remote: RemoteRegion,
    teams: Vec<Team>,
}

/// What one thread found.
#[derive(Debug, Clone)]
pub(super) enum Found {
    Times(Times),
    Flow(Flow),
    Nothing,
}

impl Ground {
    /// # Errors
    /// What the device answers.
    pub(super) fn new(domain: &Domain, plan: Plan) -> anyhow::Result<Self> {
        let mut access = Access::REMOTE_READ | Access::REMOTE_WRITE;
        if plan.operation.is_atomic() {
            access |= Access::REMOTE_ATOMIC;
        }
        let memory = Memory::try_allocate(plan.memory())
            .with_context(|| format!("there is no memory of {} bytes for this", plan.memory()))?;
        let region = domain.register(memory, access)?;
        let queue = |_| domain.completion_queue(plan.queue_depth());
        Ok(Self {
            plan,
            region,
            queues: (0..plan.threads).map(queue).collect::<Result<_, _>>()?,
        })
    }

    /// An endpoint for `lane`, to be connected.
    ///
    /// # Errors
    /// What the device answers.
    pub(super) fn endpoint(&self, domain: &Domain, lane: usize) -> anyhow::Result<Endpoint> {
        let queue = &self.queues[lane % self.plan.threads];
        domain
            .endpoint(EndpointKind::Msg, queue)
            .send_depth(self.plan.send_depth() + 1)
            .recv_depth(self.plan.recv_depth())
            .open()
            .with_context(|| format!("cannot open queue pair {lane}"))
    }

    /// The queue of a thread.
    #[cfg(test)]
    pub(super) fn queue(&self, thread: usize) -> &CompletionQueue {
        &self.queues[thread]
    }

    /// A lane on that endpoint, with its receives posted.
    ///
    /// # Errors
    /// What posting answers.
    pub(super) fn lane(
        &self,
        endpoint: Endpoint,
        number: usize,
        is_client: bool,
        remote: RemoteRegion,
    ) -> anyhow::Result<Lane> {
        let parts = Parts {
            plan: self.plan,
            is_client,
            number,
            region: self.region.clone(),
            remote,
        };
        let mut lane = Lane::new(endpoint, parts);
        lane.prepare()?;
        Ok(lane)
    }

    /// With all lanes, in order.
    pub(super) fn connected(self, lanes: Vec<Lane>, is_client: bool, remote: RemoteRegion) -> Case {
        let mut shares: Vec<Vec<Lane>> = self.queues.iter().map(|_| Vec::new()).collect();
        for (number, lane) in lanes.into_iter().enumerate() {
            shares[number % self.plan.threads].push(lane);
        }
        let teams = self.queues.into_iter().zip(shares);
        Case {
            plan: self.plan,
            is_client,
            region: self.region,
            remote,
            teams: teams
                .map(|(queue, lanes)| Team::new(self.plan, queue, lanes))
                .collect(),
        }
    }
}

impl Case {
    /// Makes ready for a run, before the peer knows of it.
    pub(super) fn begin(&mut self) {
        self.teams.iter_mut().for_each(Team::begin);
    }

    /// Whether the peer is still there.
    ///
    /// # Errors
    /// That it is not.
    pub(super) fn beat(&self, control: &mut Control) -> anyhow::Result<()> {
        control.beat(&self.region, self.remote)
    }

    /// Runs a thread for each team, and watches over them; `check` is asked now and then whether to go on.
    ///
    /// # Errors
    /// What failed first.
    pub(super) fn run(
        &mut self,
        limit: Limit,
        control: &mut Control,
        mut check: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Found>> {
        let Self {
            plan,
            is_client,
            region,
            remote,
            teams,
        } = self;
        let (plan, is_client) = (*plan, *is_client);
        let watches: Vec<Watch> = teams.iter().map(|_| Watch::default()).collect();
        let running = AtomicUsize::new(teams.len());
        let watcher = thread::current();
        thread::scope(|scope| {
            let mut threads = Vec::with_capacity(teams.len());
            for (team, watch) in teams.iter_mut().zip(&watches) {
                let (running, watcher, watches) = (&running, &watcher, &watches);
                let thread = thread::Builder::new()
                    .name("measuring".to_owned())
                    .spawn_scoped(scope, move || {
                        let found = work(team, &plan, is_client, limit, watch);
                        if found.is_err() {
                            watches.iter().for_each(Watch::abort);
                        }
                        // Release: pairs with the Acquire of whoever waits.
                        running.fetch_sub(1, Ordering::Release);
                        watcher.unpark();
                        found
                    });
                match thread {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        watches.iter().for_each(Watch::abort);
                        return Err(error).context("cannot start a thread");
                    }
                }
            }
            let mut failure = None;
            let mut seen = 0;
            let mut next = Instant::now() + PERIOD;
            // Acquire: pairs with the Release of each thread's last step.
            while running.load(Ordering::Acquire) > 0 {
                let left = next.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    thread::park_timeout(left);
                    continue;
                }
                next = Instant::now() + PERIOD;
                let progress = watches.iter().map(Watch::progress).sum();
                let mut lives = check();
                if lives.is_ok() && progress == seen {
                    lives = control.beat(region, *remote);
                }
                seen = progress;
                if let Err(error) = lives {
                    failure.get_or_insert(error);
                    watches.iter().for_each(Watch::abort);
                }
            }
            let mut found = Vec::with_capacity(threads.len());
            for thread in threads {
                match thread.join().expect("threads that measure do not panic") {
                    Ok(one) => found.push(one),
                    Err(error) if error.is::<Aborted>() => {}
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
                }
            }
            failure.map_or(Ok(found), Err)
        })
    }
}

/// What one thread does in a run.
fn work(
    team: &mut Team,
    plan: &Plan,
    is_client: bool,
    limit: Limit,
    watch: &Watch,
) -> anyhow::Result<Found> {
    match (plan.mode, is_client) {
        (Mode::Latency, true) => latency::measure(team, plan, limit, watch).map(Found::Times),
        (Mode::Latency, false) if plan.is_ping_pong() => {
            latency::answer(team, watch)?;
            Ok(Found::Nothing)
        }
        (Mode::Bandwidth, is_client) if is_client || plan.both => {
            let limit = is_client.then_some(limit);
            let flow = bandwidth::send(team, plan, limit, watch)?;
            if plan.both {
                team.serve(watch)?;
            }
            Ok(Found::Flow(flow))
        }
        _ => {
            team.serve(watch)?;
            Ok(Found::Nothing)
        }
    }
}

/// How often it is asked whether to go on.
const PERIOD: Duration = Duration::from_millis(250);
