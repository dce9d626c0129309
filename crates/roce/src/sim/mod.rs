//! A simulator: two queue pairs in virtual time over a link that loses, repeats, reorders, damages and delays.
//!
//! Everything follows from a seed. [`world`] runs two engines and moves real packet bytes between them, ICRC
//! included; [`node`] is the NIC around an engine, with memory in a vector; [`script`] makes random work and keeps
//! the reference model of what it must do; [`fuzz`] turns bytes into packets and operations;
//! [`goodput`] counts what calls cost, and measures.

pub mod fuzz;
pub mod goodput;
pub mod link;
pub mod node;
pub mod rng;
pub mod script;
pub mod world;

pub use link::Faults;
pub use rng::Rng;
pub use world::{Config, World};
