//! Fuzzing harnesses: arbitrary bytes become packets for one queue pair, or operations on two.
//!
//! Plain functions, so that the same harness serves a coverage-guided fuzzer and a seeded test.

use std::time::Duration;

use super::link::Faults;
use super::node::{Machine, Region};
use super::world::{Config, World};
use crate::host::Arrival;
use crate::qp::Qp;
use crate::verbs::{
    Access, Completion, InlineBytes, Local, MAX_INLINE, Mtu, Operation, Path, QpAttr, QpState,
    QpType, RecvWork, Remote, Retries, SendFlags, SendWork, Sge, SgeList, UdDestination,
};
use crate::wire::{Headers, Key, Psn, Qpn};

const MEMORY: usize = 32 << 10;
/// What peers may touch.
const EXPOSED: std::ops::Range<usize> = 4_096..12_288;
/// Where receives point.
const RECEIVES: std::ops::Range<usize> = 16_384..24_576;
const KEY: Key = Key(7);

/// Bytes as a stream of decisions; zeros when they run out.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn config(choices: &mut Choices<'_>) -> Config {
    let (bits, retries) = (choices.byte(), choices.byte());
    Config {
        qp_type: [QpType::Rc, QpType::Rc, QpType::Uc, QpType::Ud][usize::from(bits & 3)],
        mtu: Mtu::ALL[usize::from(bits >> 2 & 1)],
        extensions: bits & 8 != 0,
        ipv6: bits & 16 != 0,
        ack_delay: Duration::from_micros(u64::from(bits >> 5 & 1) * 20),
        max_rd_atomic: 1 + (bits >> 6),
        retry_count: Retries::Limited(retries & 7),
        parts: retries & 8 != 0,
        rnr_retry: Retries::Limited(choices.byte() & 7),
        psn: [Psn::new(0xFF_FFF8), Psn::new(0)],
        ..Config::default()
    }
}

fn world(config: &Config) -> World {
    let mut world = World::new(config, Faults::none(), 1, MEMORY);
    for node in &mut world.nodes {
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let region = Region {
            start: EXPOSED.start as u64,
            end: EXPOSED.end as u64,
            access,
        };
        node.machine.regions.insert(KEY.0, region);
    }
    world
}

fn post_recv(qp: &mut Qp, machine: &mut Machine, wr_id: u64, length: u16) {
    let length = u32::from(length) % RECEIVES.len() as u32;
    let sge = Sge {
        addr: RECEIVES.start as u64,
        length,
        lkey: Key(1),
    };
    machine.receives.push_back(RecvWork {
        wr_id,
        sges: SgeList::new(&[sge]).expect("one piece"),
    });
    qp.flush_receives(machine);
}

/// Arbitrary packets for one queue pair, as if their ICRC were good.
///
/// # Panics
/// When memory outside of what was exposed or posted has changed, or a receive is reported twice.
pub fn packets(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let config = config(&mut choices);
    let mut world = world(&config);
    let (now, source) = (world.now, world.nodes[0].address);
    let node = &mut world.nodes[1];
    let mut receives = 0;
    let path = Path::new(node.address, source);
    for number in 0..usize::from(choices.byte() & 15) {
        let _ = node.qp.post_send(
            some_work(&mut choices, number as u64, path),
            &mut node.machine,
        );
    }
    node.transmit(now, 16, |_, _| {});
    while !choices.0.is_empty() {
        let control = choices.byte();
        if control & 0x80 != 0 {
            post_recv(&mut node.qp, &mut node.machine, receives, choices.word());
            receives += 1;
        }
        let length = choices.word() & 0x7FF;
        let Ok((mut headers, payload)) = Headers::parse(choices.take(usize::from(length))) else {
            continue;
        };
        // Most packets should get past the first checks.
        if control & 1 == 0 {
            headers.bth.pkey = 0xFFFF;
            headers.bth.version = 0;
            headers.bth.psn = Psn::new(0xFF_FFF8) + u32::from(control >> 1 & 31);
        }
        if control & 0x40 == 0 {
            if let Some(reth) = &mut headers.reth {
                reth.rkey = KEY;
                reth.va = EXPOSED.start as u64 + reth.va % (2 * EXPOSED.len() as u64);
            }
            if let Some(atomic) = &mut headers.atomic {
                atomic.rkey = KEY;
                atomic.va = EXPOSED.start as u64 + atomic.va % (2 * EXPOSED.len() as u64);
            }
        }
        let arrival = Arrival {
            source,
            destination: node.address,
            traffic_class: 0,
            hop_limit: 64,
            udp_length: length + 8,
        };
        node.qp
            .handle_packet(now, &arrival, &headers, payload, &mut node.machine);
        node.transmit(now, 4, |_, _| {});
    }
    check(node.machine.received.as_slice(), receives);
    // The results of its own work go where its work said, which `some_work` keeps among the receives.
    assert_untouched(&node.machine);
}

