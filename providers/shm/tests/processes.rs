//! Two processes: one is killed at any point of its traffic, or stopped in the middle of a write; the other goes on.
//!
//! The test runs itself again as the peer, which is told in its environment where to connect and what to do.
#![cfg(target_os = "linux")]

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fabric::{
    Access, Address, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Event, Listener,
    Memory, Registry, RemoteRegion, Segment, Status, Work,
};
use ringmail_shm::Shm;

/// Tells this executable to be a peer: what to do, its number, where to connect, and the region there.
const PEER: &str = "RINGMAIL_SHM_TEST_PEER";
/// How many peers are killed.
const KILLS: &str = "RINGMAIL_SHM_TEST_KILLS";
const PATIENCE: Duration = Duration::from_secs(20);
const REGION: usize = 128 << 10;
const LARGE: usize = 32 << 20;

fn open() -> Domain {
    let registry = Registry::new().with(Shm::new());
    registry.open("shm", &registry.defaults()).unwrap()
}

fn expose(domain: &Domain, len: usize) -> fabric::MemoryRegion {
    domain
        .register(Memory::allocate(len), Access::all())
        .unwrap()
}

/// Everything at once, in both directions, as fast as it goes.
struct Traffic {
    domain: Domain,
    cq: CompletionQueue,
    endpoint: Endpoint,
    peer: RemoteRegion,
    next: u64,
    outstanding: HashSet<u64>,
    receives: usize,
    sends: usize,
    failures: usize,
}

impl Traffic {
    fn new(domain: &Domain, peer: RemoteRegion) -> Self {
        let cq = domain.completion_queue(256).unwrap();
        let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
        Self {
            domain: domain.clone(),
            cq,
            endpoint,
            peer,
            next: 0,
            outstanding: HashSet::new(),
            receives: 0,
            sends: 0,
            failures: 0,
        }
    }

    /// Tops up what is outstanding and takes what has ended.
    fn step(&mut self) {
        while self.receives < 16 {
            let buf = self.domain.buf(6000).unwrap();
            self.post(Work::recv(self.next, buf));
            self.receives += 1;
        }
        while self.sends < 16 {
            let buf = |len| self.domain.buf(len).unwrap();
            let peer = self.peer;
            let context = self.next;
            let work = match context % 7 {
                0 | 1 => Work::send(context, buf(64)),
                2 => Work::send(context, buf(6000)),
                3 => Work::write(context, buf(100_000), peer.at(8)),
                4 => Work::write(context, buf(8), peer.at(16)),
                5 => Work::read(context, buf(70_000), peer.at(0)),
                _ => Work::fetch_add(context, buf(8), peer.at(0), 1),
            };
            self.post(work);
            self.sends += 1;
        }
        while let Some(done) = self.cq.poll_one() {
            self.end(&done);
        }
    }

    fn post(&mut self, work: Work) {
        self.outstanding.insert(self.next);
        self.next += 1;
        self.endpoint.post_one(work).expect("there is room");
    }

    fn end(&mut self, done: &Completion) {
        let context = done.context;
        assert!(
            self.outstanding.remove(&context),
            "{context} is reported once"
        );
        let receive = done.opcode.is_receive();
        *if receive {
            &mut self.receives
        } else {
            &mut self.sends
        } -= 1;
        self.failures += usize::from(!done.status.is_success());
    }

    /// The peer is dead: all that is outstanding ends, and the endpoint says so.
    fn finish(mut self) {
        while !self.outstanding.is_empty() {
            let done = self.cq.next(PATIENCE).expect("all work ends");
            self.end(&done);
        }
        let event = self.endpoint.events().wait(PATIENCE);
        assert!(
            matches!(event, Some(Event::Disconnected { .. })),
            "{event:?}"
        );
        let late = self.domain.buf_from(b"late").unwrap();
        self.endpoint.post_one(Work::send(0, late)).unwrap();
        let late = self.cq.next(PATIENCE).expect("reported");
        assert_eq!(late.status, Status::Flushed);
    }
}

/// The other process. Killed on drop.
struct Peer {
    process: Child,
    number: u32,
}

impl Peer {
    fn start(role: &str, number: u32, at: &Address, region: RemoteRegion) -> Self {
        let process = Self::command(role, number, at, region).spawn().unwrap();
        Self { process, number }
    }

