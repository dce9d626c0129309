//! Builds what one send call carries: packets of one shape and destination share a segmented send.
//!
//! Packets are added in the engine's order. Consecutive ones to the same destination join a [`Group`] as long as the
//! kernel can cut them apart again: equal lengths except a shorter last one, at most 64 of them, at most 65,000 bytes.
//! Headers, pads, ICRCs, and payloads that are small or may be changing lie in the burst's own arena; the other
//! payloads are referred to where they are. The arena is filled from one end, so neighbours merge into one piece.
//!
//! A packet's position in its group is its IPv4 Identification, which the ICRC covers; as it is known when the packet
//! joins, the ICRC is finished at once. Nothing is allocated after construction, except when the host's queue is
//! full (see [`Burst::detach`]).

use std::net::{IpAddr, SocketAddr};

use mem::{AccessError, Memory};
use roce::wire::icrc::{self, Icrc, RecentStarts, Starts};
use roce::wire::{ICRC_LEN, MAX_HEADERS, ROCE_PORT};
use socket2::SockAddr;

use super::socket::with_port;

/// Memory to send from, laid out as the system's `iovec`. It stays readable as [`Burst::push`] demands.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Piece {
    base: *const u8,
    len: usize,
}

impl Piece {
    /// The bytes: of the burst's own memory, or of a stable source.
    fn as_slice(&self) -> &[u8] {
        // SAFETY: `push` demands that stable sources are readable and unchanged while the burst refers to them; the
        // burst's own memory is written only before a piece refers to it.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }
}

/// Where a packet goes and what its IP header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The peer.
    pub(crate) ip: IpAddr,
    /// IPv4 TOS or IPv6 traffic class.
    pub(crate) traffic_class: u8,
}

/// A range of registered memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// The memory.
    pub(crate) memory: &'a Memory,
    /// First byte.
    pub(crate) offset: usize,
    /// Bytes.
    pub(crate) len: usize,
}

/// A packet's payload, resolved to memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Memory that stays as it is until the packet's work completes: sent from where it lies.
    Stable(&'a [Span<'a>]),
    /// Memory that may be changing: copied, then checksummed.
    Changing(Span<'a>),
    /// Bytes to copy.
    Bytes(&'a [u8]),
}

impl Source<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Stable(spans) => spans.iter().map(|span| span.len).sum(),
            Self::Changing(span) => span.len,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Of `len` bytes, those that are copied to the packet.
    const fn copied(&self, len: usize) -> usize {
        match self {
            Self::Stable(_) if len > COPY_UP_TO => 0,
            _ => len,
        }
    }
}

/// Packets that leave in one segmented send.
#[derive(Debug)]
pub(crate) struct Group {
    to: Destination,
    address: SockAddr,
    path: icrc::Path,
    /// What the checksums of packets of `segment` bytes start with.
    starts: Starts,
    first_piece: usize,
    end_piece: usize,
    segment: usize,
    count: usize,
    bytes: usize,
    closed: bool,
}

impl Group {
    /// Where it goes.
    pub(crate) const fn to(&self) -> Destination {
        self.to
    }

    /// The same for the system.
    pub(crate) const fn address(&self) -> &SockAddr {
        &self.address
    }

    /// Length of every packet but the last.
    pub(crate) const fn segment(&self) -> usize {
        self.segment
    }

    /// Number of packets.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }
}

/// What is the same for all packets to one address.
#[derive(Debug)]
struct Way {
    ip: IpAddr,
    address: SockAddr,
    starts: RecentStarts,
}

/// Packets waiting for one send call.
#[derive(Debug)]
pub(crate) struct Burst {
    source: SocketAddr,
    scope: u32,
    max_segments: usize,
    arena: Box<[u8]>,
    used: usize,
    pieces: Vec<Piece>,
    groups: Vec<Group>,
    /// The way of the latest group.
    way: Option<Way>,
    sent: usize,
    bytes: usize,
    packets: usize,
    /// Bytes of payload copied since the beginning.
    copied: u64,
    /// Holds the unsent packets after `detach`; empty until the first time.
    detached: Vec<u8>,
    is_detached: bool,
}

// SAFETY: the pieces point into the burst's own boxes, or into memory that `push` demands to be readable as long as
// the burst refers to it; no thread owns either.
unsafe impl Send for Burst {}

