//! What `ringmail cp` and `ringmail serve` say to each other, version 2.
//!
//! The client connects an endpoint to the server's listener and shows a [`Hello`] as private data. After that each side
//! sends messages, one per send, of at most [`MAX_MESSAGE`] bytes. The client asks ([`Request`]); the server answers each
//! request once ([`Reply`]), in any order, with the request's number. At most [`WINDOW`] requests may be unanswered: that is
//! how many receives either side keeps posted. File contents never travel in messages: a file is opened, which exposes it
//! to this connection's remote reads, and read by the client one-sidedly.
//!
//! ```text
//! client                                  server
//! Open "/srv/file"  ------------------->  maps and registers the file
//!                   <-------------------  Opened: handle, metadata, region
//! Layout 0..        ------------------->  asks its file system for holes (only where Opened said there are some)
//!                   <-------------------  Layout: which blocks have data
//! RDMA READ ...     ===================>  (its device answers)
//! Checksums 0..64   ------------------->  computes CRC32C of those blocks
//!                   <-------------------  Checksums
//! Close handle      ------------------->  deregisters
//!                   <-------------------  Closed: metadata as it is now
//! ```
//!
//! A directory is opened the same way: its region holds the [`Entry`] list. Numbers are big-endian. What a peer sends is
//! checked: a message that is too short, too long, or of an unknown kind ends the connection; a request that cannot be
//! served is answered by [`Reply::Failed`].

mod fields;
mod hello;
mod listing;
mod message;
mod metadata;

pub(crate) use fields::Malformed;
pub(crate) use hello::{Hello, Service, Token};
pub(crate) use listing::{Entry, read_listing, write_entry};
pub(crate) use message::{Counter, Failure, FailureKind, Layout, Opened, Reply, Request, Run};
pub(crate) use metadata::{Kind, Metadata, Time};

/// Longest message in bytes.
pub(crate) const MAX_MESSAGE: usize = 8192;

/// Most requests without an answer.
pub(crate) const WINDOW: usize = 16;

/// Most blocks of one [`Request::Checksums`]: their reply fits into a message.
pub(crate) const MAX_CHECKSUMS: u32 = 1024;

/// Most runs of one [`Layout`]: it fits into a message.
pub(crate) const MAX_RUNS: usize = 500;

/// Most bytes of a path, as on Linux.
pub(crate) const MAX_PATH: usize = 4096;

/// Shortest and longest block of a [`Request::Checksums`] or [`Request::Layout`], in bytes.
pub(crate) const BLOCK_RANGE: std::ops::RangeInclusive<u32> = 4096..=64 << 20;
