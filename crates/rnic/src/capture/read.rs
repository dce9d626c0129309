//! Reads captures of RoCEv2: our own, Wireshark's, tcpdump's.
//!
//! What is not UDP to port 4791 is passed over, as are blocks of unknown kind. A file cut short ends with an error.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use roce::wire::ROCE_PORT;

use super::ip::Envelope;
use super::write::{ENHANCED_PACKET, OPTION_FLAGS};
use super::{Captured, Direction};

/// Why a capture cannot be read (further).
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read.
    #[error("cannot read the capture")]
    Io(#[from] io::Error),
    /// The first bytes are of neither format.
    #[error("neither a pcapng nor a pcap file")]
    NotACapture,
    /// The file ends within a block.
    #[error("the capture is cut short at byte {0}")]
    CutShort(u64),
    /// A block contradicts itself.
    #[error("the capture is damaged at byte {0}")]
    Damaged(u64),
}

/// Iterates over the RoCEv2 packets of a capture, in file order.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    position: u64,
    format: Format,
    big_endian: bool,
    interfaces: Vec<Interface>,
    block: Vec<u8>,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Pcapng,
    Pcap,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    link_type: u16,
    /// Ticks of the clock in a second.
    ticks: u64,
}

impl Reader<BufReader<File>> {
    /// Opens a capture file.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        Self::new(BufReader::new(File::open(path)?))
    }
}

