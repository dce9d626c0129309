//! Connecting: requests of both sides, and who yields.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, Doomed, Stage, State};
use super::hello::{Hello, Refusal};
use crate::{Address, ConnectionRequest, EndpointId, Event, EventQueue, Status};

/// How long we wait for the connection that ours yielded to.
const YIELD: Duration = Duration::from_secs(2);

/// The endpoint's thread: handles what happens to its connections until it closes.
pub(super) fn serve(core: &Arc<Core>, events: &EventQueue) {
    loop {
        let event = events.wait(YIELD);
        let mut state = core.lock();
        if state.closed {
            return;
        }
        let mut doomed = core.retry_yielded(&mut state);
        if let Some(event) = event {
            doomed.extend(core.handle(&mut state, event));
        }
        drop(state);
        drop(doomed);
    }
}

impl Core {
    /// Sends a request to a peer.
    pub(super) fn start_connect(self: &Arc<Self>, state: &mut State, address: &Address) -> Doomed {
        let opened = self.open_connection(state, address, Stage::Connecting, 0);
        let hello = self.hello(state, self.address.clone());
        let Some(peer) = state.peers.get_mut(address) else {
            return Doomed::new();
        };
        let Ok((id, endpoint, mut doomed)) = opened else {
            self.fail_pending(peer, Status::LocalOperation);
            return Doomed::new();
        };
        peer.current = Some(id);
        if endpoint.connect(address, &hello).is_err() {
            doomed.extend(self.fail(state, id, Status::RetryExceeded));
        }
        doomed.push(endpoint);
        doomed
    }

    fn handle(self: &Arc<Self>, state: &mut State, event: Event) -> Doomed {
        match event {
            Event::ConnectionRequest(request) => self.requested(state, request),
            Event::Connected {
                endpoint,
                private_data,
            } => self.connected(state, endpoint, &private_data),
            Event::Rejected {
                endpoint,
                private_data,
            } => self.rejected(state, endpoint, &private_data),
            Event::Unreachable { endpoint } => self.fail(state, endpoint, Status::RetryExceeded),
            Event::Disconnected { endpoint } => self.fail(state, endpoint, Status::Flushed),
            Event::ReceiveLimit => Doomed::new(),
        }
    }

    /// A peer asks. Its request wins over ours if its address is the lower one.
    fn requested(self: &Arc<Self>, state: &mut State, request: ConnectionRequest) -> Doomed {
        // A request that is dropped is rejected.
        let Some(hello) = Hello::parse(request.private_data()) else {
            return Doomed::new();
        };
        if hello.address.is_any() || !same_host(&hello.address, request.from()) {
            return Doomed::new();
        }
        let itself = hello.address == self.address;
        let peer = state.peers.entry(hello.address.clone()).or_default();
        let same_life = peer.incarnation == Some(hello.incarnation);
        let mut doomed = Doomed::new();
        if !itself && let Some(current) = peer.current {
            let connection = &state.connections[&current];
            match connection.stage {
                Stage::Connecting if self.address < hello.address => {
                    refuse(request, Refusal::Yield);
                    return doomed;
                }
                // What is pending goes on with their connection.
                Stage::Connecting => {
                    let peer = state.peers.get_mut(&hello.address).expect("just entered");
                    peer.current = None;
                    doomed.extend(self.fail(state, current, Status::Flushed));
                }
                _ if same_life && hello.attempt <= connection.peer_attempt => {
                    refuse(request, Refusal::Stale);
                    return doomed;
                }
                // They know that this one is gone; now so do we.
                _ => doomed.extend(self.fail(state, current, Status::Flushed)),
            }
        }
        // The limit gives way to our own work, not to whoever asks.
        if !itself && !self.has_room(state) {
            state.forget_unused(&hello.address);
            return doomed;
        }
        let opened = self.open_connection(state, &hello.address, Stage::Accepting, hello.attempt);
        let Ok((id, endpoint, more)) = opened else {
            state.forget_unused(&hello.address);
            return doomed;
        };
        doomed.extend(more);
        let answer = self.hello(state, Address::ANY);
        // A connection that failed just now may have taken what we knew of the peer with it.
        let peer = state.peers.entry(hello.address.clone()).or_default();
        peer.incarnation = Some(hello.incarnation);
        peer.yielded = None;
        if !itself {
            peer.current = Some(id);
        }
        if request.accept_for(&*endpoint, &answer).is_err() {
            // They have given up; what is pending connects again.
            if let Some(peer) = state.peers.get_mut(&hello.address) {
                peer.current = None;
            }
            doomed.extend(self.fail(state, id, Status::Flushed));
            doomed.extend(self.advance(state, &hello.address));
        }
        doomed.push(endpoint);
        doomed
    }

    fn connected(self: &Arc<Self>, state: &mut State, id: EndpointId, answer: &[u8]) -> Doomed {
        let Some(connection) = state.connections.get_mut(&id) else {
            return Doomed::new();
        };
        let address = connection.peer.clone();
        match connection.stage {
            Stage::Accepting => connection.stage = Stage::Connected,
            Stage::Connecting => {
                let Some(hello) = Hello::parse(answer) else {
                    // Somebody accepted who is no datagram endpoint.
                    return self.fail(state, id, Status::BadResponse);
                };
                connection.stage = Stage::Connected;
                connection.peer_attempt = hello.attempt;
                if let Some(peer) = state.peers.get_mut(&address) {
                    peer.incarnation = Some(hello.incarnation);
                }
            }
            Stage::Connected | Stage::Failed => return Doomed::new(),
        }
        self.advance(state, &address)
    }

    fn rejected(self: &Arc<Self>, state: &mut State, id: EndpointId, reason: &[u8]) -> Doomed {
        let Some(connection) = state.connections.get(&id) else {
            return Doomed::new();
        };
        let address = connection.peer.clone();
        let Some(_refusal) = Refusal::parse(reason) else {
            return self.fail(state, id, Status::RetryExceeded);
        };
        let Some(peer) = state.peers.get_mut(&address) else {
            return self.fail(state, id, Status::RetryExceeded);
        };
        if peer.current == Some(id) {
            // Theirs is under way: keep what is pending for it.
            peer.current = None;
            peer.yielded = Some(Instant::now());
        }
        self.fail(state, id, Status::Flushed)
    }

    /// Connects again where the connection that ours yielded to has not come.
    fn retry_yielded(self: &Arc<Self>, state: &mut State) -> Doomed {
        let overdue: Vec<_> = state
            .peers
            .iter_mut()
            .filter(|(_, peer)| peer.yielded.is_some_and(|since| since.elapsed() >= YIELD))
            .map(|(address, peer)| {
                peer.yielded = None;
                address.clone()
            })
            .collect();
        let mut doomed = Doomed::new();
        for address in overdue {
            doomed.extend(self.advance(state, &address));
        }
        doomed
    }
}

/// Whether a peer may claim the address: where addresses are of hosts, it must be on the host that asks.
fn same_host(claimed: &Address, from: &Address) -> bool {
    let host = |address: &Address| {
        address
            .as_str()
            .parse()
            .map(|address: SocketAddr| address.ip())
    };
    match (host(claimed), host(from)) {
        (Ok(claimed), Ok(from)) => claimed == from,
        _ => true,
    }
}

fn refuse(request: ConnectionRequest, refusal: Refusal) {
    request
        .reject(&refusal.to_bytes())
        .expect("two bytes fit every provider's private data");
}
