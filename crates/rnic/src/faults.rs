//! Seeded fault injection on what arrives: loss, duplication, reordering, corruption, delay.
//!
//! Faults are applied to single packets after the kernel's coalesced runs were cut apart, so that the sender's bursts
//! keep their shapes. The same seed and the same sequence of packets give the same faults.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use roce::time::Instant;

/// What to do to arriving packets. The default does nothing.
///
/// ```
/// let faults: ringmail_rnic::Faults = "loss=2%,dup=1%,reorder=3%,corrupt=0.5%,delay=1ms,seed=7".parse().unwrap();
/// assert_eq!(faults.loss, 0.02);
/// assert_eq!(faults.delay, std::time::Duration::from_millis(1));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Probability, 0 to 1, that a packet vanishes.
    pub loss: f64,
    /// Probability that a packet arrives twice.
    pub duplicate: f64,
    /// Probability that a packet arrives after one to eight later ones (or after a millisecond without any).
    pub reorder: f64,
    /// Probability that one bit of a packet is flipped.
    pub corrupt: f64,
    /// How much later every packet arrives.
    pub delay: Duration,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Faults {
    /// Reads `RINGMAIL_FAULTS`; `None` when unset or empty.
    ///
    /// # Errors
    /// What cannot be understood, and what would be.
    pub fn from_env() -> Result<Option<Self>, FaultsError> {
        match std::env::var("RINGMAIL_FAULTS") {
            Ok(text) if !text.trim().is_empty() => text.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Whether packets pass untouched.
    #[must_use]
    pub fn is_none(&self) -> bool {
        let Self {
            loss,
            duplicate,
            reorder,
            corrupt,
            delay,
            seed: _,
        } = *self;
        [loss, duplicate, reorder, corrupt] == [0.0; 4] && delay.is_zero()
    }
}

/// Why a description of faults was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    /// A part has no `=`.
    #[error("fault `{0}` is not of the form name=value")]
    NoValue(String),
    /// A name that is none.
    #[error("unknown fault `{0}`: expected loss, dup, reorder, corrupt, delay or seed")]
    Unknown(String),
    /// Not a probability.
    #[error("fault {name}={value}: expected a probability such as 2% or 0.02, at most 100%")]
    Probability {
        /// Which fault.
        name: String,
        /// What was given.
        value: String,
    },
    /// Not a time.
    #[error("fault delay={0}: expected a time such as 1ms, 50us or 2s")]
    Delay(String),
    /// Not a number.
    #[error("fault seed={0}: expected a whole number")]
    Seed(String),
}

impl FromStr for Faults {
    type Err = FaultsError;

    fn from_str(text: &str) -> Result<Self, FaultsError> {
        let mut faults = Self::default();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| FaultsError::NoValue(part.to_owned()))?;
            let (name, value) = (name.trim(), value.trim());
            match name {
                "loss" | "drop" => faults.loss = probability(name, value)?,
                "dup" | "duplicate" => faults.duplicate = probability(name, value)?,
                "reorder" => faults.reorder = probability(name, value)?,
                "corrupt" => faults.corrupt = probability(name, value)?,
                "delay" => {
                    faults.delay =
                        time(value).ok_or_else(|| FaultsError::Delay(value.to_owned()))?
                }
                "seed" => {
                    faults.seed = value
                        .parse()
                        .map_err(|_| FaultsError::Seed(value.to_owned()))?
                }
                _ => return Err(FaultsError::Unknown(name.to_owned())),
            }
        }
        Ok(faults)
    }
}

fn probability(name: &str, value: &str) -> Result<f64, FaultsError> {
    let (number, scale) = value
        .strip_suffix('%')
        .map_or((value, 1.0), |number| (number.trim(), 100.0));
    match number.parse::<f64>().map(|number| number / scale) {
        Ok(probability) if (0.0..=1.0).contains(&probability) => Ok(probability),
        _ => Err(FaultsError::Probability {
            name: name.to_owned(),
            value: value.to_owned(),
        }),
    }
}

fn time(value: &str) -> Option<Duration> {
    let split = value.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = value.split_at(split);
    let unit = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.trim().parse::<f64>().ok()? * unit).ok()
}

/// One packet as it arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// Who sent it.
    pub(crate) source: SocketAddr,
    /// Its position in the run that the kernel delivered.
    pub(crate) index: u16,
    /// The UDP payload.
    pub(crate) bytes: &'a [u8],
}

/// How many packets met which fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Packets that vanished.
    pub lost: u64,
    /// Packets that came twice.
    pub duplicated: u64,
    /// Packets that came late.
    pub reordered: u64,
    /// Packets with a flipped bit.
    pub corrupted: u64,
}

