//! Receives that several endpoints share.

use std::collections::VecDeque;
use std::sync::Arc;

use fabric::{Event, EventQueue, PostError, Work, provider};

use crate::fork;
use crate::helper::Home;
use crate::lock::Spin;
use crate::recv::Receive;

/// A shared queue of receives.
pub(crate) struct Pool {
    home: Arc<Home>,
    depth: usize,
    events: EventQueue,
    state: Spin<State>,
}

struct State {
    receives: VecDeque<Receive>,
    /// Fewer than this are to be told of, once.
    limit: usize,
    /// Somebody found it empty.
    starved: bool,
}

impl Pool {
    pub(crate) fn new(home: &Arc<Home>, depth: usize, events: &EventQueue) -> Self {
        Self {
            home: Arc::clone(home),
            depth,
            events: events.clone(),
            state: Spin::new(State {
                receives: VecDeque::with_capacity(depth),
                limit: 0,
                starved: false,
            }),
        }
    }

    /// The next receive.
    pub(crate) fn take(&self) -> Option<Receive> {
        let mut state = self.state.lock();
        let receive = state.receives.pop_front();
        state.starved = receive.is_none();
        self.check_limit(&mut state);
        receive
    }

    fn check_limit(&self, state: &mut State) {
        if state.receives.len() < state.limit {
            state.limit = 0;
            self.events.push(Event::ReceiveLimit);
        }
    }
}

impl provider::SharedReceive for Pool {
    fn post(&self, work: &mut Vec<Work>) -> Result<(), PostError> {
        if self.home.generation != fork::generation() {
            return Err(PostError::DeviceLost);
        }
        let mut state = self.state.lock();
        let count = work.len().min(self.depth - state.receives.len());
        let accepted = work.drain(..count).map(|work| Receive {
            context: work.context,
            local: work.local.expose(),
        });
        state.receives.extend(accepted);
        let wakes = std::mem::take(&mut state.starved) && count > 0;
        drop(state);
        if wakes {
            self.home.node.look();
        }
        match work.is_empty() {
            true => Ok(()),
            false => Err(PostError::QueueFull),
        }
    }

    fn arm_limit(&self, limit: usize) {
        let mut state = self.state.lock();
        state.limit = limit;
        self.check_limit(&mut state);
    }

    fn drain(&self) -> Vec<Work> {
        let receives = std::mem::take(&mut self.state.lock().receives);
        receives
            .into_iter()
            .map(|receive| Work::recv(receive.context, receive.local.conceal()))
            .collect()
    }
}
