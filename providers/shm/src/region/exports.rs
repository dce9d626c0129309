//! The memory that a domain exposes, by key.
//!
//! All access by this process on behalf of peers happens under the lock ([`super::execute`]), and ending a registration
//! takes it, so afterwards there is none. Peers' own access ends by the word in the [`Table`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use fabric::{Access, Error, provider};
use mem::{Backing, Memory, ShareError};

use super::barrier;
use super::description::{self, Description, Kind};
use super::process::{GREETING_LEN, Greeting};
use super::table::{self, Table};

/// A domain's exposed memory.
pub(crate) struct Exports {
    state: RwLock<State>,
    greeting: Greeting,
    table: Arc<File>,
    /// That memory could not be moved was said.
    said: AtomicBool,
}

struct State {
    table: Table,
    exports: HashMap<u64, Export>,
    /// Address and key of each export: those of one memory lie together.
    by_addr: BTreeSet<(u64, u64)>,
}

/// What stands under a key.
pub(super) struct Export {
    pub(super) memory: Memory,
    pub(super) access: Access,
    pub(super) addr: u64,
    place: u32,
    word: u64,
}

/// The answer to a peer: bytes, and descriptors beside them.
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: Vec<Arc<File>>,
}

impl Exports {
    pub(crate) fn new() -> Result<Arc<Self>, Error> {
        let table = Table::new()?;
        let exports = Arc::new(Self {
            greeting: Greeting::new(random()?),
            table: Arc::clone(table.file()),
            state: RwLock::new(State {
                table,
                exports: HashMap::new(),
                by_addr: BTreeSet::new(),
            }),
            said: AtomicBool::new(false),
        });
        let mut domains = DOMAINS.lock().expect("nothing under the lock panics");
        domains.retain(|domain| domain.strong_count() > 0);
        domains.push(Arc::downgrade(&exports));
        drop(domains);
        Ok(exports)
    }

    /// What each peer is told when it connects, for [`super::Imports::new`].
    pub(crate) fn hello(&self) -> Answer {
        let bytes: [u8; GREETING_LEN] = self.greeting.to_bytes();
        Answer {
            bytes: bytes.to_vec(),
            files: vec![Arc::clone(&self.table)],
        }
    }

    /// Exposes memory. Where it can move it does, so that peers can map it.
    pub(crate) fn register(
        self: &Arc<Self>,
        memory: &mut Memory,
        access: Access,
    ) -> Result<Registration, Error> {
        if access != Access::LOCAL && !memory.is_empty() {
            match memory.share() {
                Err(ShareError::System(error)) => self.say_unmoved(&error),
                Ok(()) | Err(ShareError::InUse | ShareError::Foreign) => {}
            }
        }
        let addr = memory.addr();
        let mut guard = self.write();
        let state = &mut *guard;
        let key = loop {
            let key = random()?;
            if !state.exports.contains_key(&key) {
                break key;
            }
        };
        if access != Access::LOCAL {
            let (place, word) = state.table.begin().ok_or(Error::Limit {
                what: "the number of exposed regions",
                limit: table::WORDS,
                asked: table::WORDS + 1,
            })?;
            let export = Export {
                memory: memory.clone(),
                access,
                addr,
                place,
                word,
            };
            state.exports.insert(key, export);
            state.by_addr.insert((addr, key));
        }
        drop(guard);
        Ok(Registration {
            exports: Arc::clone(self),
            key,
            addr,
        })
    }

    /// What a key means, for the peer that asks.
    pub(crate) fn answer(&self, key: u64) -> Answer {
        let state = self.read();
        let Some(export) = state.exports.get(&key) else {
            return Answer {
                bytes: description::unknown(key).to_vec(),
                files: Vec::new(),
            };
        };
        let (kind, file) = match export.memory.descriptor() {
            Some((file, Backing::Sealed)) => (Kind::Sealed, Some(file)),
            Some((file, Backing::File)) => (Kind::File, Some(file)),
            None => (Kind::Foreign, None),
        };
        let description = Description {
            kind,
            access: export.access,
            place: export.place,
            word: export.word,
            key,
            addr: export.addr,
            len: export.memory.len() as u64,
        };
        Answer {
            bytes: description.to_bytes().to_vec(),
            files: file.into_iter().collect(),
        }
    }

    /// Revokes a key for a peer that says so. False if it means nothing.
    pub(crate) fn invalidate(&self, key: u64) -> bool {
        let Some(mut memory) = self.end(key) else {
            return false;
        };
        memory.unshare();
        true
    }

    /// Ends what stands under a key. Answers our handle to the memory, whose pages peers may still have.
    fn end(&self, key: u64) -> Option<Memory> {
        let mut guard = self.write();
        let state = &mut *guard;
        let Export {
            memory,
            addr,
            place,
            ..
        } = state.exports.remove(&key)?;
        state.by_addr.remove(&(addr, key));
        state.table.end(place);
        let given = memory.withdraw();
        drop(guard);
        if given {
            // Under other keys, of whatever domain, the same memory leaves its pages too.
            let domains = DOMAINS.lock().expect("nothing under the lock panics");
            for domain in domains.iter().filter_map(Weak::upgrade) {
                domain.forget_pages(&memory);
            }
            drop(domains);
            barrier::for_peers();
        }
        Some(memory)
    }

    /// Tells peers that memory which was withdrawn is no longer to be mapped.
    fn forget_pages(&self, memory: &Memory) {
        let mut guard = self.write();
        let state = &mut *guard;
        let addr = memory.addr();
        for (_, key) in state.by_addr.range((addr, 0)..=(addr, u64::MAX)) {
            let export = state.exports.get_mut(key).expect("it has an address");
            if export.memory.is_same(memory) {
                export.word = state.table.change(export.place);
            }
        }
    }

    pub(super) fn with<T>(&self, key: u64, run: impl FnOnce(&Export) -> T) -> Option<T> {
        self.read().exports.get(&key).map(run)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("nothing under the lock panics")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("nothing under the lock panics")
    }

    fn say_unmoved(&self, error: &std::io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "peers cannot map all memory and reach it more slowly");
        }
    }
}

/// One registration.
pub(crate) struct Registration {
    exports: Arc<Exports>,
    key: u64,
    addr: u64,
}

impl provider::Registration for Registration {
    fn remote_addr(&self) -> u64 {
        self.addr
    }

    fn remote_key(&self) -> u64 {
        self.key
    }

    fn local_key(&self) -> u64 {
        self.key
    }

    fn deregister(&self) {
        // A peer may have invalidated it already.
        drop(self.exports.end(self.key));
    }
}

/// Those of this process: the same memory may be exposed by several.
static DOMAINS: Mutex<Vec<Weak<Exports>>> = Mutex::new(Vec::new());

fn random() -> Result<u64, Error> {
    getrandom::u64()
        .map_err(|error| Error::io("drawing a random key", std::io::Error::other(error)))
}