impl Burst {
    /// An empty burst for datagrams from `source`; `max_segments` packets at most share a send.
    pub(crate) fn new(source: SocketAddr, max_segments: usize) -> Self {
        let scope = if let SocketAddr::V6(v6) = source {
            v6.scope_id()
        } else {
            0
        };
        Self {
            source,
            scope,
            max_segments: max_segments.min(MAX_SEGMENTS),
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            pieces: Vec::with_capacity(MAX_PIECES),
            groups: Vec::with_capacity(MAX_GROUPS),
            way: None,
            sent: 0,
            bytes: 0,
            packets: 0,
            copied: 0,
            detached: Vec::new(),
            is_detached: false,
        }
    }

    /// Where its packets come from.
    pub(crate) const fn source(&self) -> SocketAddr {
        self.source
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.groups.len()
    }

    /// Packets added since the burst was last empty.
    pub(crate) const fn packets(&self) -> usize {
        self.packets
    }

    /// Bytes of these packets.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of payload that were copied, in this burst and all before.
    pub(crate) const fn copied(&self) -> u64 {
        self.copied
    }

    /// Whether one more packet of the largest size fits.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.groups.len() < MAX_GROUPS
            && self.bytes < BURST_BYTES
            && self.used + MAX_PACKET <= ARENA
            && self.pieces.len() + MAX_PACKET_PIECES <= MAX_PIECES
            && !self.is_detached
    }

    /// From now on packets do not share sends.
    pub(crate) const fn forbid_segmentation(&mut self) {
        self.max_segments = 1;
    }

    /// Adds a packet: `headers` starts with the BTH, whose pad count already fits `payload`. Needs room
    /// ([`Burst::has_room`]) and a destination of the source's address family.
    ///
    /// # Errors
    /// The payload's memory cannot be read; nothing was added.
    ///
    /// # Safety
    /// - The memory of a [`Source::Stable`] lives, and Rust code does not write it, until the burst was sent, cleared
    ///   or detached. (A peer or a device that writes it breaks the packet's checksum, nothing else.)
    pub(crate) unsafe fn push(
        &mut self,
        to: Destination,
        headers: &[u8],
        payload: Source<'_>,
    ) -> Result<(), AccessError> {
        debug_assert!(self.has_room());
        let payload_len = payload.len();
        let copied = payload.copied(payload_len);
        let len = headers.len() + payload_len.next_multiple_of(4) + ICRC_LEN;
        let undo = self.checkpoint();
        let index = self.join(to, len);
        let added = if len <= Icrc::SMALL + ICRC_LEN {
            self.add_small(index, headers, payload, len)
        } else {
            self.add_large(index, headers, payload, len)
        };
        if let Err(error) = added {
            self.roll_back(undo);
            return Err(error);
        }
        self.groups.last_mut().expect("join leaves one").end_piece = self.pieces.len();
        self.bytes += len;
        self.packets += 1;
        self.copied += copied as u64;
        Ok(())
    }

    /// Adds packet `index` of the last group, of `len` bytes: laid out in the arena, then checksummed in one step.
    fn add_small(
        &mut self,
        index: usize,
        headers: &[u8],
        payload: Source<'_>,
        len: usize,
    ) -> Result<(), AccessError> {
        let icrc = self.start(index, len);
        let at = self.used;
        self.extend(len);
        let packet = &mut self.arena[at..at + len];
        let (covered, end) = packet.split_at_mut(len - ICRC_LEN);
        let (front, behind) = covered.split_at_mut(headers.len());
        front.copy_from_slice(headers);
        let payload_len = match payload {
            Source::Bytes(bytes) => {
                behind[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            Source::Changing(span) => {
                span.memory.copy_out(span.offset, &mut behind[..span.len])?;
                span.len
            }
            Source::Stable(spans) => {
                let mut filled = 0;
                for span in spans {
                    let part = &mut behind[filled..filled + span.len];
                    span.memory.copy_out(span.offset, part)?;
                    filled += span.len;
                }
                filled
            }
        };
        behind[payload_len..].fill(0);
        end.copy_from_slice(&icrc.small_packet(covered).finish());
        Ok(())
    }

    /// The same for a packet of any length: what is large stays where it is.
    fn add_large(
        &mut self,
        index: usize,
        headers: &[u8],
        payload: Source<'_>,
        len: usize,
    ) -> Result<(), AccessError> {
        let payload_len = payload.len();
        let pad = payload_len.wrapping_neg() & 3;
        let icrc = self.start(index, len).headers(headers);
        self.append(headers);
        let icrc = self.add_payload(icrc, payload, payload_len)?;
        let mut tail = [0; 3 + ICRC_LEN];
        let icrc = icrc.payload(&tail[..pad]);
        tail[pad..pad + ICRC_LEN].copy_from_slice(&icrc.finish());
        self.append(&tail[..pad + ICRC_LEN]);
        Ok(())
    }

    /// What the checksum of packet `index` of the last group starts with.
    #[inline]
    fn start(&mut self, index: usize, len: usize) -> Icrc {
        let group = self.groups.last().expect("join leaves one");
        let starts = if len == group.segment {
            group.starts
        } else {
            self.way(group.to.ip).starts.of(len)
        };
        starts.at(index as u16)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
        self.groups.clear();
        self.sent = 0;
        self.bytes = 0;
        self.packets = 0;
        self.is_detached = false;
    }

    /// The groups that were not sent yet, in order.
    pub(crate) fn unsent(&self) -> &[Group] {
        &self.groups[self.sent..]
    }

    /// The memory of a group.
    pub(crate) fn pieces(&self, group: &Group) -> &[Piece] {
        &self.pieces[group.first_piece..group.end_piece]
    }

    /// The first `count` unsent groups are gone.
    pub(crate) const fn mark_sent(&mut self, count: usize) {
        self.sent += count;
    }

    /// Copies the unsent packets into the burst's own memory, so that the memory they refer to may go. For a burst
    /// that the host did not take whole; it has no room until it is sent.
    pub(crate) fn detach(&mut self) {
        if self.is_detached {
            return;
        }
        let mut copy = std::mem::take(&mut self.detached);
        copy.clear();
        // Reserved whole, so that the pieces below never move.
        copy.reserve(
            self.groups[self.sent..]
                .iter()
                .map(|group| group.bytes)
                .sum(),
        );
        let mut pieces = Vec::with_capacity(self.groups.len());
        for group in &mut self.groups[self.sent..] {
            let at = copy.len();
            for piece in &self.pieces[group.first_piece..group.end_piece] {
                copy.extend_from_slice(piece.as_slice());
            }
            group.first_piece = pieces.len();
            pieces.push(Piece {
                base: copy[at..].as_ptr(),
                len: group.bytes,
            });
            group.end_piece = pieces.len();
        }
        self.copied += copy.len() as u64;
        self.detached = copy;
        self.pieces.clear();
        self.pieces.extend_from_slice(&pieces);
        self.is_detached = true;
    }

    /// Copies packet `index` of `group` to `packet`, as the peer shall receive it.
    pub(crate) fn packet(&self, group: &Group, index: usize, packet: &mut Vec<u8>) {
        packet.clear();
        let start = index * group.segment;
        let end = (start + group.segment).min(group.bytes);
        let mut at = 0;
        for piece in self.pieces(group) {
            let (from, to) = (start.max(at), end.min(at + piece.len));
            if from < to {
                packet.extend_from_slice(&piece.as_slice()[from - at..to - at]);
            }
            at += piece.len;
        }
    }

    /// The same, checksummed anew to leave alone, with Identification 0.
    pub(crate) fn packet_alone(&self, group: &Group, index: usize, packet: &mut Vec<u8>) {
        self.packet(group, index, packet);
        let covered = packet.len() - ICRC_LEN;
        if index > 0 {
            let (bth, behind) = packet[..covered].split_at(roce::wire::Bth::LEN);
            let icrc = group
                .path
                .start(packet.len(), 0)
                .headers(bth)
                .payload(behind);
            packet[covered..].copy_from_slice(&icrc.finish());
        }
    }

    fn add_payload(
        &mut self,
        mut icrc: Icrc,
        payload: Source<'_>,
        len: usize,
    ) -> Result<Icrc, AccessError> {
        match payload {
            Source::Bytes(bytes) => {
                self.append(bytes);
                icrc = icrc.payload(bytes);
            }
            Source::Stable(spans) if len > COPY_UP_TO => {
                for span in spans.iter().filter(|span| span.len > 0) {
                    let (base, len) = span.memory.iovec(span.offset, span.len)?;
                    let piece = Piece { base, len };
                    // Readable and unchanged as `push` demands; where a peer breaks that, the checksum is wrong and the
                    // packet is dropped.
                    icrc = icrc.payload(piece.as_slice());
                    self.pieces.push(piece);
                }
            }
            Source::Stable(spans) => {
                for &span in spans {
                    icrc = self.add_copy(icrc, span)?;
                }
            }
            Source::Changing(span) => icrc = self.add_copy(icrc, span)?,
        }
        Ok(icrc)
    }

    fn add_copy(&mut self, icrc: Icrc, span: Span<'_>) -> Result<Icrc, AccessError> {
        let at = self.used;
        self.extend(span.len);
        let copy = &mut self.arena[at..at + span.len];
        let mut hasher = crc32fast::Hasher::new_with_initial(icrc.value());
        span.memory.copy_out_crc(span.offset, copy, &mut hasher)?;
        Ok(Icrc::from_value(hasher.finalize()))
    }

    /// Finds or opens the group that takes a packet of `len` bytes; returns the packet's position in it.
    fn join(&mut self, to: Destination, len: usize) -> usize {
        if let Some(last) = self.groups.last_mut()
            && !last.closed
            && last.to == to
            && len <= last.segment
            && last.count < self.max_segments
            && last.bytes + len <= MAX_GROUP_BYTES
            && last.end_piece - last.first_piece + MAX_PACKET_PIECES <= MAX_GROUP_PIECES
        {
            last.closed = len < last.segment;
            last.count += 1;
            last.bytes += len;
            return last.count - 1;
        }
        let way = self.way(to.ip);
        let (address, path, starts) = (way.address.clone(), *way.starts.path(), way.starts.of(len));
        self.groups.push(Group {
            to,
            address,
            starts,
            path,
            first_piece: self.pieces.len(),
            end_piece: self.pieces.len(),
            segment: len,
            count: 1,
            bytes: len,
            closed: false,
        });
        0
    }

    /// The way to `ip`: the one of the last time, most often.
    #[inline]
    fn way(&mut self, ip: IpAddr) -> &mut Way {
        if self.way.as_ref().is_none_or(|way| way.ip != ip) {
            let address = with_port(ip, self.scope, ROCE_PORT);
            let path =
                icrc::Path::new(self.source, address).expect("`push` demands one address family");
            self.way = Some(Way {
                ip,
                address: SockAddr::from(address),
                starts: RecentStarts::new(path),
            });
        }
        self.way.as_mut().expect("just made")
    }

    fn checkpoint(&self) -> Checkpoint {
        let group = self.groups.last();
        Checkpoint {
            used: self.used,
            pieces: self.pieces.len(),
            last_piece_len: self.pieces.last().map_or(0, |piece| piece.len),
            groups: self.groups.len(),
            group: group.map_or((0, 0, false), |group| {
                (group.count, group.bytes, group.closed)
            }),
        }
    }

    #[cold]
    fn roll_back(&mut self, to: Checkpoint) {
        self.used = to.used;
        self.pieces.truncate(to.pieces);
        if let Some(piece) = self.pieces.last_mut() {
            piece.len = to.last_piece_len;
        }
        self.groups.truncate(to.groups);
        if let Some(group) = self.groups.last_mut() {
            (group.count, group.bytes, group.closed) = to.group;
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let at = self.used;
        self.extend(bytes.len());
        self.arena[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Takes the next `len` bytes of the arena, and lets the last piece of the group grow over them if it ends there.
    fn extend(&mut self, len: usize) {
        let base = self.arena[self.used..self.used + len].as_ptr();
        self.used += len;
        let group_start = self.groups.last().map_or(0, |group| group.first_piece);
        if self.pieces.len() > group_start
            && let Some(last) = self.pieces.last_mut()
            && std::ptr::eq(last.base.wrapping_add(last.len), base)
        {
            last.len += len;
        } else if len > 0 {
            self.pieces.push(Piece { base, len });
        }
    }
}

/// What a packet that failed half-way changed.
struct Checkpoint {
    used: usize,
    pieces: usize,
    last_piece_len: usize,
    groups: usize,
    group: (usize, usize, bool),
}

/// Segments of one send: UDP_MAX_SEGMENTS of every kernel that has them (Linux 4.18; more since 6.9).
const MAX_SEGMENTS: usize = 64;
/// A UDP payload is at most 65,507 bytes over IPv4; kept below with room to spare.
const MAX_GROUP_BYTES: usize = 65_000;
/// IOV_MAX.
const MAX_GROUP_PIECES: usize = 1024;
/// Messages of one sendmmsg.
pub(crate) const MAX_GROUPS: usize = 64;
/// What a group of full packets holds, at the largest path MTU and without headers but the first.
const FULL_GROUP: usize = 15 * (4096 + 16);
/// A burst ends after this many bytes: four full groups, so that receiving has its turn.
const BURST_BYTES: usize = 4 * FULL_GROUP;
/// A packet of the largest path MTU with the longest headers.
const MAX_PACKET: usize = MAX_HEADERS + 4096 + 3 + ICRC_LEN;
const ARENA: usize = BURST_BYTES + MAX_PACKET * 2;
/// Headers, a full gather list, and the tail.
const MAX_PACKET_PIECES: usize = roce::verbs::MAX_SGE + 2;
const MAX_PIECES: usize = 4 * MAX_GROUP_PIECES;
/// Up to here copying is cheaper than an `iovec` of its own.
const COPY_UP_TO: usize = 512;

#[cfg(test)]
mod tests {
    use roce::wire::icrc::{IdBasis, Identification, Path, Verdict};

    use super::*;

    const SOURCE: ([u8; 4], u16) = ([127, 0, 0, 1], 0xC123);

    fn burst() -> Burst {
        Burst::new(SOURCE.into(), usize::MAX)
    }

    fn to(last: u8) -> Destination {
        Destination {
            ip: [127, 0, 0, last].into(),
            traffic_class: 0,
        }
    }

    fn memory(len: usize) -> Memory {
        let memory = Memory::allocate(len);
        let bytes: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
        memory.copy_in(0, &bytes).unwrap();
        memory
    }

    fn add(burst: &mut Burst, to: Destination, headers: usize, payload: Source<'_>) {
        // SAFETY: the tests keep their memory until the burst is gone.
        unsafe { burst.push(to, &vec![0x5A; headers], payload) }.expect("the memory is there");
    }

    /// Packets per group, and the ICRC of each packet checked at its position.
    fn shapes(burst: &Burst) -> Vec<usize> {
        let mut packet = Vec::new();
        for group in burst.unsent() {
            let path = Path::new(SOURCE.into(), group.address().as_socket().unwrap()).unwrap();
            for index in 0..group.count() {
                burst.packet(group, index, &mut packet);
                let expected = Identification::Known(index as u16);
                assert_eq!(
                    path.verify(&packet, expected, &mut IdBasis::new()),
                    Verdict::Exact,
                    "packet {index}"
                );
                burst.packet_alone(group, index, &mut packet);
                assert_eq!(
                    path.verify(&packet, Identification::Known(0), &mut IdBasis::new()),
                    Verdict::Exact
                );
            }
        }
        burst.unsent().iter().map(Group::count).collect()
    }

    #[test]
    fn equal_packets_share_a_send_and_a_shorter_one_closes_it() {
        let mut burst = burst();
        for len in [8, 8, 8, 4, 4, 8] {
            add(&mut burst, to(2), 28, Source::Bytes(&[1; 8][..len]));
        }
        assert_eq!(shapes(&burst), [4, 1, 1]);
        assert_eq!(burst.packets(), 6);
    }

    #[test]
    fn another_destination_or_class_is_another_send() {
        let mut burst = burst();
        let marked = Destination {
            traffic_class: 0x68,
            ..to(2)
        };
        for to in [to(2), to(2), to(3), marked, to(2)] {
            add(&mut burst, to, 12, Source::Bytes(b""));
        }
        assert_eq!(shapes(&burst), [2, 1, 1, 1]);
    }

    #[test]
    fn a_send_has_at_most_64_packets_and_65000_bytes() {
        let mut burst = burst();
        for _ in 0..130 {
            add(&mut burst, to(2), 12, Source::Bytes(&[9; 8]));
        }
        assert_eq!(shapes(&burst), [64, 64, 2]);
        burst.clear();
        let memory = memory(4096);
        for _ in 0..16 {
            add(
                &mut burst,
                to(2),
                12,
                Source::Stable(&[Span {
                    memory: &memory,
                    offset: 0,
                    len: 4096,
                }]),
            );
        }
        assert_eq!(shapes(&burst), [15, 1]);
    }

    #[test]
    fn small_packets_are_one_piece_and_large_ones_stay_where_they_are() {
        let mut burst = burst();
        let memory = memory(8192);
        for _ in 0..10 {
            add(
                &mut burst,
                to(2),
                12,
                Source::Stable(&[Span {
                    memory: &memory,
                    offset: 3,
                    len: 100,
                }]),
            );
        }
        assert_eq!(burst.pieces(&burst.unsent()[0]).len(), 1);
        burst.clear();
        for n in 0..2 {
            add(
                &mut burst,
                to(2),
                12,
                Source::Stable(&[Span {
                    memory: &memory,
                    offset: n * 4096,
                    len: 4096,
                }]),
            );
        }
        let pieces = burst.pieces(&burst.unsent()[0]);
        assert_eq!(
            pieces.len(),
            5,
            "header, payload, tail and header, payload, tail"
        );
        assert_eq!(pieces[3].base as u64, memory.addr() + 4096);
        assert_eq!(shapes(&burst), [2]);
    }

    #[test]
    fn payloads_of_every_kind_and_pad_are_sealed() {
        let memory = memory(3000);
        for len in [0, 1, 2, 3, 4, 511, 512, 513, 1023] {
            let mut burst = burst();
            let (first, second) = (len / 3, len - len / 3);
            let spans = [
                Span {
                    memory: &memory,
                    offset: 5,
                    len: first,
                },
                Span {
                    memory: &memory,
                    offset: 1000,
                    len: second,
                },
            ];
            // The pad count is the engine's to set: the ICRC alone is checked here.
            add(&mut burst, to(2), 12, Source::Stable(&spans));
            add(&mut burst, to(2), 16, Source::Changing(spans[1]));
            add(&mut burst, to(2), 20, Source::Bytes(&[3; 1023][..len]));
            shapes(&burst);
            let mut packet = Vec::new();
            burst.packet(&burst.unsent()[0], 0, &mut packet);
            let mut expected = vec![0; len];
            memory.copy_out(5, &mut expected[..first]).unwrap();
            memory.copy_out(1000, &mut expected[first..]).unwrap();
            assert_eq!(packet[12..12 + len], expected);
            assert_eq!(packet.len() % 4, 0);
        }
    }

    #[test]
    fn memory_that_cannot_be_read_adds_nothing() {
        let mut burst = burst();
        let memory = memory(100);
        add(&mut burst, to(2), 12, Source::Bytes(&[1; 90]));
        let outside = Span {
            memory: &memory,
            offset: 50,
            len: 51,
        };
        for payload in [Source::Changing(outside), Source::Stable(&[outside])] {
            for to in [to(2), to(3)] {
                // SAFETY: `memory` outlives the burst.
                let refused = unsafe { burst.push(to, &[0; 12], payload) };
                assert!(refused.is_err());
            }
        }
        add(&mut burst, to(2), 12, Source::Bytes(&[1; 90]));
        assert_eq!(shapes(&burst), [2]);
        assert_eq!(burst.packets(), 2);
    }

    #[test]
    fn a_full_burst_has_no_room_and_never_reallocates() {
        let memory = memory(4096);
        let source = Span {
            memory: &memory,
            offset: 0,
            len: 4096,
        };
        for payload in [
            Source::Changing(source),
            Source::Stable(&[source]),
            Source::Bytes(&[0; 8]),
        ] {
            let mut burst = burst();
            let capacity = (burst.pieces.capacity(), burst.groups.capacity());
            let mut last = 0u8;
            while burst.has_room() {
                add(&mut burst, to(last), 28, payload);
                last = last.wrapping_add(1) % 2;
            }
            assert_eq!((burst.pieces.capacity(), burst.groups.capacity()), capacity);
            shapes(&burst);
        }
    }

    #[test]
    fn a_detached_burst_no_longer_needs_the_memory() {
        let mut burst = burst();
        let memory = memory(4096);
        for last in 2..4 {
            for _ in 0..3 {
                add(
                    &mut burst,
                    to(last),
                    12,
                    Source::Stable(&[Span {
                        memory: &memory,
                        offset: 0,
                        len: 4096,
                    }]),
                );
            }
        }
        burst.mark_sent(1);
        burst.detach();
        memory.copy_in(0, &[0; 4096]).unwrap();
        drop(memory);
        assert_eq!(
            shapes(&burst),
            [3],
            "the ICRCs are those of the bytes at the time"
        );
        assert!(!burst.has_room());
        burst.mark_sent(1);
        burst.clear();
        assert!(burst.has_room());
    }
}
