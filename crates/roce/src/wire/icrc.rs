//! The invariant CRC: the checksum behind every packet, over all that no router changes.
//!
//! IBA Vol. 1, 7.8.1 and annex A17.3.3: CRC-32 (the one of Ethernet) over eight bytes of ones, the IP
//! and UDP headers and the packet up to its last pad byte, with the fields that change on the way
//! replaced by ones; appended least significant byte first.
//!
//! **IPv4 covers the Identification field**, which a UDP socket neither sets nor sees. Linux sends
//! zero from an unconnected socket with "don't fragment" (segment `i` of a segmented send has `i`),
//! the kernel's soft-RoCE a counter. A receiver that cannot see the field uses that CRCs are linear:
//! given the packet's length, the difference between the CRC received and the one computed for
//! Identification 0 determines what Identification would explain it. [`IdBasis`] finds it, or finds
//! that none does. That accepts 2^16 of the 2^32 differences, so a corrupted packet passes with
//! probability 2^-16 instead of 2^-32; [`Verdict::Identified`] tells the caller, who may know better
//! which Identification to expect.
//!
//! "Don't fragment" is assumed to be set: all known RoCEv2 senders set it.

use std::net::{IpAddr, SocketAddr};

use super::{Bth, ICRC_LEN, MAX_HEADERS, WireError};

/// The addresses and ports of packets in one direction, ready to start their checksums.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// Eight ones, IP header, UDP header: masked, lengths and Identification zero.
    pseudo: [u8; PSEUDO_V6],
    v6: bool,
}

impl Path {
    /// The path from `source` to `destination`. IPv4-mapped IPv6 addresses travel as IPv4.
    ///
    /// # Errors
    /// [`WireError::MixedFamilies`].
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Result<Self, WireError> {
        let mut pseudo = [0xFF; PSEUDO_V6];
        let addresses = (source.ip().to_canonical(), destination.ip().to_canonical());
        let (udp, v6) = match addresses {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ip = &mut pseudo[8..28];
                ip[0] = 0x45;
                ip[2..6].fill(0);
                ip[6..8].copy_from_slice(&[0x40, 0]);
                ip[9] = UDP;
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                (28, false)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = &mut pseudo[8..48];
                ip[0] = 0x6F;
                ip[4..6].fill(0);
                ip[6] = UDP;
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
                (48, true)
            }
            _ => return Err(WireError::MixedFamilies),
        };
        let ports = &mut pseudo[udp..udp + 6];
        ports[..2].copy_from_slice(&source.port().to_be_bytes());
        ports[2..4].copy_from_slice(&destination.port().to_be_bytes());
        ports[4..].fill(0);
        Ok(Self { pseudo, v6 })
    }

    /// Is this an IPv4 path, where Identification counts?
    #[inline]
    pub const fn is_ipv4(&self) -> bool {
        !self.v6
    }

    /// Starts the checksum of a packet whose UDP payload, ICRC included, has `udp_payload` bytes.
    /// `identification` is the IPv4 header's, and of no effect over IPv6.
    #[inline]
    pub fn start(&self, udp_payload: usize, identification: u16) -> Icrc {
        self.starts(udp_payload).at(identification)
    }

    /// What the checksums of all packets of one length start with. Worth keeping: packets of one length come in numbers.
    #[inline]
    pub fn starts(&self, udp_payload: usize) -> Starts {
        let mut pseudo = self.pseudo;
        let udp_length = (udp_payload + 8) as u16;
        let covered = if self.v6 {
            pseudo[12..14].copy_from_slice(&udp_length.to_be_bytes());
            pseudo[52..54].copy_from_slice(&udp_length.to_be_bytes());
            &pseudo[..]
        } else {
            pseudo[10..12].copy_from_slice(&(udp_length.wrapping_add(20)).to_be_bytes());
            pseudo[32..34].copy_from_slice(&udp_length.to_be_bytes());
            &pseudo[..PSEUDO_V4]
        };
        Starts {
            first: Icrc(0).payload(covered).0,
            v6: self.v6,
        }
    }

    /// Checks a packet, given its whole UDP payload. Too short a packet is wrong.
    pub fn verify(
        &self,
        udp_payload: &[u8],
        identification: Identification,
        basis: &mut IdBasis,
    ) -> Verdict {
        let Some((covered, &received)) = udp_payload.split_last_chunk::<ICRC_LEN>() else {
            return Verdict::Wrong;
        };
        let Some((bth, behind)) = covered.split_at_checked(Bth::LEN) else {
            return Verdict::Wrong;
        };
        let id = match identification {
            Identification::Known(id) => id,
            Identification::Unknown => 0,
        };
        let computed = self
            .start(udp_payload.len(), id)
            .headers(bth)
            .payload(behind);
        if computed.finish() == received {
            return Verdict::Exact;
        }
        if self.v6 || identification != Identification::Unknown {
            return Verdict::Wrong;
        }
        basis.explain(computed, received, udp_payload.len())
    }
}

