//! Makes round trips, one after the other, and notes how long each took.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use fabric::{
    Access, Address, Buf, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Error,
    Memory, RemoteRegion, Segments, Work,
};
use hdrhistogram::Histogram;

use super::{Operation, Wish};
use crate::device;

/// The durations of `count` round trips, in nanoseconds.
///
/// # Errors
/// Why there is no connection, or what ended it.
pub(super) fn measure(
    domain: &Domain,
    server: &Address,
    wish: Wish,
    count: u64,
    interval: Duration,
) -> anyhow::Result<Histogram<u64>> {
    let cq = domain.completion_queue(4)?;
    let endpoint = domain
        .endpoint(EndpointKind::Msg, &cq)
        .send_depth(2)
        .recv_depth(2)
        .open()?;
    let accepted = match endpoint.connect(server, &wish.to_bytes(), CONNECT_TIMEOUT) {
        Ok(accepted) => accepted,
        Err(Error::Rejected { private_data }) => {
            return Err(device::rejected(server, &private_data));
        }
        Err(Error::Unreachable(_) | Error::TimedOut) => {
            return Err(device::nobody(domain, server, "ringmail ping --listen"));
        }
        Err(error) => return Err(error.into()),
    };
    let remote = RemoteRegion::from_bytes(&accepted).context("the responder said no region")?;
    let mut trip = Trip::new(domain, endpoint, cq, wish, remote)?;
    for _ in 0..WARM_UP.min(count) {
        trip.make()?;
    }
    let longest = TRIP_TIMEOUT.as_nanos() as u64 * 2;
    let mut trips = Histogram::new_with_max(longest, 3).expect("three digits are few enough");
    for number in 0..count {
        if number > 0 && !interval.is_zero() {
            std::thread::sleep(interval);
        }
        let took = trip
            .make()
            .with_context(|| format!("round trip {number}"))?;
        trips.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
    trip.endpoint.disconnect();
    Ok(trips)
}

/// What a round trip is made with.
struct Trip {
    endpoint: Endpoint,
    cq: CompletionQueue,
    wish: Wish,
    remote: RemoteRegion,
    /// What is sent, and where the echo goes.
    message: Option<Buf>,
    echo: Option<Buf>,
    /// What is read into or written from.
    region: Option<fabric::MemoryRegion>,
}

impl Trip {
    fn new(
        domain: &Domain,
        endpoint: Endpoint,
        cq: CompletionQueue,
        wish: Wish,
        remote: RemoteRegion,
    ) -> anyhow::Result<Self> {
        let size = wish.size as usize;
        let is_send = wish.operation == Operation::Send;
        let bytes: Vec<u8> = (0..size).map(|index| index as u8).collect();
        // No device registers nothing.
        let region =
            (!is_send && size > 0).then(|| domain.register(Memory::allocate(size), Access::LOCAL));
        Ok(Self {
            endpoint,
            cq,
            wish,
            remote,
            message: is_send.then(|| domain.buf_from(&bytes)).transpose()?,
            echo: is_send.then(|| domain.buf(size)).transpose()?,
            region: region.transpose()?,
        })
    }

    fn make(&mut self) -> anyhow::Result<Duration> {
        match self.wish.operation {
            Operation::Send => self.send(),
            Operation::Write | Operation::Read => self.one_sided(),
        }
    }

    fn send(&mut self) -> anyhow::Result<Duration> {
        let (message, echo) = (self.message.take(), self.echo.take());
        let (message, echo) = message
            .zip(echo)
            .expect("both came back from the trip before");
        self.post(Work::recv(0, echo))?;
        let start = Instant::now();
        self.post(Work::send(0, message))?;
        let mut took = Duration::ZERO;
        while self.message.is_none() || self.echo.is_none() {
            let completion = self.next()?;
            if completion.opcode.is_receive() {
                took = start.elapsed();
                self.echo = Some(echoed(completion)?);
            } else {
                self.message = completion.into_buf();
            }
        }
        if self.message.as_deref() != self.echo.as_deref() {
            bail!("the echo differs from what was sent");
        }
        Ok(took)
    }

    fn one_sided(&self) -> anyhow::Result<Duration> {
        let local = match &self.region {
            Some(region) => region
                .slice(0..region.len())
                .expect("the whole region")
                .into(),
            None => Segments::none(),
        };
        let work = match self.wish.operation {
            Operation::Write => Work::write(0, local, self.remote),
            _ => Work::read(0, local, self.remote),
        };
        let start = Instant::now();
        self.post(work)?;
        self.next()?;
        Ok(start.elapsed())
    }

    fn post(&self, work: Work) -> anyhow::Result<()> {
        Ok(self.endpoint.post_one(work)?)
    }

    /// The next completion. Looks for it without sleeping first: waking up takes longer than most round trips.
    fn next(&self) -> anyhow::Result<Completion> {
        let completion = match device::spin(&self.cq) {
            Some(completion) => completion,
            None => self.cq.next(TRIP_TIMEOUT).map_err(|error| match error {
                Error::TimedOut => anyhow!("no answer within {} s", TRIP_TIMEOUT.as_secs()),
                other => other.into(),
            })?,
        };
        completion
            .ok()
            .map_err(|failed| anyhow!("{}", failed.0.status))
    }
}

fn echoed(completion: Completion) -> anyhow::Result<Buf> {
    let len = completion.len;
    let mut echo = completion
        .into_buf()
        .context("a receive ended without its buffer")?;
    echo.set_len(len);
    Ok(echo)
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TRIP_TIMEOUT: Duration = Duration::from_secs(10);

/// Round trips that are not counted: they bring pages and queues into being.
const WARM_UP: u64 = 20;
