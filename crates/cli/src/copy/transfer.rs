//! One opened file, block by block: read from the server's memory, stored, compared with the server's checksum, read again if it
//! differs. Holes are neither read nor stored.
//!
//! Reads, requests for checksums and the storing of blocks go on side by side; a block is verified when it is stored and both
//! checksums are here: the server's of its file, and ours of the bytes that were stored. Blocks that an earlier copy held are
//! verified without being read. A transfer whose connection is lost goes on over the next.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use fabric::Buf;

use super::journal::Journal;
use super::progress::Progress;
use super::session::{Arrival, Cause, Lost, Session};
use super::store::{Destination, Store, Stored};
use crate::protocol::{Layout, Opened, Reply, Request};

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fetched {
    /// Of the whole file.
    pub(super) crc32c: u32,
    /// Remote reads that ended.
    pub(super) reads: u64,
    /// Bytes that were there already.
    pub(super) resumed: u64,
}

/// Why a file could not be copied.
#[derive(Debug)]
pub(super) enum Trouble {
    /// This one is in trouble, the others may not be.
    File(anyhow::Error),
    /// The connection is gone; over another one the copy can go on.
    Lost(Lost),
    /// Nothing more can be copied.
    All(anyhow::Error),
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        match lost.cause {
            Cause::Source => Self::File(lost.error),
            Cause::Silence => Self::Lost(lost),
            Cause::Nonsense => Self::All(lost.error),
        }
    }
}

/// Reads and verifies a whole file.
pub(super) struct Transfer<'a> {
    destination: Arc<dyn Destination>,
    journal: Option<&'a mut Journal>,
    /// Told of each block that was verified.
    progress: Option<Progress>,
    len: u64,
    block_len: u32,
    blocks: Vec<Block>,
    /// Blocks of which it is known whether they are holes.
    known: u64,
    /// Blocks that are found wanting are read; else they end the transfer.
    repairs: bool,
    /// The first block that was never considered for reading.
    next_read: u64,
    /// The first block whose checksum was never asked for, and how many to ask for.
    next_sum: u64,
    sums_at_once: u32,
    /// Blocks to read once more, and runs of checksums to ask for once more.
    again: VecDeque<u64>,
    sums_again: VecDeque<(u64, u32)>,
    /// What was asked for by which request: first block, count.
    asked: HashMap<u32, (u64, u32)>,
    /// Buffers of a block, those used last behind: they are still in the cache.
    spare: Vec<Buf>,
    finished: u64,
    fetched: Fetched,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: Bytes,
    /// The server's checksum.
    theirs: Option<u32>,
    /// Ours, of what was stored.
    ours: Option<u32>,
    failures: u8,
}

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    /// Nowhere: they are zeros.
    Hole,
    Missing,
    Reading,
    /// Read in this copy, and stored or about to be.
    Read,
    /// Found from an earlier one.
    Held,
    Verified,
}

impl<'a> Transfer<'a> {
    /// Everything of `opened` into a destination that is as long. The blocks `held` are there already.
    pub(super) fn new(
        opened: &Opened,
        destination: Arc<dyn Destination>,
        block_len: u32,
        held: &[u64],
    ) -> Self {
        let len = opened.metadata.size;
        let count = len.div_ceil(block_len.into());
        let missing = Block {
            bytes: Bytes::Missing,
            theirs: None,
            ours: None,
            failures: 0,
        };
        let mut blocks = vec![missing; count as usize];
        for &block in held {
            blocks[block as usize].bytes = Bytes::Held;
        }
        Self {
            destination,
            journal: None,
            progress: None,
            len,
            block_len,
            blocks,
            known: 0,
            repairs: true,
            next_read: 0,
            next_sum: 0,
            sums_at_once: FIRST_SUMS,
            again: VecDeque::new(),
            sums_again: VecDeque::new(),
            asked: HashMap::new(),
            spare: Vec::new(),
            finished: 0,
            fetched: Fetched::default(),
        }
    }

    /// Everything of `opened` is in the destination already, and only verified: nothing is read or written.
    pub(super) fn of_all_held(
        opened: &Opened,
        destination: Arc<dyn Destination>,
        block_len: u32,
    ) -> Self {
        let mut transfer = Self::new(opened, destination, block_len, &[]);
        for block in &mut transfer.blocks {
            block.bytes = Bytes::Held;
        }
        transfer.known = transfer.blocks.len() as u64;
        transfer.repairs = false;
        transfer
    }

