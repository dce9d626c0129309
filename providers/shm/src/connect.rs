//! How endpoints are connected: a socket a connection, over which two domains agree on a ring, and by whose end each learns that
//! the other is gone.
//!
//! ```text
//! asks      Request (ring, regions, bell) ->
//!           <- Reply (regions, bell), or Reject
//!           Ready ->
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use fabric::{Address, Error, Event};

use crate::address;
use crate::ep::{Core, State, Tell};
use crate::helper::Node;
use crate::listener::{self, Silent};
use crate::lock;
use crate::mapping::Mapping;
use crate::ring::{Geometry, Way};
use crate::socket::{self, Credentials, Received};
use crate::wire::{Hello, Message};

/// One end of a connection's socket.
#[derive(Debug)]
pub(crate) struct Link {
    /// Names it among those of its domain.
    pub(crate) token: u64,
    pub(crate) peer: Credentials,
    pub(crate) socket: OwnedFd,
    stage: Mutex<Stage>,
}

/// Where a connection is.
#[derive(Debug, Default)]
pub(crate) enum Stage {
    /// A peer has connected and not said what it wants.
    Hearing(Silent),
    /// A program is to answer a request.
    Waiting,
    /// We asked.
    Asking(Weak<Core>, Asked),
    /// We accepted, and have not heard that this arrived.
    Accepted(Weak<Core>),
    Live(Weak<Core>),
    /// The peer has said that it ends.
    Leaving(Weak<Core>),
    #[default]
    Over,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    mapping: Arc<Mapping>,
    geometry: Geometry,
    since: Instant,
}

/// A request that finds too many others waiting to be heard.
#[derive(Debug)]
pub(crate) struct Retry {
    core: Weak<Core>,
    name: String,
    private_data: Vec<u8>,
    since: Instant,
}

impl Link {
    pub(crate) fn new(token: u64, socket: OwnedFd, peer: Credentials, stage: Stage) -> Self {
        Self {
            token,
            peer,
            socket,
            stage: Mutex::new(stage),
        }
    }

    /// Goes to another stage; answers the one before.
    pub(crate) fn enter(&self, stage: Stage) -> Stage {
        std::mem::replace(&mut *lock::mutex(&self.stage), stage)
    }

    pub(crate) fn send(&self, message: &Message, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        socket::send(self.socket.as_fd(), message, files)
    }

    /// Whether somebody else is to act before it can go on.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(
            &*lock::mutex(&self.stage),
            Stage::Hearing(..) | Stage::Asking(..)
        )
    }

    /// Whether it has waited for longer than a peer that is alive takes.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        match &*lock::mutex(&self.stage) {
            Stage::Hearing(silent) => now.duration_since(silent.since) > crate::HEARING,
            Stage::Asking(_, asked) => now.duration_since(asked.since) > crate::PATIENCE,
            _ => false,
        }
    }
}

/// Asks for a connection.
pub(crate) fn ask(core: &Arc<Core>, to: &Address, private_data: &[u8]) -> Result<(), Error> {
    if core.state() != State::Idle {
        return Err(ALREADY);
    }
    let name = address::name(to)?.ok_or_else(|| Error::BadAddress {
        address: to.clone(),
        reason: "nobody listens at no number".to_owned(),
    })?;
    if !core.advance(State::Idle, State::Connecting) {
        return Err(ALREADY);
    }
    // What the peer is shown; nothing is bound to it.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let _ = core
        .address
        .set(address::of_number(own.unsigned_abs()).into());
    let asked = try_ask(core, name, private_data.to_vec(), Instant::now());
    if asked.is_err() {
        core.advance(State::Connecting, State::Idle);
    }
    asked
}

impl Retry {
    /// Asks again.
    pub(crate) fn again(self) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        if core.state() == State::Connecting
            && let Err(error) = try_ask(&core, self.name, self.private_data, self.since)
        {
            tracing::debug!(%error, "asking again for a connection");
            refused(&core, None);
        }
    }
}

