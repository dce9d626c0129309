//! A peer in another process that is stopped in the middle of a write, and its region is revoked.
//!
//! The test runs itself again as the peer: the owner's table is its standard input, the region's file has a number agreed
//! on, the owner's words are in the environment, and it speaks on standard error.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;

use fabric::provider::Registration as _;
use fabric::{Access, RemoteAddr};
use mem::{Buf, Memory};

use super::exports::Answer;
use super::{Cache, Exports, Imports, Learned, Resolved, Stop};

const LEN: usize = 32 << 20;
const PEER: &str = "RINGMAIL_SHM_TEST_PEER";
const REGION: RawFd = 100;
const NAME: &str = "region::stopped::a_stopped_peer_holds_nobody_up_and_learns_of_it";

/// What the peer is told: its owner, where to write, and the owner's two messages.
struct Told {
    pid: libc::pid_t,
    remote: RemoteAddr,
    hello: Vec<u8>,
    answer: Vec<u8>,
}

impl Told {
    fn to_text(&self) -> String {
        let RemoteAddr { addr, key } = self.remote;
        format!(
            "{} {addr} {key} {:?} {:?}",
            self.pid, self.hello, self.answer
        )
        .replace(", ", ",")
    }

    fn from_text(text: &str) -> Self {
        let mut words = text.split(' ');
        let mut next = || words.next().expect("five words");
        let list = |word: &str| {
            let inner = word.trim_matches(['[', ']']);
            inner.split(',').map(|byte| byte.parse().unwrap()).collect()
        };
        Self {
            pid: next().parse().unwrap(),
            remote: RemoteAddr {
                addr: next().parse().unwrap(),
                key: next().parse().unwrap(),
            },
            hello: list(next()),
            answer: list(next()),
        }
    }
}

/// Fills the region with 1, 2, 1, 2… until it is told that the key is gone.
fn peer(told: &Told) {
    let table: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    // SAFETY: the owner left it open under this number for us.
    let region = unsafe { OwnedFd::from_raw_fd(REGION) };
    let imports = Imports::new(told.pid, &told.hello, vec![table]).expect("a greeting");
    let learned = imports.learn(told.remote.key, &told.answer, vec![region]);
    assert_eq!(learned, Ok(Learned::Known));
    let mut cache = Cache::new(imports);
    let say = |what: &str| writeln!(std::io::stderr(), "{what}").expect("the owner listens");
    let fillings = [1, 2].map(|byte| Buf::from(&vec![byte; LEN][..]).into_memory());
    for source in fillings.iter().cycle() {
        let Resolved::Here(import) = cache.resolve(told.remote, LEN, Access::REMOTE_WRITE) else {
            return say("ask");
        };
        match import.write(told.remote.addr, source, 0, LEN) {
            Ok(()) => say("done"),
            Err(Stop::Changed) => say("changed"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

struct Peer {
    process: Child,
    says: BufReader<ChildStderr>,
}

impl Peer {
    fn start(told: &Told, table: &Answer, region: &Answer) -> Self {
        let file = |answer: &Answer| answer.files[0].try_clone().expect("duplicated");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", NAME])
            .env(PEER, told.to_text())
            .stdin(file(table))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let region = file(region);
        let inherit = move || {
            // SAFETY: duplicates an open descriptor; async-signal-safe, as the child after a fork must be.
            match unsafe { libc::dup2(region.as_raw_fd(), REGION) } {
                REGION => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes one system call.
        let mut process = unsafe { command.pre_exec(inherit) }.spawn().unwrap();
        let says = BufReader::new(process.stderr.take().unwrap());
        Self { process, says }
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.process.id()).unwrap();
        // SAFETY: signals a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Stops the peer and waits until it has stopped.
    fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let pid = libc::pid_t::try_from(self.process.id()).unwrap();
        let mut status = 0;
        // SAFETY: waits for a child of ours to stop.
        let stopped = unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) };
        assert!(stopped == pid && libc::WIFSTOPPED(status));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_stopped_peer_holds_nobody_up_and_learns_of_it() {
    if let Ok(told) = std::env::var(PEER) {
        return peer(&Told::from_text(&told));
    }
    let exports = Exports::new().expect("a table");
    let mut memory = Memory::allocate(LEN);
    let registration = exports
        .register(&mut memory, Access::all())
        .expect("registered");
    let (hello, answer) = (exports.hello(), exports.answer(registration.remote_key()));
    let told = Told {
        pid: libc::pid_t::try_from(std::process::id()).unwrap(),
        remote: RemoteAddr {
            addr: registration.remote_addr(),
            key: registration.remote_key(),
        },
        hello: hello.bytes.clone(),
        answer: answer.bytes.clone(),
    };
    let mut peer = Peer::start(&told, &hello, &answer);
    assert_eq!(peer.hear(), "done");
    assert_eq!(peer.hear(), "done");
    // Stop it in the middle of a write, where it is nearly always.
    let mut bytes = vec![0; LEN];
    let caught = (0..1000).any(|_| {
        peer.stop();
        memory.copy_out(0, &mut bytes).unwrap();
        bytes.contains(&1) && bytes.contains(&2) || {
            peer.signal(libc::SIGCONT);
            false
        }
    });
    assert!(caught, "the peer was never in the middle of a write");
    registration.deregister();
    let buf = Buf::try_from(memory).expect("comes back at once, though the peer is stopped");
    assert!(buf[..] == bytes[..], "the content changed on the way back");
    drop((hello, answer, registration));
    assert_eq!(Arc::strong_count(&exports), 1);
    peer.signal(libc::SIGCONT);
    let mut heard = peer.hear();
    while heard == "done" {
        heard = peer.hear();
    }
    assert_eq!(heard, "changed", "the interrupted write must not succeed");
    assert_eq!(peer.hear(), "ask");
    assert!(
        buf[..] == bytes[..],
        "a stopped peer wrote into private memory"
    );
}
