//! Two nodes, a link each way, virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use super::link::Faults;
use super::node::Node;
use super::rng::Rng;
use crate::qp::Qp;
use crate::time::Instant;
use crate::verbs::{Access, Mtu, Path, QpAttr, QpState, QpType, Retries};
use crate::wire::{Headers, Psn, Qpn};

/// How the two queue pairs are set up.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Their service.
    pub qp_type: QpType,
    /// Path MTU.
    pub mtu: Mtu,
    /// READs and atomics outstanding, both ways.
    pub max_rd_atomic: u8,
    /// Local ACK timeout.
    pub timeout: Option<Duration>,
    /// Tries of a silent peer.
    pub retry_count: Retries,
    /// Tries of a peer without receives.
    pub rnr_retry: Retries,
    /// Code of the time to wait for a receive.
    pub min_rnr_timer: u8,
    /// First PSN each way.
    pub psn: [Psn; 2],
    /// Whether both know the extensions.
    pub extensions: bool,
    /// Whether WRITEs go in parts.
    pub parts: bool,
    /// How long acknowledgements wait for company.
    pub ack_delay: Duration,
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Packets in a burst.
    pub burst: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qp_type: QpType::Rc,
            mtu: Mtu::B1024,
            max_rd_atomic: 4,
            timeout: Some(Duration::from_micros(500)),
            retry_count: Retries::Limited(7),
            rnr_retry: Retries::Unlimited,
            min_rnr_timer: 1,
            psn: [Psn::new(0xFF_FFF0), Psn::new(7)],
            extensions: false,
            parts: false,
            ack_delay: Duration::ZERO,
            ipv6: false,
            burst: 16,
        }
    }
}

/// True for a packet that is to vanish.
pub type Censor = Box<dyn FnMut(usize, &Headers) -> bool>;

/// The two nodes and what is on its way between them.
pub struct World {
    /// Time.
    pub now: Instant,
    /// The nodes, connected to each other.
    pub nodes: [Node; 2],
    /// Packets that were sent, oldest first, when recording: sender and bytes.
    pub recorded: Option<Vec<(usize, Vec<u8>)>>,
    /// Decides what does not arrive: asked with the sender and the packet, after recording.
    pub censor: Option<Censor>,
    faults: Faults,
    rng: Rng,
    burst: usize,
    on_the_way: BinaryHeap<Reverse<Flight>>,
    sequence: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Instant,
    sequence: u64,
    to: usize,
    packet: Vec<u8>,
}