/// Goes on with the CRC-32 `crc` over a few bytes, sixteen at a time by table (Kounavis and Berry, "slicing"). For a
/// header and a word that costs less than asking the processor what it has for long buffers.
#[inline]
fn small_crc(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (blocks, rest) = bytes.as_chunks::<16>();
    for block in blocks {
        crc = fold(crc, block);
    }
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        crc = fold(crc, word);
    }
    for byte in rest {
        crc = fold(crc, &[*byte]);
    }
    !crc
}

/// One step of [`small_crc`]: what each byte contributes `N` bytes later.
#[inline(always)]
fn fold<const N: usize>(crc: u32, block: &[u8; N]) -> u32 {
    let carried = crc.to_le_bytes();
    // Of fewer than four bytes the rest of the old value only moves down.
    let mut folded = if N < 4 { crc >> (8 * N) } else { 0 };
    for (at, byte) in block.iter().enumerate() {
        let byte = if at < 4 { byte ^ carried[at] } else { *byte };
        folded ^= SLICES[N - 1 - at][usize::from(byte)];
    }
    folded
}

/// `SLICES[k][b]`: what byte `b` followed by `k` zeros makes of a CRC of zero.
static SLICES: [[u32; 256]; 16] = {
    let mut slices = [[0; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut step = 0;
        while step < 16 {
            let mut bit = 0;
            while bit < 8 {
                crc = times_x(crc);
                bit += 1;
            }
            slices[step][byte] = crc;
            step += 1;
        }
        byte += 1;
    }
    slices
};

/// The beginnings for the lengths seen last, of one path. Packets of a few lengths alternate: requests and acknowledgements.
#[derive(Debug, Clone, Copy)]
pub struct RecentStarts {
    path: Path,
    known: [(usize, Starts); 4],
}

impl RecentStarts {
    /// Of `path`, nothing known yet.
    pub fn new(path: Path) -> Self {
        let nothing = Starts {
            first: 0,
            v6: path.v6,
        };
        // No packet is that long.
        Self {
            path,
            known: [(usize::MAX, nothing); 4],
        }
    }

    /// The path.
    pub const fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Path::starts`].
    #[inline]
    pub fn of(&mut self, udp_payload: usize) -> Starts {
        let known = &mut self.known[udp_payload / 4 % 4];
        if known.0 != udp_payload {
            *known = (udp_payload, self.path.starts(udp_payload));
        }
        known.1
    }
}

/// The beginnings of the checksums of packets of one path and length; see [`Path::starts`].
#[derive(Debug, Clone, Copy)]
pub struct Starts {
    /// The one for Identification 0.
    first: u32,
    v6: bool,
}

impl Starts {
    /// The beginning for a packet with this IPv4 Identification, of no effect over IPv6.
    #[inline]
    pub const fn at(self, identification: u16) -> Icrc {
        if self.v6 {
            return Icrc(self.first);
        }
        // A CRC is linear: each field's bytes change it by what they would change a CRC of zeros.
        let effect = if (identification as usize) < LOW_IDS {
            ID_EFFECTS[identification as usize]
        } else {
            id_effect(identification)
        };
        Icrc(self.first ^ effect)
    }
}

/// What the receiver knows of the IPv4 header's Identification field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identification {
    /// Its value: seen, or promised by the sender.
    Known(u16),
    /// Nothing: zero is tried first, then what [`IdBasis`] finds.
    Unknown,
}

/// What a checksum says of its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Right, with the Identification that was expected.
    Exact,
    /// Right if the packet's Identification was this.
    Identified(u16),
    /// Corrupted.
    Wrong,
}

impl Verdict {
    /// May the packet be taken for what was sent?
    #[inline]
    pub const fn is_valid(self) -> bool {
        !matches!(self, Self::Wrong)
    }
}

/// A checksum under way, begun by [`Path::start`].
///
/// Its value is the ordinary CRC-32 of what it has covered, so that a copy that computes a CRC on the
/// way can go on from [`Icrc::value`], or add what it has found on its own by [`Icrc::append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icrc(u32);

impl Icrc {
    /// Covers the transport headers, BTH first; the byte that routers change is masked.
    ///
    /// # Panics
    /// When `headers` is shorter than a BTH or longer than [`MAX_HEADERS`].
    #[inline]
    #[must_use]
    pub fn headers(self, headers: &[u8]) -> Self {
        let mut masked = [0; MAX_HEADERS];
        let masked = &mut masked[..headers.len()];
        masked.copy_from_slice(headers);
        masked[4] = 0xFF;
        self.payload(masked)
    }

    /// Covers all of a packet but its ICRC, from the BTH on: the same as [`Icrc::headers`] and [`Icrc::payload`] in one
    /// step, which for up to [`Icrc::SMALL`] bytes is cheaper.
    ///
    /// # Panics
    /// When `packet` is shorter than a BTH.
    #[inline]
    #[must_use]
    pub fn small_packet(self, packet: &[u8]) -> Self {
        let (bth, mut rest) = packet
            .split_first_chunk::<{ Bth::LEN }>()
            .expect("at least a BTH");
        let mut masked = [0; 16];
        masked[..Bth::LEN].copy_from_slice(bth);
        masked[4] = 0xFF;
        // Nearly every packet has an extension header, whose first word completes a step.
        let crc = if let Some((word, behind)) = rest.split_first_chunk::<4>() {
            masked[Bth::LEN..].copy_from_slice(word);
            rest = behind;
            fold(!self.0, &masked)
        } else {
            fold(
                !self.0,
                masked.first_chunk::<{ Bth::LEN }>().expect("shorter"),
            )
        };
        Self(small_crc(!crc, rest))
    }

    /// Bytes up to which [`Icrc::small_packet`] is the cheaper way.
    pub const SMALL: usize = 128;

    /// Covers more of the packet: payload in any number of pieces, then the pad.
    #[inline]
    #[must_use]
    pub fn payload(self, bytes: &[u8]) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(bytes);
        Self(hasher.finalize())
    }

    /// Covers `len` more bytes whose own CRC-32 is `crc`. Costs about 20 ns, whatever the length.
    #[inline]
    #[must_use]
    pub fn append(self, crc: u32, len: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.combine(&crc32fast::Hasher::new_with_initial_len(crc, len));
        Self(hasher.finalize())
    }

    /// The CRC-32 of what was covered so far.
    #[inline]
    pub const fn value(self) -> u32 {
        self.0
    }

    /// A checksum that has covered bytes whose CRC-32, begun by [`Path::start`], is `value`.
    #[inline]
    pub const fn from_value(value: u32) -> Self {
        Self(value)
    }

    /// The four bytes to append.
    #[inline]
    pub const fn finish(self) -> [u8; ICRC_LEN] {
        self.0.to_le_bytes()
    }
}

/// Finds the Identification that explains a checksum; remembers what it needs for recent lengths.
#[derive(Debug, Clone)]
pub struct IdBasis {
    /// By a hash of the length: the length, and the inverse of what the bytes behind the field
    /// multiply its contribution by.
    entries: Box<[(u32, u32); Self::ENTRIES]>,
}

impl Default for IdBasis {
    fn default() -> Self {
        // No IPv4 packet has a length of u32::MAX.
        Self {
            entries: Box::new([(u32::MAX, 0); Self::ENTRIES]),
        }
    }
}

impl IdBasis {
    const ENTRIES: usize = 64;

    /// An empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges a packet whose checksum is `computed` with Identification 0, but `received` in the
    /// packet; `udp_payload` is the length of its UDP payload in bytes, ICRC included.
    #[inline]
    pub fn explain(
        &mut self,
        computed: Icrc,
        received: [u8; ICRC_LEN],
        udp_payload: usize,
    ) -> Verdict {
        let difference = computed.0 ^ u32::from_le_bytes(received);
        if difference == 0 {
            return Verdict::Exact;
        }
        // Behind the field: the rest of the IPv4 header, the UDP header, the packet without ICRC.
        let behind = (14 + 8 + udp_payload.saturating_sub(ICRC_LEN)) as u32;
        let slot = (behind.wrapping_mul(0x9E37_79B1) >> 26) as usize;
        if self.entries[slot].0 != behind {
            self.entries[slot] = (behind, unshift(behind));
        }
        let cause = multiply(difference, self.entries[slot].1);
        // A polynomial of the field's 16 bits has degree below 16: the upper half of the word.
        if cause << 16 != 0 {
            return Verdict::Wrong;
        }
        Verdict::Identified(((cause >> 16) as u16).swap_bytes())
    }
}

// Arithmetic of polynomials over GF(2) modulo the CRC's, bit 31 the coefficient of x^0.

const POLYNOMIAL: u32 = 0xEDB8_8320;
const ONE: u32 = 1 << 31;

/// `a * x`: what one more message bit of zero does to a CRC.
const fn times_x(a: u32) -> u32 {
    a >> 1 ^ (POLYNOMIAL & (a & 1).wrapping_neg())
}

/// `a / x`.
const fn over_x(a: u32) -> u32 {
    let top = a >> 31;
    (a ^ POLYNOMIAL & top.wrapping_neg()) << 1 | top
}

const fn multiply(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= a & (b >> (31 - bit) & 1).wrapping_neg();
        a = times_x(a);
        bit += 1;
    }
    product
}

