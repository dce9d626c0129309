//! The sending half of an endpoint: work in the order in which it was posted, on its way and waiting.
//!
//! Messages go through the ring as soon as there is room. One-sided work is done here, in the memory of the peer, as soon as all
//! work before it has ended; so what the peer sees keeps the order. Work ends in order.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric::provider::Exposed;
use fabric::{Access, Completion, Op, Opcode, Status, Work, WorkFlags};

use crate::cq::After;
use crate::ep::{Core, Tell};
use crate::local::{self, Inaccessible};
use crate::peer::PeerNode;
use crate::ready::Ready;
use crate::region::{Cache, HostileAnswer, Import, Learned, Resolved, Stop};
use crate::ring::{CELL_BYTES, Cell, Chunk, INLINE, Producer};

/// What guards it is the lock of the queue where its work is reported.
pub(crate) struct SendHalf {
    pub(crate) core: Arc<Core>,
    /// Where it is among the halves of its queue.
    index: u32,
    depth: usize,
    outstanding: usize,
    out: Option<Out>,
    pending: VecDeque<Pending>,
    /// How many of `pending` are wholly in the ring.
    issued: usize,
    failed: bool,
}

/// The way to the peer.
struct Out {
    producer: Producer,
    peer: Arc<PeerNode>,
    cache: Cache,
    /// A key that the peer was asked for.
    asked: Option<u64>,
}

/// Accepted work that has not ended.
struct Pending {
    context: u64,
    op: Op,
    flags: WorkFlags,
    local: Exposed,
    len: usize,
    /// The bytes of inline work that had to wait.
    inline: [u8; MAX_INLINE],
    /// Bytes in the ring, or done.
    sent: usize,
    /// The number behind its last cell.
    end: u32,
    /// The part of one-sided work that the peer is doing.
    piece: Option<Chunk>,
    /// A write is done, and only its notice is not.
    placed: bool,
}

/// What became of an attempt to put work into the ring.
enum Issued {
    Whole,
    /// There is no room for more, or something is to happen first.
    Waits,
    /// It has ended already.
    Done,
}

impl SendHalf {
    pub(crate) fn new(core: &Arc<Core>, index: u32, depth: usize) -> Self {
        Self {
            core: Arc::clone(core),
            index,
            depth,
            outstanding: 0,
            out: None,
            pending: VecDeque::with_capacity(depth.min(PREPARED)),
            issued: 0,
            failed: false,
        }
    }

    /// The endpoint is being connected.
    pub(crate) fn attach(&mut self, producer: Producer, peer: Arc<PeerNode>) {
        self.out = Some(Out {
            producer,
            cache: Cache::new(Arc::clone(&peer.imports)),
            peer,
            asked: None,
        });
    }

    /// A completion was polled.
    #[inline]
    pub(crate) fn polled(&mut self) {
        self.outstanding -= 1;
    }