/// Applies [`Faults`].
#[derive(Debug)]
pub(crate) struct Injector {
    faults: Faults,
    random: u64,
    /// Packets held back to come after later ones.
    reordered: Vec<Held>,
    /// Packets held back by the delay, in order.
    delayed: VecDeque<Held>,
    counters: FaultCounters,
}

#[derive(Debug)]
struct Held {
    source: SocketAddr,
    index: u16,
    bytes: Vec<u8>,
    due: Instant,
    /// Later packets that go first.
    behind: u32,
}

impl Injector {
    /// An injector; the devices of one program differ in `stream`, so that they do not lose in step.
    pub(crate) fn new(faults: Faults, stream: u64) -> Self {
        Self {
            faults,
            random: faults.seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15),
            reordered: Vec::new(),
            delayed: VecDeque::new(),
            counters: FaultCounters::default(),
        }
    }

    /// What happened so far.
    pub(crate) const fn counters(&self) -> FaultCounters {
        self.counters
    }

    /// Passes an arriving packet through the faults; `deliver` gets what comes out of it now, which may include
    /// packets held back before.
    pub(crate) fn pass(
        &mut self,
        now: Instant,
        packet: Packet<'_>,
        deliver: &mut dyn FnMut(Packet<'_>),
    ) {
        if self.chance(self.faults.loss) {
            self.counters.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.chance(self.faults.duplicate));
        self.counters.duplicated += u64::from(copies - 1);
        for _ in 0..copies {
            let mut flipped;
            let mut packet = packet;
            if self.chance(self.faults.corrupt) && !packet.bytes.is_empty() {
                self.counters.corrupted += 1;
                flipped = packet.bytes.to_vec();
                let bit = (self.next() % (flipped.len() as u64 * 8)) as usize;
                flipped[bit / 8] ^= 1 << (bit % 8);
                packet.bytes = &flipped;
            }
            if self.chance(self.faults.reorder) {
                self.counters.reordered += 1;
                let behind = 1 + (self.next() % 8) as u32;
                self.reordered
                    .push(Held::new(packet, now + REORDER_AT_MOST, behind));
            } else {
                self.forward(now, packet, deliver);
            }
        }
        // This packet went ahead of those held back.
        let mut at = 0;
        while at < self.reordered.len() {
            let held = &mut self.reordered[at];
            held.behind = held.behind.saturating_sub(1);
            if held.behind == 0 {
                let held = self.reordered.swap_remove(at);
                self.forward(now, held.packet(), deliver);
            } else {
                at += 1;
            }
        }
    }

    /// Delivers what is due at `now`.
    pub(crate) fn release(&mut self, now: Instant, deliver: &mut dyn FnMut(Packet<'_>)) {
        while let Some(at) = self.reordered.iter().position(|held| held.due <= now) {
            let held = self.reordered.swap_remove(at);
            self.forward(now, held.packet(), deliver);
        }
        while self.delayed.front().is_some_and(|held| held.due <= now) {
            let held = self.delayed.pop_front().expect("just seen");
            deliver(held.packet());
        }
    }

    /// When [`Injector::release`] has something to do next.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        let reordered = self.reordered.iter().map(|held| held.due).min();
        let delayed = self.delayed.front().map(|held| held.due);
        reordered.into_iter().chain(delayed).min()
    }

    fn forward(&mut self, now: Instant, packet: Packet<'_>, deliver: &mut dyn FnMut(Packet<'_>)) {
        if self.faults.delay.is_zero() {
            deliver(packet);
        } else {
            self.delayed
                .push_back(Held::new(packet, now + self.faults.delay, 0));
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        // Always drawn, so that changing one probability leaves the others' choices alone.
        let drawn = self.next() >> 11;
        (drawn as f64) < probability * (1u64 << 53) as f64
    }

    /// SplitMix64: seedable, fast, and good enough to lose packets by.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Held {
    fn new(packet: Packet<'_>, due: Instant, behind: u32) -> Self {
        Self {
            source: packet.source,
            index: packet.index,
            bytes: packet.bytes.to_vec(),
            due,
            behind,
        }
    }

    fn packet(&self) -> Packet<'_> {
        Packet {
            source: self.source,
            index: self.index,
            bytes: &self.bytes,
        }
    }
}

