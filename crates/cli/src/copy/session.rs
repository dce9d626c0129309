//! The client's end of a connection: requests, replies, and reads into buffers. A connection that is lost can be made anew.
//!
//! Everything is counted: at most [`WINDOW`] requests without an answer, at most [`MAX_READS`] reads outstanding, so a post is
//! never refused for lack of room.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use fabric::{
    Address, Buf, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Error, RemoteAddr,
    Status, Work,
};

use crate::device;
use crate::protocol::{
    Counter, Failure, Hello, MAX_MESSAGE, Reply, Request, Service, Token, WINDOW,
};

/// A connection to a server.
pub(super) struct Session {
    // The endpoint first: its drop ends all access to memory in flight.
    endpoint: Endpoint,
    cq: CompletionQueue,
    domain: Domain,
    server: Address,
    token: Token,
    spare: Vec<Buf>,
    completions: Vec<Completion>,
    message: Vec<u8>,
    next_number: u32,
    unanswered: usize,
    reads: usize,
    last_request: Instant,
    /// Connections before this one.
    epoch: u32,
    is_lost: bool,
}

/// Something that arrived.
#[derive(Debug)]
pub(super) enum Arrival {
    /// The answer to the request of this number.
    Reply(u32, Reply),
    /// The read of this number has ended, with its bytes.
    Read(u64, Buf),
}

/// The connection is of no use any more.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) cause: Cause,
    pub(super) error: anyhow::Error,
}

/// What a lost connection means for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The server refused a read: the file that was read is not what it was.
    Source,
    /// The server was not heard, or went: a new connection may do better.
    Silence,
    /// One of both sides is wrong; a new connection would be too.
    Nonsense,
}

impl Lost {
    fn silence(error: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: Cause::Silence,
            error: error.into(),
        }
    }

    fn nonsense(error: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: Cause::Nonsense,
            error: error.into(),
        }
    }
}

