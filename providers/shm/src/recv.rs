//! The receiving half of an endpoint: takes cells out of the ring and does what they say.
//!
//! Whatever a cell says is checked: it was written by the peer, which may be broken, hostile, or dead in the middle of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fabric::provider::Exposed;
use fabric::{Completion, EndpointId, Opcode, Status, Work};

use crate::cq::After;
use crate::ep::{Core, Tell};
use crate::local::{self, Inaccessible};
use crate::peer::PeerNode;
use crate::ready::Ready;
use crate::ring::{CELL_BYTES, Cell, Consumer, INLINE};
use crate::send::{
    COMPARE_SWAP, FETCH_ADD, IMMEDIATE, INVALIDATE, LONG, MORE, NOTICE, READ, RNR_SHIFT, SOLICITED,
    WRITE,
};
use crate::shared::Pool;

/// What guards it is the lock of the queue where its receives are reported.
pub(crate) struct RecvHalf {
    pub(crate) core: Arc<Core>,
    from: Option<From>,
    inbox: Inbox,
    failed: bool,
}

/// The way from the peer.
struct From {
    consumer: Consumer,
    peer: Arc<PeerNode>,
}

/// What arrives goes here.
struct Inbox {
    id: EndpointId,
    index: u32,
    depth: usize,
    outstanding: usize,
    receives: VecDeque<Receive>,
    pool: Option<Arc<Pool>>,
    current: Option<Arriving>,
    /// Since when a message waits for a receive.
    starved: Option<Instant>,
}

/// A posted receive.
#[derive(Debug)]
pub(crate) struct Receive {
    pub(crate) context: u64,
    pub(crate) local: Exposed,
}

/// A message that has not arrived whole.
struct Arriving {
    receive: Receive,
    total: usize,
    done: usize,
    notice: Notice,
}

/// What a completion of a receive says beside its bytes.
#[derive(Debug, Clone, Copy)]
struct Notice {
    opcode: Opcode,
    immediate: Option<u32>,
    invalidated: Option<u64>,
    solicited: bool,
}

/// What became of a cell.
enum Taken {
    Done,
    /// There is no receive for it; it stays where it is.
    Starved,
    /// It was not what it should be, or could not be done: the peer hears this.
    Failed(Status),
}

impl RecvHalf {
    pub(crate) fn new(core: &Arc<Core>, index: u32, depth: usize, pool: Option<Arc<Pool>>) -> Self {
        let prepared = if pool.is_some() {
            0
        } else {
            depth.min(PREPARED)
        };
        Self {
            core: Arc::clone(core),
            from: None,
            inbox: Inbox {
                id: core.id,
                index,
                depth,
                outstanding: 0,
                receives: VecDeque::with_capacity(prepared),
                pool,
                current: None,
                starved: None,
            },
            failed: false,
        }
    }

    /// The endpoint is being connected.
    pub(crate) fn attach(&mut self, consumer: Consumer, peer: Arc<PeerNode>) {
        self.from = Some(From { consumer, peer });
    }

    /// A completion was polled.
    #[inline]
    pub(crate) fn polled(&mut self) {
        // Shared receives are counted by their pool.
        self.inbox.outstanding = self.inbox.outstanding.saturating_sub(1);
    }

    /// How many receives there is room for.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.inbox.depth.saturating_sub(self.inbox.outstanding)
    }

    /// Accepts a receive, for which there is room.
    #[inline]
    pub(crate) fn accept(&mut self, work: Work, ready: &mut Ready) {
        let inbox = &mut self.inbox;
        ready.admit();
        inbox.outstanding += 1;
        let receive = Receive {
            context: work.context,
            local: work.local.expose(),
        };
        if self.failed {
            inbox.end(receive, Status::Flushed, ready);
        } else {
            inbox.receives.push_back(receive);
        }
    }

    /// Whether a message waits for a receive.
    #[inline]
    pub(crate) fn is_starved(&self) -> bool {
        self.inbox.starved.is_some()
    }

    /// Takes what has come. Tells the peer so at once if `at_once`; otherwise with the next cell that goes its way, or when this
    /// is called again. Answers whether anything came.
    pub(crate) fn consume(
        &mut self,
        ready: &mut Ready,
        after: &mut Vec<After>,
        at_once: bool,
    ) -> bool {
        let Some(from) = self.from.as_mut().filter(|_| !self.failed) else {
            return false;
        };
        let mut any = false;
        let mut made_room = false;
        for _ in 0..BUDGET {
            let Some(cell) = from.consumer.peek() else {
                break;
            };
            match self.inbox.take(&cell, &from.consumer, &self.core, ready) {
                Taken::Done => {
                    // Release: pairs with the acquire load in `SendHalf::settle`, which frees what the peer has read.
                    self.core.heard.store(cell.acknowledged, Ordering::Release);
                    from.consumer.advance();
                    let done = from.consumer.done();
                    self.core.consumed.store(done, Ordering::Release);
                    any = true;
                    // Its sender waits for room.
                    if self.inbox.current.is_some() {
                        made_room |= from.consumer.acknowledge(done.wrapping_sub(1));
                    }
                }
                Taken::Starved => {
                    if cell.flags >> RNR_SHIFT & 7 != 7 {
                        after.push(After::Impatient);
                    }
                    break;
                }
                Taken::Failed(status) => {
                    from.consumer.fail(status);
                    self.failed = true;
                    after.push(After::Fail(Arc::clone(&self.core), Tell::Peer));
                    return true;
                }
            }
        }
        // Relaxed: whether it was told twice makes no difference.
        let told = self.core.told.load(Ordering::Relaxed);
        if (at_once || !any) && from.consumer.acknowledge(told) || made_room {
            from.peer.bell.ring_if_sleeping();
        }
        any
    }

    /// Ends everything.
    pub(crate) fn flush(&mut self, ready: &mut Ready) {
        self.failed = true;
        if let Some(arriving) = self.inbox.current.take() {
            self.inbox.end(arriving.receive, Status::Flushed, ready);
        }
        while let Some(receive) = self.inbox.receives.pop_front() {
            self.inbox.end(receive, Status::Flushed, ready);
        }
        if let Some(from) = &mut self.from {
            // What was taken was taken, though the peer may learn of it only now.
            from.consumer
                .acknowledge(from.consumer.done().wrapping_sub(1));
        }
        self.inbox.starved = None;
        self.from = None;
    }
}

