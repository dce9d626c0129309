//! The provider on shared memory: between the processes of one user on one Linux machine.
//!
//! Messages travel through rings that both processes map; one-sided work is done by the process that posted it, in the memory
//! of the other, which may be asleep. Isolation is per user, not per key: who runs as the same user is trusted not to write to
//! what it was not given a key for, but whatever it writes, nothing here panics or touches memory that was not exposed.

#[cfg(target_os = "linux")]
mod region;