    /// How much more work there is room for.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.depth.saturating_sub(self.outstanding)
    }

    /// Accepts work, for which there is room. What can be done at once is.
    #[inline]
    pub(crate) fn accept(&mut self, work: Work, ready: &mut Ready) {
        let local = work.local.expose();
        let len = local.total();
        let placed = self.place_at_once(&work.op, &local, len);
        ready.admit();
        self.outstanding += 1;
        if placed {
            let ended = Ended {
                context: work.context,
                opcode: Opcode::Write,
                flags: work.flags,
                len,
                local,
            };
            let outstanding = &mut self.outstanding;
            let status = Status::Success;
            return finish(&self.core, self.index, outstanding, ended, status, ready);
        }
        let mut pending = Pending {
            context: work.context,
            op: work.op,
            flags: work.flags,
            len,
            local,
            inline: [0; MAX_INLINE],
            sent: 0,
            end: 0,
            piece: None,
            placed: false,
        };
        if work.flags.contains(WorkFlags::INLINE) {
            let len = pending.len.min(MAX_INLINE);
            // A truncated file shows zeros here, and fails when the work is carried out.
            let _ = local::gather(&pending.local, 0, &mut pending.inline[..len]);
        }
        if self.failed {
            self.end(pending, Status::Flushed, ready);
        } else {
            self.pending.push_back(pending);
        }
    }

    /// Does a write to which no work before it is left, if there is nothing in its way: false leaves it to `carry_out`, which
    /// also finds out why it is not possible. That is for the peer the moment to see it, so all else comes after it.
    #[inline]
    fn place_at_once(&mut self, op: &Op, local: &Exposed, len: usize) -> bool {
        let Op::Write {
            remote,
            immediate: None,
        } = *op
        else {
            return false;
        };
        let is_first = self.pending.is_empty() && !self.failed;
        let (true, Some(out), Some(source)) = (is_first, &mut self.out, local.single()) else {
            return false;
        };
        if source.is_revoked() {
            return false;
        }
        match out.cache.resolve(remote, len, Access::REMOTE_WRITE) {
            Resolved::Here(import) => import
                .write(remote.addr, source.memory, source.offset, len)
                .is_ok(),
            Resolved::Nothing => true,
            Resolved::Delegate | Resolved::Ask | Resolved::Refused(_) => false,
        }
    }

    /// Whether there is anything to be moved along.
    #[inline]
    pub(crate) fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends what the peer is done with, and starts what can be started. Answers whether anything changed.
    pub(crate) fn advance(&mut self, ready: &mut Ready, after: &mut Vec<After>) -> bool {
        if self.pending.is_empty() || self.failed {
            return false;
        }
        let before = self.pending.len();
        let settled = match self.settle(ready) {
            Ok(()) => self.start(ready),
            failed => failed,
        };
        if settled.is_err() {
            self.failed = true;
            after.push(After::Fail(Arc::clone(&self.core), Tell::Peer));
        }
        self.pending.len() != before
    }

    /// Ends what the peer is done with.
    fn settle(&mut self, ready: &mut Ready) -> Result<(), Failed> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        if out.producer.outstanding() == 0 {
            return Ok(());
        }
        let told = out.producer.heard();
        // Acquire: pairs with the release store in `RecvHalf::consume`.
        out.producer
            .advance(self.core.heard.load(Ordering::Acquire));
        if let Some(told) = told {
            out.producer.advance(told.done);
        }
        let done = out.producer.done();
        while self.issued > 0 {
            let front = self.pending.front().expect("it was issued");
            if !is_reached(done, front.end, out.producer.written()) {
                break;
            }
            self.issued -= 1;
            let pending = self.pending.pop_front().expect("just seen");
            finish(
                &self.core,
                self.index,
                &mut self.outstanding,
                pending.into(),
                Status::Success,
                ready,
            );
            // The borrow of `out` goes on.
        }
        let failure = match told {
            None => Some(Status::BadResponse),
            // What failed is the cell after those that are done.
            Some(told) if told.done == done => told.failure,
            Some(_) => None,
        };
        match failure {
            None => Ok(()),
            Some(status) => {
                self.fail_front(status, ready);
                Err(Failed)
            }
        }
    }

    /// Puts work into the ring, or carries it out, as far as that is possible.
    fn start(&mut self, ready: &mut Ready) -> Result<(), Failed> {
        if self.out.is_none() {
            return Ok(());
        }
        let mut written = false;
        let outcome = loop {
            let Some(next) = self.pending.get(self.issued) else {
                break Ok(());
            };
            if next.flags.contains(WorkFlags::FENCE) && self.issued > 0 {
                break Ok(());
            }
            let issued = match next.op {
                Op::Send { .. } => self.issue_send(),
                _ if self.issued > 0 => break Ok(()),
                _ => self.carry_out(),
            };
            match issued {
                Ok((Issued::Whole, _)) => {
                    self.issued += 1;
                    written = true;
                }
                Ok((Issued::Waits, some)) => {
                    written |= some;
                    break Ok(());
                }
                Ok((Issued::Done, _)) => {
                    let pending = self.pending.pop_front().expect("just seen");
                    self.end(pending, Status::Success, ready);
                }
                Err(status) => {
                    // Those before it may still succeed, but the connection is over.
                    let pending = self.pending.remove(self.issued).expect("just seen");
                    self.end(pending, status, ready);
                    break Err(Failed);
                }
            }
        };
        if written && let Some(out) = &self.out {
            out.peer.bell.ring_if_sleeping();
        }
        outcome
    }

    /// Puts a message into the ring; answers whether any of it went.
    fn issue_send(&mut self) -> Result<(Issued, bool), Status> {
        let out = self.out.as_mut().expect("the caller looked");
        let pending = &mut self.pending[self.issued];
        let Op::Send {
            immediate,
            invalidate,
        } = pending.op
        else {
            unreachable!("the caller looked");
        };
        if !out.producer.has_room() {
            return Ok((Issued::Waits, false));
        }
        let mut cell = Cell {
            flags: cell_flags(pending.flags, immediate, &self.core),
            immediate: immediate.unwrap_or(0),
            ..Cell::default()
        };
        if pending.len <= CELL_BYTES && invalidate.is_none() {
            let mut bytes = [0; CELL_BYTES];
            pending
                .copy_out(0, &mut bytes[..pending.len])
                .map_err(|Inaccessible| Status::LocalProtection)?;
            cell.kind = INLINE;
            cell.len = pending.len as u8;
            cell.words = words_of(&bytes);
            self.core.stamp(&mut cell);
            out.producer.push(&cell);
            pending.end = out.producer.written();
            return Ok((Issued::Whole, true));
        }
        if invalidate.is_some() {
            cell.flags |= INVALIDATE;
        }
        let mut some = false;
        while out.producer.has_room() {
            let left = pending.len - pending.sent;
            let wanted = left.min(FRAGMENT);
            let mut at = 0;
            if wanted > 0 {
                let Some(chunk) = out.producer.room_for(wanted, wanted.min(LEAST)) else {
                    break;
                };
                pending
                    .copy_to(chunk.len as usize, (out.producer.data(), chunk.at as usize))
                    .map_err(|Inaccessible| Status::LocalProtection)?;
                out.producer.take(chunk);
                at = chunk.at.into();
                pending.sent += chunk.len as usize;
            }
            let is_first = left == pending.len;
            cell.kind = if is_first { LONG } else { MORE };
            let key = invalidate.unwrap_or(0);
            let sent = left - (pending.len - pending.sent);
            cell.words = [pending.len as u64, at, sent as u64, key, 0, 0];
            self.core.stamp(&mut cell);
            out.producer.push(&cell);
            some = true;
            if pending.sent == pending.len {
                pending.end = out.producer.written();
                return Ok((Issued::Whole, true));
            }
        }
        Ok((Issued::Waits, some))
    }

    /// Does one-sided work, to which nothing before it is left; or has the peer do it.
    fn carry_out(&mut self) -> Result<(Issued, bool), Status> {
        let out = self.out.as_mut().expect("the caller looked");
        let pending = self.pending.front_mut().expect("the caller looked");
        if out.asked.is_some() {
            return Ok((Issued::Waits, false));
        }
        if pending.piece.is_none() && !pending.placed && pending.sent == 0 {
            match pending.attempt(&mut out.cache) {
                Outcome::Done => pending.placed = true,
                Outcome::Failed(status) => return Err(status),
                Outcome::Delegate => {}
                Outcome::Ask(key) => {
                    out.asked = Some(key);
                    return match self.core.ask(key) {
                        true => Ok((Issued::Waits, false)),
                        false => Err(Status::Flushed),
                    };
                }
            }
        }
        let mut some = false;
        if !pending.placed {
            if !pending.delegate(&mut out.producer, &self.core, &mut some)? {
                return Ok((Issued::Waits, some));
            }
            pending.placed = true;
        }
        let Some(immediate) = pending.op.immediate() else {
            return Ok((Issued::Done, some));
        };
        if !out.producer.has_room() {
            return Ok((Issued::Waits, some));
        }
        let mut cell = Cell {
            kind: NOTICE,
            flags: cell_flags(pending.flags, Some(immediate), &self.core),
            immediate,
            ..Cell::default()
        };
        cell.words[0] = pending.len as u64;
        self.core.stamp(&mut cell);
        out.producer.push(&cell);
        pending.end = out.producer.written();
        Ok((Issued::Whole, true))
    }

    /// The peer has answered what a key means.
    pub(crate) fn learn(
        &mut self,
        key: u64,
        answer: &[u8],
        files: Vec<OwnedFd>,
        ready: &mut Ready,
        after: &mut Vec<After>,
    ) {
        let Some(out) = &mut self.out else {
            return;
        };
        if out.asked.take_if(|asked| *asked == key).is_none() {
            return;
        }
        let learned = match out.peer.imports.learn(key, answer, files) {
            Ok(Learned::Known) => Ok(()),
            Ok(Learned::Unknown) => Err(Status::RemoteAccess),
            Err(HostileAnswer) => Err(Status::BadResponse),
        };
        match learned {
            Ok(()) => {
                self.advance(ready, after);
            }
            Err(status) => {
                self.fail_front(status, ready);
                self.failed = true;
                after.push(After::Fail(Arc::clone(&self.core), Tell::Peer));
            }
        }
    }

    fn fail_front(&mut self, status: Status, ready: &mut Ready) {
        self.issued = self.issued.saturating_sub(1);
        if let Some(pending) = self.pending.pop_front() {
            self.end(pending, status, ready);
        }
    }

    /// Ends everything. What the peer has done by now is a success, what it refused is a failure, the rest is flushed; unless
    /// it died, which its first victim learns.
    pub(crate) fn flush(&mut self, died: bool, ready: &mut Ready) {
        if !self.failed {
            // How that ends makes no difference any more.
            let _ = self.settle(ready);
        }
        self.failed = true;
        self.issued = 0;
        let mut status = match died {
            true => Status::RetryExceeded,
            false => Status::Flushed,
        };
        while let Some(pending) = self.pending.pop_front() {
            self.end(pending, status, ready);
            status = Status::Flushed;
        }
        self.out = None;
    }

    fn end(&mut self, pending: Pending, status: Status, ready: &mut Ready) {
        let outstanding = &mut self.outstanding;
        finish(
            &self.core,
            self.index,
            outstanding,
            pending.into(),
            status,
            ready,
        );
    }
}