    /// Notes verified blocks in a journal, and tells of them.
    pub(super) fn reporting(
        mut self,
        journal: Option<&'a mut Journal>,
        progress: &Progress,
    ) -> Self {
        self.journal = journal;
        self.progress = Some(progress.clone());
        self
    }

    /// Reads and verifies all blocks that were not yet. Whatever the outcome, nothing is being stored afterwards.
    ///
    /// # Errors
    /// [`Trouble`]; after [`Trouble::Lost`] it can be called again, with the next connection.
    pub(super) fn run(
        &mut self,
        session: &mut Session,
        store: &mut Store,
        opened: &Opened,
    ) -> Result<Fetched, Trouble> {
        let mut outcome = self.run_to_end(session, store, opened);
        while store.busy() > 0 {
            if let Some(stored) = store.wait(LOOK)
                && let Err(trouble) = self.stored(stored)
                && outcome.is_ok()
            {
                outcome = Err(trouble);
            }
        }
        if outcome.is_err() && !session.is_lost() {
            // What was asked for must not be taken for an answer to what is asked for next. If the connection is lost meanwhile,
            // the next request finds out.
            let _ = self.drain(session);
        }
        if let Err(trouble) = outcome {
            self.forget_connection();
            return Err(trouble);
        }
        self.fetched.crc32c = self.whole();
        Ok(self.fetched)
    }

    fn run_to_end(
        &mut self,
        session: &mut Session,
        store: &mut Store,
        opened: &Opened,
    ) -> Result<(), Trouble> {
        self.learn_layout(session, opened)?;
        let mut arrivals = Vec::new();
        while self.finished < self.blocks.len() as u64 {
            let started = self.start_blocks(session, store, opened)?;
            self.ask_more(session, opened)?;
            let mut patient = !started;
            while let Some(stored) = store.poll() {
                self.stored(stored)?;
                patient = false;
            }
            // Without a read under way it is the store that makes room for more.
            if patient && session.reads() == 0 && store.busy() > 0 {
                if let Some(stored) = store.wait(LOOK) {
                    self.stored(stored)?;
                }
                patient = false;
            }
            session.poll(&mut arrivals, patient)?;
            let mut outcome = Ok(());
            for arrival in arrivals.drain(..) {
                match outcome {
                    Ok(()) => outcome = self.arrive(arrival, store),
                    Err(_) => self.dismiss(&arrival),
                }
            }
            outcome?;
        }
        self.drain(session)
    }

    /// Finds out where the holes are.
    fn learn_layout(&mut self, session: &mut Session, opened: &Opened) -> Result<(), Trouble> {
        let count = self.blocks.len() as u64;
        if self.known == 0 && !opened.is_sparse {
            self.known = count;
            return self.reserve();
        }
        if self.known == count {
            return Ok(());
        }
        let held = self.blocks.iter().any(|block| block.bytes == Bytes::Held);
        while self.known < count {
            let request = Request::Layout {
                handle: opened.handle,
                block_len: self.block_len,
                first: self.known,
            };
            let layout = match session.call(&request)? {
                Ok(Reply::Layout(layout)) => layout,
                Ok(_) => return Err(nonsense()),
                Err(failure) => return Err(Trouble::File(failure.into())),
            };
            if layout.end <= self.known || layout.end > count {
                return Err(nonsense());
            }
            self.take_layout(&layout, held)?;
        }
        self.reserve()
    }

    fn take_layout(&mut self, layout: &Layout, has_bytes: bool) -> Result<(), Trouble> {
        let mut holes = Vec::new();
        for run in &layout.data {
            if run.first < self.known {
                return Err(nonsense());
            }
            holes.push(self.known..run.first);
            self.known = run.first + run.count;
        }
        holes.push(self.known..layout.end);
        self.known = layout.end;
        for hole in holes.into_iter().filter(|hole| !hole.is_empty()) {
            let start = hole.start * u64::from(self.block_len);
            let end = (hole.end * u64::from(self.block_len)).min(self.len);
            if has_bytes {
                // An earlier copy may have written there.
                (self.destination)
                    .clear(start, end - start)
                    .map_err(|error| Trouble::File(destination(error)))?;
            }
            for block in &mut self.blocks[hole.start as usize..hole.end as usize] {
                block.bytes = Bytes::Hole;
            }
            self.finished += hole.end - hole.start;
            if let Some(progress) = &self.progress {
                progress.add(end - start);
            }
        }
        Ok(())
    }