impl Inbox {
    /// Does what a cell says.
    fn take(&mut self, cell: &Cell, consumer: &Consumer, core: &Core, ready: &mut Ready) -> Taken {
        match cell.kind {
            INLINE if self.current.is_none() => self.short(cell, ready),
            LONG if self.current.is_none() => self.long(cell, consumer, core, ready),
            MORE => self.more(cell, consumer, ready),
            NOTICE if self.current.is_none() => self.notice(cell, ready),
            WRITE | READ | FETCH_ADD | COMPARE_SWAP if self.current.is_none() => {
                match execute(cell, consumer, core) {
                    Ok(()) => Taken::Done,
                    Err(status) => Taken::Failed(status),
                }
            }
            _ => Taken::Failed(Status::BadResponse),
        }
    }

    /// A message in a cell.
    fn short(&mut self, cell: &Cell, ready: &mut Ready) -> Taken {
        let len = usize::from(cell.len);
        if len > CELL_BYTES {
            return Taken::Failed(Status::BadResponse);
        }
        let receive = match self.next_receive(cell, ready) {
            Ok(receive) => receive,
            Err(taken) => return taken,
        };
        if len > receive.local.total() {
            self.end(receive, Status::LocalLength, ready);
            return Taken::Failed(Status::RemoteInvalidRequest);
        }
        let mut bytes = [0; CELL_BYTES];
        for (into, word) in bytes.chunks_exact_mut(8).zip(cell.words) {
            into.copy_from_slice(&word.to_ne_bytes());
        }
        if let Err(Inaccessible) = local::scatter(&receive.local, 0, &bytes[..len]) {
            self.end(receive, Status::LocalProtection, ready);
            return Taken::Failed(Status::RemoteOperation);
        }
        self.deliver(receive, len, Notice::of(cell, Opcode::Recv), ready);
        Taken::Done
    }

    /// The first part of a message in the data area.
    fn long(&mut self, cell: &Cell, consumer: &Consumer, core: &Core, ready: &mut Ready) -> Taken {
        let [total, at, len, key, ..] = cell.words;
        let fits = total <= crate::MAX_MESSAGE as u64 && len <= total;
        if !fits || consumer.data(at, len).is_err() {
            return Taken::Failed(Status::BadResponse);
        }
        let receive = match self.next_receive(cell, ready) {
            Ok(receive) => receive,
            Err(taken) => return taken,
        };
        if total > receive.local.total() as u64 {
            self.end(receive, Status::LocalLength, ready);
            return Taken::Failed(Status::RemoteInvalidRequest);
        }
        let mut notice = Notice::of(cell, Opcode::Recv);
        if cell.flags & INVALIDATE != 0 {
            if !core.home.node.exports.invalidate(key) {
                self.end(receive, Status::Flushed, ready);
                return Taken::Failed(Status::RemoteAccess);
            }
            notice.invalidated = Some(key);
        }
        let arriving = Arriving {
            receive,
            total: total as usize,
            done: 0,
            notice,
        };
        self.place(arriving, cell, consumer, ready)
    }

    fn more(&mut self, cell: &Cell, consumer: &Consumer, ready: &mut Ready) -> Taken {
        match self.current.take() {
            Some(arriving) => self.place(arriving, cell, consumer, ready),
            None => Taken::Failed(Status::BadResponse),
        }
    }