/// The connection is over, and work has ended accordingly.
struct Failed;

/// Work that has ended.
struct Ended {
    context: u64,
    opcode: Opcode,
    flags: WorkFlags,
    len: usize,
    local: Exposed,
}

impl From<Pending> for Ended {
    #[inline]
    fn from(pending: Pending) -> Self {
        Self {
            context: pending.context,
            opcode: pending.op.opcode(),
            flags: pending.flags,
            len: pending.len,
            local: pending.local,
        }
    }
}

/// Ends one work.
#[inline]
fn finish(
    core: &Core,
    index: u32,
    outstanding: &mut usize,
    ended: Ended,
    status: Status,
    ready: &mut Ready,
) {
    if status.is_success() && ended.flags.contains(WorkFlags::UNSIGNALED) {
        *outstanding -= 1;
        ready.release();
        return;
    }
    let completion = Completion {
        context: ended.context,
        status,
        opcode: ended.opcode,
        len: if status.is_success() { ended.len } else { 0 },
        immediate: None,
        invalidated: None,
        endpoint: core.id,
        peer: None,
        local: ended.local.conceal(),
    };
    ready.push(completion, index, false);
}

/// How one-sided work went.
enum Outcome {
    Done,
    Failed(Status),
    /// The peer is to do it.
    Delegate,
    /// The peer is to be asked what the key means.
    Ask(u64),
}

