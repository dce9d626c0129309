//! One client: takes its requests, answers them, and forgets everything of it when it goes.
//!
//! Requests are served where they arrive, except for checksums and layouts, which take long: a worker of the connection makes
//! those, so that the connection's thread is always free to drive the device that answers the client's reads.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fabric::{
    Buf, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Error, PostError, Work,
};

use super::opened::OpenFile;
use super::roots::Roots;
use crate::device;
use crate::protocol::{
    Failure, FailureKind, MAX_MESSAGE, Malformed, Opened, Reply, Request, WINDOW,
};

/// A client that has been accepted.
pub(super) struct Connection {
    roots: Arc<Roots>,
    domain: Domain,
    cq: CompletionQueue,
    replies: Arc<Replies>,
    files: HashMap<u32, Arc<OpenFile>>,
    next_handle: u32,
}

/// Why a connection ended, if not because the client closed it.
#[derive(Debug)]
pub(super) enum End {
    /// The client broke the protocol.
    Malformed(Malformed),
    /// Nothing was heard for so long.
    Idle(Duration),
    /// The device answered this.
    Device(Error),
    /// The client asks more than it takes replies.
    Deaf,
    /// A reply could not be posted.
    Refused(PostError),
}

impl Connection {
    /// An endpoint to accept a client with, its receives posted.
    ///
    /// # Errors
    /// What the device answers.
    pub(super) fn open(domain: &Domain, roots: &Arc<Roots>) -> Result<Self, Error> {
        let cq = domain.completion_queue(WINDOW + MAX_REPLIES)?;
        let endpoint = domain
            .endpoint(EndpointKind::Msg, &cq)
            .send_depth(MAX_REPLIES)
            .recv_depth(WINDOW)
            // A client that does not listen is dropped instead of waited for.
            .rnr_retries(Some(6))
            .open()?;
        for _ in 0..WINDOW {
            let receive = Work::recv(0, domain.buf(MAX_MESSAGE)?);
            endpoint
                .post_one(receive)
                .map_err(|refused| device::refused(domain, &refused))?;
        }
        let spare = (0..MAX_REPLIES)
            .map(|_| domain.buf(MAX_MESSAGE))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            roots: Arc::clone(roots),
            domain: domain.clone(),
            cq,
            replies: Arc::new(Replies {
                endpoint,
                spare: Mutex::new(spare),
            }),
            files: HashMap::new(),
            next_handle: 0,
        })
    }

    /// To be accepted.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.replies.endpoint
    }

    /// Serves the client until it goes. Files that were truncated meanwhile are said in the log.
    ///
    /// # Errors
    /// [`End`] if it was not the client's wish.
    pub(super) fn serve(mut self) -> Result<(), End> {
        let (jobs, work) = sync_channel(WINDOW);
        let replies = Arc::clone(&self.replies);
        let worker = thread::Builder::new()
            .name("checksums".to_owned())
            .spawn(move || Job::run_all(&work, &replies))
            .map_err(|error| End::Device(Error::io("starting a thread", error)))?;
        let outcome = self.serve_until_end(&jobs);
        for file in self.files.values() {
            if let Err(failure) = file.check() {
                tracing::warn!("{failure}");
            }
        }
        self.replies.endpoint.disconnect();
        drop(jobs);
        worker.join().expect("the worker does not panic");
        outcome
    }

    fn serve_until_end(&mut self, jobs: &SyncSender<Job>) -> Result<(), End> {
        // Its first request may be here before the end of its handshake; replies can be posted after that.
        let connected = self.replies.endpoint.wait_connected(HANDSHAKE);
        connected.map_err(End::Device)?;
        let mut completions = Vec::with_capacity(WINDOW);
        let mut patience = HANDSHAKE;
        loop {
            if self.cq.poll(&mut completions, WINDOW) == 0
                && !self.cq.wait(patience).map_err(End::Device)?
            {
                return Err(End::Idle(patience));
            }
            for completion in completions.drain(..) {
                if !completion.status.is_success() {
                    tracing::debug!(status = %completion.status, "connection ended");
                    return Ok(());
                }
                if completion.opcode.is_receive() {
                    patience = IDLE;
                    self.receive(completion, jobs)?;
                } else if let Some(buf) = completion.into_buf() {
                    self.replies.give_back(buf);
                }
            }
        }
    }

    fn receive(&mut self, completion: Completion, jobs: &SyncSender<Job>) -> Result<(), End> {
        let (number, request) = Request::read(completion.data()).map_err(End::Malformed)?;
        tracing::trace!(number, ?request);
        // Posted before the reply, so that whoever has the reply may send the next request.
        if let Some(mut buf) = completion.into_buf() {
            buf.set_len(MAX_MESSAGE);
            let posted = self.replies.endpoint.post_one(Work::recv(0, buf));
            posted.map_err(|refused| End::Device(device::refused(&self.domain, &refused)))?;
        }
        let reply = match request {
            Request::Checksums { handle, .. } | Request::Layout { handle, .. } => {
                match self.file(handle) {
                    Ok(file) => {
                        let file = Arc::clone(file);
                        let job = Job::Answer {
                            number,
                            file,
                            request,
                        };
                        // A client that has more than a window of them unanswered is no client of ours.
                        return jobs.try_send(job).map_err(|_| End::Deaf);
                    }
                    Err(failure) => Err(failure),
                }
            }
            other => self.answer(other, jobs),
        };
        self.replies
            .send(number, &reply.unwrap_or_else(Reply::Failed))
    }

    fn answer(&mut self, request: Request, jobs: &SyncSender<Job>) -> Result<Reply, Failure> {
        match request {
            Request::Stat { path } => self.roots.stat(&path).map(Reply::Metadata),
            Request::Open { path } => self.open_file(&path).map(Reply::Opened),
            Request::Close { handle } => {
                let now = self
                    .file(handle)
                    .and_then(|file| file.check().and_then(|()| file.now()));
                if let Some(file) = self.files.remove(&handle) {
                    // To unmap a large file takes a while. If the worker is busy, or gone, it is done here.
                    let _ = jobs.try_send(Job::Forget(file));
                }
                now.map(Reply::Metadata)
            }
            Request::Counters => Ok(Reply::Counters(device::counters(&self.domain))),
            Request::Ping => Ok(Reply::Pong),
            Request::Checksums { .. } | Request::Layout { .. } => {
                unreachable!("given to the worker")
            }
        }
    }

    fn open_file(&mut self, path: &[u8]) -> Result<Opened, Failure> {
        if self.files.len() == MAX_OPEN {
            let message = format!("at most {MAX_OPEN} files are open at once");
            return Err(Failure::new(FailureKind::Limit, message));
        }
        let file = OpenFile::open(&self.roots, &self.domain, path)?;
        let handle = self.next_handle;
        self.next_handle = self.next_handle.wrapping_add(1);
        let opened = Opened {
            handle,
            metadata: file.metadata(),
            region: file.remote(),
            is_sparse: file.is_sparse(),
        };
        self.files.insert(handle, Arc::new(file));
        Ok(opened)
    }

    fn file(&self, handle: u32) -> Result<&Arc<OpenFile>, Failure> {
        let unknown = || Failure::new(FailureKind::Other, "no such file is open");
        self.files.get(&handle).ok_or_else(unknown)
    }
}

