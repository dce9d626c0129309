//! Work in flight: what was accepted, by the number that the device gives back with its completion.
//!
//! Work is put into its place and taken out of it there, under one lock for a whole batch: moving it about would cost more
//! than sending eight bytes does.

use std::collections::HashMap;
use std::sync::Arc;

use fabric::provider::Exposed;
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
    /// The seat of whose it is; of a shared receive only its completion tells.
    pub(crate) seat: u32,
    is_out: bool,
}

impl Flight {
    fn on_the_ground() -> Self {
        Self {
            context: 0,
            opcode: Opcode::Send,
            local: Exposed::default(),
            peer: None,
            unsignaled: false,
            header: None,
            seat: 0,
            is_out: false,
        }
    }
}

/// A table of work in flight. Its numbers are reused.
#[derive(Default)]
pub(crate) struct Flights {
    places: Vec<Flight>,
    free: Vec<u32>,
}

impl Flights {
    /// A table that grows only when more than `capacity` are in flight.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            places: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
        }
    }

    /// A place for more work, and its number. All of it but `local` is what the last work there left.
    #[inline]
    pub(crate) fn depart(&mut self) -> (u32, &mut Flight) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.places.push(Flight::on_the_ground());
            self.places.len() as u32 - 1
        });
        let flight = &mut self.places[number as usize];
        flight.is_out = true;
        (number, flight)
    }

    /// Ends work: it is the caller's to take `local` out, before anything else departs. `None` if there is none of that
    /// number.
    #[inline]
    pub(crate) fn land(&mut self, number: u32) -> Option<&mut Flight> {
        let flight = self.places.get_mut(number as usize)?;
        if !flight.is_out {
            return None;
        }
        flight.is_out = false;
        self.free.push(number);
        Some(flight)
    }

    /// The numbers of all work of one seat.
    pub(crate) fn of(&self, seat: u32) -> Vec<u32> {
        let places = self.places.iter().enumerate();
        places
            .filter(|(_, flight)| flight.is_out && flight.seat == seat)
            .map(|(number, _)| number as u32)
            .collect()
    }
}

/// What is in flight towards a completion queue, and whose it may be.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) flights: Flights,
    /// Endpoints that report here.
    pub(crate) seats: Vec<Option<Arc<Core>>>,
    /// The seats of those with shared receives, by queue pair.
    pub(crate) receivers: HashMap<u32, u32>,
}

impl Table {
    /// Gives an endpoint a seat.
    pub(crate) fn seat(&mut self, endpoint: &Arc<Core>) -> u32 {
        let vacant = self.seats.iter().position(Option::is_none);
        let seat = vacant.unwrap_or_else(|| {
            self.seats.push(None);
            self.seats.len() - 1
        });
        self.seats[seat] = Some(Arc::clone(endpoint));
        seat as u32
    }
}