    /// Places a part of a message.
    fn place(
        &mut self,
        mut arriving: Arriving,
        cell: &Cell,
        consumer: &Consumer,
        ready: &mut Ready,
    ) -> Taken {
        let [_, at, len, ..] = cell.words;
        let left = (arriving.total - arriving.done) as u64;
        let is_part = len <= left && (len > 0 || left == 0);
        let source = consumer.data(at, len).ok().filter(|_| is_part);
        let Some(source) = source else {
            self.end(arriving.receive, Status::Flushed, ready);
            return Taken::Failed(Status::BadResponse);
        };
        let len = len as usize;
        let placed = local::scatter_from(&arriving.receive.local, arriving.done, len, source);
        if let Err(Inaccessible) = placed {
            self.end(arriving.receive, Status::LocalProtection, ready);
            return Taken::Failed(Status::RemoteOperation);
        }
        arriving.done += len;
        if arriving.done == arriving.total {
            self.deliver(arriving.receive, arriving.total, arriving.notice, ready);
        } else {
            self.current = Some(arriving);
        }
        Taken::Done
    }

    /// The notice of a write that its sender has done.
    fn notice(&mut self, cell: &Cell, ready: &mut Ready) -> Taken {
        let receive = match self.next_receive(cell, ready) {
            Ok(receive) => receive,
            Err(taken) => return taken,
        };
        let len = usize::try_from(cell.words[0]).unwrap_or(usize::MAX);
        self.deliver(receive, len, Notice::of(cell, Opcode::RecvWrite), ready);
        Taken::Done
    }

    /// The receive that a cell consumes.
    fn next_receive(&mut self, cell: &Cell, ready: &mut Ready) -> Result<Receive, Taken> {
        let receive = match &self.pool {
            None => self.receives.pop_front(),
            Some(pool) => {
                let receive = pool.take();
                if receive.is_some() {
                    ready.admit();
                }
                receive
            }
        };
        if let Some(receive) = receive {
            self.starved = None;
            return Ok(receive);
        }
        let since = *self.starved.get_or_insert_with(Instant::now);
        let tries = cell.flags >> RNR_SHIFT & 7;
        if tries != 7 && since.elapsed() >= RNR_INTERVAL * u32::from(tries) {
            self.starved = None;
            return Err(Taken::Failed(Status::RnrRetryExceeded));
        }
        Err(Taken::Starved)
    }

    fn deliver(&mut self, receive: Receive, len: usize, notice: Notice, ready: &mut Ready) {
        let completion = Completion {
            context: receive.context,
            status: Status::Success,
            opcode: notice.opcode,
            len,
            immediate: notice.immediate,
            invalidated: notice.invalidated,
            endpoint: self.id,
            peer: None,
            local: receive.local.conceal(),
        };
        ready.push(completion, self.index, notice.solicited);
    }

    fn end(&mut self, receive: Receive, status: Status, ready: &mut Ready) {
        let completion = Completion {
            context: receive.context,
            status,
            opcode: Opcode::Recv,
            len: 0,
            immediate: None,
            invalidated: None,
            endpoint: self.id,
            peer: None,
            local: receive.local.conceal(),
        };
        ready.push(completion, self.index, false);
    }
}

/// Does one-sided work that the peer cannot do itself.
fn execute(cell: &Cell, consumer: &Consumer, core: &Core) -> Result<(), Status> {
    let [addr, key, at, third, fourth, _] = cell.words;
    let exports = &core.home.node.exports;
    let place = |len| consumer.data(at, len).map_err(|_| Status::BadResponse);
    let before = match cell.kind {
        WRITE => {
            let (source, offset) = place(third)?;
            return exports.execute_write(key, addr, source, offset, third as usize);
        }
        READ => {
            let (target, offset) = place(third)?;
            return exports.execute_read(key, addr, target, offset, third as usize);
        }
        FETCH_ADD => exports.execute_fetch_add(key, addr, third)?,
        _ => exports.execute_compare_swap(key, addr, third, fourth)?,
    };
    let (target, offset) = place(8)?;
    target
        .copy_in(offset, &before.to_ne_bytes())
        .map_err(|_| Status::BadResponse)
}

impl Notice {
    fn of(cell: &Cell, opcode: Opcode) -> Self {
        Self {
            opcode,
            immediate: (cell.flags & IMMEDIATE != 0).then_some(cell.immediate),
            invalidated: None,
            solicited: cell.flags & SOLICITED != 0,
        }
    }
}

/// How long a try for a receive takes.
const RNR_INTERVAL: Duration = Duration::from_millis(2);
/// Cells taken at once, so that one endpoint does not keep others waiting.
const BUDGET: usize = 64;
/// Receives that are prepared for without growing.
const PREPARED: usize = 1024;
