//! How close does the device come to the sockets beneath it? Two processes on one host, pinned to two cores, both
//! polling; the raw sockets' figures are taken in the same run.
//!
//! `cargo bench -p ringmail-rnic --bench two_processes [-- FILTER]`; `ROUNDS` and `BUFFER` (bytes of socket buffer) in the
//! environment.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ringmail_rnic::DeviceConfig;
use roce::verbs::{CompletionKind, Operation, QpType, Remote, SendFlags, SendWork, Status};
use roce::wire::{Key, Qpn};
use support::{Side, connect, work};

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    if args.first().is_some_and(|arg| arg == "peer") {
        return peer(&args[1]);
    }
    let wanted =
        |name: &str| args.is_empty() || args.iter().any(|filter| name.contains(filter.as_str()));
    pin(0);
    for round in 0..rounds() {
        println!("round {round}");
        if wanted("raw-latency") {
            raw_latency();
        }
        if wanted("one-thread") {
            one_thread();
        }
        if wanted("write-latency") {
            write_latency();
        }
        if wanted("send-latency") {
            send_latency();
        }
        if wanted("ack-latency") {
            ack_latency("ack-latency", "poll", TRIPS);
        }
        if wanted("spin-latency") {
            ack_latency("spin-latency", "spin", TRIPS / 20);
        }
        if wanted("raw-stream") {
            raw_stream(61_680, 4112);
        }
        if wanted("write-64k") {
            bandwidth("write-64k", 64 << 10, 16, Operation::Write);
        }
        if wanted("write-1m") {
            bandwidth("write-1m", 1 << 20, 4, Operation::Write);
        }
        if wanted("read-1m") {
            bandwidth("read-1m", 1 << 20, 4, Operation::Read);
        }
        for (name, size, depth, operation) in [
            ("loss-write-64k", 64 << 10, 16, WRITE),
            ("loss-write-1m", 1 << 20, 4, WRITE),
            ("loss-read-64k", 64 << 10, 16, READ),
            ("loss-read-1m", 1 << 20, 4, READ),
        ] {
            if wanted(name) {
                loss(name, size, depth, operation);
            }
        }
        if wanted("raw-small") {
            raw_stream(64 * 64, 64);
        }
        if wanted("write-8") {
            rate("write-8", 8, 128);
        }
    }
}

const WRITE: fn(Remote) -> Operation = Operation::Write;
const READ: fn(Remote) -> Operation = Operation::Read;
const REGION: usize = 8 << 20;

/// `BUFFER=0` takes the system's default of socket buffer, another number asks for so many bytes.
fn with_buffer(config: DeviceConfig) -> DeviceConfig {
    let buffer = std::env::var("BUFFER")
        .ok()
        .and_then(|text| text.parse().ok());
    DeviceConfig { buffer, ..config }
}

