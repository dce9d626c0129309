//! `ringmail cp`: copies files by one-sided reads from a serving process, which it starts itself for files of this machine.
//!
//! This process never opens the source: it asks the server to expose it, reads the server's memory block by block, writes the
//! blocks to a partial file, verifies each, and renames the part when it is whole.

mod folder;
mod journal;
mod names;
mod partial;
mod progress;
mod report;
mod session;
mod store;
mod target;
mod transfer;
mod tree;

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use fabric::{Address, Config, Domain, Hints, Reach};

use crate::args::{Common, Usage};
use crate::child::Responder;
use crate::device;
use crate::protocol::{BLOCK_RANGE, Kind, Reply, Request, Token};
use crate::serve::Server;
use crate::url::Location;
use report::Report;
use session::Session;
use target::Target;
use tree::Copier;

/// Copy files by one-sided reads, verified, from this machine or from `ringmail serve`
///
/// The permissions (without set-user-ID and set-group-ID) and the modification time are preserved. An interrupted copy leaves
/// .NAME.ringmail-part beside the destination; the same command goes on from there. The final name appears when the file is
/// whole and verified. It is as durable as any file just written: --fsync waits for the disk.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A file or directory: a path, or `ringmail://host[:port]/path`
    #[arg(value_name = "SRC")]
    source: OsString,
    /// Where to: a file, or an existing directory to put it into
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// Copy directories with everything in them
    #[arg(short, long)]
    recursive: bool,
    /// End with one JSON object on standard output
    #[arg(long)]
    json: bool,
    /// Wait until the copy is on the disk
    #[arg(long)]
    fsync: bool,
    /// Bytes that are read and verified at once
    #[arg(long, hide = true, default_value_t = BLOCK_LEN, value_parser = block_len)]
    block_size: u32,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    let source = Location::parse(&arguments.source).map_err(Usage)?;
    if let Ok(Location::Remote { .. }) | Err(_) = Location::parse(arguments.destination.as_os_str())
    {
        let advice = "the destination is a path of this machine: run `ringmail serve` here and copy from there";
        return Err(Usage(advice.to_owned()).into());
    }
    let registry = ringmail::registry();
    let mut config = device::config(&registry, common)?;
    if let Location::Remote { server, .. } = &source {
        device::place_towards(&mut config, &registry, server)?;
    }
    let domain = device::open(&registry, &config, &Hints::default())?;
    let source = Source::find(source, &config, &domain)?;
    let mut session = Session::connect(&domain, &source.server, source.token)?;
    let outcome = copy(arguments, &source, &mut session);
    // Before the server: it ends when its client is gone.
    drop(session);
    drop(source);
    let report = outcome?;
    report.print(arguments.json)?;
    Ok(if report.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn copy(arguments: &Arguments, source: &Source, session: &mut Session) -> anyhow::Result<Report> {
    let start = Instant::now();
    let mut counters =
        report::Packets::begin(session, source.shares_device()).map_err(|lost| lost.error)?;
    let path = source.path.as_slice();
    let asked = session
        .call(&Request::Stat {
            path: path.to_vec(),
        })
        .map_err(|lost| lost.error)?;
    let Reply::Metadata(metadata) = asked? else {
        bail!("the server answered something else than it was asked");
    };
    let shown = arguments.source.display();
    match metadata.kind {
        Kind::Directory if !arguments.recursive => bail!("{shown} is a directory: copy it with -r"),
        Kind::Special | Kind::Symlink => bail!("{shown} is neither a regular file nor a directory"),
        Kind::File | Kind::Directory => {}
    }
    let target = Target::find(&arguments.destination, path, &source.name(), metadata.kind)?;
    if source.is_local() && target.is(&metadata) {
        bail!(
            "{shown} and {} are the same file",
            arguments.destination.display()
        );
    }
    let may_return = || source.may_return();
    let mut copier = Copier::new(
        session,
        arguments.block_size,
        arguments.fsync,
        source.is_local(),
        &may_return,
    )?;
    copier.copy(path, &metadata, &target)?;
    let done = copier.finish();
    counters.end(session);
    Ok(Report::new(
        session.domain(),
        &done,
        start.elapsed(),
        &counters,
    ))
}

/// Who serves the source.
struct Source {
    server: Address,
    token: Token,
    /// Absolute, in the server's file system.
    path: Vec<u8>,
    own: Own,
}

/// The server, if it is ours.
enum Own {
    No,
    Process(RefCell<Responder>),
    /// For devices that reach no other process. It serves as long as the process lives.
    Thread,
}

impl Source {
    fn find(location: Location, config: &Config, domain: &Domain) -> anyhow::Result<Self> {
        let path = match location {
            Location::Remote { server, path } => {
                return Ok(Self {
                    server,
                    token: Token::default(),
                    path,
                    own: Own::No,
                });
            }
            Location::Local(path) => path,
        };
        let absolute = std::path::absolute(&path).map_err(|_| Usage("SRC is empty".to_owned()))?;
        let (server, token, own) = if domain.capabilities().reach == Reach::Process {
            serve_on_thread(&path, domain)?
        } else {
            let arguments = [
                "serve".into(),
                "--for-parent".into(),
                "--".into(),
                path.into_os_string(),
            ];
            let responder = Responder::start(&arguments, config, domain)?;
            (
                responder.address.clone(),
                responder.token,
                Own::Process(RefCell::new(responder)),
            )
        };
        Ok(Self {
            server,
            token,
            path: absolute.as_os_str().as_bytes().to_vec(),
            own,
        })
    }

    /// The last component of the path: what a copy in a directory is called.
    fn name(&self) -> OsString {
        let path = Path::new(std::ffi::OsStr::from_bytes(&self.path));
        path.file_name()
            .map_or_else(|| "root".into(), ToOwned::to_owned)
    }

    fn is_local(&self) -> bool {
        !matches!(self.own, Own::No)
    }

    /// Whether the server counts on the same device.
    fn shares_device(&self) -> bool {
        matches!(self.own, Own::Thread)
    }

    /// Whether the server may answer again after it was lost.
    fn may_return(&self) -> bool {
        match &self.own {
            Own::Process(responder) => responder.borrow_mut().is_alive(),
            Own::No | Own::Thread => true,
        }
    }
}

fn serve_on_thread(path: &Path, domain: &Domain) -> anyhow::Result<(Address, Token, Own)> {
    let token = Token::random();
    let roots = Server::roots(&[path.to_owned()])?;
    let server = Server::open(domain, roots, &Address::ANY, token)?;
    let address = server.address();
    let serve = move || {
        if let Err(error) = server.serve() {
            tracing::warn!("{error:#}");
        }
    };
    thread::Builder::new()
        .name("server".to_owned())
        .spawn(serve)
        .context("cannot start a thread")?;
    Ok((address, token, Own::Thread))
}

fn block_len(text: &str) -> Result<u32, String> {
    let len: u32 = text
        .parse()
        .map_err(|_| "expected a number of bytes".to_owned())?;
    if BLOCK_RANGE.contains(&len) {
        return Ok(len);
    }
    Err(anyhow!("expected {} to {}", BLOCK_RANGE.start(), BLOCK_RANGE.end()).to_string())
}

const BLOCK_LEN: u32 = 256 << 10;