fn try_ask(
    core: &Arc<Core>,
    name: String,
    private_data: Vec<u8>,
    since: Instant,
) -> Result<(), Error> {
    let node = &core.home.node;
    let (socket, peer) = match socket::connect(&name) {
        Ok(connected) => connected,
        Err(error) => {
            if error.kind() == io::ErrorKind::WouldBlock && since.elapsed() < crate::PATIENCE {
                node.retry(Retry {
                    core: Arc::downgrade(core),
                    name,
                    private_data,
                    since,
                });
                return Ok(());
            }
            let nobody = [
                io::ErrorKind::ConnectionRefused,
                io::ErrorKind::PermissionDenied,
            ];
            if nobody.contains(&error.kind()) {
                refused(core, None);
                return Ok(());
            }
            return Err(Error::io("connecting a socket", error));
        }
    };
    let geometry = node.geometry;
    let (mapping, file) = Mapping::create("ringmail-shm", geometry.len())
        .map_err(|error| Error::io("making a ring", error))?;
    let asked = Asked {
        mapping: Arc::new(mapping),
        geometry,
        since,
    };
    let link = node
        .add_link(socket, peer, Stage::Asking(Arc::downgrade(core), asked))
        .map_err(|error| Error::io("watching a socket", error))?;
    core.set_link(&link);
    let (hello, table) = node.introduce();
    let request = Message::Request {
        geometry,
        hello,
        private_data,
    };
    let mut all = vec![file.as_fd()];
    all.extend(files(node, &table));
    if link.send(&request, &all).is_err() {
        node.lose(&link);
    }
    Ok(())
}

