//! `ringmail serve`: lets clients read files of some directories, one-sidedly.
//!
//! The server answers requests about files ([`crate::protocol`]) and exposes those that a client opens; the contents are read
//! by the client's device from the server's. Each client has a thread, queues and regions of its own: what one does wrong
//! ends its own connection only. Reading needs no password: whoever reaches the address may read the served directories, which
//! is why it is this machine's own address unless the user says otherwise.

mod connection;
mod opened;
mod roots;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fabric::{Address, ConnectionRequest, Domain, Error, Hints, Listener};

pub(crate) use opened::checksum;

use crate::args::Common;
use crate::protocol::{Hello, Service, Token};
use crate::{child, device, url};
use connection::Connection;
use roots::Roots;

/// Serve directories to `ringmail cp` until interrupted
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directories, or single files
    #[arg(required = true, value_name = "DIR")]
    paths: Vec<PathBuf>,
    /// Listen at this address instead of one that only this machine reaches; the port is 7471 unless given
    #[arg(long, value_name = "HOST[:PORT]")]
    listen: Option<String>,
    /// Serve the parent process once
    #[arg(long, hide = true)]
    for_parent: bool,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    if arguments.for_parent {
        return run_for_parent(arguments, common);
    }
    let server = open(arguments, common, Token::default())?;
    let address = server.address();
    let mut out = io::stdout().lock();
    for path in server.roots.paths() {
        let mut line = url::of(&address, path).into_encoded_bytes();
        line.push(b'\n');
        out.write_all(&line)?;
    }
    out.flush()?;
    drop(out);
    server.serve()
}

fn run_for_parent(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    let token = child::follow_parent()?;
    let opened = open(arguments, common, token);
    match opened {
        Ok(server) => {
            child::answer_parent(&Ok(server.address()))?;
            server.serve_one()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            child::answer_parent(&Err(error))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn open(arguments: &Arguments, common: &Common, token: Token) -> anyhow::Result<Server> {
    let registry = ringmail::registry();
    let config = device::config(&registry, common)?;
    let listen = arguments
        .listen
        .as_deref()
        .map_or(Address::ANY, url::with_port);
    // The files first: whether they are there does not depend on any device.
    let roots = Server::roots(&arguments.paths)?;
    let domain = device::open(&registry, &config, &Hints::default())?;
    Server::open(&domain, roots, &listen, token)
}

/// Files that can be read, and where.
pub(crate) struct Server {
    domain: Domain,
    roots: Arc<Roots>,
    listener: Listener,
    token: Token,
}

impl Server {
    /// Opens what is to be served.
    ///
    /// # Errors
    /// Which cannot be, and why.
    pub(crate) fn roots(paths: &[PathBuf]) -> anyhow::Result<Roots> {
        Roots::open(paths).map_err(|(path, error)| {
            let reason = match error.kind() {
                io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                _ => error.to_string(),
            };
            anyhow::anyhow!("{}: {reason}", path.display())
        })
    }

    /// Listens for clients that show `token`.
    ///
    /// # Errors
    /// What listening answers.
    pub(crate) fn open(
        domain: &Domain,
        roots: Roots,
        listen: &Address,
        token: Token,
    ) -> anyhow::Result<Self> {
        let listener = domain.listen(listen.clone()).with_context(|| {
            let provider = domain.info().provider;
            if listen.is_any() {
                format!("cannot listen over {provider}")
            } else {
                format!("cannot listen at {listen} over {provider}")
            }
        })?;
        Ok(Self {
            domain: domain.clone(),
            roots: Arc::new(roots),
            listener,
            token,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Address {
        self.listener.address()
    }

    /// Serves everybody, for ever.
    ///
    /// # Errors
    /// What the device answers when it cannot go on.
    fn serve(&self) -> anyhow::Result<ExitCode> {
        let clients = Arc::new(AtomicUsize::new(0));
        loop {
            let Some((request, from)) = self.next_request()? else {
                continue;
            };
            if clients.load(Ordering::Relaxed) >= MAX_CLIENTS {
                tracing::warn!(%from, "refused: {MAX_CLIENTS} clients are connected");
                reject(request, "the server has too many clients");
                continue;
            }
            let connection = match self.accept(request) {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%from, "cannot accept a client: {error}");
                    continue;
                }
            };
            clients.fetch_add(1, Ordering::Relaxed);
            let clients = Arc::clone(&clients);
            thread::Builder::new()
                .name("client".to_owned())
                .spawn(move || {
                    serve_client(connection, &from);
                    clients.fetch_sub(1, Ordering::Relaxed);
                })?;
        }
    }

    /// Serves the first client that shows the token, until it goes.
    ///
    /// # Errors
    /// What the device answers.
    pub(crate) fn serve_one(&self) -> anyhow::Result<()> {
        loop {
            if let Some((request, from)) = self.next_request()? {
                serve_client(self.accept(request)?, &from);
                return Ok(());
            }
        }
    }

    /// The next client that shows the token, if one came within some time.
    fn next_request(&self) -> Result<Option<(ConnectionRequest, Address)>, Error> {
        let request = match self.listener.next(Duration::from_secs(3600)) {
            Ok(request) => request,
            Err(Error::TimedOut) => return Ok(None),
            Err(error) => return Err(error),
        };
        let from = request.from().clone();
        match Hello::check(request.private_data(), Service::Files, self.token) {
            Ok(()) => Ok(Some((request, from))),
            Err(reason) => {
                tracing::info!(%from, "refused: {reason}");
                reject(request, reason);
                Ok(None)
            }
        }
    }

    fn accept(&self, request: ConnectionRequest) -> Result<Connection, Error> {
        let connection = Connection::open(&self.domain, &self.roots)?;
        request.accept(connection.endpoint(), &[])?;
        Ok(connection)
    }
}

fn serve_client(connection: Connection, from: &Address) {
    tracing::info!(%from, "connected");
    match connection.serve() {
        Ok(()) => tracing::info!(%from, "gone"),
        Err(end) => tracing::warn!(%from, "connection ended: {end}"),
    }
}

fn reject(request: ConnectionRequest, reason: &str) {
    // A device with less room for reasons refuses without one.
    let _ = request.reject(reason.as_bytes());
}

/// Most clients at once.
const MAX_CLIENTS: usize = 64;