/// The way back to the client, for both threads.
struct Replies {
    endpoint: Endpoint,
    spare: Mutex<Vec<Buf>>,
}

impl Replies {
    fn send(&self, number: u32, reply: &Reply) -> Result<(), End> {
        let mut buf = self.lock().pop().ok_or(End::Deaf)?;
        let mut message = Vec::with_capacity(MAX_MESSAGE);
        reply.write(number, &mut message);
        buf.set_len(message.len());
        buf.copy_from_slice(&message);
        self.endpoint
            .post_one(Work::send(0, buf))
            .map_err(|refused| End::Refused(refused.error))
    }

    fn give_back(&self, buf: Buf) {
        self.lock().push(buf);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Buf>> {
        self.spare.lock().expect("nothing under the lock panics")
    }
}

/// What takes long.
enum Job {
    /// Checksums to compute, holes to find.
    Answer {
        number: u32,
        file: Arc<OpenFile>,
        request: Request,
    },
    /// A file that was closed.
    Forget(Arc<OpenFile>),
}

impl Job {
    fn run_all(jobs: &Receiver<Self>, replies: &Replies) {
        for job in jobs {
            let (number, file, request) = match job {
                Self::Answer {
                    number,
                    file,
                    request,
                } => (number, file, request),
                Self::Forget(file) => {
                    drop(file);
                    continue;
                }
            };
            let reply = match request {
                Request::Checksums {
                    block_len,
                    first,
                    count,
                    ..
                } => (file.checksums(block_len, first, count)).map(Reply::Checksums),
                Request::Layout {
                    block_len, first, ..
                } => file.layout(block_len, first).map(Reply::Layout),
                _ => unreachable!("answered where it arrived"),
            };
            let reply = reply.unwrap_or_else(Reply::Failed);
            if replies.send(number, &reply).is_err() {
                replies.endpoint.disconnect();
            }
        }
    }
}

/// Most replies whose delivery is not confirmed yet. A client may ask again as soon as it has a reply, before we hear that
/// it has, so this is more than a window.
const MAX_REPLIES: usize = 4 * WINDOW;

/// A client that says nothing for this long is taken for dead; ours speaks every quarter of it.
const IDLE: Duration = Duration::from_secs(60);

/// A client that was accepted and is not connected by then has given up; one that is connected and asks for nothing by then
/// never will.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Most files that a client may have open at once.
const MAX_OPEN: usize = 64;

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::Idle(patience) => write!(f, "nothing was heard for {} s", patience.as_secs()),
            Self::Device(error) => error.fmt(f),
            Self::Refused(error) => write!(f, "a reply could not be sent: {error}"),
            Self::Deaf => f.write_str("the client does not take its replies"),
        }
    }
}