/// Arbitrary operations on two connected queue pairs, whatever the order.
///
/// # Panics
/// As [`packets`], and when the two never come to rest.
pub fn operations(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let config = config(&mut choices);
    let mut world = world(&config);
    let mut receives = [0; 2];
    let mut posted = [0; 2];
    while !choices.0.is_empty() {
        let control = choices.byte();
        let index = usize::from(control & 1);
        let path = Path::new(world.nodes[index].address, world.nodes[1 - index].address);
        let node = &mut world.nodes[index];
        match control >> 1 & 7 {
            0 | 1 => {
                let mut work = some_work(&mut choices, posted[index], path);
                if config.qp_type != QpType::Ud {
                    work.destination = None;
                }
                if node.qp.post_send(work, &mut node.machine).is_ok() {
                    posted[index] += 1;
                }
            }
            2 => {
                post_recv(
                    &mut node.qp,
                    &mut node.machine,
                    receives[index],
                    choices.word(),
                );
                receives[index] += 1;
            }
            3 => {
                let which = choices.byte();
                let mut seen = 0u8;
                world.censor = Some(Box::new(move |_, _| {
                    seen = seen.wrapping_add(1);
                    which >> (seen & 7) & 1 == 1 && seen < 100
                }));
            }
            4 => {
                let state = [QpState::Sqd, QpState::Rts, QpState::Err, QpState::Init]
                    [usize::from(choices.byte() & 3)];
                let attr = QpAttr {
                    state: Some(state),
                    ..QpAttr::default()
                };
                let _ = node.qp.modify(&attr, &mut node.machine);
            }
            _ => {
                world.flush(index);
                for _ in 0..control >> 4 {
                    if let Some(moment) = world.next_moment() {
                        world.advance_to(moment);
                    }
                }
            }
        }
    }
    world.censor = None;
    assert!(world.run(200_000), "the two come to rest");
    for index in 0..2 {
        let node = &world.nodes[index];
        check(&node.machine.received, receives[index]);
        check(&node.machine.sent, posted[index]);
        assert_untouched(&node.machine);
    }
}

fn some_work(choices: &mut Choices<'_>, wr_id: u64, path: Path) -> SendWork {
    let bits = choices.byte();
    let remote = Remote {
        addr: EXPOSED.start as u64 + u64::from(choices.word()) % (EXPOSED.len() as u64 + 64),
        rkey: if bits & 0x80 == 0 {
            KEY
        } else {
            Key(u32::from(bits))
        },
    };
    let imm = u32::from(bits);
    let operation = match bits & 7 {
        0 => Operation::Send,
        1 => Operation::SendWithImm(imm),
        2 => Operation::Write(remote),
        3 => Operation::WriteWithImm(remote, imm),
        4 => Operation::Read(remote),
        5 => Operation::FetchAdd { remote, add: 3 },
        6 => Operation::CompareSwap {
            remote,
            compare: 0,
            swap: 9,
        },
        _ => Operation::SendWithInvalidate(Key(imm)),
    };
    let length = if operation.is_atomic() {
        8
    } else {
        u32::from(choices.word() & 0x0FFF)
    };
    let sge = Sge {
        addr: RECEIVES.start as u64,
        length,
        lkey: Key(1),
    };
    let local = match InlineBytes::new(&vec![bits; length.min(MAX_INLINE as u32 + 1) as usize]) {
        Some(inline) if bits & 8 != 0 && !operation.has_response() => Local::Inline(inline),
        _ => Local::Gather(SgeList::new(&[sge]).expect("one piece")),
    };
    let mut flags = SendFlags::SIGNALED;
    flags.set(SendFlags::FENCE, bits & 16 != 0);
    flags.set(SendFlags::SOLICITED, bits & 32 != 0);
    let destination = Some(UdDestination {
        path,
        qpn: Qpn::new(u32::from(bits)),
        qkey: 0x1111,
    });
    SendWork {
        wr_id,
        operation,
        flags,
        local,
        destination,
    }
}

/// At most as many completions as there was work, in order, each once.
fn check(completions: &[Completion], posted: u64) {
    let mut last = None;
    for completion in completions {
        assert!(
            completion.wr_id < posted && last.is_none_or(|last| completion.wr_id > last),
            "{completions:?}"
        );
        last = Some(completion.wr_id);
    }
}

fn assert_untouched(machine: &Machine) {
    for (addr, &byte) in machine.memory.iter().enumerate() {
        assert!(
            byte == 0 || EXPOSED.contains(&addr) || RECEIVES.contains(&addr),
            "{addr:#x} was written"
        );
    }
}
