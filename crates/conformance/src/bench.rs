//! What tests are told with: two connected sides, whose set-up is out of sight.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fabric::{
    Access, Buf, Completion, CompletionQueue, Domain, Endpoint, EndpointBuilder, EndpointKind,
    Listener, Memory, MemoryRegion, Operations, Peer, PostError, Refused, SharedReceive, Status,
    Work,
};

use crate::{Skip, Sut};

/// A provider and a kind of endpoint.
pub(crate) struct Bench<'a> {
    pub(crate) sut: &'a dyn Sut,
    pub(crate) kind: EndpointKind,
}

/// Two endpoints that can reach each other, each in a domain of its own.
pub(crate) struct Pair {
    pub(crate) a: Side,
    pub(crate) b: Side,
}

/// One of them.
pub(crate) struct Side {
    pub(crate) endpoint: Endpoint,
    /// The other, for datagram kinds.
    pub(crate) peer: Option<Peer>,
    pub(crate) cq: CompletionQueue,
    pub(crate) domain: Domain,
    patience: Duration,
    /// Completions that were polled while looking for another.
    pub(crate) stash: Rc<RefCell<Vec<Completion>>>,
}

/// Leaves the test as skipped unless the condition holds.
macro_rules! require {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::Skip(format!($($reason)+)));
        }
    };
}
pub(crate) use require;

impl Bench<'_> {
    pub(crate) fn check_kind(&self) -> Result<(), Skip> {
        let domain = self.open();
        let has = domain.capabilities().kinds.contains(self.kind.into());
        require!(has, "{} has no {}", domain.info().provider, self.kind);
        Ok(())
    }

    pub(crate) fn requires(&self, operations: Operations) -> Result<(), Skip> {
        let domain = self.open();
        let has = domain.capabilities().operations.contains(operations);
        require!(has, "{} has no {operations:?}", domain.info().provider);
        Ok(())
    }

    pub(crate) fn open(&self) -> Domain {
        self.sut.open().expect("a domain opens")
    }

    pub(crate) fn listen(&self, domain: &Domain) -> Listener {
        domain
            .listen(self.sut.listen_address())
            .expect("a listener opens")
    }

    /// A connected pair (or one whose sides know each other's addresses) with default endpoints.
    pub(crate) fn pair(&self) -> Pair {
        self.pair_with(|builder| builder)
    }

    /// The same with both endpoints refined.
    pub(crate) fn pair_with(
        &self,
        refine: impl for<'b> Fn(EndpointBuilder<'b>) -> EndpointBuilder<'b>,
    ) -> Pair {
        self.pair_of(1024, refine)
    }

    /// The same with completion queues of `depth`.
    pub(crate) fn pair_of(
        &self,
        depth: usize,
        refine: impl for<'b> Fn(EndpointBuilder<'b>) -> EndpointBuilder<'b>,
    ) -> Pair {
        let mut a = self.side(depth, &refine);
        let mut b = self.side(depth, &refine);
        match self.kind {
            EndpointKind::Msg => self.connect(&a, &b),
            EndpointKind::Rdm | EndpointKind::Dgram => {
                a.peer = Some(a.knows(&b.endpoint));
                b.peer = Some(b.knows(&a.endpoint));
            }
        }
        Pair { a, b }
    }

    /// An endpoint in a domain of its own, not connected to anything.
    pub(crate) fn side(
        &self,
        depth: usize,
        refine: impl for<'b> Fn(EndpointBuilder<'b>) -> EndpointBuilder<'b>,
    ) -> Side {
        let domain = self.open();
        let cq = domain.completion_queue(depth).expect("a completion queue");
        let endpoint = refine(domain.endpoint(self.kind, &cq))
            .open()
            .expect("an endpoint opens");
        Side {
            endpoint,
            peer: None,
            cq,
            domain,
            patience: self.sut.patience(),
            stash: Rc::default(),
        }
    }

    /// Another endpoint in the domain of `side`, with a queue of its own.
    pub(crate) fn sibling(&self, side: &Side) -> Side {
        let cq = side
            .domain
            .completion_queue(1024)
            .expect("a completion queue");
        let endpoint = side
            .domain
            .endpoint(self.kind, &cq)
            .open()
            .expect("an endpoint opens");
        Side {
            endpoint,
            peer: None,
            cq,
            domain: side.domain.clone(),
            patience: side.patience,
            stash: Rc::default(),
        }
    }

    /// The completion of the receive `context` of `b`. A datagram may be lost on the way: then it is sent `again`.
    pub(crate) fn arrival(&self, pair: &Pair, context: u64, mut again: impl FnMut()) -> Completion {
        if self.kind != EndpointKind::Dgram {
            return pair.b.success(context);
        }
        for _ in 0..100 {
            if let Ok(completion) = pair.b.cq.next(Duration::from_millis(200)) {
                assert_eq!(completion.context, context);
                assert_eq!(completion.status, Status::Success);
                return completion;
            }
            again();
        }
        panic!("of a hundred datagrams none arrives");
    }

    /// Connects `a` to `b`.
    pub(crate) fn connect(&self, a: &Side, b: &Side) {
        let listener = self.listen(&b.domain);
        a.endpoint
            .start_connect(&listener.address(), b"")
            .expect("connecting starts");
        let patience = self.sut.patience();
        let request = listener.next(patience).expect("the request arrives");
        request.accept(&b.endpoint, b"").expect("accepted");
        a.endpoint
            .wait_connected(patience)
            .expect("the answer arrives");
        b.endpoint
            .wait_connected(patience)
            .expect("the connection is ready");
    }
}