impl From<Inaccessible> for Stop {
    fn from(_: Inaccessible) -> Self {
        Self::Failed(Status::LocalProtection)
    }
}

impl Pending {
    /// Does one-sided work in the peer's memory.
    #[inline]
    fn attempt(&self, cache: &mut Cache) -> Outcome {
        let (remote, access) = match self.op {
            Op::Write { remote, .. } => (remote, Access::REMOTE_WRITE),
            Op::Read { remote } => (remote, Access::REMOTE_READ),
            Op::FetchAdd { remote, .. } | Op::CompareSwap { remote, .. } => {
                (remote, Access::REMOTE_ATOMIC)
            }
            Op::Send { .. } | Op::Recv => unreachable!("they are not one-sided"),
        };
        loop {
            let import = match cache.resolve(remote, self.len, access) {
                Resolved::Here(import) => import,
                Resolved::Nothing => return Outcome::Done,
                Resolved::Delegate => return Outcome::Delegate,
                Resolved::Ask => return Outcome::Ask(remote.key),
                Resolved::Refused(status) => return Outcome::Failed(status),
            };
            match self.access(import, remote.addr) {
                Ok(()) => return Outcome::Done,
                Err(Stop::Failed(status)) => return Outcome::Failed(status),
                Err(Stop::Delegate) => return Outcome::Delegate,
                // The owner has it elsewhere by now, or not at all.
                Err(Stop::Changed) => {}
            }
        }
    }