/// `x^-(8 * 2^k)` for each `k`.
const INVERSE_BYTES: [u32; 32] = {
    let mut powers = [0; 32];
    let mut power = ONE;
    let mut bit = 0;
    while bit < 8 {
        power = over_x(power);
        bit += 1;
    }
    let mut k = 0;
    while k < 32 {
        powers[k] = power;
        power = multiply(power, power);
        k += 1;
    }
    powers
};

/// `x^-(32 + 8 * bytes)`: undoes the CRC of a two-byte field and `bytes` zeros behind it.
#[cold]
fn unshift(bytes: u32) -> u32 {
    (0..32)
        .filter(|k| (bytes + 4) >> k & 1 == 1)
        .fold(ONE, |power, k| multiply(power, INVERSE_BYTES[k]))
}

/// What an Identification below this changes a checksum's beginning by is looked up: all that a segmented send has.
const LOW_IDS: usize = 128;

/// What Identifications change the CRC of the covered IP and UDP headers by.
const ID_EFFECTS: [u32; LOW_IDS] = {
    let mut effects = [0; LOW_IDS];
    let mut id = 0;
    while id < LOW_IDS {
        effects[id] = id_effect(id as u16);
        id += 1;
    }
    effects
};

/// The same for any Identification: the field's bytes, then the rest of the IP header and the UDP header as zeros.
const fn id_effect(identification: u16) -> u32 {
    // The first byte of the field is the lowest of a CRC's word.
    let mut crc = identification.swap_bytes() as u32;
    let mut bit = 0;
    while bit < 8 * (2 + BEHIND_ID) {
        crc = times_x(crc);
        bit += 1;
    }
    crc
}

