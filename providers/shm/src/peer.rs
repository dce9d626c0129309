//! What is known of a peer's domain: shared by all connections with it.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use crate::bell::PeerBell;
use crate::lock;
use crate::region::Imports;
use crate::wire::Hello;

/// A domain of another process, or another domain of this one.
pub(crate) struct PeerNode {
    pub(crate) bell: PeerBell,
    pub(crate) imports: Arc<Imports>,
}

/// The process, and what its domain calls itself.
type Name = (i32, [u8; 16]);

/// The peers that there are connections with.
#[derive(Default)]
pub(crate) struct Peers {
    known: Mutex<HashMap<Name, Weak<PeerNode>>>,
}

impl Peers {
    /// The peer that introduced itself, with the files that came with it.
    ///
    /// # Errors
    /// The files are not what they should be.
    pub(crate) fn meet(
        &self,
        pid: i32,
        hello: &Hello,
        files: Vec<OwnedFd>,
    ) -> io::Result<Arc<PeerNode>> {
        let mut known = lock::mutex(&self.known);
        // A process can only spoil what itself is known by.
        let name = (pid, hello.node);
        if let Some(peer) = known.get(&name).and_then(Weak::upgrade) {
            return Ok(peer);
        }
        let Ok([table, event, page]) = <[OwnedFd; 3]>::try_from(files) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let peer = Arc::new(PeerNode {
            bell: PeerBell::new(event, &page)?,
            imports: Imports::new(pid, &hello.greeting, vec![table])?,
        });
        known.retain(|_, peer| peer.strong_count() > 0);
        known.insert(name, Arc::downgrade(&peer));
        Ok(peer)
    }
}
