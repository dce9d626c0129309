//! The other side of a probe: this program once more, as a process of its own.
//!
//! It answers its address on standard output, and ends when its standard input does, so it never outlives its parent.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};

/// The side that measures holds this.
pub(crate) struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Peer {
    /// Starts this program again, with the same arguments.
    pub(crate) fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg("--peer")
            .args(std::env::args_os().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the other side")?;
        let output = BufReader::new(child.stdout.take().expect("piped above"));
        let mut peer = Self {
            child,
            output,
            address: ([127, 0, 0, 1], 0).into(),
        };
        peer.address = peer.line()?.parse().context("the other side failed")?;
        Ok(peer)
    }

    /// Ends what it does, and hears what it counted.
    pub(crate) fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may be where it does not look; a probe has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side: whether the parent has ended it, or ended.
static OVER: AtomicBool = AtomicBool::new(false);

/// The other side: says where it listens, and arranges to hear of the end.
pub(crate) fn announce(address: SocketAddr) -> Result<()> {
    thread::Builder::new().name("parent".to_owned()).spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        // Relaxed: it carries nothing but itself.
        OVER.store(true, Ordering::Relaxed);
    })?;
    say(&address.to_string())
}

/// The other side: whether it is to end.
pub(crate) fn is_over() -> bool {
    OVER.load(Ordering::Relaxed)
}

/// The other side: tells the parent.
pub(crate) fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())?;
    Ok(())
}
