//! One connection of a case, with its memory: makes work, posts it, takes its completions.
//!
//! Nothing here allocates once a case is under way: works are made in a vector that stays, and the local memory of a
//! completed one goes into the next.

use anyhow::{anyhow, bail};
use fabric::{
    Completion, Endpoint, Memory, MemoryRegion, Op, PostError, RemoteRegion, Segments, Work,
    WorkFlags,
};

use super::pattern::{Pattern, first_difference};
use super::plan::{Operation, Plan};

/// One connection.
pub(super) struct Lane {
    endpoint: Endpoint,
    plan: Plan,
    is_client: bool,
    /// Among all lanes, and among those of its thread.
    number: usize,
    index: usize,
    region: MemoryRegion,
    memory: Memory,
    remote: RemoteRegion,
    /// Where its messages arrive and where they come from: the first places, how many and how far apart.
    first_in: usize,
    first_out: usize,
    slots: usize,
    stride: usize,
    /// The operation, where it is the same for all messages.
    same_op: Option<Op>,
    /// Local memory of completed work.
    spare: Vec<Segments>,
    works: Vec<Work>,
    /// Receives to be posted again.
    used: Vec<Work>,
    /// Since the case began.
    pub(super) sent: u64,
    pub(super) retired: u64,
    pub(super) arrived: u64,
    /// How much is to be sent.
    pub(super) goal: u64,
    pub(super) is_dirty: bool,
    /// For contents: what is and what should be.
    found: Vec<u8>,
    expected: Vec<u8>,
}

/// What a lane is made of.
pub(super) struct Parts {
    pub(super) plan: Plan,
    pub(super) is_client: bool,
    pub(super) number: usize,
    pub(super) region: MemoryRegion,
    pub(super) remote: RemoteRegion,
}

/// Says in a work's context that it tells the peer that we have ended.
const TELLING: u64 = 1 << 63;

/// Takes the number of the lane among those of its thread out of a context.
pub(super) const fn index_of(context: u64) -> usize {
    context as u32 as usize
}

