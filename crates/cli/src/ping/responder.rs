//! Sends back what it gets, and exposes a region to be read and written.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use fabric::{
    Access, Address, CompletionQueue, ConnectionRequest, Domain, Endpoint, EndpointKind, Error,
    Listener, Memory, MemoryRegion, Work,
};

use super::{Operation, Wish};
use crate::device;
use crate::protocol::Token;

/// Who answers pings.
pub(super) struct Echo {
    domain: Domain,
    listener: Listener,
    token: Token,
}

impl Echo {
    /// Listens for clients that show `token`.
    ///
    /// # Errors
    /// What listening answers.
    pub(super) fn open(domain: &Domain, listen: &Address, token: Token) -> anyhow::Result<Self> {
        let provider = domain.info().provider;
        let listener = domain
            .listen(listen.clone())
            .with_context(|| format!("cannot listen over {provider}"))?;
        Ok(Self {
            domain: domain.clone(),
            listener,
            token,
        })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> Address {
        self.listener.address()
    }

    /// Answers everybody, for ever.
    ///
    /// # Errors
    /// What the device answers when it cannot go on.
    pub(super) fn answer_all(&self) -> anyhow::Result<ExitCode> {
        let clients = Arc::new(AtomicUsize::new(0));
        loop {
            let request = match self.listener.next(Duration::from_secs(3600)) {
                Ok(request) => request,
                Err(Error::TimedOut) => continue,
                Err(error) => return Err(error.into()),
            };
            let from = request.from().clone();
            let wish = match Wish::parse(request.private_data(), self.token) {
                Ok(_) if clients.load(Ordering::Relaxed) >= MAX_CLIENTS => {
                    Err("there are too many clients")
                }
                other => other,
            };
            let wish = match wish {
                Ok(wish) => wish,
                Err(reason) => {
                    let _ = request.reject(reason.as_bytes());
                    continue;
                }
            };
            match Client::accept(&self.domain, request, &wish) {
                Ok(client) => {
                    clients.fetch_add(1, Ordering::Relaxed);
                    let clients = Arc::clone(&clients);
                    thread::Builder::new()
                        .name("client".to_owned())
                        .spawn(move || {
                            client.answer();
                            clients.fetch_sub(1, Ordering::Relaxed);
                        })?;
                }
                Err(error) => tracing::warn!(%from, "cannot accept a client: {error}"),
            }
        }
    }
}

struct Client {
    endpoint: Endpoint,
    cq: CompletionQueue,
    _region: MemoryRegion,
}

impl Client {
    fn accept(domain: &Domain, request: ConnectionRequest, wish: &Wish) -> Result<Self, Error> {
        let cq = domain.completion_queue(2 * DEPTH)?;
        let endpoint = domain
            .endpoint(EndpointKind::Msg, &cq)
            .send_depth(DEPTH)
            .recv_depth(DEPTH)
            .rnr_retries(Some(6))
            .open()?;
        let size = wish.size as usize;
        if wish.operation == Operation::Send {
            for _ in 0..DEPTH {
                let receive = Work::recv(0, domain.buf(size)?);
                endpoint
                    .post_one(receive)
                    .map_err(|refused| device::refused(domain, &refused))?;
            }
        }
        let access = Access::REMOTE_READ | Access::REMOTE_WRITE;
        let region = domain.register(Memory::allocate(size.max(1)), access)?;
        request.accept(&endpoint, &region.remote().to_bytes())?;
        Ok(Self {
            endpoint,
            cq,
            _region: region,
        })
    }

    /// Sends back every message until the client goes or says nothing for long.
    fn answer(self) {
        // The first message may be here before the end of the handshake; echoes can be posted after that.
        if self.endpoint.wait_connected(HANDSHAKE).is_err() {
            return;
        }
        loop {
            let completion = match device::spin(&self.cq) {
                Some(completion) => completion,
                None => match self.cq.next(IDLE) {
                    Ok(completion) => completion,
                    Err(_) => return,
                },
            };
            if !completion.status.is_success() {
                return;
            }
            let (is_receive, len) = (completion.opcode.is_receive(), completion.len);
            let Some(mut buf) = completion.into_buf() else {
                continue;
            };
            // A message goes back in the buffer it came in, which then takes another.
            let work = if is_receive {
                buf.set_len(len);
                Work::send(0, buf)
            } else {
                buf.set_len(buf.capacity());
                Work::recv(0, buf)
            };
            if self.endpoint.post_one(work).is_err() {
                return;
            }
        }
    }
}

/// Messages that a client may have under way.
const DEPTH: usize = 4;

const MAX_CLIENTS: usize = 64;

/// A client that was accepted and is not connected by then has given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A client that says nothing for this long is taken for dead.
const IDLE: Duration = Duration::from_secs(3600);
