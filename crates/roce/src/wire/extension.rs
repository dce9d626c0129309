//! How software peers recognise each other, and never trouble a stranger.
//!
//! Not in the specification. What RoCEv2 lacks (selective acknowledgement, an advertised window) is
//! spoken only between peers that have said they understand it:
//!
//! 1. *With the connection manager:* the CA GUID of REQ and REP starts with [`OUI`], a locally
//!    administered prefix that no hardware has, and the version. To a sender of such a REQ the REP's
//!    private data ends with an [`Offer`]; the RTU that answers starts its private data with one.
//!    Strangers see a GUID and nothing else.
//! 2. *Without it:* the UDP source port of a software peer is one of [`source_ports`], in the range that all
//!    RoCEv2 senders draw from. A peer that sees it may send a [`Hello`] to queue pair 1, a datagram of
//!    a vendor's management class, which strangers ignore. Its echoed nonce is the proof.
//!
//! Extension opcodes ([`super::Sack`]) and WRITEs in parts ([`Offer::PARTS`]) follow only then, never before.

use std::net::IpAddr;

use super::mad::{MAD_LEN, MadHeader, halves};
use super::{Guid, WireError, be16, be64, take};

/// The prefix of the project's CA GUIDs and management datagrams: "RML". Bit 1 of its first byte says
/// that it is administered locally: no manufacturer has it.
pub const OUI: [u8; 3] = *b"RML";

/// The version of the extensions described here.
pub const VERSION: u8 = 1;

/// A CA GUID that says "software peer": prefix, [`VERSION`], and the 32 bits of `node`.
pub const fn guid(node: u32) -> Guid {
    let [a, b, c] = OUI;
    let [d, e, f, g] = node.to_be_bytes();
    Guid(u64::from_be_bytes([a, b, c, VERSION, d, e, f, g]))
}

/// The version that a CA GUID announces, if it is a software peer's.
pub const fn version_of(guid: Guid) -> Option<u8> {
    match guid.0.to_be_bytes() {
        [a, b, c, version, ..] if a == OUI[0] && b == OUI[1] && c == OUI[2] => Some(version),
        _ => None,
    }
}

/// What a software peer says of itself in private data.
///
/// ```text
/// +-----------------------------------------------+---------------+
/// |                      OUI                      |    version    |
/// +-------------------------------+---------------+---------------+
/// |             flags             |            window             |
/// +-------------------------------+-------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Version of the extensions; the lower of both sides' is spoken.
    pub version: u8,
    /// What is understood: see the constants. Unknown bits are to be ignored.
    pub flags: u16,
    /// How many packets the receiver can take at first, all queue pairs of one peer together.
    pub window: u16,
}

impl Offer {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 8;

    /// Flag: selective acknowledgements are understood and sent.
    pub const SACK: u16 = 1;

    /// Flag: WRITEs in parts are understood. Each packet of such a WRITE is a WRITE ONLY whose RETH names the place of its
    /// own bytes, and as length all that is left of the message: more than the packet carries, but for the last. The
    /// first is refused if the message is not permitted as a whole; the message is counted when the last is executed.
    /// A WRITE with an immediate value is never in parts. The responses to a READ may all be READ RESPONSE ONLY.
    pub const PARTS: u16 = 2;

    /// Reads the offer at the front of `bytes`; also returns what follows it.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::NotA`] when the prefix is not there.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (b, rest) = take::<{ Self::LEN }>("extension offer", bytes)?;
        if b[..3] != OUI {
            return Err(WireError::NotA("extension offer"));
        }
        Ok((
            Self {
                version: b[3],
                flags: be16(b, 4),
                window: be16(b, 6),
            },
            rest,
        ))
    }

    /// Writes the offer.
    pub fn emit(&self, out: &mut [u8; Self::LEN]) {
        out[..3].copy_from_slice(&OUI);
        out[3] = self.version;
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..].copy_from_slice(&self.window.to_be_bytes());
    }
}

/// A management datagram between software peers: "do you speak the extensions?" and its reply.
///
/// ```text
///   0 | common header, 24 bytes: class 0x4D, Get or GetResp, attribute 0x524D
///  24 | RMPP header, 12 bytes: zero
///  36 | resv8, OUI 24
///  40 | offer, 8 bytes
///  48 | nonce 64
///  56 | incarnation 64
///  64 | reserved
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Is this the reply?
    pub is_reply: bool,
    /// What the sender speaks.
    pub offer: Offer,
    /// Drawn at random by who asks, echoed by who replies: proof that the reply is one.
    pub nonce: u64,
    /// Drawn at random when the sender's device came up: a restarted peer has another.
    pub incarnation: u64,
}

impl Hello {
    /// The management class: of the vendor range 0x30 to 0x4F, whose datagrams carry an OUI.
    pub const CLASS: u8 = 0x4D;
    const ATTRIBUTE: u16 = 0x524D;

