//! The lanes that one thread drives, and their completion queue. How a thread looks for what comes is here; what it does
//! with that is in `latency.rs` and `bandwidth.rs`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fabric::{Completion, CompletionQueue};

use super::lane::{self, Lane};
use super::plan::{Plan, Target, Waiting};

/// One thread's part of a case.
pub(super) struct Team {
    plan: Plan,
    cq: CompletionQueue,
    pub(super) lanes: Vec<Lane>,
    completions: Vec<Completion>,
    /// Lanes that may have room.
    dirty: Vec<usize>,
    /// Lanes whose peer is known to have ended: the first so many.
    ended: usize,
    /// How often memory is looked at before the queue is polled.
    patience: u32,
}

/// What a team and those who watch over it tell each other.
#[derive(Debug, Default)]
pub(super) struct Watch {
    aborted: AtomicBool,
    progress: AtomicU64,
}

impl Watch {
    /// Has the team give up.
    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// A number that changes while messages come and go.
    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// # Errors
    /// That it is over.
    fn check(&self) -> anyhow::Result<()> {
        if self.aborted.load(Ordering::Relaxed) {
            return Err(Aborted.into());
        }
        Ok(())
    }
}

/// Another thread has failed, or the peer is gone.
#[derive(Debug, thiserror::Error)]
#[error("given up")]
pub(super) struct Aborted;

impl Team {
    pub(super) fn new(plan: Plan, cq: CompletionQueue, lanes: Vec<Lane>) -> Self {
        let count = lanes.len();
        Self {
            plan,
            cq,
            lanes,
            completions: Vec::with_capacity(BATCH),
            dirty: Vec::with_capacity(count),
            ended: 0,
            patience: MOST_PATIENCE,
        }
    }

    /// Makes ready for a run, before the peer knows of it.
    pub(super) fn begin(&mut self) {
        self.ended = 0;
        self.patience = MOST_PATIENCE;
        self.lanes.iter().for_each(Lane::forget);
    }

    /// Polls once and takes what came: how many completions.
    ///
    /// # Errors
    /// What failed.
    #[inline]
    pub(super) fn turn(&mut self) -> anyhow::Result<usize> {
        let count = self.cq.poll(&mut self.completions, BATCH);
        for completion in &mut self.completions {
            let index = lane::index_of(completion.context);
            let lane = &mut self.lanes[index];
            lane.complete(completion)?;
            if !lane.is_dirty {
                lane.is_dirty = true;
                self.dirty.push(index);
            }
        }
        self.completions.clear();
        Ok(count)
    }

    /// Posts what there is room for.
    ///
    /// # Errors
    /// What posting answers.
    pub(super) fn refill(&mut self) -> anyhow::Result<()> {
        let mut full = 0;
        for at in 0..self.dirty.len() {
            let index = self.dirty[at];
            let lane = &mut self.lanes[index];
            if lane.refill()? {
                lane.is_dirty = false;
            } else {
                // The queue was full though there was room: again after the next completions.
                self.dirty[full] = index;
                full += 1;
            }
        }
        self.dirty.truncate(full);
        Ok(())
    }

