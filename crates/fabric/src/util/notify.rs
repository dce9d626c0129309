//! A flag that threads can wait for, and that shows as a readable descriptor once somebody wants one.
//!
//! The descriptor is a pipe, which every Unix has; it holds one byte while the flag is set.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::Instant;

use crate::Error;

/// A level that is set or clear.
#[derive(Debug, Default)]
pub struct Notify {
    state: Mutex<State>,
    changed: Condvar,
    reader: OnceLock<PipeReader>,
}

#[derive(Debug, Default)]
struct State {
    set: bool,
    writer: Option<PipeWriter>,
}

impl Notify {
    /// Clear, without a descriptor yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag and wakes those who wait.
    pub fn set(&self) {
        let mut state = self.lock();
        if state.set {
            return;
        }
        state.set = true;
        self.changed.notify_all();
        if let Some(writer) = &mut state.writer {
            // One byte into an empty pipe neither blocks nor fails while we hold the reader.
            let _ = writer.write_all(&[1]);
        }
    }

    /// Clears the flag.
    pub fn clear(&self) {
        let mut state = self.lock();
        if !state.set {
            return;
        }
        state.set = false;
        if state.writer.is_some()
            && let Some(mut reader) = self.reader.get()
        {
            // The byte that `set` wrote: this does not block.
            let _ = reader.read_exact(&mut [0]);
        }
    }

    /// Whether the flag is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.lock().set
    }

    /// Waits until the flag is set: true; or until `deadline`: false.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while !state.set {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .expect("nothing under the lock panics")
                .0;
        }
        true
    }

    /// A descriptor that is readable while the flag is set. Not to be read from.
    ///
    /// # Errors
    /// What creating the pipe answers.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        let mut state = self.lock();
        if state.writer.is_none() {
            let (reader, mut writer) =
                std::io::pipe().map_err(|error| Error::io("creating a pipe", error))?;
            if state.set {
                writer
                    .write_all(&[1])
                    .map_err(|error| Error::io("writing to a pipe", error))?;
            }
            self.reader.set(reader).expect("set with the writer only");
            state.writer = Some(writer);
        }
        let reader = self.reader.get().expect("set with the writer");
        Ok(reader.as_fd())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing under the lock panics")
    }
}