    #[inline]
    fn access(&self, import: &Import, addr: u64) -> Result<(), Stop> {
        let before = match self.op {
            Op::Write { .. } if self.flags.contains(WorkFlags::INLINE) => {
                return import.write_bytes(addr, &self.inline[..self.len]);
            }
            Op::Write { .. } => {
                return local::each_part(&self.local, 0, self.len, |memory, at, done, count| {
                    import.write(addr + done as u64, memory, at, count)
                });
            }
            Op::Read { .. } => {
                return local::each_part(&self.local, 0, self.len, |memory, at, done, count| {
                    import.read(addr + done as u64, memory, at, count)
                });
            }
            Op::FetchAdd { add, .. } => import.fetch_add(addr, add)?,
            Op::CompareSwap { expected, new, .. } => import.compare_swap(addr, expected, new)?,
            Op::Send { .. } | Op::Recv => unreachable!("they are not one-sided"),
        };
        Ok(local::scatter(&self.local, 0, &before.to_ne_bytes())?)
    }

    /// Has the peer do one-sided work, a piece at a time; true when all is done.
    fn delegate(
        &mut self,
        producer: &mut Producer,
        core: &Core,
        some: &mut bool,
    ) -> Result<bool, Status> {
        loop {
            if let Some(chunk) = self.piece {
                if !is_reached(producer.done(), self.end, producer.written()) {
                    return Ok(false);
                }
                if self.op.scatters() {
                    // Nothing has been written there since.
                    let source = (producer.data(), chunk.at as usize);
                    local::scatter_from(&self.local, self.sent, chunk.len as usize, source)
                        .map_err(|Inaccessible| Status::LocalProtection)?;
                }
                self.piece = None;
                self.sent += chunk.len as usize;
                if self.sent == self.len {
                    return Ok(true);
                }
            }
            let wanted = (self.len - self.sent).min(FRAGMENT);
            if !producer.has_room() {
                return Ok(false);
            }
            let Some(chunk) = producer.room_for(wanted, wanted.min(LEAST)) else {
                return Ok(false);
            };
            let (kind, remote, third, fourth) = match self.op {
                Op::Write { remote, .. } => (WRITE, remote, chunk.len.into(), 0),
                Op::Read { remote } => (READ, remote, chunk.len.into(), 0),
                Op::FetchAdd { remote, add } => (FETCH_ADD, remote, add, 0),
                Op::CompareSwap {
                    remote,
                    expected,
                    new,
                } => (COMPARE_SWAP, remote, expected, new),
                Op::Send { .. } | Op::Recv => unreachable!("they are not one-sided"),
            };
            if kind == WRITE {
                self.copy_to(chunk.len as usize, (producer.data(), chunk.at as usize))
                    .map_err(|Inaccessible| Status::LocalProtection)?;
            }
            producer.take(chunk);
            let mut cell = Cell {
                kind,
                ..Cell::default()
            };
            let addr = remote.addr.wrapping_add(self.sent as u64);
            cell.words = [addr, remote.key, chunk.at.into(), third, fourth, 0];
            core.stamp(&mut cell);
            producer.push(&cell);
            self.end = producer.written();
            self.piece = Some(chunk);
            *some = true;
        }
    }