impl Side {
    /// Exposes `len` fresh bytes to everything.
    pub(crate) fn region(&self, len: usize) -> MemoryRegion {
        self.region_with(len, Access::all())
    }

    pub(crate) fn region_with(&self, len: usize, access: Access) -> MemoryRegion {
        self.domain
            .register(Memory::allocate(len), access)
            .expect("memory registers")
    }

    pub(crate) fn buf(&self, bytes: &[u8]) -> Buf {
        self.domain.buf_from(bytes).expect("a buffer")
    }

    pub(crate) fn empty(&self, len: usize) -> Buf {
        self.domain.buf(len).expect("a buffer")
    }

    /// Puts another endpoint's address into this one's vector.
    pub(crate) fn knows(&self, other: &Endpoint) -> Peer {
        let address = other.address().expect("a datagram endpoint has an address");
        self.endpoint
            .addresses()
            .insert(&address)
            .expect("there is room")
    }

    /// Posts to the other side. A full queue is polled until there is room.
    pub(crate) fn post(&self, work: Work) {
        self.post_all(vec![work]);
    }

    pub(crate) fn post_all(&self, works: Vec<Work>) {
        let mut works: Vec<_> = works.into_iter().map(|work| self.aimed(work)).collect();
        let deadline = self.deadline();
        loop {
            match self.endpoint.post(&mut works) {
                Ok(()) => return,
                Err(PostError::QueueFull) => {
                    let mut stash = self.stash.borrow_mut();
                    self.cq.poll(&mut stash, 64);
                    assert!(Instant::now() < deadline, "the queue stays full");
                    std::thread::yield_now();
                }
                Err(error) => panic!("{:?} is refused: {error}", works[0].op),
            }
        }
    }

    /// Posts once; answers why it was refused. A full queue is the caller's to wait for.
    pub(crate) fn refused(&self, work: Work) -> Refused {
        let mut work = self.aimed(work);
        loop {
            match self.endpoint.post_one(work) {
                Ok(()) => panic!("the work was accepted"),
                // A provider may be full for a moment; what is wrong stays wrong.
                Err(refused) if refused.error == PostError::QueueFull => work = *refused.work,
                Err(refused) => return refused,
            }
        }
    }

    /// Addresses work to the other side.
    pub(crate) fn aimed(&self, mut work: Work) -> Work {
        if work.peer.is_none() && work.op != fabric::Op::Recv {
            work.peer = self.peer;
        }
        work
    }

    /// The next completion.
    pub(crate) fn next(&self) -> Completion {
        let stashed = {
            let mut stash = self.stash.borrow_mut();
            (!stash.is_empty()).then(|| stash.remove(0))
        };
        stashed.unwrap_or_else(|| {
            self.cq
                .next(self.patience)
                .expect("a completion arrives in time")
        })
    }

    /// The completion of `context`; others are kept for later.
    pub(crate) fn done(&self, context: u64) -> Completion {
        let known = {
            let mut stash = self.stash.borrow_mut();
            let at = stash
                .iter()
                .position(|completion| completion.context == context);
            at.map(|at| stash.remove(at))
        };
        if let Some(completion) = known {
            return completion;
        }
        let deadline = self.deadline();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.cq.next(left) {
                Ok(completion) if completion.context == context => return completion,
                Ok(completion) => self.stash.borrow_mut().push(completion),
                Err(error) => panic!("no completion of context {context}: {error}"),
            }
        }
    }

    /// The completion of `context`, which must be a success.
    pub(crate) fn success(&self, context: u64) -> Completion {
        let completion = self.done(context);
        assert_eq!(
            completion.status,
            Status::Success,
            "{:?} of context {context}",
            completion.opcode
        );
        completion
    }

    /// `count` completions, by context.
    pub(crate) fn collect(&self, count: usize) -> Vec<Completion> {
        let mut all: Vec<_> = (0..count).map(|_| self.next()).collect();
        all.sort_by_key(|completion| completion.context);
        all
    }

    /// Posts `work` and waits for its success.
    pub(crate) fn run(&self, work: Work) -> Completion {
        let context = work.context;
        self.post(work);
        self.success(context)
    }

    /// Posts `work` and answers how it ended.
    pub(crate) fn fate(&self, work: Work) -> Status {
        let context = work.context;
        self.post(work);
        self.done(context).status
    }

    /// That nothing has been reported that was not looked at.
    pub(crate) fn quiet(&self) {
        let mut more = self.stash.borrow_mut();
        more.extend(drain(&self.cq));
        assert!(more.is_empty(), "unexpected: {more:?}");
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }
}

/// Everything that is in a queue by now. A provider may hand it out bit by bit.
pub(crate) fn drain(cq: &CompletionQueue) -> Vec<Completion> {
    let mut all = Vec::new();
    while cq.poll(&mut all, 16) > 0 || cq.wait(Duration::ZERO).expect("waiting works") {}
    all
}

/// Posts receives to a shared queue.
pub(crate) fn post_shared(shared: &SharedReceive, mut receives: Vec<Work>) {
    while let Err(error) = shared.post(&mut receives) {
        assert_eq!(error, PostError::QueueFull);
    }
}

/// All bytes of a region.
pub(crate) fn bytes(region: &MemoryRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes).expect("in bounds");
    bytes
}

/// Bytes that differ from their neighbours and from those of another seed.
pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index.wrapping_mul(31) ^ (index >> 8) ^ seed.wrapping_mul(151)) as u8)
        .collect()
}
