//! `ringmail serve`: lets clients read files of some directories, one-sidedly.
//!
//! The server answers requests about files ([`crate::protocol`]) and exposes those that a client opens; the contents are read
//! by the client's device from the server's. Each client has a thread, queues and regions of its own: what one does wrong
//! ends its own connection only. Reading needs no password: whoever reaches the address may read the served directories, which
//! is why it is this machine's own address unless the user says otherwise.

mod connection;
mod guests;
mod opened;
mod roots;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fabric::{Address, ConnectionRequest, Domain, Error, Hints, Listener};

use crate::args::Common;
use crate::protocol::{Hello, Service, Token};
use crate::{child, device, url};
use connection::Connection;
use guests::Guests;
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
    /// Serve the parent process until it ends
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
            server.serve()
        }
        Err(error) => {
            child::answer_parent(&Err(error))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn open(arguments: &Arguments, common: &Common, token: Token) -> anyhow::Result<Server> {
    let registry = ringmail::registry();
    let mut config = device::config(&registry, common)?;
    // The files first: whether they are there does not depend on any device.
    let roots = Server::roots(&arguments.paths)?;
    let listen = match &arguments.listen {
        Some(listen) => device::place_at(&mut config, &registry, &url::with_port(listen))?,
        None => Address::ANY,
    };
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
    pub(crate) fn serve(&self) -> anyhow::Result<ExitCode> {
        let guests = Arc::new(Guests::default());
        loop {
            let Some((request, from)) = self.next_request()? else {
                continue;
            };
            let place = match guests.admit(&from) {
                Ok(place) => place,
                Err(reason) => {
                    tracing::warn!(%from, "refused: {reason}");
                    reject(request, reason);
                    continue;
                }
            };
            let connection = match self.accept(request) {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%from, "cannot accept a client: {error}");
                    continue;
                }
            };
            let spawned = thread::Builder::new()
                .name("client".to_owned())
                .spawn(move || {
                    serve_client(connection, &from);
                    drop(place);
                });
            // Of threads there may be more another time; the clients that are here are served meanwhile.
            if let Err(error) = spawned {
                tracing::warn!("cannot serve a client: {error}");
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    use fabric::{CompletionQueue, Endpoint, EndpointKind, Registry, Work, loopback::Loopback};

    use super::*;
    use crate::protocol::{FailureKind, MAX_MESSAGE, Reply, Request};

    /// A server of a directory with one file of 10,000 bytes, on a thread that serves for ever.
    fn server(token: Token) -> (Domain, Address, tempfile::TempDir) {
        let registry = Registry::new().with(Loopback::new());
        let domain = registry.open("loopback", &registry.defaults()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), [7; 10_000]).unwrap();
        let roots = Server::roots(&[directory.path().to_owned()]).unwrap();
        let server = Server::open(&domain, roots, &Address::ANY, token).unwrap();
        let address = server.address();
        thread::spawn(move || server.serve());
        (domain, address, directory)
    }

    /// A client that says what it likes.
    struct Client {
        endpoint: Endpoint,
        cq: CompletionQueue,
        domain: Domain,
    }

    impl Client {
        fn connect(domain: &Domain, server: &Address, hello: &[u8]) -> Result<Self, Error> {
            let cq = domain.completion_queue(64)?;
            let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open()?;
            for _ in 0..16 {
                endpoint
                    .post_one(Work::recv(0, domain.buf(MAX_MESSAGE)?))
                    .unwrap();
            }
            endpoint.connect(server, hello, SOON)?;
            Ok(Self {
                endpoint,
                cq,
                domain: domain.clone(),
            })
        }

        fn say(&self, message: &[u8]) {
            self.endpoint
                .post_one(Work::send(0, self.domain.buf_from(message).unwrap()))
                .unwrap();
        }

        /// The next reply; `None` once the server has closed the connection.
        fn hear(&self) -> Option<Reply> {
            loop {
                let completion = self.cq.next(SOON).expect("the server answers or closes");
                if !completion.status.is_success() {
                    return None;
                }
                if completion.opcode.is_receive() {
                    let reply = Reply::read(completion.data())
                        .expect("the server makes sense")
                        .1;
                    let receive = Work::recv(0, self.domain.buf(MAX_MESSAGE).unwrap());
                    self.endpoint.post_one(receive).unwrap();
                    return Some(reply);
                }
            }
        }

        fn ask(&self, request: &Request) -> Reply {
            let mut message = Vec::new();
            request.write(1, &mut message);
            self.say(&message);
            self.hear().expect("the connection is open")
        }

        fn failure(&self, request: &Request) -> FailureKind {
            match self.ask(request) {
                Reply::Failed(failure) => failure.kind,
                other => panic!("{request:?} was answered by {other:?}"),
            }
        }
    }

    fn hello(token: Token) -> [u8; Hello::LEN] {
        Hello::new(Service::Files, token).to_bytes()
    }

    #[test]
    fn a_client_without_the_token_is_refused_with_a_reason() {
        let token = Token::random();
        let (domain, address, _directory) = server(token);
        let refused = |hello: &[u8]| match Client::connect(&domain, &address, hello) {
            Err(Error::Rejected { private_data }) => String::from_utf8(private_data).unwrap(),
            other => panic!("not refused: {:?}", other.map(|_| ())),
        };
        assert!(refused(&hello(Token::default())).contains("private"));
        assert!(refused(&Hello::new(Service::Ping, token).to_bytes()).contains("another"));
        assert!(refused(b"GET / HTTP/1.1").contains("you are not"));
        assert!(Client::connect(&domain, &address, &hello(token)).is_ok());
    }

    #[test]
    fn a_client_that_breaks_the_protocol_loses_its_own_connection_only() {
        let (domain, address, directory) = server(Token::default());
        let good = Client::connect(&domain, &address, &hello(Token::default())).unwrap();
        let path = directory
            .path()
            .join("file")
            .as_os_str()
            .as_bytes()
            .to_vec();
        let Reply::Opened(opened) = good.ask(&Request::Open { path }) else {
            panic!("the file is not opened");
        };
        for nonsense in [
            &b""[..],
            b"\x01",
            b"\xff\0\0\0\x01",
            &[3; 21],
            &[9; MAX_MESSAGE],
        ] {
            let bad = Client::connect(&domain, &address, &hello(Token::default())).unwrap();
            bad.say(nonsense);
            assert_eq!(bad.hear(), None, "{nonsense:?} was accepted");
        }
        let buf = domain.buf(10_000).unwrap();
        good.endpoint
            .post_one(Work::read(0, buf, opened.region))
            .unwrap();
        let read = loop {
            let completion = good.cq.next(SOON).unwrap();
            if completion.opcode == fabric::Opcode::Read {
                break completion;
            }
        };
        assert_eq!(read.ok().unwrap().data(), [7; 10_000]);
    }

    #[test]
    fn a_request_that_cannot_be_served_is_answered() {
        let (domain, address, directory) = server(Token::default());
        let client = Client::connect(&domain, &address, &hello(Token::default())).unwrap();
        let path = |name: &str| directory.path().join(name).as_os_str().as_bytes().to_vec();
        assert_eq!(
            client.failure(&Request::Open {
                path: path("missing")
            }),
            FailureKind::NotFound
        );
        assert_eq!(
            client.failure(&Request::Open { path: path("../x") }),
            FailureKind::Outside
        );
        assert_eq!(
            client.failure(&Request::Close { handle: 0 }),
            FailureKind::Other
        );
        for handle in 0..64 {
            assert!(
                matches!(client.ask(&Request::Open { path: path("file") }), Reply::Opened(opened) if opened.handle == handle)
            );
        }
        assert_eq!(
            client.failure(&Request::Open { path: path("file") }),
            FailureKind::Limit
        );
        let sums = |first, count| Request::Checksums {
            handle: 3,
            block_len: 4096,
            first,
            count,
        };
        assert_eq!(client.failure(&sums(0, 4)), FailureKind::Other);
        assert_eq!(client.failure(&sums(u64::MAX, 2)), FailureKind::Other);
        let expected = [4096, 4096, 1808].map(|len| crc32c::crc32c(&vec![7; len]));
        assert_eq!(client.ask(&sums(0, 3)), Reply::Checksums(expected.to_vec()));
        assert!(
            matches!(client.ask(&Request::Close { handle: 3 }), Reply::Metadata(metadata) if metadata.size == 10_000)
        );
        assert_eq!(client.failure(&sums(0, 3)), FailureKind::Other);
    }

    #[test]
    fn a_file_truncated_while_it_is_served_is_a_failure_and_not_a_crash() {
        let (domain, address, directory) = server(Token::default());
        let client = Client::connect(&domain, &address, &hello(Token::default())).unwrap();
        let path = directory.path().join("file");
        let request = Request::Open {
            path: path.as_os_str().as_bytes().to_vec(),
        };
        assert!(matches!(client.ask(&request), Reply::Opened(_)));
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1)
            .unwrap();
        let sums = Request::Checksums {
            handle: 0,
            block_len: 4096,
            first: 0,
            count: 3,
        };
        assert_eq!(client.failure(&sums), FailureKind::Changed);
        assert_eq!(
            client.failure(&Request::Close { handle: 0 }),
            FailureKind::Changed
        );
        assert!(
            matches!(client.ask(&request), Reply::Opened(_)),
            "the server goes on"
        );
    }

    const SOON: Duration = Duration::from_secs(10);
}