fn rounds() -> usize {
    std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

fn pin(core: usize) {
    // SAFETY: a cpu_set_t of zeros is valid; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// How both processes open their devices.
#[derive(Clone, Copy)]
struct Setup {
    faults: &'static str,
    extensions: bool,
}

impl Setup {
    const PLAIN: Self = Self {
        faults: "",
        extensions: true,
    };

    fn config(self) -> DeviceConfig {
        DeviceConfig {
            faults: self.faults.parse().unwrap(),
            plain: !self.extensions,
            ..DeviceConfig::default()
        }
    }
}

impl Peer {
    fn start(mode: &str) -> Self {
        Self::start_with(mode, Setup::PLAIN)
    }

    fn start_with(mode: &str, setup: Setup) -> Self {
        let extensions = if setup.extensions { "on" } else { "off" };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["peer", mode])
            .env("RINGMAIL_FAULTS", setup.faults)
            .env("RINGMAIL_EXTENSIONS", extensions)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        Self {
            child,
            input,
            output,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn connect(&mut self) -> (Side, Remote) {
        self.connect_with(Setup::PLAIN)
    }

    fn connect_with(&mut self, setup: Setup) -> (Side, Remote) {
        let config = with_buffer(setup.config().fresh());
        let side = Side::new(&config, QpType::Rc, REGION);
        self.tell(&describe(&side));
        let (address, qpn, remote) = parse(&self.line());
        connect(&side, address, qpn, 1, 1);
        assert_eq!(self.line(), "ready");
        (side, remote)
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

/// The other process.
fn peer(mode: &str) {
    pin(1);
    let mut lines = std::io::stdin().lines();
    let mut next = || lines.next().unwrap().unwrap();
    if let Some(segment) = mode.strip_prefix("raw-stream-") {
        return raw_receive(segment.parse().unwrap());
    }
    if mode == "raw-echo" {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        println!("{}", socket.local_addr().unwrap());
        let mut bytes = [0; 2048];
        loop {
            if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..len], from);
            }
        }
    }
    let side = Side::new(
        &with_buffer(DeviceConfig::from_env().unwrap()),
        QpType::Rc,
        REGION,
    );
    println!("{}", describe(&side));
    let (address, qpn, remote) = parse(&next());
    connect(&side, address, qpn, 1, 1);
    println!("ready");
    match mode {
        "poll" => loop {
            side.cq.poll_one().unwrap();
            if side.mr.memory().load_u64(REGION - 8).unwrap() == END {
                side.mr.memory().store_u64(REGION - 8, 0).unwrap();
                println!("{}", brief(&side));
            }
        },
        // A target that waits for memory and makes no call: the helper does everything.
        "spin" => loop {
            std::hint::spin_loop();
            if side.mr.memory().load_u64(REGION - 8).unwrap() == END {
                side.mr.memory().store_u64(REGION - 8, 0).unwrap();
                println!("{}", brief(&side));
            }
        },
        "echo-send" => {
            for wr_id in 0..SENDS {
                side.post_recv(wr_id, 64 * wr_id, 64);
            }
            loop {
                if let Some(done) = side.cq.poll_one().unwrap()
                    && done.kind == CompletionKind::Recv
                {
                    side.post_recv(done.wr_id, 64 * done.wr_id, 64);
                    side.post(done.wr_id, Operation::Send, 64 * done.wr_id, done.byte_len);
                }
            }
        }
        "echo" => {
            let mut seen = 0;
            loop {
                let word = side.mr.memory().load_u64(0).unwrap();
                if word != seen {
                    seen = word;
                    side.mr.memory().store_u64(8, word).unwrap();
                    let echo = work(word, Operation::Write(remote), side.local(8, 8));
                    let flags = if word.is_multiple_of(64) {
                        SendFlags::SIGNALED
                    } else {
                        SendFlags::empty()
                    };
                    side.qp.post_send(SendWork { flags, ..echo }).unwrap();
                } else {
                    side.cq.poll_one().unwrap();
                }
            }
        }
        other => panic!("unknown mode {other}"),
    }
}

fn percentiles(name: &str, mut nanos: Vec<u64>) {
    nanos.sort_unstable();
    let at = |share: f64| nanos[(nanos.len() as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "{name:14} round trip µs: p50 {:.2} p99 {:.2} p99.9 {:.2}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

const TRIPS: usize = 100_000;
/// Receives that are posted for an exchange of messages.
const SENDS: u64 = 64;
/// Written to the end of the peer's region: it then tells what it counted.
const END: u64 = 0x0E0E_0E0E_0E0E_0E0E;

fn peers_counts(side: &Side, remote: Remote, peer: &mut Peer) -> String {
    while side.qp.outstanding() > 0 {
        side.cq.poll_one().unwrap();
    }
    side.mr.memory().store_u64(REGION - 8, END).unwrap();
    let at = Remote {
        addr: remote.addr + REGION as u64 - 8,
        ..remote
    };
    side.post(0, Operation::Write(at), REGION as u64 - 8, 8);
    while side.qp.outstanding() > 0 {
        side.cq.poll_one().unwrap();
    }
    peer.line()
}

fn raw_latency() {
    let mut peer = Peer::start("raw-echo");
    let to: SocketAddr = peer.line().parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut bytes = [0; 64];
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        socket.send_to(&bytes.clone(), to).unwrap();
        while socket.recv_from(&mut bytes).is_err() {}
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles("raw-latency", times);
}

fn write_latency() {
    let mut peer = Peer::start("echo");
    let (side, remote) = peer.connect();
    let mut times = Vec::with_capacity(TRIPS);
    for trip in 1..=TRIPS as u64 {
        let start = Instant::now();
        side.mr.memory().store_u64(8, trip).unwrap();
        let flags = if trip.is_multiple_of(64) {
            SendFlags::SIGNALED
        } else {
            SendFlags::empty()
        };
        side.qp
            .post_send(SendWork {
                flags,
                ..work(trip, Operation::Write(remote), side.local(8, 8))
            })
            .unwrap();
        while side.mr.memory().load_u64(0).unwrap() != trip {
            if let Some(done) = side.cq.poll_one().unwrap() {
                assert_eq!(done.status, Status::Success);
            }
        }
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles("write-latency", times);
    println!("               {:?}", brief(&side));
}

/// A message and its answer, every send reported.
fn send_latency() {
    let mut peer = Peer::start("echo-send");
    let (side, _) = peer.connect();
    let mut times = Vec::with_capacity(TRIPS);
    for wr_id in 0..SENDS {
        side.post_recv(wr_id, 64 * wr_id, 64);
    }
    for trip in 0..TRIPS as u64 {
        let start = Instant::now();
        side.post(trip, Operation::Send, REGION as u64 / 2, 8);
        loop {
            let Some(done) = side.cq.poll_one().unwrap() else {
                continue;
            };
            assert_eq!(done.status, Status::Success);
            if done.kind == CompletionKind::Recv {
                side.post_recv(done.wr_id, 64 * done.wr_id, 64);
                break;
            }
        }
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles("send-latency", times);
    println!("               {:?}", brief(&side));
}

/// A write and its acknowledgement, with nothing else for it to ride with.
fn ack_latency(name: &str, mode: &str, trips: usize) {
    let mut peer = Peer::start(mode);
    let (side, remote) = peer.connect();
    let mut times = Vec::with_capacity(trips);
    for trip in 0..trips as u64 {
        let start = Instant::now();
        side.post(trip, Operation::Write(remote), 0, 8);
        while side.cq.poll_one().unwrap().is_none() {}
        times.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(name, times);
    println!("               {:?}", brief(&side));
}

/// What a round trip costs in work, with nothing to wait for: both ends in one thread.
fn one_thread() {
    let (a, b) = support::pair(QpType::Rc);
    let start = Instant::now();
    for trip in 1..=TRIPS as u64 {
        a.mr.memory().store_u64(8, trip).unwrap();
        a.qp.post_send(work(trip, Operation::Write(b.remote(0)), a.local(8, 8)))
            .unwrap();
        while b.mr.memory().load_u64(0).unwrap() != trip {
            b.device.drive().unwrap();
        }
        b.device.drive().unwrap();
        while a.cq.poll_one().unwrap().is_none() {}
    }
    println!(
        "one-thread     {:.2} µs a write and its acknowledgement",
        start.elapsed().as_secs_f64() * 1e6 / TRIPS as f64
    );
}

fn brief(side: &Side) -> String {
    let counters = side.device.counters().unwrap();
    format!(
        "bursts {} packets {} receives {} packets {} overflows {} contended {} {:?} extended {}",
        counters.bursts,
        counters.packets_sent,
        counters.receive_calls,
        counters.packets_received,
        counters.overflows,
        counters.contended,
        side.qp.counters().unwrap(),
        side.qp.is_extended().unwrap(),
    )
}

fn bandwidth(name: &str, size: u32, depth: u64, operation: fn(Remote) -> Operation) {
    let mut peer = Peer::start("poll");
    let (side, remote) = peer.connect();
    let gbit = stream(&side, remote, size, depth, operation, DURATION);
    println!(
        "{name:14} {gbit:.1} Gbit/s\n               {}\n               {}",
        brief(&side),
        peers_counts(&side, remote, &mut peer)
    );
}

/// Gigabits a second that `depth` outstanding messages of `size` bytes move.
fn stream(
    side: &Side,
    remote: Remote,
    size: u32,
    depth: u64,
    operation: fn(Remote) -> Operation,
    duration: Duration,
) -> f64 {
    let slots = (REGION as u32 / size).min(depth as u32) as u64;
    let (mut posted, mut done) = (0u64, 0u64);
    let mut out = Vec::with_capacity(64);
    let start = Instant::now();
    while start.elapsed() < duration {
        while posted - done < depth {
            let offset = posted % slots * u64::from(size);
            let place = Remote {
                addr: remote.addr + offset,
                ..remote
            };
            side.post(posted, operation(place), offset, size);
            posted += 1;
        }
        done += poll(side, &mut out);
    }
    done as f64 * f64::from(size) * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

/// What is kept of the goodput when one packet in a hundred is lost: slices without faults, with the machinery of
/// faults but none, and with loss, taken in turn.
fn loss(name: &str, size: u32, depth: u64, operation: fn(Remote) -> Operation) {
    const NONE: &str = "loss=0.0000001%";
    const SETUPS: [(&str, &str, bool); 5] = [
        ("no faults", "", true),
        ("loss 0, selective repeat", NONE, true),
        ("loss 1 %, selective repeat", "loss=1%", true),
        ("loss 0, go-back-N", NONE, false),
        ("loss 1 %, go-back-N", "loss=1%", false),
    ];
    let mut figures = [(); SETUPS.len()].map(|()| Vec::new());
    let mut brief_of = [(); SETUPS.len()].map(|()| String::new());
    for _ in 0..SLICES {
        for (index, (_, faults, extensions)) in SETUPS.into_iter().enumerate() {
            let setup = Setup { faults, extensions };
            let mut peer = Peer::start_with("poll", setup);
            let (side, remote) = peer.connect_with(setup);
            figures[index].push(stream(&side, remote, size, depth, operation, SLICE));
            brief_of[index] = brief(&side);
        }
    }
    for (index, (what, ..)) in SETUPS.into_iter().enumerate() {
        let lossless = if what.ends_with("go-back-N") { 3 } else { 1 };
        let (gbit, base) = (median(&figures[index]), median(&figures[lossless]));
        println!(
            "{name:14} {what:28} {gbit:6.1} Gbit/s {:5.2}   {:.1?}\n               {}",
            gbit / base,
            figures[index],
            brief_of[index]
        );
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Slices of each kind, and how long one takes.
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_millis(200);

fn rate(name: &str, size: u32, depth: u64) {
    let mut peer = Peer::start("poll");
    let (side, remote) = peer.connect();
    let (mut posted, mut done) = (0u64, 0u64);
    let mut out = Vec::with_capacity(64);
    let start = Instant::now();
    while start.elapsed() < DURATION {
        while posted - done < depth {
            side.post(posted, Operation::Write(remote), 0, size);
            posted += 1;
        }
        done += poll(&side, &mut out);
    }
    let rate = done as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{name:14} {rate:.2} M/s\n               {}", brief(&side));
    println!("               {}", peers_counts(&side, remote, &mut peer));
}

fn poll(side: &Side, out: &mut Vec<roce::verbs::Completion>) -> u64 {
    out.clear();
    side.cq.poll(out, 64).unwrap();
    for done in out.iter() {
        assert_eq!(done.status, Status::Success);
    }
    out.len() as u64
}

const DURATION: Duration = Duration::from_millis(1500);

fn raw_stream(burst: usize, segment: usize) {
    let mut peer = Peer::start(&format!("raw-stream-{segment}"));
    let to: SocketAddr = peer.line().parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    let size = segment as libc::c_int;
    // SAFETY: the option's value is a live c_int.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            4,
        );
    }
    let bytes = vec![7u8; burst];
    let start = Instant::now();
    while start.elapsed() < DURATION {
        let _ = socket.send(&bytes);
    }
    drop(socket);
    let received: u64 = peer.line().parse().unwrap();
    let seconds = DURATION.as_secs_f64();
    println!(
        "raw-stream     {:.1} Gbit/s, {:.2} M segments/s, of {segment} bytes",
        received as f64 * 8.0 / seconds / 1e9,
        received as f64 / segment as f64 / seconds / 1e6,
    );
}

fn raw_receive(_segment: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let on: libc::c_int = 1;
    let buffer: libc::c_int = 4 << 20;
    // SAFETY: the options' values are live c_ints.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            4,
        );
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            4,
        );
    }
    println!("{}", socket.local_addr().unwrap());
    let mut bytes = vec![0; 65_536];
    let (mut received, mut last) = (0u64, Instant::now() + Duration::from_secs(1));
    while last.elapsed() < Duration::from_millis(100) {
        if let Ok(len) = socket.recv(&mut bytes) {
            received += len as u64;
            last = Instant::now();
        }
    }
    println!("{received}");
}