    fn command(role: &str, number: u32, at: &Address, region: RemoteRegion) -> Command {
        let RemoteRegion { addr, len, key } = region;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "the_peer", "--nocapture"])
            .env(PEER, format!("{role} {number} {at} {addr} {len} {key}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// What it says on lines of its own, until it ends.
    fn says(&mut self) -> impl Iterator<Item = String> + use<> {
        let said = BufReader::new(self.process.stderr.take().unwrap());
        said.lines()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("peer: ").map(str::to_owned))
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.process.id()).unwrap();
        // SAFETY: signals a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Stops it and waits until it has stopped.
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

/// No test, but what the other process does.
#[test]
fn the_peer() {
    let Ok(told) = std::env::var(PEER) else {
        return;
    };
    let mut words = told.split(' ');
    let mut next = || words.next().expect("six words");
    let (role, number, at) = (
        next(),
        next().parse::<u32>().unwrap(),
        Address::from(next()),
    );
    let mut number_of = || next().parse().unwrap();
    let theirs = RemoteRegion {
        addr: number_of(),
        len: number_of(),
        key: number_of(),
    };
    if role == "abroad" {
        // SAFETY: a plain call; children of this process have numbers of their own from here on.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        assert_eq!(moved, 0, "only root is started with this role");
        let mut child = Peer::command("fill", number, &at, theirs);
        let said = child.output().unwrap().stderr;
        eprint!("{}", String::from_utf8(said).unwrap());
        return;
    }
    let domain = open();
    let region = expose(&domain, REGION);
    let mut traffic = Traffic::new(&domain, theirs);
    let mut hello = number.to_be_bytes().to_vec();
    hello.extend(region.remote().to_bytes());
    let connected = traffic.endpoint.connect(&at, &hello, PATIENCE);
    if role == "stranger" {
        eprintln!("peer: {}", if connected.is_ok() { "in" } else { "out" });
        return;
    }
    connected.unwrap();
    match role {
        "storm" => {
            // Until it is killed, or the other is gone.
            while traffic.endpoint.events().wait(Duration::ZERO).is_none() {
                traffic.step();
            }
        }
        "vandal" => vandalise(&mut traffic, u64::from(number)),
        "fill" => fill(&traffic),
        other => panic!("no role is called {other}"),
    }
}

/// Writes nonsense into all memory that it shares, between bits of honest traffic, until it is killed.
fn vandalise(traffic: &mut Traffic, seed: u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let shared: Vec<(usize, usize)> = maps
        .lines()
        .filter(|line| line.contains("rw-s") && line.contains("memfd:"))
        .filter_map(|line| line.split(' ').next()?.split_once('-'))
        .map(|(start, end)| {
            let parse = |address| usize::from_str_radix(address, 16).unwrap();
            (parse(start), parse(end))
        })
        .collect();
    assert!(!shared.is_empty(), "a connection shares memory");
    let mut random = Random(seed);
    let place = |random: &mut Random| {
        let (start, end) = shared[random.below(shared.len())];
        // Mostly at the beginning, where the rings are.
        let words = (end - start) / 8;
        let words = if random.below(4) == 0 {
            words
        } else {
            words.min(2048)
        };
        let address = start + random.below(words) * 8;
        // SAFETY: an aligned word of a shared mapping of this process, which is here to do harm to another.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(address)) }
    };
    loop {
        // This side may find the connection broken by now; the other must go on.
        if traffic.endpoint.events().wait(Duration::ZERO).is_none() {
            traffic.step();
        }
        for _ in 0..random.below(64) {
            let word = place(&mut random);
            let value = match random.below(4) {
                0 => random.next(),
                1 => word.load(Ordering::Relaxed) ^ 1 << random.below(64),
                2 => word
                    .load(Ordering::Relaxed)
                    .wrapping_add(random.below(3) as u64),
                _ => place(&mut random).load(Ordering::Relaxed),
            };
            word.store(value, Ordering::Release);
        }
    }
}

/// Numbers from a seed (Knuth's constants), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 33
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

/// Fills the other's region with 1, 2, 1, 2… and says what becomes of it, until it fails.
fn fill(traffic: &Traffic) {
    let mut segment: Segment = traffic.domain.buf_from(&vec![1; LARGE]).unwrap().into();
    let mut spare: Segment = traffic.domain.buf_from(&vec![2; LARGE]).unwrap().into();
    loop {
        let work = Work::write(1, segment, traffic.peer.at(0));
        traffic.endpoint.post_one(work).unwrap();
        let done = traffic.cq.next(PATIENCE).unwrap();
        eprintln!("peer: {:?}", done.status);
        if !done.status.is_success() {
            return;
        }
        segment = done.local.into_iter().next().unwrap();
        std::mem::swap(&mut segment, &mut spare);
    }
}

/// Waits for a connection of the peer with this number until the time is over; others came from the dead.
fn accept(domain: &Domain, listener: &Listener, number: u32, timeout: Duration) -> Option<Traffic> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = listener.next(left).ok()?;
        let (from, region) = request.private_data().split_at(4);
        if from != number.to_be_bytes() {
            continue;
        }
        let traffic = Traffic::new(domain, RemoteRegion::from_bytes(region).unwrap());
        // It may be dead by now.
        request.accept(&traffic.endpoint, b"").ok()?;
        traffic.endpoint.wait_connected(PATIENCE).ok()?;
        return Some(traffic);
    }
}

/// Descriptors and mappings of this process.
fn held() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (
        std::fs::read_dir("/proc/self/fd").unwrap().count(),
        maps.lines().count(),
    )
}

