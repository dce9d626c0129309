//! The regions of one peer process that are known here.
//!
//! Bounded in number and in mapped bytes. What no [`super::Cache`] holds is forgotten, the least recently sought first; if
//! all is in use, further regions are not mapped but reached through their owner.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use fabric::Access;
use mem::{Backing, MapError, Memory};

use super::barrier;
use super::description::{Description, Kind};
use super::import::Import;
use super::process::Process;
use super::table::{PeerTable, WORDS};

/// What is known of a peer's memory.
pub(crate) struct Imports {
    peer: Arc<Peer>,
    limits: Limits,
    state: Mutex<State>,
}

/// A peer.
pub(super) struct Peer {
    pub(super) table: PeerTable,
    pub(super) process: Process,
}

/// How much is mapped at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) regions: usize,
    pub(super) bytes: u64,
}

const LIMITS: Limits = Limits {
    // A process has 65,530 mappings at most.
    regions: 4096,
    // Of the address space; the page tables of 1 TiB are 2 GiB.
    bytes: 1 << 40,
};

#[derive(Default)]
struct State {
    known: HashMap<u64, Known>,
    bytes: u64,
    /// Counts seeking.
    clock: u64,
    /// As soon as so many are known, those that do not stand any more are forgotten.
    sweep_at: usize,
}

struct Known {
    import: Arc<Import>,
    sought: u64,
}

/// What a peer's answer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// The key stands, or stood: resolve again.
    Known,
    /// The key means nothing: the work fails with [`fabric::Status::RemoteAccess`].
    Unknown,
}

impl Imports {
    /// Those of a new peer: its process and what its [`super::Exports::hello`] said.
    ///
    /// # Errors
    /// What it said makes no sense or cannot be mapped.
    pub(crate) fn new(
        pid: libc::pid_t,
        hello: &[u8],
        files: Vec<OwnedFd>,
    ) -> io::Result<Arc<Self>> {
        Self::with_limits(pid, hello, files, LIMITS)
    }

    pub(super) fn with_limits(
        pid: libc::pid_t,
        hello: &[u8],
        files: Vec<OwnedFd>,
        limits: Limits,
    ) -> io::Result<Arc<Self>> {
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "a greeting that is none");
        let [table] = <[OwnedFd; 1]>::try_from(files).map_err(|_| nonsense())?;
        let process = Process::new(pid, hello).ok_or_else(nonsense)?;
        let table = PeerTable::map(table).map_err(io::Error::other)?;
        barrier::register();
        Ok(Arc::new(Self {
            peer: Arc::new(Peer { table, process }),
            limits,
            state: Mutex::default(),
        }))
    }

    /// The peer's process.
    #[cfg(test)]
    pub(super) fn process(&self) -> &Process {
        &self.peer.process
    }

    /// Takes in the peer's answer about `key`.
    ///
    /// # Errors
    /// The answer makes no sense, or its descriptor is not what it says.
    pub(crate) fn learn(
        &self,
        key: u64,
        answer: &[u8],
        files: Vec<OwnedFd>,
    ) -> Result<Learned, HostileAnswer> {
        let description = Description::from_bytes(answer).map_err(|()| HostileAnswer)?;
        let Some(description) = description else {
            self.forget(key);
            return Ok(Learned::Unknown);
        };
        let place = usize::try_from(description.place).map_err(|_| HostileAnswer)?;
        if description.key != key || place >= WORDS {
            return Err(HostileAnswer);
        }
        let file = match (description.kind, <[OwnedFd; 1]>::try_from(files)) {
            (Kind::Sealed, Ok([file])) => Some((file, Backing::Sealed)),
            (Kind::File, Ok([file])) => Some((file, Backing::File)),
            (Kind::Foreign, Err(files)) if files.is_empty() => None,
            _ => return Err(HostileAnswer),
        };
        let mut state = self.lock();
        state.remove(key);
        state.make_room(description.len, &self.limits);
        let mapping = match file {
            Some((file, backing)) if state.has_room(description.len, &self.limits) => {
                map(&description, file, backing)?
            }
            _ => None,
        };
        let import = Arc::new(Import::new(Arc::clone(&self.peer), description, mapping));
        state.insert(key, import);
        Ok(Learned::Known)
    }

    /// What is known under a key, if it still stands.
    pub(super) fn find(&self, key: u64) -> Option<Arc<Import>> {
        let mut state = self.lock();
        let now = state.tick();
        let known = state.known.get_mut(&key)?;
        if known.import.is_current() {
            known.sought = now;
            return Some(Arc::clone(&known.import));
        }
        state.remove(key);
        None
    }

    /// How many regions are known, and how many bytes of them are mapped.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, u64) {
        let state = self.lock();
        (state.known.len(), state.bytes)
    }

    fn forget(&self, key: u64) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under the lock panics")
    }
}

/// A peer answered what no peer answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's answer about its memory makes no sense")]
pub(crate) struct HostileAnswer;

/// Maps what came with an answer. `None` where this system cannot, though nothing is wrong with it.
fn map(
    description: &Description,
    file: OwnedFd,
    backing: Backing,
) -> Result<Option<Memory>, HostileAnswer> {
    let writes = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    let writable = description.access.intersects(writes);
    match Memory::map(File::from(file), description.len, writable, backing) {
        Ok(memory) => Ok(Some(memory)),
        Err(MapError::System(error)) => {
            tracing::debug!(%error, "a peer's region cannot be mapped");
            Ok(None)
        }
        // Shorter than when it was registered; its owner finds out the same way.
        Err(MapError::TooShort { .. }) if backing == Backing::File => Ok(None),
        Err(error) => {
            tracing::warn!(%error, "a peer's region is not what it says");
            Err(HostileAnswer)
        }
    }
}

impl State {
    fn insert(&mut self, key: u64, import: Arc<Import>) {
        self.bytes += import.mapped();
        let sought = self.tick();
        self.known.insert(key, Known { import, sought });
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn remove(&mut self, key: u64) {
        if let Some(known) = self.known.remove(&key) {
            self.bytes -= known.import.mapped();
        }
    }

    fn has_room(&self, len: u64, limits: &Limits) -> bool {
        let bytes = self.bytes.checked_add(len);
        self.known.len() < limits.regions && bytes.is_some_and(|bytes| bytes <= limits.bytes)
    }

    /// Forgets what does not stand any more, and what nobody holds, until `len` bytes more may be mapped.
    fn make_room(&mut self, len: u64, limits: &Limits) {
        if self.has_room(len, limits) && self.known.len() < self.sweep_at {
            return;
        }
        self.retain(|known| known.import.is_current());
        self.sweep_at = (2 * self.known.len()).max(16);
        while !self.has_room(len, limits) {
            let unused = self.known.iter().filter(|(_, known)| known.is_unused());
            let Some((&oldest, _)) = unused.min_by_key(|(_, known)| known.sought) else {
                return;
            };
            self.remove(oldest);
        }
    }

    fn retain(&mut self, keep: impl Fn(&Known) -> bool) {
        let bytes = &mut self.bytes;
        self.known.retain(|_, known| {
            let keeps = keep(known);
            if !keeps {
                *bytes -= known.import.mapped();
            }
            keeps
        });
    }
}

impl Known {
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.import) == 1
    }
}
