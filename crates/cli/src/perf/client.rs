//! The side that measures: connects, has each case prepared, warms it up, runs it.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use fabric::{Address, Domain, Error};

use super::bandwidth::Flow;
use super::case::{Case, Found, Ground};
use super::control::{Account, Control, Purpose, Reply, Request, counted, counted_since};
use super::cpu;
use super::latency::{Limit, Times};
use super::peer::Peer;
use super::plan::{Mode, Plan};
use crate::device;

/// A connected client.
pub(super) struct Client<'a> {
    domain: &'a Domain,
    peer: &'a mut Peer,
    control: Control,
    session: u64,
}

/// What was measured of one case.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) plan: Plan,
    pub(super) times: Option<Times>,
    /// Of both directions.
    pub(super) flows: Vec<Flow>,
    pub(super) own: Account,
    pub(super) peers: Account,
}

impl<'a> Client<'a> {
    /// # Errors
    /// Why there is no connection.
    pub(super) fn connect(domain: &'a Domain, peer: &'a mut Peer) -> anyhow::Result<Self> {
        let control = Control::new(domain)?;
        let hello = Purpose::Control.to_bytes(peer.token);
        let accepted = connect(domain, control.endpoint(), &peer.address, &hello)?;
        let session = accepted.first_chunk().context("the peer gave no number")?;
        Ok(Self {
            domain,
            peer,
            session: u64::from_be_bytes(*session),
            control,
        })
    }

    /// Measures one case, after a warm-up.
    ///
    /// # Errors
    /// Why it cannot be measured, or what ended it.
    pub(super) fn measure(
        &mut self,
        plan: Plan,
        limit: Limit,
        warm_up: Duration,
    ) -> anyhow::Result<Measured> {
        let outcome = self.try_measure(plan, limit, warm_up);
        // Whatever failed, if the peer's process has ended, that is why.
        outcome.map_err(|error| match self.peer.check_soon() {
            Err(ended) => ended,
            Ok(()) => error,
        })
    }

    fn try_measure(
        &mut self,
        plan: Plan,
        limit: Limit,
        warm_up: Duration,
    ) -> anyhow::Result<Measured> {
        let mut case = self.prepare(plan)?;
        if !warm_up.is_zero() {
            self.run(&mut case, plan, Limit::Time(warm_up))?;
        }
        tracing::debug!(
            operation = plan.operation.name(),
            size = plan.size,
            "measuring"
        );
        self.run(&mut case, plan, limit)
    }

    fn prepare(&mut self, plan: Plan) -> anyhow::Result<Case> {
        let ground = Ground::new(self.domain, plan)?;
        self.control.say(&Request::Prepare {
            plan,
            region: ground.region.remote(),
        })?;
        let Reply::Prepared { region: remote } = self.reply()? else {
            return Err(out_of_turn());
        };
        let mut lanes = Vec::with_capacity(plan.qps);
        for number in 0..plan.qps {
            let endpoint = ground.endpoint(self.domain, number)?;
            let lane = ground.lane(endpoint, number, true, remote)?;
            let purpose = Purpose::Lane {
                session: self.session,
                lane: u32::try_from(number).expect("there are fewer"),
            };
            let hello = purpose.to_bytes(self.peer.token);
            connect(self.domain, lane.endpoint(), &self.peer.address, &hello)
                .with_context(|| format!("cannot connect queue pair {number}"))?;
            lanes.push(lane);
        }
        match self.reply()? {
            Reply::Ready => Ok(ground.connected(lanes, true, remote)),
            _ => Err(out_of_turn()),
        }
    }

    fn run(&mut self, case: &mut Case, plan: Plan, limit: Limit) -> anyhow::Result<Measured> {
        case.begin();
        self.control.say(&Request::Run)?;
        let Reply::Running = self.reply()? else {
            return Err(out_of_turn());
        };
        let (before, started) = (counted(self.domain), cpu::time());
        let found = case.run(limit, &mut self.control, || self.peer.check())?;
        let spent = cpu::time().saturating_sub(started);
        let counted = counted_since(self.domain, &before);
        let Reply::Ran(peers) = self.reply()? else {
            return Err(out_of_turn());
        };
        let mut times = Vec::new();
        let mut flows = Vec::new();
        for one in found {
            match one {
                Found::Times(one) => times.push(one),
                Found::Flow(flow) => flows.push(flow),
                Found::Nothing => {}
            }
        }
        let own = Account {
            cpu: Some(spent.as_nanos() as u64),
            messages: flows.iter().map(|flow| flow.messages).sum(),
            elapsed: 0,
            counted,
        };
        if plan.mode == Mode::Bandwidth && plan.both {
            flows.push(Flow {
                messages: peers.messages,
                elapsed: Duration::from_nanos(peers.elapsed),
            });
        }
        Ok(Measured {
            plan,
            times: Times::merge(times),
            flows,
            own,
            peers,
        })
    }

    fn reply(&mut self) -> anyhow::Result<Reply> {
        let mut waited = Duration::ZERO;
        while waited < REPLY_TIMEOUT {
            if let Some(reply) = self.control.hear(SLICE)? {
                return match reply {
                    Reply::Failed(reason) => Err(anyhow!("the peer says: {reason}")),
                    reply => Ok(reply),
                };
            }
            self.peer.check()?;
            waited += SLICE;
        }
        bail!(
            "the peer has not answered for {} s",
            REPLY_TIMEOUT.as_secs()
        )
    }
}

fn connect(
    domain: &Domain,
    endpoint: &fabric::Endpoint,
    to: &Address,
    hello: &[u8],
) -> anyhow::Result<Vec<u8>> {
    match endpoint.connect(to, hello, CONNECT_TIMEOUT) {
        Ok(accepted) => Ok(accepted),
        Err(Error::Rejected { private_data }) => Err(device::rejected(to, &private_data)),
        Err(Error::Unreachable(_) | Error::TimedOut) => {
            Err(device::nobody(domain, to, "ringmail perf --listen"))
        }
        Err(error) => Err(error.into()),
    }
}

fn out_of_turn() -> anyhow::Error {
    anyhow!("the peer speaks out of turn")
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
const SLICE: Duration = Duration::from_millis(100);