    /// Sets how much each lane is to have sent in all.
    pub(super) fn set_goals(&mut self, goal: impl Fn(&Lane) -> u64) {
        self.dirty.clear();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.goal = goal(lane);
            lane.is_dirty = true;
            self.dirty.push(index);
        }
    }

    /// Whether nothing is outstanding and nothing is to be sent.
    pub(super) fn is_drained(&self) -> bool {
        let done = |lane: &Lane| lane.outstanding() == 0 && lane.sent >= lane.goal;
        self.lanes.iter().all(done)
    }

    /// Sent by all lanes since the case began.
    pub(super) fn sent(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.sent).sum()
    }

    /// What waiting is, when there was nothing.
    #[inline]
    pub(super) fn idle(&self) -> anyhow::Result<()> {
        match self.plan.waiting {
            Waiting::Poll => {}
            Waiting::Yield => thread::yield_now(),
            Waiting::Block => {
                self.cq.wait(NAP)?;
            }
        }
        Ok(())
    }

    /// Whether a thread looks around after `turns` turns: rarely, unless turns are long.
    #[inline]
    pub(super) const fn is_time(&self, turns: u32) -> bool {
        turns.is_multiple_of(TURNS) || matches!(self.plan.waiting, Waiting::Block)
    }

    /// Says how far it has come, and asks whether to go on.
    ///
    /// # Errors
    /// That it is over.
    pub(super) fn look_around(&mut self, watch: &Watch) -> anyhow::Result<()> {
        let count = |lane: &Lane| lane.sent.wrapping_add(lane.retired) + lane.arrived;
        let first = self.lanes.first().map_or(0, count);
        let last = self.lanes.last().map_or(0, count);
        watch.progress.store(first + last, Ordering::Relaxed);
        watch.check()
    }

    /// Whether the peer has ended on every lane.
    pub(super) fn is_ended(&mut self) -> bool {
        while self.ended < self.lanes.len() && self.lanes[self.ended].told().is_some() {
            self.ended += 1;
        }
        self.ended == self.lanes.len()
    }

    /// Waits for the end of what is outstanding.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn drain(&mut self, watch: &Watch) -> anyhow::Result<()> {
        let mut turns = 0u32;
        while self.lanes.iter().any(|lane| lane.outstanding() > 0) {
            if self.turn()? == 0 {
                self.idle()?;
            }
            turns = turns.wrapping_add(1);
            if self.is_time(turns) {
                self.look_around(watch)?;
            }
        }
        Ok(())
    }

    /// Tells the peer how much was sent, all of which has been done.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn tell(&mut self, watch: &Watch) -> anyhow::Result<()> {
        self.lanes.iter_mut().try_for_each(Lane::tell)?;
        self.drain(watch)
    }

    /// Is the target of what the peer does, until that has ended and all of it is here.
    ///
    /// # Errors
    /// What failed.
    pub(super) fn serve(&mut self, watch: &Watch) -> anyhow::Result<()> {
        let mut turns = 0u32;
        while !self.is_ended() {
            match self.plan.target {
                Target::Poll => {
                    if self.turn()? == 0 {
                        self.idle()?;
                    }
                }
                Target::Spin => {
                    if self.plan.waiting == Waiting::Yield {
                        thread::yield_now();
                    }
                }
                Target::Sleep => thread::sleep(SLEEP),
            }
            turns = turns.wrapping_add(1);
            if self.is_time(turns) {
                self.look_around(watch)?;
            }
        }
        self.take_rest(watch)
    }

    /// Takes what the peer sent before it told that it has ended.
    fn take_rest(&mut self, watch: &Watch) -> anyhow::Result<()> {
        let mut turns = 0u32;
        for index in 0..self.lanes.len() {
            let told = self.lanes[index].told().unwrap_or(0);
            if self.plan.recv_depth() == 0 {
                self.lanes[index].arrived = told;
            }
            while self.lanes[index].arrived < told {
                if self.turn()? == 0 {
                    self.idle()?;
                }
                turns = turns.wrapping_add(1);
                if self.is_time(turns) {
                    self.look_around(watch)?;
                }
            }
            self.lanes[index].check_rest(told)?;
        }
        Ok(())
    }

    /// Waits until the first lane has had `count` arrivals. False: the peer has ended instead.
    ///
    /// # Errors
    /// What failed.
    #[inline]
    pub(super) fn await_arrival(&mut self, count: u64, watch: &Watch) -> anyhow::Result<bool> {
        let mut turns = 0u32;
        let in_memory = self.plan.arrives_in_memory();
        loop {
            if in_memory {
                if self.look_into_memory() {
                    self.lanes[0].take_arrival()?;
                    return Ok(true);
                }
            } else if self.lanes[0].arrived >= count {
                return Ok(true);
            }
            if self.turn()? == 0 {
                self.idle()?;
            }
            turns = turns.wrapping_add(1);
            if self.is_time(turns) {
                self.look_around(watch)?;
                if self.is_ended() {
                    return Ok(false);
                }
            }
        }
    }

    /// Looks for the next message in memory, for a while. Where the device puts it there by itself, that is all it takes.
    /// Where polling does, looking is short: patience grows with each message that comes without a poll, and shrinks with
    /// each that does not.
    #[inline]
    fn look_into_memory(&mut self) -> bool {
        let lane = &self.lanes[0];
        let next = lane.arrived;
        if lane.has_arrived(next) {
            return true;
        }
        for _ in 1..self.patience {
            if lane.has_arrived(next) {
                self.patience = (2 * self.patience).min(MOST_PATIENCE);
                return true;
            }
        }
        self.patience = (self.patience / 2).max(1);
        false
    }
}

/// Most completions of one poll.
const BATCH: usize = 64;
/// Turns after which a thread looks at the clock and at who waits for it.
const TURNS: u32 = 64;
/// About five microseconds.
const MOST_PATIENCE: u32 = 2048;
/// How long a thread blocks before it looks around.
const NAP: Duration = Duration::from_millis(20);
/// How long a target that sleeps does so before it looks whether the client has ended.
const SLEEP: Duration = Duration::from_millis(5);
