//! One opened file, block by block: read from the server's memory into ours, compared with the server's checksum, read again
//! if it differs.
//!
//! Reads and requests for checksums are in flight side by side; a block is verified when both its bytes and its checksum are
//! here. Blocks that an earlier copy held are verified without being read.

use std::collections::{HashMap, VecDeque};

use anyhow::anyhow;
use fabric::{AccessError, MemoryRegion};

use super::journal::Journal;
use super::session::{Arrival, Lost, Session};
use crate::protocol::{Opened, Reply, Request};
use crate::serve::checksum;

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fetched {
    /// Of the whole file.
    pub(super) crc32c: u32,
    /// Remote reads that ended.
    pub(super) reads: u64,
    /// Bytes that they brought and that were right.
    pub(super) bytes: u64,
    /// Bytes that were there already.
    pub(super) resumed: u64,
}

/// Why a file could not be copied.
#[derive(Debug)]
pub(super) enum Trouble {
    /// This one, or rather its source, is in trouble; the connection is not.
    File(anyhow::Error),
    /// Nothing more can be copied.
    All(anyhow::Error),
}

impl From<Lost> for Trouble {
    fn from(Lost(error): Lost) -> Self {
        Self::All(error)
    }
}

/// Reads and verifies a whole file.
pub(super) struct Transfer<'a> {
    session: &'a mut Session,
    opened: &'a Opened,
    region: &'a MemoryRegion,
    journal: Option<&'a mut Journal>,
    /// Called with the bytes of each block that was verified.
    progress: &'a mut dyn FnMut(u64),
    block_len: u32,
    blocks: Vec<Block>,
    /// The first block that was never considered for reading.
    next_read: u64,
    /// The first block whose checksum was never asked for.
    next_sum: u64,
    /// Blocks to read once more.
    again: VecDeque<u64>,
    /// Blocks whose bytes and checksum are both here.
    complete: VecDeque<u64>,
    /// What was asked for by which request: first block, count.
    asked: HashMap<u32, (u64, u32)>,
    verified: u64,
    fetched: Fetched,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    bytes: Bytes,
    /// The server's.
    sum: Option<u32>,
    failures: u8,
}

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Missing,
    Reading,
    /// Read in this copy.
    Read,
    /// Found from an earlier one.
    Held,
    Verified,
}

impl<'a> Transfer<'a> {
    /// Everything of `opened`, which has at least one byte, into `region`, which is as long. The blocks `held` are there already.
    pub(super) fn new(
        session: &'a mut Session,
        opened: &'a Opened,
        region: &'a MemoryRegion,
        block_len: u32,
        held: &[u64],
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        let count = opened.metadata.size.div_ceil(block_len.into());
        let missing = Block {
            bytes: Bytes::Missing,
            sum: None,
            failures: 0,
        };
        let mut blocks = vec![missing; count as usize];
        for &block in held {
            blocks[block as usize].bytes = Bytes::Held;
        }
        Self {
            session,
            opened,
            region,
            journal: None,
            progress,
            block_len,
            blocks,
            next_read: 0,
            next_sum: 0,
            again: VecDeque::new(),
            complete: VecDeque::new(),
            asked: HashMap::new(),
            verified: 0,
            fetched: Fetched::default(),
        }
    }

    /// Notes verified blocks in a journal.
    pub(super) fn with_journal(mut self, journal: Option<&'a mut Journal>) -> Self {
        self.journal = journal;
        self
    }

