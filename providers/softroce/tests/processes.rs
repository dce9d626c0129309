//! Two processes: the target's memory is reached whatever its program does, and its death ends what was under way.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fabric::{
    Access, Buf, CompletionQueue, Domain, Endpoint, EndpointKind, Event, Memory, Registry,
    RemoteRegion, Status, Work,
};
use ringmail_softroce::Softroce;

/// Names what this executable is to do as a target, instead of testing.
const ROLE: &str = "SOFTROCE_TEST_ROLE";
const PATIENCE: Duration = Duration::from_secs(20);
const LEN: usize = 1 << 20;

fn open(settings: &[(&str, &str)]) -> Domain {
    let registry = Registry::new().with(Softroce::new());
    let mut config = registry.defaults();
    for (name, value) in settings {
        config.set(name, value).unwrap();
    }
    registry.open("softroce", &config).unwrap()
}

/// Another process with an exposed region, and an endpoint connected to it.
struct Target {
    child: Child,
    region: RemoteRegion,
    domain: Domain,
    cq: CompletionQueue,
    endpoint: Endpoint,
}

impl Target {
    fn start(role: &str, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_target", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output
            .lines()
            .map_while(Result::ok)
            // The test harness speaks, too.
            .find_map(|line| line.split_once("target: ").map(|(_, said)| said.to_owned()))
            .expect("the target says where it is");
        let mut words = said.split(' ');
        let address = words.next().unwrap().into();
        let mut number = || words.next().unwrap().parse().unwrap();
        let region = RemoteRegion {
            addr: number(),
            len: number(),
            key: number(),
        };
        let settings = [settings, &[("address", "fresh")]].concat();
        let domain = open(&settings);
        let cq = domain.completion_queue(1024).unwrap();
        let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
        endpoint.connect(&address, b"", PATIENCE).unwrap();
        Self {
            child,
            region,
            domain,
            cq,
            endpoint,
        }
    }

    fn run(&self, work: Work) -> Buf {
        self.endpoint.post_one(work).unwrap();
        let done = self.cq.next(PATIENCE).unwrap().ok().unwrap();
        done.into_buf().unwrap()
    }

    fn buf(&self, bytes: &[u8]) -> Buf {
        self.domain.buf_from(bytes).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.domain.counters();
        let found = counters.iter().find(|(known, _)| *known == name);
        found.expect("it is counted").1
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No test, but what the other process does; it never returns.
#[test]
fn the_target() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let domain = open(&[]);
    let region = domain
        .register(Memory::allocate(LEN), Access::all())
        .unwrap();
    let cq = domain.completion_queue(16).unwrap();
    let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
    let listener = domain.listen("").unwrap();
    let RemoteRegion { addr, len, key } = region.remote();
    println!("target: {} {addr} {len} {key}", listener.address());
    let request = listener.next(PATIENCE).unwrap();
    request.accept(&endpoint, b"").unwrap();
    endpoint.wait_connected(PATIENCE).unwrap();
    if role == "hammer" {
        // Ends when it is killed, or with its parent at the latest.
        let start = Instant::now();
        let mut byte = 0_u8;
        while start.elapsed() < 10 * PATIENCE {
            byte = byte.wrapping_add(1);
            let word = u64::from_ne_bytes([byte; 8]);
            for at in (0..4096).step_by(8) {
                region.store(at, word).unwrap();
            }
        }
    }
    // What is to be shown: nothing of this program runs while its memory is used.
    std::thread::sleep(10 * PATIENCE);
}

#[test]
fn memory_of_a_program_that_sleeps_is_written_read_and_counted_in() {
    let target = Target::start("sleep", &[]);
    let start = Instant::now();
    for round in 0..100_u64 {
        let data = vec![round as u8; 9000];
        target.run(Work::write(1, target.buf(&data), target.region.at(64)));
        let read = target.run(Work::read(2, target.buf(&[0; 9000]), target.region.at(64)));
        assert!(read[..] == data, "round {round}");
        let old = Work::fetch_add(3, target.buf(&[0; 8]), target.region.at(0), 2);
        assert_eq!(target.run(old)[..], (2 * round).to_ne_bytes());
        let (expected, new) = (2 * round + 2, 2 * round + 2);
        let work = Work::compare_swap(4, target.buf(&[0; 8]), target.region.at(0), expected, new);
        assert_eq!(target.run(work)[..], expected.to_ne_bytes());
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "the target had woken up before the work was done"
    );
}

#[test]
fn words_that_the_target_hammers_are_read_whole_and_without_a_retry() {
    // Without extensions nothing but a refused packet or a silence of 134 ms is a reason to ask again.
    let target = Target::start("hammer", &[("extensions", "off")]);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        let word = target.run(Work::read(1, target.buf(&[0; 8]), target.region));
        assert!(word.iter().all(|byte| *byte == word[0]), "{word:?} is torn");
        seen.insert(word[0]);
        // Whatever the target does meanwhile, what was checksummed is what left.
        target.run(Work::read(2, target.buf(&[0; 4096]), target.region));
    }
    assert!(seen.len() > 1, "the target did not hammer");
    assert_eq!(target.counter("dropped_bad_icrc"), 0);
    assert_eq!(target.counter("packets_retransmitted"), 0);
}

#[test]
fn the_death_of_a_peer_ends_all_that_was_under_way() {
    for extensions in ["on", "off"] {
        let mut target = Target::start("sleep", &[("extensions", extensions)]);
        // Nobody will receive the messages, so there is always something under way behind the first of them.
        let mut works: Vec<_> = (0..96)
            .map(|context| match context % 3 {
                0 if context > 30 => Work::send(context, target.buf(&[1; 100_000])),
                1 => Work::read(context, target.buf(&[0; 500_000]), target.region),
                _ => Work::write(context, target.buf(&[2; 500_000]), target.region),
            })
            .collect();
        target.endpoint.post(&mut works).unwrap();
        let mut ends: Vec<_> = (0..4).map(|_| target.cq.next(PATIENCE).unwrap()).collect();
        target.child.kill().unwrap();
        target.child.wait().unwrap();
        let killed = Instant::now();
        while ends.len() < 96 {
            ends.push(target.cq.next(PATIENCE).unwrap());
        }
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(5), "it took {took:?}");
        ends.sort_by_key(|end| end.context);
        assert!(ends.iter().map(|end| end.context).eq(0..96), "each once");
        let failed = ends
            .iter()
            .find(|end| !end.status.is_success())
            .expect("messages that nobody receives fail");
        assert_eq!(failed.status, Status::RetryExceeded);
        let event = target.endpoint.events().wait(PATIENCE);
        assert!(
            matches!(event, Some(Event::Disconnected { .. })),
            "{event:?}"
        );
        let late = Work::send(100, target.buf(b"late"));
        target.endpoint.post_one(late).unwrap();
        let late = target.cq.next(PATIENCE).unwrap();
        assert_eq!(late.status, Status::Flushed);
    }
}