const REORDER_AT_MOST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_fault_is_read() {
        let faults: Faults = "loss=2%, dup=0.01,reorder=3 %,corrupt=100%,delay=50us,seed=7"
            .parse()
            .unwrap();
        let expected = Faults {
            loss: 0.02,
            duplicate: 0.01,
            reorder: 0.03,
            corrupt: 1.0,
            delay: Duration::from_micros(50),
            seed: 7,
        };
        assert_eq!(faults, expected);
        assert!(!faults.is_none());
        assert!("seed=9".parse::<Faults>().unwrap().is_none());
    }

    #[test]
    fn a_wrong_fault_says_what_was_expected() {
        let refused = |text: &str| text.parse::<Faults>().expect_err(text).to_string();
        assert_eq!(
            refused("loss"),
            "fault `loss` is not of the form name=value"
        );
        assert_eq!(
            refused("lose=1%"),
            "unknown fault `lose`: expected loss, dup, reorder, corrupt, delay or seed"
        );
        assert!(refused("loss=101%").contains("at most 100%"));
        assert!(refused("dup=-1%").contains("fault dup=-1%"));
        assert!(refused("loss=nan").contains("expected a probability"));
        assert!(refused("delay=5").contains("expected a time"));
        assert!(refused("delay=5m").contains("expected a time"));
        assert!(refused("seed=x").contains("expected a whole number"));
    }

    /// Sends `count` numbered packets through and returns what came out, in order.
    fn through(faults: Faults, count: u32) -> (Vec<Vec<u8>>, FaultCounters) {
        let mut injector = Injector::new(faults, 0);
        let mut out = Vec::new();
        let source = SocketAddr::from(([127, 0, 0, 1], 49152));
        for n in 0..count {
            let bytes = n.to_be_bytes();
            let now = Instant::from_nanos(u64::from(n));
            injector.pass(
                now,
                Packet {
                    source,
                    index: 0,
                    bytes: &bytes,
                },
                &mut |packet| out.push(packet.bytes.to_vec()),
            );
        }
        while let Some(due) = injector.next_release() {
            injector.release(due, &mut |packet| out.push(packet.bytes.to_vec()));
        }
        (out, injector.counters())
    }

    fn numbers(packets: &[Vec<u8>]) -> Vec<u32> {
        packets
            .iter()
            .map(|bytes| u32::from_be_bytes(bytes[..].try_into().unwrap()))
            .collect()
    }

    #[test]
    fn without_faults_packets_pass_in_order() {
        let (out, counters) = through(Faults::default(), 100);
        assert_eq!(numbers(&out), (0..100).collect::<Vec<_>>());
        assert_eq!(counters, FaultCounters::default());
    }

    #[test]
    fn loss_and_duplication_come_as_often_as_asked() {
        let (out, counters) = through("loss=20%,dup=10%,seed=3".parse().unwrap(), 10_000);
        assert!((1_800..2_200).contains(&counters.lost), "{counters:?}");
        assert!((650..950).contains(&counters.duplicated), "{counters:?}");
        assert_eq!(
            out.len() as u64,
            10_000 - counters.lost + counters.duplicated
        );
    }

    #[test]
    fn reordered_packets_come_late_but_come() {
        let (out, counters) = through("reorder=10%,seed=3".parse().unwrap(), 10_000);
        let mut seen = numbers(&out);
        assert!(!seen.is_sorted(), "nothing was reordered");
        seen.sort_unstable();
        assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
        assert!((800..1_200).contains(&counters.reordered), "{counters:?}");
    }

    #[test]
    fn corruption_flips_one_bit() {
        let (out, counters) = through("corrupt=100%,seed=3".parse().unwrap(), 100);
        for (n, bytes) in out.iter().enumerate() {
            let bits = (n as u32) ^ u32::from_be_bytes(bytes[..].try_into().unwrap());
            assert_eq!(bits.count_ones(), 1);
        }
        assert_eq!(counters.corrupted, 100);
    }

    #[test]
    fn a_delayed_packet_waits_its_time() {
        let mut injector = Injector::new("delay=1ms".parse().unwrap(), 0);
        let packet = Packet {
            source: SocketAddr::from(([127, 0, 0, 1], 1)),
            index: 3,
            bytes: b"late",
        };
        injector.pass(Instant::ZERO, packet, &mut |_| panic!("delivered at once"));
        let due = injector.next_release().expect("a packet waits");
        assert_eq!(due.since(Instant::ZERO), Duration::from_millis(1));
        injector.release(Instant::from_nanos(999_999), &mut |_| {
            panic!("delivered early")
        });
        let mut delivered = 0;
        injector.release(due, &mut |packet| {
            assert_eq!((packet.index, packet.bytes), (3, &b"late"[..]));
            delivered += 1;
        });
        assert_eq!(delivered, 1);
    }

    #[test]
    fn a_seed_repeats_its_faults() {
        let faults: Faults = "loss=5%,dup=5%,reorder=5%,corrupt=5%,seed=42"
            .parse()
            .unwrap();
        assert_eq!(through(faults, 1_000).0, through(faults, 1_000).0);
        let other = Faults { seed: 43, ..faults };
        assert_ne!(through(faults, 1_000).0, through(other, 1_000).0);
    }
}
