//! How long one takes: ping-pongs, or single operations from post to completion.
//!
//! The clock costs tens of nanoseconds here, as much as a message through a cache. Where trips are short it is read once for
//! [`BLOCK`] of them, and each counts as their mean: the longest are then longer than what is shown.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::plan::Plan;
use super::team::{Team, Watch};

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    Time(Duration),
    /// Messages of each lane.
    Count(u64),
}

/// How long trips took.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// In sixteenths of a nanosecond.
    pub(super) histogram: Histogram<u64>,
    /// Trips between two readings of the clock.
    pub(super) block: u64,
    pub(super) elapsed: Duration,
}

/// The client's side of a ping-pong, or all of the single operations.
///
/// # Errors
/// What failed.
pub(super) fn measure(
    team: &mut Team,
    plan: &Plan,
    limit: Limit,
    watch: &Watch,
) -> anyhow::Result<Times> {
    team.set_goals(|lane| lane.sent);
    let times = if plan.is_ping_pong() {
        time(limit, || ping(team, watch))
    } else {
        time(limit, || complete(team, watch))
    }?;
    team.drain(watch)?;
    team.tell(watch)?;
    Ok(times)
}

/// The server's side of a ping-pong, until the client has ended.
///
/// # Errors
/// What failed.
pub(super) fn answer(team: &mut Team, watch: &Watch) -> anyhow::Result<()> {
    team.set_goals(|lane| lane.sent);
    let mut next = team.lanes[0].arrived + 1;
    loop {
        if !team.await_arrival(next, watch)? {
            break;
        }
        next += 1;
        send(team, watch)?;
        // While it is on its way, what has ended is taken: the next is not to wait for that.
        team.turn()?;
    }
    team.drain(watch)
}

#[inline]
fn ping(team: &mut Team, watch: &Watch) -> anyhow::Result<()> {
    let next = team.lanes[0].arrived + 1;
    send(team, watch)?;
    team.turn()?;
    if !team.await_arrival(next, watch)? {
        anyhow::bail!("the peer has ended before us");
    }
    Ok(())
}

#[inline]
fn complete(team: &mut Team, watch: &Watch) -> anyhow::Result<()> {
    send(team, watch)?;
    let mut turns = 0u32;
    while team.lanes[0].outstanding() > 0 {
        if team.turn()? == 0 {
            team.idle()?;
        }
        turns = turns.wrapping_add(1);
        if team.is_time(turns) {
            team.look_around(watch)?;
        }
    }
    Ok(())
}

/// Posts one message on the first lane, as soon as there is room for it.
#[inline]
fn send(team: &mut Team, watch: &Watch) -> anyhow::Result<()> {
    let mut turns = 0u32;
    while team.lanes[0].room() == 0 || !team.lanes[0].post(1)? {
        team.turn()?;
        turns = turns.wrapping_add(1);
        if team.is_time(turns) {
            team.look_around(watch)?;
        }
    }
    Ok(())
}

fn time(limit: Limit, mut trip: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Times> {
    let mut histogram = Histogram::new_with_max(LONGEST, 3).expect("three digits are few enough");
    let block = block(&mut trip)?;
    let start = Instant::now();
    let (mut last, mut done) = (start, 0);
    loop {
        for _ in 0..block {
            trip()?;
        }
        let now = Instant::now();
        let took = (now - last).as_nanos() as u64;
        histogram.saturating_record(took * TICKS / block);
        last = now;
        done += block;
        let is_over = match limit {
            Limit::Time(limit) => now - start >= limit,
            Limit::Count(count) => done >= count,
        };
        if is_over {
            let elapsed = now - start;
            return Ok(Times {
                histogram,
                block,
                elapsed,
            });
        }
    }
}

/// How many trips there are between two readings of the clock, after some that are not counted.
fn block(trip: &mut impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let start = Instant::now();
    let mut trips = 0;
    loop {
        trip()?;
        trips += 1;
        let elapsed = start.elapsed();
        if trips >= TRIALS || elapsed >= TRIAL_TIME {
            return Ok(if elapsed < SHORT * trips { BLOCK } else { 1 });
        }
    }
}

impl Times {
    /// All times of several threads.
    pub(super) fn merge(mut all: Vec<Self>) -> Option<Self> {
        let mut merged = all.pop()?;
        for times in all {
            merged
                .histogram
                .add(&times.histogram)
                .expect("they are of one range");
            merged.block = merged.block.max(times.block);
            merged.elapsed = merged.elapsed.max(times.elapsed);
        }
        Some(merged)
    }
}

/// Of a nanosecond.
pub(super) const TICKS: u64 = 16;
/// Trips that the clock is read once for.
const BLOCK: u64 = 16;
/// What a short trip is shorter than.
const SHORT: Duration = Duration::from_micros(2);
/// How long it is tried whether trips are short.
const TRIALS: u32 = 256;
const TRIAL_TIME: Duration = Duration::from_millis(2);
/// A quarter of an hour.
const LONGEST: u64 = 900 * 1_000_000_000 * TICKS;
