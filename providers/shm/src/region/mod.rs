//! Exposed memory: our own by its key, and that of peers as it is reached from here.
//!
//! An initiator does one-sided work itself. It asks the owner once what a key means ([`Exports::answer`]), maps the file that
//! comes with the answer ([`Imports::learn`]), and from then on looks only at the owner's [`table`], one word a key, before
//! and after each access: revoking a key changes its word. What cannot be mapped (memory of C programs, writable files,
//! memory that could not move) is read with `process_vm_readv` where that is permitted; the rest the owner executes
//! ([`Exports::execute_write`] and its like).
//!
//! # Revocation
//!
//! [`Exports`] changes the word, then has every processor that runs a peer pass a barrier ([`barrier`]), and only then are the
//! pages taken back ([`mem::Memory::unshare`], called by `fabric`). So an access whose second look found the word unchanged
//! is in the pages that the owner keeps, and one that comes later reports an error and harms nobody.
//!
//! What is not here: carrying questions, answers and delegated work between the processes; that is the connection's.

mod barrier;
mod cache;
mod description;
mod execute;
mod exports;
mod import;
mod imports;
mod mapping;
mod process;
mod table;

#[cfg(test)]
mod stopped;
#[cfg(test)]
mod tests;

pub(crate) use cache::{Cache, Resolved};
pub(crate) use exports::Exports;
pub(crate) use import::{Import, Stop};
pub(crate) use imports::{HostileAnswer, Imports, Learned};