impl Lane {
    pub(super) fn new(endpoint: Endpoint, parts: Parts) -> Self {
        let Parts {
            plan,
            is_client,
            number,
            region,
            remote,
        } = parts;
        let depth = plan.send_depth();
        let checked = if plan.verify { plan.size } else { 0 };
        let mut lane = Self {
            endpoint,
            plan,
            is_client,
            number,
            index: number / plan.threads,
            memory: region.memory().clone(),
            region,
            remote,
            first_in: plan.place_in(number, 0),
            first_out: plan.place_out(number, 0),
            slots: plan.slots(),
            stride: plan.stride(),
            same_op: None,
            spare: Vec::with_capacity(depth),
            works: Vec::with_capacity(depth.max(plan.recv_depth())),
            used: Vec::with_capacity(plan.recv_depth()),
            sent: 0,
            retired: 0,
            arrived: 0,
            goal: 0,
            is_dirty: false,
            found: vec![0; checked],
            expected: vec![0; checked],
        };
        let is_numbered = matches!(plan.operation, Operation::WriteImm | Operation::CompareSwap);
        lane.same_op = (lane.slots == 1 && !is_numbered).then(|| lane.op(0, 0));
        lane
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Gives memory its first contents, which also brings its pages into being, and posts the receives.
    ///
    /// # Errors
    /// What posting answers.
    pub(super) fn prepare(&mut self) -> anyhow::Result<()> {
        let mut bytes = vec![0; self.plan.size];
        for slot in 0..self.plan.slots() {
            let (to, from) = (self.place_in(slot), self.place_out(slot));
            bytes.fill(0);
            if self.plan.operation == Operation::Read {
                // What the peer reads, and will expect.
                Pattern::new(self.is_client, self.number, 0).fill(&mut bytes);
            }
            self.memory.copy_in(to, &bytes)?;
            Pattern::new(self.is_client, self.number, 0).fill(&mut bytes);
            self.memory.copy_in(from, &bytes)?;
        }
        for number in 0..self.plan.recv_depth() {
            let slot = number % self.plan.slots();
            let local = if self.plan.operation == Operation::Send {
                let place = self.place_in(slot);
                self.slice(place, self.plan.size)
            } else {
                Segments::none()
            };
            let context = (slot as u64) << 32 | self.index as u64;
            self.used.push(Work::recv(context, local));
        }
        self.repost()
    }

    /// How many more may be outstanding.
    pub(super) fn room(&self) -> u64 {
        let outstanding = self.sent - self.retired;
        (self.plan.send_depth() as u64).saturating_sub(outstanding)
    }

    /// What is outstanding.
    pub(super) const fn outstanding(&self) -> u64 {
        self.sent - self.retired
    }

    /// Posts as much as there is room for, up to the goal. Whether all of it was accepted.
    ///
    /// # Errors
    /// What posting answers.
    pub(super) fn refill(&mut self) -> anyhow::Result<bool> {
        let count = self.room().min(self.goal.saturating_sub(self.sent));
        self.post(count)
    }

    /// Posts `count` messages, for which there is room. Whether all were accepted.
    ///
    /// # Errors
    /// What posting answers.
    #[inline]
    pub(super) fn post(&mut self, count: u64) -> anyhow::Result<bool> {
        for sequence in self.sent..self.sent + count {
            self.message(sequence)?;
        }
        let answer = self.endpoint.post(&mut self.works);
        let refused = self.works.len();
        self.sent += count - refused as u64;
        if refused > 0 {
            let spare = &mut self.spare;
            self.works.drain(..).for_each(|work| spare.push(work.local));
        }
        match answer {
            Ok(()) => Ok(true),
            Err(PostError::QueueFull) => Ok(false),
            Err(error) => Err(anyhow!("cannot post: {error}")),
        }
    }

    /// Adds message `sequence` to the works.
    #[inline]
    fn message(&mut self, sequence: u64) -> anyhow::Result<()> {
        let slot = match self.slots {
            1 => 0,
            slots => (sequence % slots as u64) as usize,
        };
        if self.plan.verify {
            self.write_contents(slot, sequence)?;
        } else if self.plan.arrives_in_memory() {
            self.write_last_byte(sequence)?;
        }
        let op = match self.same_op {
            Some(op) => op,
            None => self.op(slot, sequence),
        };
        let local = match self.spare.pop() {
            Some(local) => local,
            None => {
                let place = self.place_out(slot);
                self.slice(place, self.plan.size)
            }
        };
        let every = self.plan.signal_every as u64;
        let is_signaled = every == 1 || (sequence + 1).is_multiple_of(every);
        self.works.push(Work {
            context: (slot as u64) << 32 | self.index as u64,
            op,
            local,
            peer: None,
            flags: if is_signaled {
                WorkFlags::empty()
            } else {
                WorkFlags::UNSIGNALED
            },
        });
        Ok(())
    }

    fn op(&self, slot: usize, sequence: u64) -> Op {
        let operation = self.plan.operation;
        let place = if operation.is_atomic() {
            self.first_in
        } else {
            self.place_in(slot)
        };
        let remote = self.remote.at(place as u64);
        match operation {
            Operation::Send => Op::Send {
                immediate: None,
                invalidate: None,
            },
            Operation::Write => Op::Write {
                remote,
                immediate: None,
            },
            Operation::WriteImm => Op::Write {
                remote,
                immediate: Some(sequence as u32),
            },
            Operation::Read => Op::Read { remote },
            Operation::FetchAdd => Op::FetchAdd { remote, add: 1 },
            Operation::CompareSwap => Op::CompareSwap {
                remote,
                expected: sequence,
                new: sequence + 1,
            },
        }
    }

    /// Takes a completion of this lane's.
    ///
    /// # Errors
    /// That it failed, or that contents differ.
    #[inline]
    pub(super) fn complete(&mut self, completion: &mut Completion) -> anyhow::Result<()> {
        if !completion.status.is_success() {
            return Err(failed(completion));
        }
        // Taken out, not moved with all of the completion: that is a hundred bytes more.
        let local = std::mem::take(&mut completion.local);
        let slot = (completion.context >> 32) as usize;
        if completion.opcode.is_receive() {
            if self.plan.verify && self.plan.operation == Operation::Send {
                self.check_arrival(slot, completion.len)?;
            }
            self.arrived += 1;
            self.used.push(Work::recv(completion.context, local));
            if self.used.len() >= (self.plan.recv_depth() / 4).max(1) {
                return self.repost();
            }
            return Ok(());
        }
        if completion.context & TELLING != 0 {
            self.sent -= 1;
            return Ok(());
        }
        if self.plan.verify {
            self.check_own(slot)?;
        }
        self.retired += self.plan.signal_every as u64;
        if self.slots == 1 && self.spare.len() < self.plan.send_depth() {
            self.spare.push(local);
        }
        Ok(())
    }

    fn repost(&mut self) -> anyhow::Result<()> {
        self.endpoint
            .post(&mut self.used)
            .map_err(|error| anyhow!("cannot post a receive: {error}"))
    }

    /// Tells the peer that this lane has sent all.
    ///
    /// # Errors
    /// What posting answers.
    pub(super) fn tell(&mut self) -> anyhow::Result<()> {
        let (tell, told) = (Plan::tell(self.number), Plan::told(self.number));
        self.memory.store_u64(tell, self.sent + 1)?;
        let local = self.slice(tell, 8);
        let work = Work::write(
            TELLING | self.index as u64,
            local,
            self.remote.at(told as u64),
        );
        self.works.push(work);
        // It counts as outstanding until its completion takes it back.
        self.sent += 1;
        self.endpoint
            .post(&mut self.works)
            .map_err(|error| anyhow!("cannot post: {error}"))
    }

    /// What the peer has sent in all, once it has ended.
    #[inline]
    pub(super) fn told(&self) -> Option<u64> {
        let word = self.memory.load_u64(Plan::told(self.number)).unwrap_or(0);
        word.checked_sub(1)
    }

    /// Forgets what the peer has told.
    pub(super) fn forget(&self) {
        let _ = self.memory.store_u64(Plan::told(self.number), 0);
    }

    /// Whether message `sequence` of the peer has arrived in memory.
    #[inline]
    pub(super) fn has_arrived(&self, sequence: u64) -> bool {
        let last = self.first_in + self.plan.size - 1;
        let word = self.memory.load_u64(last & !7).unwrap_or(0);
        word.to_ne_bytes()[last & 7] == flag(sequence)
    }

    /// Checks, where that is wanted, a message that arrived in memory.
    ///
    /// # Errors
    /// That contents differ.
    pub(super) fn take_arrival(&mut self) -> anyhow::Result<()> {
        if self.plan.verify {
            self.check_contents(self.place_in(0), self.arrived)?;
        }
        self.arrived += 1;
        Ok(())
    }

    /// Checks what nothing told of when it arrived: the last message in each place, or the count of atomic operations.
    ///
    /// # Errors
    /// That contents differ.
    pub(super) fn check_rest(&mut self, sent: u64) -> anyhow::Result<()> {
        if !self.plan.verify || sent == 0 {
            return Ok(());
        }
        match self.plan.operation {
            Operation::Send | Operation::Read => {}
            Operation::Write | Operation::WriteImm => {
                let slots = self.plan.slots() as u64;
                for sequence in sent.saturating_sub(slots)..sent {
                    let place = self.place_in((sequence % slots) as usize);
                    self.check_contents(place, sequence)?;
                }
            }
            Operation::FetchAdd | Operation::CompareSwap => {
                let word = self.memory.load_u64(self.place_in(0))?;
                if word != sent {
                    bail!(
                        "after {sent} of {} a word is {word}",
                        self.plan.operation.name()
                    );
                }
            }
        }
        Ok(())
    }

    fn check_arrival(&mut self, slot: usize, len: usize) -> anyhow::Result<()> {
        if len != self.plan.size {
            bail!("a message of {} bytes arrived with {len}", self.plan.size);
        }
        self.check_contents(self.place_in(slot), self.arrived)
    }

    fn check_contents(&mut self, place: usize, sequence: u64) -> anyhow::Result<()> {
        self.expect(!self.is_client, sequence);
        self.compare(place, sequence)
    }

    /// What came back by a read or an atomic operation, which end in the order in which they were posted.
    fn check_own(&mut self, slot: usize) -> anyhow::Result<()> {
        let place = self.place_out(slot);
        match self.plan.operation {
            Operation::Read => {
                self.expect(!self.is_client, 0);
                self.compare(place, self.retired)
            }
            Operation::FetchAdd | Operation::CompareSwap => {
                let old = self.memory.load_u64(place)?;
                // The last of those that this completion stands for.
                let before = self.retired + self.plan.signal_every as u64 - 1;
                if old != before {
                    bail!("{} number {before} found {old}", self.plan.operation.name());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn expect(&mut self, is_client: bool, sequence: u64) {
        let sequence = if self.plan.operation == Operation::Read {
            0
        } else {
            sequence
        };
        Pattern::new(is_client, self.number, sequence).fill(&mut self.expected);
        if self.plan.arrives_in_memory() {
            *self.expected.last_mut().expect("one byte at least") = flag(sequence);
        }
    }

    fn compare(&mut self, place: usize, sequence: u64) -> anyhow::Result<()> {
        self.memory.copy_out(place, &mut self.found)?;
        if let Some(at) = first_difference(&self.found, &self.expected) {
            bail!(
                "{} number {sequence} of queue pair {} arrived with other contents: byte {at} of {} is {:#04x} and was {:#04x}",
                self.plan.operation.name(),
                self.number,
                self.plan.size,
                self.found[at],
                self.expected[at],
            );
        }
        Ok(())
    }

    fn write_contents(&mut self, slot: usize, sequence: u64) -> anyhow::Result<()> {
        let place = self.place_out(slot);
        match self.plan.operation {
            Operation::Send | Operation::Write | Operation::WriteImm => {
                self.expect(self.is_client, sequence);
            }
            // What will be there must have come.
            _ => self.expected.fill(0xA5),
        }
        Ok(self.memory.copy_in(place, &self.expected)?)
    }

    #[inline]
    fn write_last_byte(&self, sequence: u64) -> anyhow::Result<()> {
        let last = self.place_out(0) + self.plan.size - 1;
        let mut bytes = self.memory.load_u64(last & !7)?.to_ne_bytes();
        bytes[last & 7] = flag(sequence);
        Ok(self
            .memory
            .store_u64(last & !7, u64::from_ne_bytes(bytes))?)
    }

    fn slice(&self, place: usize, len: usize) -> Segments {
        self.region
            .slice(place..place + len)
            .expect("the plan has room for it")
            .into()
    }

    fn place_in(&self, slot: usize) -> usize {
        self.first_in + slot * self.stride
    }

    fn place_out(&self, slot: usize) -> usize {
        self.first_out + slot * self.stride
    }
}

/// The last byte of a message that is looked for in memory: another than that of the message before, and than the zero
/// that was there in the beginning.
const fn flag(sequence: u64) -> u8 {
    (sequence + 1) as u8
}

#[cold]
fn failed(completion: &Completion) -> anyhow::Error {
    anyhow!("{:?} failed: {}", completion.opcode, completion.status)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fabric::{Address, Domain};

    use super::super::case::Ground;
    use super::super::plan::{Mode, Target, Waiting};
    use super::*;

    /// A client's lane and a server's, connected, each with its queue.
    fn pair(operation: Operation, mode: Mode) -> [(Lane, fabric::CompletionQueue); 2] {
        let plan = Plan {
            operation,
            mode,
            size: 24,
            depth: 1,
            qps: 1,
            threads: 1,
            both: false,
            signal_every: 1,
            verify: true,
            target: Target::Poll,
            waiting: Waiting::Poll,
        };
        let registry = ringmail::registry();
        let config = registry.config().unwrap();
        let domain = registry.open("loopback", &config).unwrap();
        let grounds = [true, false].map(|_| Ground::new(&domain, plan).unwrap());
        let regions = [1, 0].map(|other: usize| grounds[other].region.remote());
        let lane = |side: usize| {
            let endpoint = grounds[side].endpoint(&domain, 0).unwrap();
            let lane = grounds[side].lane(endpoint, 0, side == 0, regions[side]);
            (lane.unwrap(), grounds[side].queue(0).clone())
        };
        let lanes = [lane(0), lane(1)];
        connect(&domain, &lanes[0].0, &lanes[1].0);
        lanes
    }

    fn connect(domain: &Domain, client: &Lane, server: &Lane) {
        let listener = domain.listen(Address::ANY).unwrap();
        let address = listener.address();
        client.endpoint().start_connect(&address, &[]).unwrap();
        let request = listener.next(PATIENCE).unwrap();
        request.accept(server.endpoint(), &[]).unwrap();
        client.endpoint().wait_connected(PATIENCE).unwrap();
    }

    fn next(lane: &mut (Lane, fabric::CompletionQueue)) -> anyhow::Result<()> {
        let mut completion = lane.1.next(PATIENCE).unwrap();
        lane.0.complete(&mut completion)
    }

    #[test]
    fn contents_that_differ_are_found() {
        for operation in [Operation::Write, Operation::WriteImm] {
            let [mut client, mut server] = pair(operation, Mode::Bandwidth);
            client.0.post(1).unwrap();
            next(&mut client).unwrap();
            server.0.check_rest(1).expect("all is well");
            let place = server.0.place_in(0) + 8;
            server.0.memory.fetch_add(place, 1).unwrap();
            let error = server.0.check_rest(1).unwrap_err().to_string();
            assert!(error.contains("byte 8 of 24"), "{error}");
        }
    }

    #[test]
    fn a_message_that_is_another_is_found_on_arrival() {
        let [mut client, mut server] = pair(Operation::Send, Mode::Latency);
        client.0.post(1).unwrap();
        next(&mut server).expect("all is well");
        // The server believes that one was lost.
        server.0.arrived += 1;
        client.0.post(1).unwrap();
        let error = next(&mut server).unwrap_err().to_string();
        assert!(error.contains("other contents"), "{error}");
    }

    #[test]
    fn what_is_read_is_checked() {
        let [mut client, server] = pair(Operation::Read, Mode::Latency);
        client.0.post(1).unwrap();
        next(&mut client).expect("all is well");
        let place = server.0.place_in(0);
        server.0.memory.fetch_add(place, 1).unwrap();
        client.0.post(1).unwrap();
        let error = next(&mut client).unwrap_err().to_string();
        assert!(error.contains("byte 0 of 24"), "{error}");
    }

    const PATIENCE: Duration = Duration::from_secs(10);
}
