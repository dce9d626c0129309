//! Shared receives.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::endpoint::pending;
use super::execute;
use super::world::{self, Pending, Shared};
use crate::util::Slot;
use crate::{Event, EventQueue, PostError, Work, provider};

pub(super) struct SharedReceive {
    pub(super) id: u64,
    depth: usize,
    outstanding: Arc<AtomicUsize>,
}

impl SharedReceive {
    pub(super) fn new(depth: usize, events: &EventQueue) -> Self {
        let mut world = world::lock();
        let id = world.unique();
        let shared = Shared {
            events: events.clone(),
            ..Shared::default()
        };
        world.shared.insert(id, shared);
        Self {
            id,
            depth,
            outstanding: Arc::default(),
        }
    }
}

impl Drop for SharedReceive {
    fn drop(&mut self) {
        let mut world = world::lock();
        // Nobody can take them any more, and there is no queue to report them to.
        let shared = world.shared.remove(&self.id);
        world.discard(shared);
    }
}

impl provider::SharedReceive for SharedReceive {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        let mut world = world::lock();
        let mut accepted = 0;
        let mut outcome = Ok(());
        let shared = world
            .shared
            .get_mut(&self.id)
            .expect("removed by drop only");
        while accepted < work.len() {
            match Slot::counted(&self.outstanding, self.depth) {
                Ok(slot) => {
                    let receive = take(&mut work[accepted]);
                    shared.receives.push_back(pending(receive, slot));
                    accepted += 1;
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        work.drain(..accepted);
        let blocked = std::mem::take(&mut shared.blocked);
        for (endpoint, lane) in blocked {
            execute::run(&mut world, endpoint, lane);
        }
        outcome
    }

    fn arm_limit(&self, limit: usize) {
        let mut world = world::lock();
        let shared = world
            .shared
            .get_mut(&self.id)
            .expect("removed by drop only");
        shared.limit = limit;
        check_limit(shared);
    }

    fn drain(&self) -> Vec<Work> {
        let mut world = world::lock();
        let shared = world
            .shared
            .get_mut(&self.id)
            .expect("removed by drop only");
        let receives = std::mem::take(&mut shared.receives);
        receives.into_iter().map(Pending::into_work).collect()
    }
}

/// Sends the event of the limit if it is due.
pub(super) fn check_limit(shared: &mut Shared) {
    if shared.receives.len() < shared.limit {
        shared.limit = 0;
        shared.events.push(Event::ReceiveLimit);
    }
}

/// Moves a work out of a vector that is drained afterwards.
pub(super) fn take(work: &mut Work) -> Work {
    std::mem::replace(work, Work::recv(0, crate::Segments::none()))
}