impl Session {
    /// Connects to a server.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(super) fn connect(domain: &Domain, server: &Address, token: Token) -> anyhow::Result<Self> {
        Self::connect_within(domain, server, token, CONNECT_TIMEOUT)
    }

    fn connect_within(
        domain: &Domain,
        server: &Address,
        token: Token,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let cq = domain.completion_queue(2 * WINDOW + MAX_READS)?;
        let endpoint = domain
            .endpoint(EndpointKind::Msg, &cq)
            .send_depth(WINDOW + MAX_READS)
            .recv_depth(WINDOW)
            .open()?;
        for _ in 0..WINDOW {
            let receive = Work::recv(0, domain.buf(MAX_MESSAGE)?);
            endpoint
                .post_one(receive)
                .map_err(|refused| device::refused(domain, &refused))?;
        }
        let hello = Hello::new(Service::Files, token).to_bytes();
        match endpoint.connect(server, &hello, timeout) {
            Ok(_) => {}
            Err(Error::Rejected { private_data }) => {
                return Err(device::rejected(server, &private_data));
            }
            Err(Error::Unreachable(_) | Error::TimedOut) => {
                return Err(device::nobody(domain, server, "ringmail serve"));
            }
            Err(error) => return Err(error.into()),
        }
        let spare = (0..WINDOW)
            .map(|_| domain.buf(MAX_MESSAGE))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            endpoint,
            cq,
            domain: domain.clone(),
            server: server.clone(),
            token,
            spare,
            completions: Vec::with_capacity(WINDOW + MAX_READS),
            message: Vec::with_capacity(MAX_MESSAGE),
            next_number: 0,
            unanswered: 0,
            reads: 0,
            last_request: Instant::now(),
            epoch: 0,
            is_lost: false,
        })
    }

    /// Connects once more, to the same server. What was asked for before is forgotten, and what was opened is closed.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub(super) fn reconnect(&mut self) -> anyhow::Result<()> {
        let mut again =
            Self::connect_within(&self.domain, &self.server, self.token, RECONNECT_TIMEOUT)?;
        again.epoch = self.epoch + 1;
        *self = again;
        Ok(())
    }

    /// Which connection it is: handles are of one connection only.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether the connection was lost and there is no other yet.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// The device.
    pub(super) fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether a request can be sent now.
    pub(super) fn can_ask(&self) -> bool {
        self.unanswered < WINDOW && !self.spare.is_empty()
    }

    /// Whether a read can be posted now.
    pub(super) fn can_read(&self) -> bool {
        self.reads < MAX_READS
    }

    /// Reads outstanding.
    pub(super) fn reads(&self) -> usize {
        self.reads
    }

    /// Sends a request, to be answered by an arrival with the number returned. Needs [`Session::can_ask`].
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn ask(&mut self, request: &Request) -> Result<u32, Lost> {
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        let mut buf = self
            .spare
            .pop()
            .expect("the caller asked whether there is room");
        self.message.clear();
        request.write(number, &mut self.message);
        buf.set_len(self.message.len());
        buf.copy_from_slice(&self.message);
        self.post(Work::send(0, buf))?;
        self.unanswered += 1;
        self.last_request = Instant::now();
        Ok(number)
    }

    /// Starts to fill `buf` from `remote`. Needs [`Session::can_read`].
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn read(&mut self, number: u64, buf: Buf, remote: RemoteAddr) -> Result<(), Lost> {
        self.post(Work::read(READ | number, buf, remote))?;
        self.reads += 1;
        Ok(())
    }

    /// Appends what has arrived. With `patient`, waits until something has happened: an arrival, or room for a request.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn poll(&mut self, arrivals: &mut Vec<Arrival>, patient: bool) -> Result<(), Lost> {
        let start = Instant::now();
        loop {
            let mut completions = std::mem::take(&mut self.completions);
            let happened = self.cq.poll(&mut completions, WINDOW + MAX_READS);
            for completion in completions.drain(..) {
                self.complete(completion, arrivals)?;
            }
            self.completions = completions;
            self.keep_alive()?;
            if happened > 0 || !patient {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                let seconds = PATIENCE.as_secs();
                self.is_lost = true;
                return Err(Lost::silence(anyhow!(
                    "the server has not answered for {seconds} s"
                )));
            }
            self.cq.wait(KEEPALIVE).map_err(Lost::nonsense)?;
        }
    }

    /// Sends a request and waits for its answer, with nothing else going on.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn call(&mut self, request: &Request) -> Result<Result<Reply, Failure>, Lost> {
        let mut arrivals = Vec::new();
        while !self.can_ask() {
            self.poll(&mut arrivals, true)?;
        }
        let number = self.ask(request)?;
        loop {
            self.poll(&mut arrivals, true)?;
            for arrival in arrivals.drain(..) {
                match arrival {
                    Arrival::Reply(answered, reply) if answered == number => {
                        return Ok(match reply {
                            Reply::Failed(failure) => Err(failure),
                            reply => Ok(reply),
                        });
                    }
                    // Of what was given up before.
                    Arrival::Reply(..) | Arrival::Read(..) => {}
                }
            }
        }
    }

    /// What the server's device has counted; nothing if it does not say.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn counters(&mut self) -> Result<Vec<Counter>, Lost> {
        match self.call(&Request::Counters)? {
            Ok(Reply::Counters(counters)) => Ok(counters),
            _ => Ok(Vec::new()),
        }
    }

    fn complete(
        &mut self,
        completion: Completion,
        arrivals: &mut Vec<Arrival>,
    ) -> Result<(), Lost> {
        let is_read = completion.context & READ != 0;
        if !completion.status.is_success() {
            self.is_lost = true;
            return Err(lost(&completion, is_read));
        }
        if is_read {
            self.reads -= 1;
            let number = completion.context & !READ;
            let buf = completion.into_buf().expect("reads are into buffers");
            arrivals.push(Arrival::Read(number, buf));
            return Ok(());
        }
        if !completion.opcode.is_receive() {
            self.spare.extend(completion.into_buf());
            return Ok(());
        }
        let (number, reply) = Reply::read(completion.data()).map_err(Lost::nonsense)?;
        let unasked = || Lost::nonsense(anyhow!("the server answers what nobody asked"));
        self.unanswered = self.unanswered.checked_sub(1).ok_or_else(unasked)?;
        if let Some(mut buf) = completion.into_buf() {
            buf.set_len(MAX_MESSAGE);
            self.post(Work::recv(0, buf))?;
        }
        if reply != Reply::Pong {
            arrivals.push(Arrival::Reply(number, reply));
        }
        Ok(())
    }

    /// A server forgets a client of which it hears nothing, and it does not hear reads.
    fn keep_alive(&mut self) -> Result<(), Lost> {
        if self.last_request.elapsed() > KEEPALIVE && self.can_ask() {
            self.ask(&Request::Ping)?;
        }
        Ok(())
    }

    fn post(&mut self, work: Work) -> Result<(), Lost> {
        let Err(refused) = self.endpoint.post_one(work) else {
            return Ok(());
        };
        self.is_lost = true;
        let error = device::refused(&self.domain, &refused);
        if !matches!(error, Error::Disconnected) {
            return Err(Lost::nonsense(error));
        }
        // What failed first says why.
        let mut completions = Vec::new();
        self.cq.poll(&mut completions, WINDOW + MAX_READS);
        let failed = completions.iter().find(|done| !done.status.is_success());
        Err(failed.map_or_else(
            || Lost::silence(error),
            |failed| lost(failed, failed.context & READ != 0),
        ))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.endpoint.disconnect();
    }
}

/// What a failed work means for a copy. The first to fail tells; the rest is flushed.
fn lost(completion: &Completion, is_read: bool) -> Lost {
    let status = completion.status;
    match status {
        Status::RemoteAccess | Status::RemoteOperation | Status::RemoteInvalidRequest
            if is_read =>
        {
            Lost {
                cause: Cause::Source,
                error: anyhow!(
                    "the server can no longer read the source: it was truncated or changed ({status})"
                ),
            }
        }
        Status::Flushed => Lost::silence(anyhow!("the server closed the connection")),
        Status::RetryExceeded | Status::RnrRetryExceeded => {
            Lost::silence(anyhow!("the server does not answer any more"))
        }
        other => Lost::nonsense(anyhow!("the connection failed: {other}")),
    }
}

/// Marks the contexts of reads.
const READ: u64 = 1 << 63;

/// Most reads outstanding.
const MAX_READS: usize = 32;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For a server that was there a moment ago.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// With nothing happening for this long, while something should, the server is taken for dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the server hears of us at least.
const KEEPALIVE: Duration = Duration::from_secs(15);