    fn reserve(&self) -> Result<(), Trouble> {
        let data = self.blocks.len() as u64 - self.finished;
        let bytes = (data * u64::from(self.block_len)).min(self.len);
        if data <= FEW as u64 {
            // Storing them tells as soon.
            return Ok(());
        }
        let reserved = self.destination.reserve(bytes);
        reserved.map_err(|error| Trouble::File(super::partial::refused(error, bytes)))
    }

    /// Starts to read blocks, or to check held ones, as long as there is room; answers whether it did.
    fn start_blocks(
        &mut self,
        session: &mut Session,
        store: &mut Store,
        opened: &Opened,
    ) -> Result<bool, Trouble> {
        let mut started = false;
        while session.can_read() && store.busy() < BACKLOG {
            let Some(number) = self.next_block() else {
                break;
            };
            started = true;
            let (start, len) = self.range(number);
            let mut buf = match self.spare.pop() {
                Some(buf) => buf,
                None => self.new_buf(session)?,
            };
            buf.set_len(len);
            let block = &mut self.blocks[number as usize];
            if block.bytes == Bytes::Held {
                store.check(&self.destination, number, start, buf);
                continue;
            }
            // Before the post: if that fails the block is read again.
            block.bytes = Bytes::Reading;
            session.read(number, buf, opened.region.at(start))?;
        }
        Ok(started)
    }

    fn next_block(&mut self) -> Option<u64> {
        if let Some(again) = self.again.pop_front() {
            return Some(again);
        }
        while let Some(block) = self.blocks.get(self.next_read as usize) {
            let number = self.next_read;
            self.next_read += 1;
            if matches!(block.bytes, Bytes::Missing | Bytes::Held) {
                return Some(number);
            }
        }
        None
    }

    fn new_buf(&self, session: &Session) -> Result<Buf, Trouble> {
        let longest = self.len.min(self.block_len.into());
        let buf = session.domain().buf(longest as usize);
        buf.map_err(|error| Trouble::All(anyhow!(error).context("cannot make room for blocks")))
    }

    /// Checksums are asked for somewhat ahead of the reads, so that blocks need not wait for them: few at first, since the first
    /// blocks wait for them too.
    fn ask_more(&mut self, session: &mut Session, opened: &Opened) -> Result<(), Lost> {
        while self.asked.len() < MAX_ASKED && session.can_ask() {
            let Some((first, count)) = self.next_sums() else {
                return Ok(());
            };
            let request = Request::Checksums {
                handle: opened.handle,
                block_len: self.block_len,
                first,
                count,
            };
            match session.ask(&request) {
                Ok(number) => self.asked.insert(number, (first, count)),
                Err(lost) => {
                    self.sums_again.push_back((first, count));
                    return Err(lost);
                }
            };
        }
        Ok(())
    }

    fn next_sums(&mut self) -> Option<(u64, u32)> {
        if let Some(again) = self.sums_again.pop_front() {
            return Some(again);
        }
        let is_hole = |number: u64| {
            let block = self.blocks.get(number as usize);
            block.is_some_and(|block| block.bytes == Bytes::Hole)
        };
        while is_hole(self.next_sum) {
            self.next_sum += 1;
        }
        let first = self.next_sum;
        let ahead = self.next_read + 2 * u64::from(self.sums_at_once);
        let end = (self.blocks.len() as u64).min(ahead);
        while self.next_sum < end
            && self.next_sum - first < u64::from(self.sums_at_once)
            && !is_hole(self.next_sum)
        {
            self.next_sum += 1;
        }
        if self.next_sum == first {
            return None;
        }
        self.sums_at_once = (2 * self.sums_at_once).min(MOST_SUMS);
        Some((first, (self.next_sum - first) as u32))
    }

