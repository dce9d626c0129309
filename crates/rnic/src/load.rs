//! What is in flight to each software peer, of all queue pairs together, and who waits for room.
//!
//! A peer's receive buffer is one for all that is sent to it. Each queue pair has a window of its own (the engine's); here
//! the sum is kept within what the peer said that it takes. A queue pair that finds no room is parked, and called in turn when
//! acknowledgements make some, with a burst's worth at a time rather than a packet each for all.

use std::collections::VecDeque;
use std::net::IpAddr;

/// All software peers that queue pairs are connected to.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    peers: Vec<Load>,
}

/// One peer.
#[derive(Debug)]
struct Load {
    peer: IpAddr,
    /// Bytes that it takes.
    window: u32,
    in_flight: u32,
    /// Queue pairs connected to it.
    members: usize,
    /// Queue pairs that wait for room, the longest waiting first.
    parked: VecDeque<usize>,
}

/// A queue pair's part of its peer's load.
#[derive(Debug)]
pub(crate) struct Share {
    load: usize,
    in_flight: u32,
    is_parked: bool,
}

impl Loads {
    /// Adds a queue pair that is connected to `peer`, which takes `window` bytes.
    pub(crate) fn join(&mut self, peer: IpAddr, window: u32) -> Share {
        let known = self.peers.iter().position(|load| load.peer == peer);
        let load = known
            .or_else(|| self.peers.iter().position(|load| load.members == 0))
            .unwrap_or_else(|| {
                self.peers.push(Load::new(peer));
                self.peers.len() - 1
            });
        let joined = &mut self.peers[load];
        if joined.members == 0 {
            *joined = Load::new(peer);
        }
        joined.members += 1;
        joined.window = joined.window.max(window);
        // Room for everyone, so that nothing grows on the way of a packet.
        let missing = joined.members.saturating_sub(joined.parked.len());
        joined.parked.reserve(missing);
        Share {
            load,
            in_flight: 0,
            is_parked: false,
        }
    }

    /// Takes the queue pair in `slot` out.
    pub(crate) fn leave(&mut self, share: Share, slot: usize) {
        let load = &mut self.peers[share.load];
        load.in_flight -= share.in_flight;
        load.members -= 1;
        load.parked.retain(|at| *at != slot);
    }

    /// Bytes that a queue pair may add.
    #[inline]
    pub(crate) fn allowance(&self, share: &Share) -> u32 {
        let load = &self.peers[share.load];
        load.window.saturating_sub(load.in_flight)
    }

    /// Notes that a queue pair has `in_flight` bytes in flight now.
    #[inline]
    pub(crate) fn note(&mut self, share: &mut Share, in_flight: u32) {
        let load = &mut self.peers[share.load];
        load.in_flight = load.in_flight - share.in_flight + in_flight;
        share.in_flight = in_flight;
    }

    /// The queue pair in `slot` has more to send than there is room for: whether it waits to be called.
    #[inline]
    pub(crate) fn park(&mut self, share: &mut Share, slot: usize) -> bool {
        let load = &mut self.peers[share.load];
        if load.in_flight + ROOM <= load.window || load.in_flight == 0 {
            return false;
        }
        if !share.is_parked {
            share.is_parked = true;
            load.parked.push_back(slot);
        }
        true
    }

    /// The next queue pair of the same peer for which there is room now. It has to be told by [`Share::is_called`].
    #[inline]
    pub(crate) fn call(&mut self, share: &Share) -> Option<usize> {
        let load = &mut self.peers[share.load];
        if load.in_flight + ROOM > load.window {
            return None;
        }
        load.parked.pop_front()
    }
}

impl Load {
    fn new(peer: IpAddr) -> Self {
        Self {
            peer,
            window: 0,
            in_flight: 0,
            members: 0,
            parked: VecDeque::new(),
        }
    }
}

impl Share {
    /// The queue pair waits no more.
    pub(crate) const fn is_called(&mut self) {
        self.is_parked = false;
    }
}

/// Room for a large packet, below which nobody is called.
const ROOM: u32 = 4096 + 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_called_in_turn() {
        let mut loads = Loads::default();
        let peer = IpAddr::from([127, 0, 0, 2]);
        let mut shares: Vec<Share> = (0..3).map(|_| loads.join(peer, 100_000)).collect();
        assert!(!loads.park(&mut shares[0], 0), "there is room");
        loads.note(&mut shares[0], 99_000);
        assert_eq!(loads.allowance(&shares[1]), 1000);
        assert!(loads.park(&mut shares[2], 2));
        assert!(loads.park(&mut shares[1], 1));
        assert!(loads.park(&mut shares[1], 1), "once is enough");
        assert_eq!(loads.call(&shares[0]), None);
        loads.note(&mut shares[0], 40_000);
        assert_eq!(loads.call(&shares[0]), Some(2));
        assert_eq!(loads.call(&shares[0]), Some(1));
        assert_eq!(loads.call(&shares[0]), None);
    }

    #[test]
    fn peers_do_not_share_and_a_queue_pair_that_is_gone_holds_nothing() {
        let mut loads = Loads::default();
        let mut one = loads.join([127, 0, 0, 2].into(), 100_000);
        let mut other = loads.join([127, 0, 0, 3].into(), 100_000);
        let same = loads.join([127, 0, 0, 2].into(), 100_000);
        loads.note(&mut one, 100_000);
        assert!(!loads.park(&mut other, 7));
        assert!(loads.park(&mut one, 5));
        loads.leave(one, 5);
        assert_eq!(loads.allowance(&same), 100_000);
        assert_eq!(loads.call(&same), None);
    }
}