    fn copy_out(&self, offset: usize, into: &mut [u8]) -> Result<(), Inaccessible> {
        if self.flags.contains(WorkFlags::INLINE) {
            into.copy_from_slice(&self.inline[offset..offset + into.len()]);
            return Ok(());
        }
        local::gather(&self.local, offset, into)
    }

    /// Copies the next `len` bytes that have not been sent.
    fn copy_to(&self, len: usize, target: (&mem::Memory, usize)) -> Result<(), Inaccessible> {
        if self.flags.contains(WorkFlags::INLINE) {
            let bytes = &self.inline[self.sent..self.sent + len];
            return target.0.copy_in(target.1, bytes).map_err(|_| Inaccessible);
        }
        local::gather_to(&self.local, self.sent, len, target)
    }
}

/// Whether `done` cells include those before `end`, where `written` were written and none of them more than a ring ago.
fn is_reached(done: u32, end: u32, written: u32) -> bool {
    written.wrapping_sub(done) <= written.wrapping_sub(end)
}

fn cell_flags(flags: WorkFlags, immediate: Option<u32>, core: &Core) -> u8 {
    let mut bits = core.rnr_code << RNR_SHIFT;
    if immediate.is_some() {
        bits |= IMMEDIATE;
    }
    if flags.contains(WorkFlags::SOLICITED) {
        bits |= SOLICITED;
    }
    bits
}

fn words_of(bytes: &[u8; CELL_BYTES]) -> [u64; CELL_BYTES / 8] {
    std::array::from_fn(|at| {
        let word = bytes[at * 8..].first_chunk().expect("eight bytes a word");
        u64::from_ne_bytes(*word)
    })
}

/// A message, or the first part of one, in the data area: | bytes in all | place | bytes here | key | - | - |.
pub(crate) const LONG: u8 = 2;
/// A further part: as [`LONG`].
pub(crate) const MORE: u8 = 3;
/// A write that its sender has done consumes a receive: | bytes | - |.
pub(crate) const NOTICE: u8 = 4;
/// One-sided work for the owner of the memory: | address | key | place | bytes, or the operand | second operand | - |.
/// What is read, and the old value, go to the place.
pub(crate) const WRITE: u8 = 5;
pub(crate) const READ: u8 = 6;
pub(crate) const FETCH_ADD: u8 = 7;
pub(crate) const COMPARE_SWAP: u8 = 8;
/// Bits of a cell: it has an immediate value, wakes those who want only that, revokes a key.
pub(crate) const IMMEDIATE: u8 = 1;
pub(crate) const SOLICITED: u8 = 2;
pub(crate) const INVALIDATE: u8 = 4;
/// How often the receiver may find no receive for it: three bits, 7 for ever.
pub(crate) const RNR_SHIFT: u32 = 4;
/// Most bytes of inline work.
pub(crate) const MAX_INLINE: usize = 64;
/// How much of a message goes into one cell: so much that the receiver copies while the sender does.
const FRAGMENT: usize = 32 << 10;
/// Less than this is not worth a cell of its own, unless it is all.
const LEAST: usize = 4 << 10;
/// Work that is prepared for without growing.
const PREPARED: usize = 1024;