    fn arrive(&mut self, arrival: Arrival, store: &mut Store) -> Result<(), Trouble> {
        match arrival {
            Arrival::Read(number, buf) => {
                self.fetched.reads += 1;
                self.blocks[number as usize].bytes = Bytes::Read;
                let (start, _) = self.range(number);
                // Now, as the bytes are in this core's cache. Nobody else writes them until they are stored.
                let sum = crc32c::crc32c(&buf);
                if self.blocks.len() <= FEW {
                    let stored = Store::put_now(&self.destination, number, start, buf, sum);
                    return self.stored(stored);
                }
                store.put(&self.destination, number, start, buf, sum);
            }
            Arrival::Reply(number, reply) => {
                let Some((first, count)) = self.asked.remove(&number) else {
                    return Ok(());
                };
                match reply {
                    Reply::Checksums(sums) if sums.len() == count as usize => {
                        for (number, sum) in (first..).zip(sums) {
                            self.blocks[number as usize].theirs = Some(sum);
                            self.compare(number)?;
                        }
                    }
                    Reply::Failed(failure) => return Err(Trouble::File(failure.into())),
                    _ => return Err(nonsense()),
                }
            }
        }
        Ok(())
    }

    /// A block comes back from the store.
    fn stored(&mut self, stored: Stored) -> Result<(), Trouble> {
        let Stored { number, buf, sum } = stored;
        self.spare.push(buf);
        let block = &mut self.blocks[number as usize];
        match sum {
            Ok(sum) => {
                block.ours = Some(sum);
                self.compare(number)
            }
            Err(_) if block.bytes == Bytes::Held => self.repeat(number),
            Err(error) => {
                block.bytes = Bytes::Missing;
                self.again.push_back(number);
                let bytes = u64::from(self.block_len).min(self.len);
                Err(Trouble::File(super::partial::refused(error, bytes)))
            }
        }
    }

    /// Verifies a block if both its checksums are here.
    fn compare(&mut self, number: u64) -> Result<(), Trouble> {
        let (_, len) = self.range(number);
        let block = &mut self.blocks[number as usize];
        let (Some(ours), Some(theirs)) = (block.ours, block.theirs) else {
            return Ok(());
        };
        let was_held = block.bytes == Bytes::Held;
        if ours != theirs {
            tracing::debug!(block = number, held = was_held, "differs from its source");
            return self.repeat(number);
        }
        block.bytes = Bytes::Verified;
        self.finished += 1;
        if was_held {
            self.fetched.resumed += len as u64;
        } else if let Some(journal) = &mut self.journal {
            let noted = journal.add(number);
            noted.map_err(|error| {
                Trouble::All(anyhow!(error).context("cannot note what was copied"))
            })?;
        }
        tracing::trace!(block = number, "verified");
        if let Some(progress) = &self.progress {
            progress.add(len as u64);
        }
        Ok(())
    }

    /// Reads a block once more; one that was read before has its checksum computed once more too, since the source may have
    /// changed between the two.
    fn repeat(&mut self, number: u64) -> Result<(), Trouble> {
        let block = &mut self.blocks[number as usize];
        let was_held = block.bytes == Bytes::Held;
        block.bytes = Bytes::Missing;
        block.ours = None;
        if !self.repairs {
            return Err(Trouble::File(anyhow!("block {number} is another")));
        }
        if !was_held {
            block.failures += 1;
            if block.failures > MAX_FAILURES {
                let reason = "the source is being changed, or something corrupts its bytes";
                return Err(Trouble::File(anyhow!(
                    "block {number} differs from its checksum every time: {reason}"
                )));
            }
            block.theirs = None;
            self.sums_again.push_back((number, 1));
        }
        self.again.push_back(number);
        Ok(())
    }

    /// Waits until nothing that was asked for over the connection is still to come.
    fn drain(&mut self, session: &mut Session) -> Result<(), Trouble> {
        let mut arrivals = Vec::new();
        while session.reads() > 0 || !self.asked.is_empty() {
            session.poll(&mut arrivals, true)?;
            for arrival in arrivals.drain(..) {
                self.dismiss(&arrival);
            }
        }
        Ok(())
    }

    /// Nobody wants to know any more.
    fn dismiss(&mut self, arrival: &Arrival) {
        if let Arrival::Reply(number, _) = arrival {
            self.asked.remove(number);
        }
    }

