//! Tests: a peer of the same user that breaks every rule. It connects as it should, and then writes whatever it likes.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::{
    Access, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Event, Memory, Registry,
    Segments, Work,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use crate::Shm;
use crate::bell::Bell;
use crate::mapping::Mapping;
use crate::region::Exports;
use crate::ring::{Cell, Consumer, Geometry, Producer, Way};
use crate::socket;
use crate::wire::{Hello, Message};

const GEOMETRY: Geometry = Geometry {
    cells: 16,
    data: 4096,
};
const PATIENCE: Duration = Duration::from_secs(20);
const RECEIVES: u64 = 20;

/// A program that does all right.
struct Victim {
    _domain: Domain,
    endpoint: Endpoint,
    cq: CompletionQueue,
    region: fabric::MemoryRegion,
}

/// Its peer.
struct Hostile {
    socket: std::os::fd::OwnedFd,
    mapping: Arc<Mapping>,
    producer: Producer,
    _consumer: Consumer,
    _exports: Arc<Exports>,
    _bell: Bell,
}

fn connected() -> (Victim, Hostile) {
    let registry = Registry::new().with(Shm::new());
    let domain = registry.open("shm", &registry.defaults()).unwrap();
    let cq = domain.completion_queue(64).unwrap();
    let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open().unwrap();
    let region = domain
        .register(Memory::allocate(4096), Access::all())
        .unwrap();
    let listener = domain.listen("").unwrap();
    let (socket, _) = socket::connect(listener.address().as_str()).unwrap();
    let (mapping, file) = Mapping::create("hostile", GEOMETRY.len()).unwrap();
    let mapping = Arc::new(mapping);
    let bell = Bell::new().unwrap();
    let exports = Exports::new().unwrap();
    let introduced = exports.hello();
    let request = Message::Request {
        geometry: GEOMETRY,
        hello: Hello {
            node: [1; 16],
            greeting: introduced.bytes.try_into().unwrap(),
        },
        private_data: Vec::new(),
    };
    let mut files = vec![file.as_fd()];
    files.extend(introduced.files.iter().map(|file| file.as_fd()));
    files.extend(bell.files());
    socket::send(socket.as_fd(), &request, &files).unwrap();
    let request = listener.next(PATIENCE).unwrap();
    request.accept(&endpoint, b"").unwrap();
    socket::send(socket.as_fd(), &Message::Ready, &[]).unwrap();
    endpoint.wait_connected(PATIENCE).unwrap();
    let victim = Victim {
        _domain: domain,
        endpoint,
        cq,
        region,
    };
    for context in 0..RECEIVES {
        let local = match context % 3 {
            0 => Segments::none(),
            1 => victim.region.slice(0..100).unwrap().into(),
            _ => fabric::Buf::zeroed(1000).into(),
        };
        victim
            .endpoint
            .post_one(Work::recv(context, local))
            .unwrap();
    }
    let hostile = Hostile {
        socket,
        producer: Producer::new(&mapping, GEOMETRY, Way::Out),
        _consumer: Consumer::new(&mapping, GEOMETRY, Way::Back),
        mapping,
        _exports: exports,
        _bell: bell,
    };
    (victim, hostile)
}

impl Victim {
    /// Ends the connection, and looks that all work ends exactly once.
    fn survives(self, mut ends: Vec<Completion>, posted: u64) {
        self.endpoint.disconnect();
        let deadline = Instant::now() + PATIENCE;
        while (ends.len() as u64) < posted {
            self.cq.poll(&mut ends, 64);
            assert!(
                Instant::now() < deadline,
                "{} of {posted} ended",
                ends.len()
            );
        }
        let mut contexts: Vec<_> = ends.iter().map(|end| end.context).collect();
        contexts.sort_unstable();
        assert_eq!(contexts, (0..posted).collect::<Vec<_>>());
        let ended = self.endpoint.events().wait(PATIENCE);
        assert!(
            matches!(ended, Some(Event::Disconnected { .. })),
            "{ended:?}"
        );
    }
}

/// Words that lie near what matters.
fn word(key: u64, addr: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..130,
        4000_u64..4200,
        any::<u64>(),
        Just(key),
        (0_u64..5000).prop_map(move |offset| addr.wrapping_add(offset)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_cell_harms_who_reads_it(seed in any::<[u8; 32]>()) {
        let (victim, mut hostile) = connected();
        let remote = victim.region.remote();
        let config = proptest::test_runner::Config::default();
        let rng = proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &seed);
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
        let cells = (
            0_u8..11,
            prop_oneof![Just(0x70_u8), any::<u8>()],
            0_u8..60,
            prop_oneof![0_u32..20, any::<u32>()],
            proptest::array::uniform6(word(remote.key, remote.addr)),
        );
        let mut ends = Vec::new();
        for _ in 0..12 {
            let (kind, flags, len, acknowledged, words) =
                cells.new_tree(&mut runner).unwrap().current();
            hostile.producer.push(&Cell { kind, flags, len, acknowledged, immediate: 1, words });
            victim.cq.poll(&mut ends, 64);
        }
        victim.survives(ends, RECEIVES);
    }

    #[test]
    fn no_word_of_the_ring_harms_who_shares_it(words in proptest::collection::vec((0_usize..3000, prop_oneof![0_u64..70, any::<u64>()]), 1..300)) {
        let (victim, hostile) = connected();
        let all = hostile.mapping.words();
        let mut ends = Vec::new();
        // It also sends, so that what the peer says of that is read.
        let mut posted = RECEIVES;
        for (number, (at, value)) in words.into_iter().enumerate() {
            all[at % all.len()].store(value, std::sync::atomic::Ordering::Release);
            if number % 16 == 0 {
                let len = if number % 32 == 0 { 8 } else { 300 };
                let work = Work::send(posted, fabric::Buf::zeroed(len));
                posted += u64::from(victim.endpoint.post_one(work).is_ok());
            }
            victim.cq.poll(&mut ends, 64);
        }
        victim.survives(ends, posted);
    }

    #[test]
    fn no_message_harms_who_hears_it(kind in 0_u8..9, rest in proptest::collection::vec(any::<u8>(), 0..300), files in 0_usize..4) {
        let (victim, hostile) = connected();
        let Some(message) = Message::parse(&[&[b'R', b'S', 1, kind][..], &rest].concat()) else {
            return Ok(());
        };
        let files = vec![hostile.socket.as_fd(); files];
        socket::send(hostile.socket.as_fd(), &message, &files).unwrap();
        victim.survives(Vec::new(), RECEIVES);
    }
}
