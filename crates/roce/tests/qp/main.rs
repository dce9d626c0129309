//! Queue pairs against each other, packet by packet.
//!
//! A test posts work on node 0, lets packets vanish where the story wants it, and reads what crossed the wire.

mod datagrams;
mod misuse;
mod ordering;
mod reliability;
mod states;
mod vocabulary;