    /// Reads a whole management datagram.
    ///
    /// # Errors
    /// [`WireError::Truncated`]; [`WireError::NotA`] for any other datagram.
    pub fn parse(mad: &[u8]) -> Result<Self, WireError> {
        let (mad, _) = take::<MAD_LEN>("MAD", mad)?;
        let (header, _) = MadHeader::parse(mad)?;
        let is_reply = match header.method {
            MadHeader::GET => false,
            MadHeader::GET_RESPONSE => true,
            _ => return Err(WireError::NotA("hello")),
        };
        if (
            header.base_version,
            header.class,
            header.class_version,
            header.attribute,
        ) != (1, Self::CLASS, 1, Self::ATTRIBUTE)
            || header.status != 0
            || mad[37..40] != OUI
        {
            return Err(WireError::NotA("hello"));
        }
        let (offer, _) = Offer::parse(&mad[40..])?;
        Ok(Self {
            is_reply,
            offer,
            nonce: be64(mad, 48),
            incarnation: be64(mad, 56),
        })
    }

    /// Writes a whole management datagram.
    pub fn emit(&self, mad: &mut [u8; MAD_LEN]) {
        mad.fill(0);
        let (header, _) = halves(mad);
        MadHeader {
            base_version: 1,
            class: Self::CLASS,
            class_version: 1,
            method: if self.is_reply {
                MadHeader::GET_RESPONSE
            } else {
                MadHeader::GET
            },
            status: 0,
            class_specific: 0,
            transaction: self.nonce,
            attribute: Self::ATTRIBUTE,
            modifier: 0,
        }
        .emit(header);
        mad[37..40].copy_from_slice(&OUI);
        self.offer.emit(
            mad[40..]
                .first_chunk_mut()
                .expect("an offer is shorter than a MAD"),
        );
        mad[48..56].copy_from_slice(&self.nonce.to_be_bytes());
        mad[56..64].copy_from_slice(&self.incarnation.to_be_bytes());
    }
}

/// The UDP source ports that a software peer at `ip` may send from, in the order it tries them.
///
/// All lie in 0xC000..=0xFFFF, as everyone's do. A receiver computes them anew: a hit is a suspicion and no more, since about
/// one stranger in four thousand hits by chance; then its [`Hello`] stays unanswered.
pub fn source_ports(ip: IpAddr) -> [u16; SOURCE_PORTS] {
    std::array::from_fn(|candidate| {
        let mut hash = crc32fast::Hasher::new();
        hash.update(&OUI);
        // The generations of the extensions do not bother each other.
        hash.update(&[VERSION, candidate as u8]);
        hash.update(&super::Gid::from(ip).0);
        // Neighbouring addresses have CRCs that differ in few bits: mix.
        let mixed = hash.finalize().wrapping_mul(0x9E37_79B1);
        0xC000 | (mixed >> 18) as u16
    })
}

/// Whether a datagram from `port` of `ip` bears the mark of a software peer.
pub fn is_marked(ip: IpAddr, port: u16) -> bool {
    source_ports(ip).contains(&port)
}

/// How many marked ports an address has: more than one, so that a taken port does not hide a device.
pub const SOURCE_PORTS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer = Offer {
        version: 1,
        flags: Offer::SACK,
        window: 0x0203,
    };

    #[test]
    fn a_guid_says_software_peer_and_is_locally_administered() {
        let guid = guid(0x0102_0304);
        assert_eq!(guid, Guid(0x524D_4C01_0102_0304));
        assert_eq!(version_of(guid), Some(VERSION));
        assert_eq!(
            version_of(Guid(0x5054_00FF_FE00_0001)),
            None,
            "soft-RoCE in QEMU"
        );
        assert_eq!(OUI[0] & 3, 2, "locally administered, not a group");
    }

    #[test]
    fn offer_bytes() {
        let known = [b'R', b'M', b'L', 1, 0, 1, 2, 3];
        let mut bytes = [0xA5; 8];
        OFFER.emit(&mut bytes);
        assert_eq!(bytes, known);
        assert_eq!(Offer::parse(&known), Ok((OFFER, &[][..])));
        assert_eq!(
            Offer::parse(&[0; 8]),
            Err(WireError::NotA("extension offer"))
        );
        assert!(matches!(
            Offer::parse(&known[..7]),
            Err(WireError::Truncated { .. })
        ));
    }

    #[test]
    fn hello_bytes() {
        let hello = Hello {
            is_reply: true,
            offer: OFFER,
            nonce: 4,
            incarnation: 5,
        };
        let mut mad = [0xA5; MAD_LEN];
        hello.emit(&mut mad);
        assert_eq!(mad[..4], [1, 0x4D, 1, 0x81]);
        assert_eq!(Hello::parse(&mad), Ok(hello));
        for byte in [0, 1, 2, 3, 4, 16, 37, 40] {
            let mut other = mad;
            other[byte] ^= 0x40;
            assert!(Hello::parse(&other).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn marked_ports_lie_in_the_range_of_roce_and_differ_by_address() {
        let mut distinct = std::collections::HashSet::new();
        for last in 1..=200u8 {
            let ip = IpAddr::from([127, 0, 0, last]);
            let ports = source_ports(ip);
            assert!(ports.iter().all(|&port| port >= 0xC000), "{ports:x?}");
            assert!(ports.iter().all(|&port| is_marked(ip, port)));
            distinct.extend(ports);
        }
        assert!(
            distinct.len() > 700,
            "only {} distinct ports among 800",
            distinct.len()
        );
    }

    #[test]
    fn a_stranger_is_rarely_suspected() {
        let ip = IpAddr::from([10, 1, 2, 3]);
        let hits = (0xC000..=0xFFFFu16)
            .filter(|&port| is_marked(ip, port))
            .count();
        assert!(hits <= SOURCE_PORTS, "{hits} ports of 16384 are marked");
    }
}
