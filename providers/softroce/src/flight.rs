//! Work in flight: what was accepted, by the number that the device gives back with its completion.

use std::sync::Arc;

use fabric::provider::Exposed;
use fabric::util::Slot;
use fabric::{Opcode, Peer};

use crate::ep::Core;

/// Accepted work.
pub(crate) struct Flight {
    pub(crate) context: u64,
    pub(crate) opcode: Opcode,
    pub(crate) local: Exposed,
    pub(crate) peer: Option<Peer>,
    pub(crate) unsignaled: bool,
    /// Where the addressing in front of a datagram goes.
    pub(crate) header: Option<u32>,
    /// Whose it is; of a shared receive only its completion tells.
    pub(crate) endpoint: Option<Arc<Core>>,
    /// Its place among what is outstanding, and room for its completion.
    pub(crate) slot: Slot,
}

/// A table of work in flight. Its numbers are reused.
#[derive(Default)]
pub(crate) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u32>,
}

impl Flights {
    /// A table that grows only when more than `capacity` are in flight.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    /// Adds work and answers its number.
    pub(crate) fn insert(&mut self, flight: Flight) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(flight);
                index
            }
            None => {
                self.slots.push(Some(flight));
                self.slots.len() as u32 - 1
            }
        }
    }

    /// Takes work out; `None` if there is none of that number.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Flight> {
        let flight = self.slots.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(flight)
    }

    /// Takes out all work of one endpoint.
    pub(crate) fn remove_of(&mut self, endpoint: &Arc<Core>) -> Vec<Flight> {
        let mut taken = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let is_its = slot.as_ref().is_some_and(|flight| {
                flight
                    .endpoint
                    .as_ref()
                    .is_some_and(|of| Arc::ptr_eq(of, endpoint))
            });
            if is_its {
                taken.extend(slot.take());
                self.free.push(index as u32);
            }
        }
        taken
    }
}