impl<R: Read> Reader<R> {
    /// Reads a capture from `input`.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn new(input: R) -> Result<Self, CaptureError> {
        let mut reader = Self {
            input,
            position: 0,
            format: Format::Pcapng,
            big_endian: false,
            interfaces: Vec::new(),
            block: Vec::new(),
            ended: false,
        };
        if !reader.fill(4)? {
            return Err(CaptureError::NotACapture);
        }
        let magic = reader.word(0);
        if magic == SECTION {
            reader.section()?;
            return Ok(reader);
        }
        reader.big_endian = matches!(magic.swap_bytes(), PCAP_MICROS | PCAP_NANOS);
        let ticks = match reader.word(0) {
            PCAP_MICROS => 1_000_000,
            PCAP_NANOS => 1_000_000_000,
            _ => return Err(CaptureError::NotACapture),
        };
        reader.format = Format::Pcap;
        reader.need(20)?;
        // The upper bits say something of frame check sequences.
        let link_type = reader.word(16) as u16;
        reader.interfaces.push(Interface { link_type, ticks });
        Ok(reader)
    }

    /// The next packet; `None` at the end.
    fn read(&mut self) -> Result<Option<Captured>, CaptureError> {
        loop {
            let header = if self.format == Format::Pcap { 16 } else { 8 };
            if !self.fill(header)? {
                return Ok(None);
            }
            let captured = if self.format == Format::Pcap {
                self.record()?
            } else {
                self.block()?
            };
            if let Some(captured) =
                captured.filter(|captured| captured.destination.port() == ROCE_PORT)
            {
                return Ok(Some(captured));
            }
        }
    }

    /// A pcap record, its header read.
    fn record(&mut self) -> Result<Option<Captured>, CaptureError> {
        let (seconds, fraction, len) = (self.word(0), self.word(4), self.word(8));
        self.check_length(len)?;
        self.need(len as usize)?;
        let interface = self.interfaces[0];
        let time = u64::from(seconds) * 1_000_000_000
            + u64::from(fraction) * (1_000_000_000 / interface.ticks);
        Ok(captured(interface.link_type, time, None, &self.block))
    }

    /// A pcapng block, its first eight bytes read.
    fn block(&mut self) -> Result<Option<Captured>, CaptureError> {
        let kind = self.word(0);
        if kind == SECTION {
            // The order of bytes may be another from here on; the length is read after that is known.
            self.section_after_kind()?;
            return Ok(None);
        }
        let total = self.word(4);
        self.check_length(total)?;
        let Some(rest) = (total as usize)
            .checked_sub(8)
            .filter(|rest| *rest >= 4 && total.is_multiple_of(4))
        else {
            return Err(CaptureError::Damaged(self.position));
        };
        self.need(rest)?;
        match kind {
            INTERFACE => self.interface()?,
            ENHANCED_PACKET => return self.enhanced_packet(),
            _ => {}
        }
        Ok(None)
    }

    /// A section header block, its kind read.
    fn section(&mut self) -> Result<(), CaptureError> {
        self.need(4)?;
        self.section_after_length(self.block[..4].try_into().expect("four bytes were read"))
    }

    fn section_after_kind(&mut self) -> Result<(), CaptureError> {
        self.section_after_length(self.block[4..8].try_into().expect("eight bytes were read"))
    }

    fn section_after_length(&mut self, length: [u8; 4]) -> Result<(), CaptureError> {
        self.need(4)?;
        self.big_endian =
            match u32::from_le_bytes(self.block[..4].try_into().expect("four bytes were read")) {
                ORDER => false,
                order if order == ORDER.swap_bytes() => true,
                _ => return Err(CaptureError::Damaged(self.position)),
            };
        let total = if self.big_endian {
            u32::from_be_bytes(length)
        } else {
            u32::from_le_bytes(length)
        };
        self.check_length(total)?;
        let Some(rest) = (total as usize).checked_sub(12) else {
            return Err(CaptureError::Damaged(self.position));
        };
        self.interfaces.clear();
        self.need(rest)
    }

    fn interface(&mut self) -> Result<(), CaptureError> {
        if self.block.len() < 12 {
            return Err(CaptureError::Damaged(self.position));
        }
        let mut interface = Interface {
            link_type: self.half(0),
            ticks: 1_000_000,
        };
        self.options(8, |code, value| {
            if code == OPTION_RESOLUTION
                && let &[resolution, ..] = value
            {
                let exponent = u32::from(resolution & 0x7F);
                let base: u64 = if resolution & 0x80 == 0 { 10 } else { 2 };
                interface.ticks = base.checked_pow(exponent).unwrap_or(u64::MAX);
            }
        });
        self.interfaces.push(interface);
        Ok(())
    }

    fn enhanced_packet(&self) -> Result<Option<Captured>, CaptureError> {
        if self.block.len() < 24 {
            return Err(CaptureError::Damaged(self.position));
        }
        let Some(&interface) = self.interfaces.get(self.word(0) as usize) else {
            return Err(CaptureError::Damaged(self.position));
        };
        let stamp = u64::from(self.word(4)) << 32 | u64::from(self.word(8));
        let time = (u128::from(stamp) * 1_000_000_000 / u128::from(interface.ticks)) as u64;
        let len = self.word(12) as usize;
        let Some(packet) = self.block.get(20..20 + len) else {
            return Err(CaptureError::Damaged(self.position));
        };
        let mut direction = None;
        self.options(20 + len.next_multiple_of(4), |code, value| {
            if code == OPTION_FLAGS
                && let Some(&flags) = value.first_chunk::<4>()
            {
                let flags = if self.big_endian {
                    u32::from_be_bytes(flags)
                } else {
                    u32::from_le_bytes(flags)
                };
                direction = match flags & 3 {
                    1 => Some(Direction::Received),
                    2 => Some(Direction::Sent),
                    _ => None,
                };
            }
        });
        Ok(captured(interface.link_type, time, direction, packet))
    }

    /// Calls `each` for the options that start at `at` and end before the block's closing length.
    fn options(&self, mut at: usize, mut each: impl FnMut(u16, &[u8])) {
        let end = self.block.len() - 4;
        while at + 4 <= end {
            let (code, len) = (self.half(at), usize::from(self.half(at + 2)));
            let Some(value) = self.block.get(at + 4..(at + 4 + len).min(end)) else {
                return;
            };
            if code == 0 {
                return;
            }
            each(code, value);
            at += 4 + len.next_multiple_of(4);
        }
    }

    /// Refuses lengths that no writer writes before memory is asked for.
    fn check_length(&self, len: u32) -> Result<(), CaptureError> {
        if len > LARGEST_BLOCK {
            Err(CaptureError::Damaged(self.position))
        } else {
            Ok(())
        }
    }

    /// Reads `len` bytes into the block; false where the file ends just here.
    fn fill(&mut self, len: usize) -> Result<bool, CaptureError> {
        self.block.resize(len, 0);
        let mut got = 0;
        while got < len {
            match self.input.read(&mut self.block[got..]) {
                Ok(0) if got == 0 => return Ok(false),
                Ok(0) => return Err(CaptureError::CutShort(self.position)),
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += len as u64;
        Ok(true)
    }

    fn need(&mut self, len: usize) -> Result<(), CaptureError> {
        if len == 0 || self.fill(len)? {
            Ok(())
        } else {
            Err(CaptureError::CutShort(self.position))
        }
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.block[at..at + 4].try_into().expect("four bytes");
        if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    }

    fn half(&self, at: usize) -> u16 {
        let bytes = [self.block[at], self.block[at + 1]];
        if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Captured, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

/// A packet behind its link-layer header; `None` where it is not unfragmented UDP.
fn captured(
    link_type: u16,
    time: u64,
    direction: Option<Direction>,
    frame: &[u8],
) -> Option<Captured> {
    let packet = match link_type {
        LINK_ETHERNET => behind_ethertype(frame, 12)?,
        LINK_SLL => behind_ethertype(frame, 14)?,
        LINK_SLL2 => frame.get(20..)?,
        LINK_NULL | LINK_LOOP => frame.get(4..)?,
        LINK_RAW | LINK_IPV4 | LINK_IPV6 => frame,
        _ => return None,
    };
    let (envelope, payload) = Envelope::unwrap(packet)?;
    Some(Captured {
        time,
        direction,
        source: envelope.source,
        destination: envelope.destination,
        identification: envelope.identification,
        payload: payload.to_vec(),
    })
}

/// What follows the EtherType at `at`, VLAN tags passed over.
fn behind_ethertype(frame: &[u8], mut at: usize) -> Option<&[u8]> {
    loop {
        match u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]) {
            0x8100 | 0x88A8 => at += 4,
            0x0800 | 0x86DD => return frame.get(at + 2..),
            _ => return None,
        }
    }
}

const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
const OPTION_RESOLUTION: u16 = 9;
const ORDER: u32 = 0x1A2B_3C4D;
const PCAP_MICROS: u32 = 0xA1B2_C3D4;
const PCAP_NANOS: u32 = 0xA1B2_3C4D;
const LARGEST_BLOCK: u32 = 16 << 20;

const LINK_NULL: u16 = 0;
const LINK_ETHERNET: u16 = 1;
const LINK_RAW: u16 = 101;
const LINK_LOOP: u16 = 108;
const LINK_SLL: u16 = 113;
const LINK_IPV4: u16 = 228;
const LINK_IPV6: u16 = 229;
const LINK_SLL2: u16 = 276;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::capture::Writer;

    fn addresses(v6: bool) -> (SocketAddr, SocketAddr) {
        let (source, destination) = if v6 {
            ("[fd00::1]:50000", "[fd00::2]:4791")
        } else {
            ("10.0.0.1:50000", "10.0.0.2:4791")
        };
        (source.parse().unwrap(), destination.parse().unwrap())
    }

    /// A capture of five packets of odd and even lengths.
    fn written() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(&directory.path().join("x.pcapng")).unwrap();
        for n in 0..5usize {
            let (source, destination) = addresses(n % 2 == 1);
            let direction = if n < 2 {
                Direction::Sent
            } else {
                Direction::Received
            };
            let identification = if n % 2 == 1 { 0 } else { n as u16 };
            writer.packet(
                direction,
                source,
                destination,
                identification,
                &vec![n as u8; 20 + n],
            );
        }
        writer.flush();
        std::fs::read(writer.path()).unwrap()
    }

    #[test]
    fn what_was_captured_is_read_back() {
        let packets: Vec<_> = Reader::new(&written()[..])
            .unwrap()
            .map(|packet| packet.unwrap())
            .collect();
        assert_eq!(packets.len(), 5);
        for (n, packet) in packets.iter().enumerate() {
            let (source, destination) = addresses(n % 2 == 1);
            assert_eq!((packet.source, packet.destination), (source, destination));
            assert_eq!(packet.payload, vec![n as u8; 20 + n]);
            assert_eq!(packet.identification, if n % 2 == 1 { 0 } else { n as u16 });
            assert_eq!(
                packet.direction,
                Some(if n < 2 {
                    Direction::Sent
                } else {
                    Direction::Received
                })
            );
            assert!(packet.time > 1_700_000_000_000_000_000, "{}", packet.time);
        }
    }

    #[test]
    fn sections_may_follow_one_another() {
        let twice = [written(), written()].concat();
        assert_eq!(
            Reader::new(&twice[..])
                .unwrap()
                .filter(Result::is_ok)
                .count(),
            10
        );
    }

    #[test]
    fn a_capture_cut_short_or_damaged_is_an_error_and_never_a_panic() {
        let whole = written();
        for len in 0..whole.len() {
            if let Ok(reader) = Reader::new(&whole[..len]) {
                let _ = reader.count();
            }
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                if let Ok(reader) = Reader::new(&damaged[..]) {
                    let _ = reader.count();
                }
            }
        }
        let cut = Reader::new(&whole[..whole.len() - 5])
            .unwrap()
            .last()
            .expect("an error is an item");
        assert!(matches!(cut, Err(CaptureError::CutShort(_))), "{cut:?}");
    }

    #[test]
    fn pcap_of_either_byte_order_is_read() {
        let (source, destination) = addresses(false);
        let mut packet = vec![0; 12];
        packet.extend([0x08, 0x00]);
        Envelope {
            source,
            destination,
            identification: 9,
        }
        .wrap(b"a RoCE packet", &mut packet);
        for big_endian in [false, true] {
            let mut file = Vec::new();
            let mut word = |value: u32| {
                file.extend(if big_endian {
                    value.to_be_bytes()
                } else {
                    value.to_le_bytes()
                });
            };
            for value in [
                PCAP_MICROS,
                0x0002_0004,
                0,
                0,
                65_535,
                1,
                5,
                6,
                packet.len() as u32,
                packet.len() as u32,
            ] {
                word(value);
            }
            file.extend(&packet);
            let packets: Vec<_> = Reader::new(&file[..])
                .unwrap()
                .map(|packet| packet.unwrap())
                .collect();
            assert_eq!(packets.len(), 1);
            assert_eq!(packets[0].time, 5_000_006_000);
            assert_eq!(packets[0].identification, 9);
            assert_eq!(packets[0].payload, b"a RoCE packet");
        }
    }

    #[test]
    fn a_second_writer_of_one_name_takes_a_name_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.pcapng");
        let first = Writer::create(&path).unwrap();
        let second = Writer::create(&path).unwrap();
        assert_eq!(first.path(), path);
        assert_ne!(second.path(), path);
        drop(first);
        assert_eq!(Writer::create(&path).unwrap().path(), path);
    }
}
