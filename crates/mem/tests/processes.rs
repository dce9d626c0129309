//! Memory between two processes: what a stopped peer does later, after the owner has taken its memory back.
//!
//! The test runs itself again as the peer, whose standard input is the memory file.
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStderr, Command, Stdio};

use ringmail_mem::{Backing, Buf, Memory};

const LEN: usize = 32 << 20;
const PEER: &str = "RINGMAIL_MEM_TEST_PEER";

/// The peer: fills the memory with 1, 2, 1, 2… for ever, and says so after each round.
fn peer() -> ! {
    let file = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .unwrap()
        .into();
    let memory = Memory::map(file, LEN as u64, true, Backing::Sealed).expect("mapped");
    let rounds = [vec![1; LEN], vec![2; LEN]];
    for bytes in rounds.iter().cycle() {
        memory.copy_in(0, bytes).unwrap();
        // On standard error, which the test harness does not capture.
        writeln!(std::io::stderr(), "round").expect("the owner listens");
    }
    unreachable!("rounds have no end")
}

struct Peer {
    process: Child,
    rounds: BufReader<ChildStderr>,
}

impl Peer {
    fn start(memory: &Memory) -> Self {
        let (file, _) = memory.descriptor().expect("shared");
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_stopped_peer_changes_nothing_afterwards"])
            .env(PEER, "1")
            .stdin(file.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let rounds = BufReader::new(process.stderr.take().unwrap());
        Self { process, rounds }
    }

    /// Waits until the peer has filled the memory once more.
    fn round(&mut self) {
        let mut line = String::new();
        self.rounds.read_line(&mut line).unwrap();
        assert_eq!(line, "round\n");
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

/// Whether the memory was caught between two fillings.
fn is_mixed(bytes: &[u8]) -> bool {
    bytes.contains(&1) && bytes.contains(&2)
}

#[test]
fn a_stopped_peer_changes_nothing_afterwards() {
    if std::env::var_os(PEER).is_some() {
        peer();
    }
    let mut memory = Memory::allocate(LEN);
    memory.share().expect("shared");
    let mut peer = Peer::start(&memory);
    peer.round();
    peer.round();
    // Stop it in the middle of a copy, where it is nearly always.
    let mut bytes = vec![0; LEN];
    let caught = (0..1000).any(|_| {
        peer.stop();
        memory.copy_out(0, &mut bytes).unwrap();
        is_mixed(&bytes) || {
            peer.signal(libc::SIGCONT);
            false
        }
    });
    assert!(caught, "the peer was never in the middle of a copy");
    let buf = Buf::try_from(memory).expect("comes back at once, though the peer is stopped");
    assert!(buf[..] == bytes[..], "the content changed on the way back");
    peer.signal(libc::SIGCONT);
    for _ in 0..3 {
        peer.round();
    }
    assert!(
        buf[..] == bytes[..],
        "a stopped peer wrote into private memory"
    );
}
