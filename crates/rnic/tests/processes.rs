//! Devices in processes of their own: moving bytes, dying, forking.
//!
//! The other process is this test program again, told by an environment variable to be the peer.

mod support;

use std::io::{BufRead, BufReader, Write as _};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use ringmail_rnic::{AddressChoice, Device, DeviceConfig, DeviceLost};
use roce::verbs::{Operation, QpType, Remote, Status};
use roce::wire::{Key, Qpn};
use support::{Side, connect, pattern};

const PEER: &str = "RNIC_TEST_PEER";

struct Peer {
    child: Child,
    input: ChildStdin,
    lines: Box<dyn Iterator<Item = String>>,
}

impl Peer {
    /// Another process whose memory is connected to `side`, and where that is.
    fn connected(side: &Side) -> (Self, Remote) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer_process", "--nocapture"])
            .env(PEER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = output.lines().map_while(Result::ok).filter_map(|line| {
            // The test harness speaks, too.
            line.split_once("peer: ").map(|(_, said)| said.to_owned())
        });
        let mut peer = Self {
            child,
            input,
            lines: Box::new(lines),
        };
        peer.tell(&describe(side));
        let (address, qpn, remote) = parse(&peer.hear());
        connect(side, address, qpn, 1, 1);
        assert_eq!(peer.hear(), "ready");
        (peer, remote)
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        self.lines.next().expect("the peer speaks")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(side: &Side) -> String {
    format!(
        "{} {} {} {}",
        side.device.address(),
        side.qp.qpn().value(),
        side.mr.iova(),
        side.mr.rkey().0
    )
}

fn parse(line: &str) -> (IpAddr, Qpn, Remote) {
    let fields: Vec<&str> = line.split(' ').collect();
    let remote = Remote {
        addr: fields[2].parse().unwrap(),
        rkey: Key(fields[3].parse().unwrap()),
    };
    (
        fields[0].parse().unwrap(),
        Qpn::new(fields[1].parse().unwrap()),
        remote,
    )
}

/// The other process: connects, and then sleeps in a read until told to show its memory.
#[test]
fn peer_process() {
    if std::env::var_os(PEER).is_none() {
        return;
    }
    let mut lines = std::io::stdin().lines();
    let (address, qpn, _) = parse(&lines.next().unwrap().unwrap());
    let side = Side::new(&DeviceConfig::default(), QpType::Rc, 1 << 20);
    println!("\npeer: {}", describe(&side));
    connect(&side, address, qpn, 1, 1);
    println!("peer: ready");
    while let Some(Ok(line)) = lines.next() {
        let len: usize = line.parse().unwrap();
        println!("peer: {}", crc32fast::hash(&side.bytes(0, len)));
    }
}

#[test]
fn another_process_s_memory_is_written_and_read_while_it_sleeps() {
    let side = Side::new(&DeviceConfig::default(), QpType::Rc, 1 << 20);
    let (mut peer, remote) = Peer::connected(&side);
    side.fill(0, 500_000, 7);
    side.post(1, Operation::Write(remote), 0, 500_000);
    side.succeed();
    peer.tell("500000");
    assert_eq!(
        peer.hear(),
        crc32fast::hash(&pattern(500_000, 7)).to_string()
    );
    side.post(
        2,
        Operation::Read(Remote {
            addr: remote.addr + 1000,
            ..remote
        }),
        600_000,
        400_000,
    );
    side.succeed();
    assert_eq!(side.bytes(600_000, 400_000), pattern(401_000, 7)[1000..]);
    side.mr.memory().store_u64(0, 0).unwrap();
    side.post(3, Operation::FetchAdd { remote, add: 1 }, 0, 8);
    side.succeed();
    assert_eq!(side.bytes(0, 8), pattern(8, 7));
}

#[test]
fn a_peer_killed_in_mid_transfer_ends_everything_in_bounded_time() {
    let side = Side::new(&DeviceConfig::default(), QpType::Rc, 1 << 20);
    let (mut peer, remote) = Peer::connected(&side);
    for wr_id in 0..64 {
        side.post(wr_id, Operation::Write(remote), 0, 1 << 20);
    }
    side.succeed();
    peer.child.kill().unwrap();
    let killed = Instant::now();
    let mut failed = 0;
    for _ in 1..64 {
        let status = side.complete().status;
        failed += u32::from(status != Status::Success);
        assert!(
            failed == 0 || matches!(status, Status::RetryExceeded | Status::Flushed),
            "{status:?}"
        );
    }
    assert!(killed.elapsed() < Duration::from_secs(15));
    assert_eq!(side.qp.outstanding(), 0);
}

#[test]
fn a_forked_child_s_objects_answer_errors_and_leave_the_parent_alone() {
    let side = Side::new(&DeviceConfig::default(), QpType::Rc, 4096);
    // SAFETY: the child only calls what refuses at once, and leaves without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = side.cq.poll_one() == Err(DeviceLost)
            && side.device.alloc_pd().err() == Some(DeviceLost)
            && side.device.drive() == Err(DeviceLost);
        drop(side);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if refused { 7 } else { 8 }) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` is a live c_int.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(libc::WEXITSTATUS(status), 7, "status {status:#x}");
    let (_peer, remote) = Peer::connected(&side);
    side.post(1, Operation::Write(remote), 0, 8);
    side.succeed();
}

#[test]
fn a_port_held_by_another_process_is_said_to_be() {
    let side = Side::new(&DeviceConfig::default(), QpType::Rc, 4096);
    let (peer, _) = Peer::connected(&side);
    let path = side.qp.attr().unwrap().path.unwrap();
    let config = DeviceConfig {
        address: AddressChoice::Ip(path.destination),
        ..DeviceConfig::default()
    };
    let refused = Device::open(&config).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("process {}", peer.child.id())),
        "{refused}"
    );
}