/// Covered bytes between the Identification and the BTH.
const BEHIND_ID: usize = 14 + 8;
const UDP: u8 = 17;
const PSEUDO_V4: usize = 8 + 20 + 8;
const PSEUDO_V6: usize = 8 + 40 + 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(source: &str, destination: &str) -> Path {
        let parse = |text: &str| text.parse().expect("a socket address");
        Path::new(parse(source), parse(destination)).expect("one family")
    }

    fn packet(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31) as u8).collect()
    }

    fn sealed(path: &Path, len: usize, id: u16) -> Vec<u8> {
        let mut bytes = packet(len);
        let icrc = path
            .start(len + ICRC_LEN, id)
            .headers(&bytes[..12])
            .payload(&bytes[12..]);
        bytes.extend(icrc.finish());
        bytes
    }

    #[test]
    fn the_seed_is_the_one_of_soft_roce() {
        // The kernel's constant for eight bytes of ones, before the final inversion.
        assert_eq!(!Icrc(0).payload(&[0xFF; 8]).value(), 0xdebb_20e3);
    }

    #[test]
    fn a_kept_beginning_serves_every_identification() {
        for path in [
            path("10.0.0.1:49152", "10.0.0.2:4791"),
            path("[fd00::1]:49152", "[fd00::2]:4791"),
        ] {
            let starts = path.starts(60);
            for id in [0u16, 1, 63, 127, 128, 0x1234, 0xFFFF] {
                let mut pseudo = path.pseudo;
                let end = if path.is_ipv4() {
                    pseudo[10..12].copy_from_slice(&88u16.to_be_bytes());
                    pseudo[12..14].copy_from_slice(&id.to_be_bytes());
                    pseudo[32..34].copy_from_slice(&68u16.to_be_bytes());
                    PSEUDO_V4
                } else {
                    pseudo[12..14].copy_from_slice(&68u16.to_be_bytes());
                    pseudo[52..54].copy_from_slice(&68u16.to_be_bytes());
                    PSEUDO_V6
                };
                let expected = crc32fast::hash(&pseudo[..end]);
                assert_eq!(starts.at(id).value(), expected, "Identification {id}");
            }
        }
    }

    #[test]
    fn a_small_packet_is_covered_in_one_step_as_in_two() {
        let start = path("10.0.0.1:49152", "10.0.0.2:4791").start(60, 3);
        for len in [12, 13, 40, Icrc::SMALL] {
            let bytes = packet(len);
            let two = start.headers(&bytes[..12]).payload(&bytes[12..]);
            assert_eq!(start.small_packet(&bytes), two, "{len} bytes");
        }
    }

    #[test]
    fn any_identification_is_found_at_any_length() {
        let path = path("10.0.0.1:49152", "10.0.0.2:4791");
        let mut basis = IdBasis::new();
        for len in (12..200).chain([1040, 4112, 9000, 60_000]) {
            for id in [1, 0x80, 0x100, 0x1234, 0x8000, 0xFFFF] {
                let bytes = sealed(&path, len, id);
                let verdict = path.verify(&bytes, Identification::Unknown, &mut basis);
                assert_eq!(verdict, Verdict::Identified(id), "length {len}");
                let verdict = path.verify(&bytes, Identification::Known(id), &mut basis);
                assert_eq!(verdict, Verdict::Exact);
                let verdict = path.verify(&bytes, Identification::Known(0), &mut basis);
                assert_eq!(verdict, Verdict::Wrong);
            }
        }
    }

    #[test]
    fn a_known_identification_and_ipv6_reject_every_flipped_bit() {
        let mut basis = IdBasis::new();
        for path in [
            path("10.0.0.1:49152", "10.0.0.2:4791"),
            path("[fd00::1]:49152", "[fd00::2]:4791"),
        ] {
            let good = sealed(&path, 300, 0);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let verdict = path.verify(&bad, Identification::Known(0), &mut basis);
                // FECN, BECN and what is reserved beside them may change on the way.
                assert_eq!(verdict.is_valid(), bit / 8 == 4, "bit {bit}");
            }
        }
    }

    #[test]
    fn an_unknown_identification_accepts_one_corruption_in_65536() {
        let path = path("10.0.0.1:49152", "10.0.0.2:4791");
        let mut basis = IdBasis::new();
        let good = sealed(&path, 1040, 7);
        let mut accepted = 0;
        let rounds = 1 << 20;
        let computed = path
            .start(good.len(), 0)
            .headers(&good[..12])
            .payload(&good[12..1040]);
        for round in 0..rounds {
            let noise = crc32fast::hash(&u32::to_le_bytes(round));
            let received = (computed.value() ^ noise).to_le_bytes();
            accepted += u32::from(basis.explain(computed, received, good.len()).is_valid());
        }
        // 16 are expected of a million; CRCs of counters are as even as can be.
        assert!((1..=40).contains(&accepted), "{accepted} of {rounds}");
    }

    #[test]
    fn a_payload_may_come_in_pieces_or_as_a_crc() {
        let path = path("10.0.0.1:49152", "10.0.0.2:4791");
        let bytes = packet(4112);
        let head = path.start(4116, 0).headers(&bytes[..16]);
        let whole = head.payload(&bytes[16..]);
        assert_eq!(head.payload(&bytes[16..99]).payload(&bytes[99..]), whole);
        assert_eq!(head.append(crc32fast::hash(&bytes[16..]), 4096), whole);
        assert_eq!(Icrc::from_value(head.value()).payload(&bytes[16..]), whole);
    }

    #[test]
    fn a_packet_shorter_than_its_headers_is_wrong() {
        let path = path("[fd00::1]:49152", "[fd00::2]:4791");
        for len in 0..16 {
            let verdict = path.verify(&vec![0; len], Identification::Unknown, &mut IdBasis::new());
            assert_eq!(verdict, Verdict::Wrong);
        }
    }

    #[test]
    fn families_do_not_mix() {
        let v4 = "10.0.0.1:1".parse().expect("v4");
        let v6 = "[fd00::1]:1".parse().expect("v6");
        assert!(matches!(Path::new(v4, v6), Err(WireError::MixedFamilies)));
        let mapped = "[::ffff:10.0.0.2]:1".parse().expect("mapped");
        assert!(Path::new(v4, mapped).is_ok_and(|path| path.is_ipv4()));
    }
}
