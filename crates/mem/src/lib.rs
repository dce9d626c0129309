//! Memory that a peer may read and write while the program runs.
//!
//! A network card, another process or another thread touches registered memory with no regard to Rust's borrows. Two
//! types keep that sound:
//!
//! - [`Buf`] is private: one owner, an ordinary slice. It becomes a [`Memory`] while an operation uses it, and a
//!   `Buf` again once no other handle is left.
//! - [`Memory`] is exposed: a cheap handle to bytes that others may be changing. No reference to those bytes ever
//!   exists; they are copied in and out, or accessed as aligned 8-byte atomic words.
//!
//! # The invariant
//!
//! Everything unsafe here rests on one sentence: **while a `Memory` handle to it exists, the program touches an
//! allocation's bytes only (a) as aligned 8-byte atomic words, (b) as atomic bytes at the edges of foreign memory, or
//! (c) by the assembly of module `copy`, which is outside the compiler's view and does to each byte what (a) and (b)
//! permit.** Racing atomics of different sizes would be undefined, which is why allocations that we make own whole words,
//! and why the word version (non-x86-64, Miri, loom) merges partial words instead of writing bytes. Volatile accesses
//! are not used: in Rust they do not make a race defined.
//!
//! # Publication
//!
//! [`Memory::copy_in`] makes the last bytes that it writes visible last: whoever sees them (by [`Memory::load_u64`])
//! also sees all that was written before by the same thread.
//!
//! # Files
//!
//! A [`FileMapping`] is guarded: if the file is truncated under it, the access answers [`AccessError::Fault`] instead of
//! ending the process (module `guard`). System calls given its [`Memory::iovec`] answer `EFAULT`.
//!
//! # Other processes
//!
//! [`Memory::share`] moves memory into a file that other processes can map ([`Memory::map`]) and that they cannot resize;
//! [`Memory::unshare`] takes it back from them at any time (module `shared`). What they do with it is access like any
//! other: whoever is given the descriptor is trusted to follow the invariant, or harms only the values of the bytes.
//!
//! What this does not do: registration, keys, access rights. Those belong to the device.

mod buf;
mod copy;
#[cfg(unix)]
mod file;
#[cfg(unix)]
mod guard;
mod memory;
#[cfg(target_os = "linux")]
mod resident;
#[cfg(target_os = "linux")]
mod shared;
#[cfg(not(target_os = "linux"))]
mod unshared;

pub use buf::Buf;
#[cfg(unix)]
pub use file::FileMapping;
pub use memory::{AccessError, Memory};
#[cfg(target_os = "linux")]
pub use shared::{Backing, MapError, ShareError};