#[test]
fn a_peer_killed_at_any_point_harms_nobody() {
    let kills = std::env::var(KILLS).map_or(100, |kills| kills.parse().unwrap());
    let domain = open();
    let listener = domain.listen("").unwrap();
    let mut random = Random(1);
    let mut before = (0, 0);
    let mut connected = 0;
    for number in 0..kills {
        let region = expose(&domain, REGION);
        let mut peer = Peer::start("storm", number, &listener.address(), region.remote());
        // Every fourth dies while it starts or connects, the others in traffic.
        let early = number % 4 == 3;
        let patience = if early {
            Duration::from_micros(random.below(20_000) as u64)
        } else {
            PATIENCE
        };
        let traffic = accept(&domain, &listener, peer.number, patience);
        let traffic = traffic.map(|mut traffic| {
            let until = Instant::now() + Duration::from_micros(random.below(3000) as u64);
            while Instant::now() < until {
                traffic.step();
            }
            traffic
        });
        peer.process.kill().unwrap();
        peer.process.wait().unwrap();
        assert!(early || traffic.is_some(), "peer {number} connects");
        if let Some(traffic) = traffic {
            connected += 1;
            traffic.finish();
        }
        region.revoke().expect("comes back");
        if number == 7 {
            before = held();
        }
    }
    assert!(connected > kills / 2);
    // What belonged to the dead is given up, at the latest by the background thread.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = held();
        if after.0 <= before.0 + 4 && after.1 <= before.1 + 16 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{after:?} descriptors and mappings, {before:?} before"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_peer_that_writes_nonsense_breaks_only_its_own_connection() {
    let domain = open();
    let listener = domain.listen("").unwrap();
    let mut broken = 0;
    for number in 0..40 {
        let region = expose(&domain, REGION);
        let mut peer = Peer::start("vandal", number, &listener.address(), region.remote());
        let mut traffic = accept(&domain, &listener, number, PATIENCE).expect("connects");
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            traffic.step();
        }
        broken += usize::from(traffic.failures > 0);
        peer.process.kill().unwrap();
        peer.process.wait().unwrap();
        traffic.finish();
        region.revoke().expect("comes back");
    }
    assert!(broken > 5, "nonsense broke only {broken} of 40 connections");
    // The rest of the process is as it was.
    let region = expose(&domain, REGION);
    let peer = Peer::start("storm", 1000, &listener.address(), region.remote());
    let mut traffic = accept(&domain, &listener, 1000, PATIENCE).expect("connects");
    while traffic.next < 5000 {
        traffic.step();
    }
    drop(peer);
    traffic.finish();
}

#[test]
fn revoking_waits_for_no_stopped_peer_and_it_changes_nothing_later() {
    let domain = open();
    let listener = domain.listen("").unwrap();
    let region = expose(&domain, LARGE);
    let mut peer = Peer::start("fill", 0, &listener.address(), region.remote());
    let mut says = peer.says();
    let traffic = accept(&domain, &listener, 0, PATIENCE).expect("connects");
    assert_eq!(says.next().as_deref(), Some("Success"));
    assert_eq!(says.next().as_deref(), Some("Success"));
    // Stop it in the middle of a write, where it is nearly always.
    let mut bytes = vec![0; LARGE];
    let caught = (0..1000).any(|_| {
        peer.stop();
        region.read(0, &mut bytes).unwrap();
        bytes.contains(&1) && bytes.contains(&2) || {
            peer.signal(libc::SIGCONT);
            false
        }
    });
    assert!(caught, "the peer was never in the middle of a write");
    let buf = region.revoke().expect("comes back at once");
    assert!(buf[..] == bytes[..], "the content changed on the way back");
    peer.signal(libc::SIGCONT);
    let last = says.find(|said| said != "Success");
    assert_eq!(last.as_deref(), Some("RemoteAccess"));
    assert!(
        buf[..] == bytes[..],
        "a stopped peer wrote into private memory"
    );
    drop(traffic);
}

#[test]
fn another_users_process_gets_nothing() {
    // SAFETY: a plain call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can start another user's process");
        return;
    }
    let domain = open();
    let listener = domain.listen("").unwrap();
    let region = expose(&domain, REGION);
    let mut command = Peer::command("stranger", 0, &listener.address(), region.remote());
    let process = command.uid(65534).gid(65534).spawn().unwrap();
    let mut stranger = Peer { process, number: 0 };
    assert_eq!(stranger.says().next().as_deref(), Some("out"));
    assert!(
        listener.next(Duration::ZERO).is_err(),
        "nothing is heard of it"
    );
}

#[test]
fn a_process_without_a_number_here_is_served() {
    // SAFETY: a plain call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can start a process in another namespace");
        return;
    }
    let domain = open();
    let listener = domain.listen("").unwrap();
    let region = expose(&domain, LARGE);
    let mut peer = Peer::start("abroad", 0, &listener.address(), region.remote());
    let traffic = accept(&domain, &listener, 0, PATIENCE).expect("connects");
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 8];
    while bytes == [0; 8] {
        region.read(LARGE - 8, &mut bytes).unwrap();
        assert!(Instant::now() < deadline, "nothing is written");
    }
    drop(traffic);
    assert_eq!(peer.says().next().as_deref(), Some("Success"));
}
