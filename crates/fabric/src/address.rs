//! Where peers are: addresses are text, handles are small.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The name of an endpoint or a listener, as text that its provider can read: `192.0.2.1:7471`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(Cow<'static, str>);

impl Address {
    /// Lets the provider choose, when listening or opening.
    pub const ANY: Self = Self(Cow::Borrowed(""));

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is [`Address::ANY`].
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(Cow::Owned(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_any() { "(any)" } else { &self.0 })
    }
}

/// A handle to an address in an [`AddressVector`]. One that was removed never names another peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Peer {
    index: u32,
    generation: u32,
}

impl Peer {
    /// Where in the vector: small numbers, reused after removal. For a provider's own table beside it.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// The addresses that endpoints may send to, or have received from. A cheap handle; endpoints can share one.
///
/// Senders that were not inserted get a handle when their first message arrives.
#[derive(Debug, Clone)]
pub struct AddressVector {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_address: HashMap<Address, Peer>,
    limit: usize,
}

#[derive(Debug)]
struct Slot {
    address: Option<Address>,
    generation: u32,
}

impl AddressVector {
    /// An empty vector of at most `limit` peers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let table = Table {
            slots: Vec::new(),
            free: Vec::new(),
            by_address: HashMap::new(),
            limit: limit.min(u32::MAX as usize),
        };
        Self {
            table: Arc::new(Mutex::new(table)),
        }
    }

    /// The handle of `address`: the one it has, or a new one.
    ///
    /// # Errors
    /// [`Error::Limit`] if the vector is full.
    pub fn insert(&self, address: &Address) -> Result<Peer, Error> {
        let mut table = self.lock();
        if let Some(&peer) = table.by_address.get(address) {
            return Ok(peer);
        }
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() < table.limit => {
                table.slots.push(Slot {
                    address: None,
                    generation: 0,
                });
                table.slots.len() as u32 - 1
            }
            None => {
                return Err(Error::Limit {
                    what: "the number of peers",
                    limit: table.limit,
                    asked: table.limit + 1,
                });
            }
        };
        let slot = &mut table.slots[index as usize];
        slot.address = Some(address.clone());
        let generation = slot.generation;
        let peer = Peer { index, generation };
        table.by_address.insert(address.clone(), peer);
        Ok(peer)
    }

    /// Forgets a peer; work posted to it before goes on.
    pub fn remove(&self, peer: Peer) {
        let mut table = self.lock();
        let Some(slot) = table.slots.get_mut(peer.index()) else {
            return;
        };
        if slot.generation != peer.generation {
            return;
        }
        let Some(address) = slot.address.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        table.by_address.remove(&address);
        table.free.push(peer.index);
    }

    /// The address behind a handle, unless it was removed.
    #[must_use]
    pub fn lookup(&self, peer: Peer) -> Option<Address> {
        let table = self.lock();
        let slot = table.slots.get(peer.index())?;
        if slot.generation != peer.generation {
            return None;
        }
        slot.address.clone()
    }

    /// Whether the handle names a peer.
    #[must_use]
    pub fn contains(&self, peer: Peer) -> bool {
        let table = self.lock();
        table
            .slots
            .get(peer.index())
            .is_some_and(|slot| slot.generation == peer.generation && slot.address.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing under the lock panics")
    }
}

impl Default for AddressVector {
    /// Room for a million peers, which is a bound on what strangers can make us remember.
    fn default() -> Self {
        Self::new(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_handle_until_it_is_removed() {
        let addresses = AddressVector::new(2);
        let first = addresses.insert(&"a".into()).unwrap();
        assert_eq!(addresses.insert(&"a".into()).unwrap(), first);
        addresses.insert(&"b".into()).unwrap();
        assert!(addresses.insert(&"c".into()).is_err(), "the vector is full");
        addresses.remove(first);
        assert_eq!(addresses.lookup(first), None);
        let third = addresses.insert(&"c".into()).unwrap();
        assert_eq!(third.index(), first.index());
        assert_ne!(third, first, "an old handle must not name a new peer");
        assert_eq!(addresses.lookup(third), Some("c".into()));
    }
}