impl World {
    /// Two connected nodes in RTS.
    pub fn new(config: &Config, faults: Faults, seed: u64, memory: usize) -> Self {
        let addresses: [IpAddr; 2] = if config.ipv6 {
            [
                "fd00::1".parse().expect("an address"),
                "fd00::2".parse().expect("an address"),
            ]
        } else {
            [
                "10.0.0.1".parse().expect("an address"),
                "10.0.0.2".parse().expect("an address"),
            ]
        };
        let nodes = [0, 1].map(|index| {
            let mut node = Node::new(
                Qp::new(config.qp_type, Qpn::new(0x11 + index as u32)),
                addresses[index],
                memory,
            );
            connect(&mut node, config, index, addresses);
            node
        });
        Self {
            now: Instant::ZERO + Duration::from_secs(1),
            nodes,
            recorded: None,
            censor: None,
            faults,
            rng: Rng::new(seed ^ 0x5EED),
            burst: config.burst,
            on_the_way: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// Lets node `index` send what it has to send.
    pub fn flush(&mut self, index: usize) {
        let (now, to) = (self.now, 1 - index);
        let (faults, rng) = (self.faults, &mut self.rng);
        let (recorded, censor) = (&mut self.recorded, &mut self.censor);
        let (on_the_way, sequence) = (&mut self.on_the_way, &mut self.sequence);
        self.nodes[index].transmit(now, self.burst, |_, packet| {
            if let Some(recorded) = recorded {
                recorded.push((index, packet.clone()));
            }
            if let Some(censor) = censor
                && Headers::parse(&packet).is_ok_and(|(headers, _)| censor(index, &headers))
            {
                return;
            }
            faults.carry(rng, now, &packet, |at, packet| {
                *sequence += 1;
                on_the_way.push(Reverse(Flight {
                    at,
                    sequence: *sequence,
                    to,
                    packet,
                }));
            });
        });
    }

    /// Injects a packet that nobody sent.
    pub fn inject(&mut self, to: usize, packet: Vec<u8>) {
        self.sequence += 1;
        self.on_the_way.push(Reverse(Flight {
            at: self.now,
            sequence: self.sequence,
            to,
            packet,
        }));
    }

    /// The next moment at which something happens by itself.
    pub fn next_moment(&self) -> Option<Instant> {
        let arrival = self.on_the_way.peek().map(|flight| flight.0.at);
        let timers = self.nodes.iter().filter_map(|node| node.qp.poll_timeout());
        timers.chain(arrival).min()
    }

    /// Goes to `moment` and does what is due then.
    pub fn advance_to(&mut self, moment: Instant) {
        self.now = self.now.max(moment);
        while self
            .on_the_way
            .peek()
            .is_some_and(|flight| flight.0.at <= self.now)
        {
            let Some(Reverse(flight)) = self.on_the_way.pop() else {
                break;
            };
            let source = self.nodes[1 - flight.to].address;
            self.nodes[flight.to].receive(self.now, source, &flight.packet);
        }
        for index in 0..2 {
            let node = &mut self.nodes[index];
            node.qp.handle_timeout(self.now, &mut node.machine);
            self.flush(index);
        }
    }

    /// Runs until nothing happens by itself any more, for at most `limit` moments; whether it came to rest.
    pub fn run(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            self.flush(0);
            self.flush(1);
            match self.next_moment() {
                Some(moment) => self.advance_to(moment),
                None => return true,
            }
        }
        false
    }
}

fn connect(node: &mut Node, config: &Config, index: usize, addresses: [IpAddr; 2]) {
    let everything = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
    let (connected, reliable) = (config.qp_type != QpType::Ud, config.qp_type == QpType::Rc);
    let init = QpAttr {
        state: Some(QpState::Init),
        pkey: Some(0xFFFF),
        access: connected.then_some(everything),
        qkey: (!connected).then_some(0x1111),
        ..QpAttr::default()
    };
    let rtr = QpAttr {
        state: Some(QpState::Rtr),
        path: connected.then(|| Path::new(addresses[index], addresses[1 - index])),
        path_mtu: connected.then_some(config.mtu),
        dest_qpn: connected.then(|| Qpn::new(0x12 - index as u32)),
        rq_psn: connected.then_some(config.psn[1 - index]),
        max_dest_rd_atomic: reliable.then_some(config.max_rd_atomic),
        min_rnr_timer: reliable.then_some(config.min_rnr_timer),
        ..QpAttr::default()
    };
    let rts = QpAttr {
        state: Some(QpState::Rts),
        sq_psn: Some(config.psn[index]),
        max_rd_atomic: reliable.then_some(config.max_rd_atomic),
        timeout: reliable.then_some(config.timeout),
        retry_count: reliable.then_some(config.retry_count),
        rnr_retry: reliable.then_some(config.rnr_retry),
        ..QpAttr::default()
    };
    for attr in [init, rtr, rts] {
        node.qp
            .modify(&attr, &mut node.machine)
            .expect("a legal transition");
    }
    node.qp.set_ack_delay(config.ack_delay);
    if config.extensions {
        node.qp.use_extensions(200 << 10);
    }
    if config.parts {
        node.qp.accept_parts();
        node.qp.send_parts();
        // READs are asked for in chunks of two bursts.
        node.qp.set_receive_budget(500_000);
    }
}