    /// Reads and verifies all blocks. Whatever the outcome, nothing is in flight afterwards.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) fn run(mut self) -> Result<Fetched, Trouble> {
        let outcome = self.run_to_end();
        if let Err(Trouble::File(_)) = outcome {
            // The connection goes on, but must not write to memory that is about to go.
            self.drain()?;
        }
        outcome?;
        self.fetched.crc32c = self.whole();
        Ok(self.fetched)
    }

    fn run_to_end(&mut self) -> Result<(), Trouble> {
        let mut arrivals = Vec::new();
        while self.verified < self.blocks.len() as u64 {
            self.read_more()?;
            self.ask_more()?;
            // One block, then a look at the device: it must not wait for long.
            let block = self.complete.pop_front();
            if let Some(block) = block {
                self.verify(block)?;
            }
            self.session.poll(&mut arrivals, block.is_none())?;
            for arrival in arrivals.drain(..) {
                self.arrive(arrival)?;
            }
        }
        self.drain()
    }

    fn read_more(&mut self) -> Result<(), Lost> {
        while self.session.can_read() {
            let Some(number) = self.next_to_read() else {
                return Ok(());
            };
            let (start, len) = self.range(number);
            // The device places packets under its lock: better that it finds the pages there.
            let memory = self.region.memory();
            memory
                .populate(start, len)
                .expect("the region is writable and as long as the file");
            let local = self
                .region
                .slice(start..start + len)
                .expect("the region is as long as the file");
            self.session
                .read(number, local, self.opened.region.at(start as u64))?;
            self.blocks[number as usize].bytes = Bytes::Reading;
        }
        Ok(())
    }

    fn next_to_read(&mut self) -> Option<u64> {
        if let Some(again) = self.again.pop_front() {
            return Some(again);
        }
        while let Some(block) = self.blocks.get(self.next_read as usize) {
            let number = self.next_read;
            self.next_read += 1;
            if block.bytes == Bytes::Missing {
                return Some(number);
            }
        }
        None
    }

    /// Checksums are asked for somewhat ahead of the reads, so that blocks need not wait for them.
    fn ask_more(&mut self) -> Result<(), Lost> {
        let count = self.blocks.len() as u64;
        let ahead = self.next_read + 2 * u64::from(SUMS_AT_ONCE);
        while self.next_sum < count.min(ahead) && self.asked.len() < 2 && self.session.can_ask() {
            let some = (count - self.next_sum).min(SUMS_AT_ONCE.into()) as u32;
            self.ask(self.next_sum, some)?;
            self.next_sum += u64::from(some);
        }
        Ok(())
    }

    fn ask(&mut self, first: u64, count: u32) -> Result<(), Lost> {
        let request = Request::Checksums {
            handle: self.opened.handle,
            block_len: self.block_len,
            first,
            count,
        };
        let number = self.session.ask(&request)?;
        self.asked.insert(number, (first, count));
        Ok(())
    }

    fn arrive(&mut self, arrival: Arrival) -> Result<(), Trouble> {
        match arrival {
            Arrival::Read(number) => {
                self.fetched.reads += 1;
                self.blocks[number as usize].bytes = Bytes::Read;
                self.check_complete(number);
            }
            Arrival::Reply(number, reply) => {
                let Some((first, count)) = self.asked.remove(&number) else {
                    return Ok(());
                };
                match reply {
                    Reply::Checksums(sums) if sums.len() == count as usize => {
                        for (number, sum) in (first..).zip(sums) {
                            self.blocks[number as usize].sum = Some(sum);
                            self.check_complete(number);
                        }
                    }
                    Reply::Failed(failure) => return Err(Trouble::File(failure.into())),
                    _ => {
                        return Err(Trouble::All(anyhow!(
                            "the server answered something else than it was asked"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_complete(&mut self, number: u64) {
        let block = &self.blocks[number as usize];
        if block.sum.is_some() && matches!(block.bytes, Bytes::Read | Bytes::Held) {
            self.complete.push_back(number);
        }
    }

    fn verify(&mut self, number: u64) -> Result<(), Trouble> {
        let (start, len) = self.range(number);
        let sum =
            checksum(self.region, start, len).map_err(|error| Trouble::All(destination(error)))?;
        let block = &mut self.blocks[number as usize];
        let was_held = block.bytes == Bytes::Held;
        if block.sum != Some(sum) {
            tracing::debug!(block = number, held = was_held, "differs from its source");
            return self.repeat(number, was_held);
        }
        block.bytes = Bytes::Verified;
        self.verified += 1;
        if was_held {
            self.fetched.resumed += len as u64;
        } else {
            self.fetched.bytes += len as u64;
            if let Some(journal) = &mut self.journal {
                let noted = journal.add(number);
                noted.map_err(|error| {
                    Trouble::All(anyhow!(error).context("cannot note what was copied"))
                })?;
            }
        }
        tracing::trace!(block = number, "verified");
        (self.progress)(len as u64);
        Ok(())
    }

    /// Reads a block once more, and has its checksum computed once more: the source may have changed between the two.
    fn repeat(&mut self, number: u64, was_held: bool) -> Result<(), Trouble> {
        let block = &mut self.blocks[number as usize];
        block.bytes = Bytes::Missing;
        if !was_held {
            block.failures += 1;
            if block.failures > MAX_FAILURES {
                let reason = "the source is being changed, or something corrupts its bytes";
                return Err(Trouble::File(anyhow!(
                    "block {number} differs from its checksum every time: {reason}"
                )));
            }
            block.sum = None;
            let mut arrivals = Vec::new();
            while !self.session.can_ask() {
                self.session.poll(&mut arrivals, true)?;
            }
            self.ask(number, 1)?;
            for arrival in arrivals {
                self.arrive(arrival)?;
            }
        }
        self.again.push_back(number);
        Ok(())
    }

    /// Waits until nothing of this file is in flight.
    fn drain(&mut self) -> Result<(), Trouble> {
        let mut arrivals = Vec::new();
        while self.session.reads() > 0 || !self.asked.is_empty() {
            self.session.poll(&mut arrivals, true)?;
            for arrival in arrivals.drain(..) {
                if let Arrival::Reply(number, _) = arrival {
                    self.asked.remove(&number);
                }
            }
        }
        Ok(())
    }

    fn range(&self, number: u64) -> (usize, usize) {
        let block_len = self.block_len as usize;
        let start = number as usize * block_len;
        (start, block_len.min(self.region.len() - start))
    }

    /// The checksum of the whole, put together from those of the blocks.
    fn whole(&self) -> u32 {
        let numbered = self.blocks.iter().enumerate();
        numbered.fold(0, |crc, (number, block)| {
            let (_, len) = self.range(number as u64);
            crc32c::crc32c_combine(crc, block.sum.expect("every block was verified"), len)
        })
    }
}

fn destination(error: AccessError) -> anyhow::Error {
    anyhow!(error).context("the destination cannot be written")
}

/// Blocks of one request for checksums.
const SUMS_AT_ONCE: u32 = 128;

/// How often a block may differ.
const MAX_FAILURES: u8 = 4;
