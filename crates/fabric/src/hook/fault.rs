//! Bad luck that a correct program survives: full queues, split posts, late and interleaved completions.
//!
//! It breaks no promise of the contract: completions of one endpoint and direction keep their order, nothing is lost or
//! doubled. All luck comes from the seed and from the calls made, so a single-threaded failure replays.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use super::{Hook, PostedTo};
use crate::{Completion, EndpointId, PostError, Work};

/// The hook; see the module.
#[derive(Debug)]
pub struct Fault {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    luck: Luck,
    held: HashMap<u64, Held>,
}

/// Completions of one queue that were polled from the provider and not yet given out, in order for each lane.
type Held = Vec<(Lane, VecDeque<Completion>)>;

/// An endpoint's sends or its receives.
type Lane = (EndpointId, bool);

impl Fault {
    /// Bad luck by this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            state: Mutex::new(State {
                luck: Luck(seed),
                held: HashMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under the lock panics")
    }
}

impl Hook for Fault {
    fn post(
        &self,
        _: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let (refuse, split, at) = {
            let luck = &mut self.lock().luck;
            (luck.one_in(6), luck.one_in(3), luck.below(work.len() + 1))
        };
        if refuse && !work.is_empty() {
            return Err(PostError::QueueFull);
        }
        if !split || at == work.len() {
            return next(work);
        }
        let mut rest = work.split_off(at);
        let outcome = next(work);
        work.append(&mut rest);
        outcome.and(Err(PostError::QueueFull))
    }

    fn poll(
        &self,
        queue: u64,
        into: &mut Vec<Completion>,
        max: usize,
        next: &dyn Fn(&mut Vec<Completion>, usize) -> usize,
    ) -> usize {
        let mut fresh = Vec::new();
        next(&mut fresh, max);
        let mut state = self.lock();
        let State { luck, held } = &mut *state;
        let held = held.entry(queue).or_default();
        for completion in fresh {
            let lane = (completion.endpoint, completion.opcode.is_receive());
            match held.iter_mut().find(|(known, _)| *known == lane) {
                Some((_, queue)) => queue.push_back(completion),
                None => held.push((lane, VecDeque::from([completion]))),
            }
        }
        let late = luck.one_in(3);
        let most = luck.below(max + 1);
        let mut count = 0;
        while !late && count < most && !held.is_empty() {
            let at = luck.below(held.len());
            into.extend(held[at].1.pop_front());
            count += 1;
            if held[at].1.is_empty() {
                held.swap_remove(at);
            }
        }
        count
    }

    fn holds(&self, queue: u64) -> bool {
        self.lock()
            .held
            .get(&queue)
            .is_some_and(|held| !held.is_empty())
    }

    fn forget(&self, queue: u64) {
        // Outside the lock: what is dropped may end registrations.
        let held = self.lock().held.remove(&queue);
        drop(held);
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug)]
struct Luck(u64);

impl Luck {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.next().is_multiple_of(chances)
    }
}