/// A connection's socket is readable, or has ended.
pub(crate) fn handle(node: &Arc<Node>, link: &Arc<Link>) {
    loop {
        match socket::receive(link.socket.as_fd()) {
            Ok(Some(Received {
                message: Some(message),
                files,
            })) => {
                if on_message(node, link, message, files).is_none() {
                    tracing::debug!(pid = link.peer.pid, "a peer broke the protocol");
                    return node.lose(link);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The end, or nonsense.
            Ok(_) | Err(_) => return node.lose(link),
        }
    }
}

/// `None` if the message should not have come.
fn on_message(
    node: &Arc<Node>,
    link: &Arc<Link>,
    message: Message,
    mut files: Vec<OwnedFd>,
) -> Option<()> {
    match (message, link.enter(Stage::Over)) {
        (
            Message::Request {
                geometry,
                hello,
                private_data,
            },
            Stage::Hearing(silent),
        ) => {
            if !geometry.is_valid() || files.is_empty() {
                return None;
            }
            let ring = files.remove(0);
            let mapping = Mapping::adopt(ring.as_fd(), geometry.len()).ok()?;
            let peer = node.peers.meet(link.peer.pid, &hello, files).ok()?;
            link.enter(Stage::Waiting);
            let ring = (Arc::new(mapping), geometry);
            listener::hear(node, link, &silent, (ring, peer), private_data);
        }
        (
            Message::Reply {
                hello,
                private_data,
            },
            Stage::Asking(core, asked),
        ) => {
            let peer = node.peers.meet(link.peer.pid, &hello, files).ok();
            link.enter(Stage::Live(Weak::clone(&core)));
            on_reply(link, core.upgrade(), &asked, peer?, private_data)?;
        }
        (
            Message::Reject {
                private_data,
                heard,
            },
            Stage::Asking(core, _),
        ) => {
            node.forget(link);
            if let Some(core) = core.upgrade() {
                refused(&core, heard.then_some(private_data));
            }
        }
        (Message::Ready, Stage::Accepted(core)) => {
            link.enter(Stage::Live(Weak::clone(&core)));
            let core = core.upgrade()?;
            if core.advance(State::Connecting, State::Connected) {
                core.events.push(Event::Connected {
                    endpoint: core.id,
                    private_data: Vec::new(),
                });
            }
        }
        (Message::Want { key }, stage) => {
            let is_live = matches!(stage, Stage::Live(_) | Stage::Accepted(_));
            link.enter(stage);
            if !is_live {
                return None;
            }
            let answer = node.exports.answer(key);
            let give = Message::Give {
                key,
                answer: answer.bytes,
            };
            let files: Vec<_> = answer.files.iter().map(|file| file.as_fd()).collect();
            // A peer asks once for each work that waits: one that does not take the answers does not want them.
            link.send(&give, &files).ok()?;
        }
        (Message::Give { key, answer }, stage) => {
            let core = match &stage {
                Stage::Live(core) => core.upgrade(),
                _ => None,
            };
            link.enter(stage);
            core?.learn(key, &answer, files);
        }
        (Message::Bye, Stage::Live(core) | Stage::Accepted(core)) => {
            link.enter(Stage::Leaving(core));
        }
        (_, stage) => {
            link.enter(stage);
            return None;
        }
    }
    Some(())
}

fn on_reply(
    link: &Arc<Link>,
    core: Option<Arc<Core>>,
    asked: &Asked,
    peer: Arc<crate::peer::PeerNode>,
    private_data: Vec<u8>,
) -> Option<()> {
    let core = core?;
    core.attach(link, &asked.mapping, asked.geometry, Way::Out, &peer);
    link.send(&Message::Ready, &[]).ok()?;
    if core.advance(State::Connecting, State::Connected) {
        core.events.push(Event::Connected {
            endpoint: core.id,
            private_data,
        });
    }
    Some(())
}

/// No connection came of it: the peer refused, with or without words, or nobody was there (`None`).
fn refused(core: &Core, words: Option<Vec<u8>>) {
    core.clear_link();
    if core.advance(State::Connecting, State::Idle) {
        core.events.push(match words {
            Some(private_data) => Event::Rejected {
                endpoint: core.id,
                private_data,
            },
            None => Event::Unreachable { endpoint: core.id },
        });
    }
}

impl Node {
    /// A connection has ended, not by us.
    pub(crate) fn lose(&self, link: &Arc<Link>) {
        self.forget(link);
        socket::shut(link.socket.as_fd());
        let (core, tell) = match link.enter(Stage::Over) {
            Stage::Asking(core, _) => {
                if let Some(core) = core.upgrade() {
                    refused(&core, None);
                }
                return;
            }
            Stage::Leaving(core) => (core, Tell::Program),
            Stage::Accepted(core) | Stage::Live(core) => (core, Tell::Died),
            Stage::Hearing(..) | Stage::Waiting | Stage::Over => return,
        };
        if let Some(core) = core.upgrade() {
            core.fail(tell);
        }
    }

    /// We end a connection.
    pub(crate) fn end(&self, link: &Arc<Link>) {
        self.forget(link);
        let before = link.enter(Stage::Over);
        if matches!(before, Stage::Live(_) | Stage::Accepted(_)) {
            // If it cannot be said, the end of the socket says it.
            let _ = link.send(&Message::Bye, &[]);
        }
        socket::shut(link.socket.as_fd());
    }

    /// How this domain introduces itself, and the files that go with it.
    pub(crate) fn introduce(&self) -> (Hello, Vec<Arc<File>>) {
        let answer = self.exports.hello();
        let greeting = answer.bytes.try_into();
        let hello = Hello {
            node: self.id,
            greeting: greeting.expect("greetings have one length"),
        };
        (hello, answer.files)
    }
}

/// The files of an introduction, in the order in which [`crate::peer::Peers::meet`] expects them.
pub(crate) fn files<'a>(node: &'a Node, table: &'a [Arc<File>]) -> Vec<BorrowedFd<'a>> {
    let table = table.iter().map(|file| file.as_fd());
    table.chain(node.bell.files()).collect()
}

pub(crate) const ALREADY: Error = Error::WrongState("the endpoint has been connected already");
