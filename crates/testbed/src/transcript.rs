//! What a program has printed so far, readable while it still runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// The growing output of one program. Clones see the same output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Starts to collect everything that `source` gives until it ends.
    pub(crate) fn of(mut source: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let writer = transcript.clone();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let length = source.read(&mut chunk).unwrap_or(0);
                let mut state = writer
                    .0
                    .state
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&chunk[..length]);
                state.ended = length == 0;
                writer.0.grown.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        transcript
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    /// Waits until `find` finds something in the output. `None` once the output has ended without it, or at `deadline`.
    pub(crate) fn wait_for<T>(
        &self,
        deadline: Instant,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&state.bytes)) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            state = self
                .0
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the output has ended. False if it has not at `deadline`.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        self.wait_for(deadline, |_| None::<()>);
        self.0
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ended
    }
}