    /// What was under way over a connection that is gone is to be done over the next.
    fn forget_connection(&mut self) {
        for (number, block) in (0..).zip(&mut self.blocks) {
            if block.bytes == Bytes::Reading {
                block.bytes = Bytes::Missing;
                self.again.push_back(number);
            }
        }
        self.sums_again
            .extend(self.asked.drain().map(|(_, asked)| asked));
    }

    fn range(&self, number: u64) -> (u64, usize) {
        let start = number * u64::from(self.block_len);
        let len = u64::from(self.block_len).min(self.len - start);
        (start, len as usize)
    }

    /// The checksum of the whole, put together from those of the blocks and those of the holes between them.
    fn whole(&self) -> u32 {
        let mut crc = 0;
        let mut zeros = 0;
        let many = self.blocks.len() > MANY;
        let by_block = many.then(|| Shift::by(self.block_len as usize));
        for (number, block) in (0..).zip(&self.blocks) {
            let (_, len) = self.range(number);
            let Some(sum) = block.theirs else {
                zeros += len;
                continue;
            };
            crc = crc32c::crc32c_combine(crc, of_zeros(zeros), zeros);
            zeros = 0;
            crc = match &by_block {
                Some(by_block) if len == self.block_len as usize => by_block.apply(crc) ^ sum,
                _ => crc32c::crc32c_combine(crc, sum, len),
            };
        }
        crc32c::crc32c_combine(crc, of_zeros(zeros), zeros)
    }
}

/// What a CRC32C becomes when so many bytes follow, apart from those bytes' own: one column for each of its bits. Combining
/// thousands of blocks of one length takes a while without.
struct Shift([u32; 32]);

impl Shift {
    fn by(len: usize) -> Self {
        Self(std::array::from_fn(|bit| {
            crc32c::crc32c_combine(1 << bit, 0, len)
        }))
    }

    fn apply(&self, crc: u32) -> u32 {
        let bits = (0..32).filter(|bit| crc >> bit & 1 == 1);
        bits.fold(0, |sum, bit| sum ^ self.0[bit])
    }
}

/// The CRC32C of so many zeros.
fn of_zeros(len: usize) -> u32 {
    let (mut crc, mut done) = (0, 0);
    // The binary digits of the length, the highest first: so many zeros, twice as many, one more.
    for digit in (0..usize::BITS - len.leading_zeros()).rev() {
        crc = crc32c::crc32c_combine(crc, crc, done);
        done *= 2;
        if len >> digit & 1 == 1 {
            crc = crc32c::crc32c_append(crc, &[0]);
            done += 1;
        }
    }
    crc
}

fn destination(error: std::io::Error) -> anyhow::Error {
    anyhow!(error).context("the destination cannot be written")
}

fn nonsense() -> Trouble {
    Trouble::All(anyhow!(
        "the server answered something else than it was asked"
    ))
}

/// Blocks of the first request for checksums, and of one request at most.
const FIRST_SUMS: u32 = 4;
const MOST_SUMS: u32 = 64;

/// Most requests for checksums without an answer.
const MAX_ASKED: usize = 3;

/// Most blocks that wait to be stored before others are begun: they should be in the cache still when their turn comes.
const BACKLOG: usize = 6;

/// As many blocks are stored by the thread that read them.
const FEW: usize = 2;

/// From so many blocks on it pays to prepare how their checksums are put together.
const MANY: usize = 64;

/// How often a block may differ.
const MAX_FAILURES: u8 = 4;

/// How long the connection is not looked after while the store is waited for.
const LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shift_does_what_combining_does() {
        for len in [1, 4096, 256 << 10] {
            let shift = Shift::by(len);
            for crc in [0, 1, 0x8000_0000, 0xDEAD_BEEF, u32::MAX] {
                assert_eq!(shift.apply(crc), crc32c::crc32c_combine(crc, 0, len));
            }
        }
    }

    #[test]
    fn the_checksum_of_zeros_is_that_of_so_many_zeros() {
        for len in [0, 1, 2, 3, 4095, 4096, 100_001] {
            assert_eq!(of_zeros(len), crc32c::crc32c(&vec![0; len]), "{len}");
        }
    }
}
