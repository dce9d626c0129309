//! RoCEv2 packet formats, one header a file.
//!
//! ```text
//! UDP 4791 | BTH | [DETH | RETH | AtomicETH | AETH [AtomicAckETH | SACK]] | [ImmDt | IETH] | payload | pad | ICRC
//! ```
//!
//! Every header is an owned struct whose every value can be emitted. Reserved bits are sent zero and
//! ignored on receipt, unknown code points survive, and no bytes a peer sends make anything here panic.
//! What a value means, and whether it is allowed, is the business of the engine.

mod aeth;
mod atomic_ack_eth;
mod atomic_eth;
mod bth;
pub mod cm;
mod deth;
pub mod extension;
pub mod grh;
mod headers;
pub mod icrc;
mod ids;
mod ieth;
mod imm_dt;
pub mod mad;
mod opcode;
mod psn;
mod reth;
mod sack;

pub use aeth::{Aeth, NakCode, Syndrome};
pub use atomic_ack_eth::AtomicAckEth;
pub use atomic_eth::AtomicEth;
pub use bth::Bth;
pub use deth::Deth;
pub use grh::Grh;
pub use headers::{Headers, MAX_HEADERS};
pub use ids::{Gid, Guid, Key, Qpn};
pub use ieth::Ieth;
pub use imm_dt::Immediate;
pub use opcode::{Opcode, Operation};
pub use psn::Psn;
pub use reth::Reth;
pub use sack::Sack;

/// The UDP destination port of every RoCEv2 packet.
pub const ROCE_PORT: u16 = 4791;

/// Length of the invariant CRC behind every packet, in bytes.
pub const ICRC_LEN: usize = 4;

/// The only partition key in use on RoCE: the default partition, full membership.
pub const DEFAULT_PKEY: u16 = 0xFFFF;

/// Why bytes are not the header they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the header has.
    #[error("{header} needs {needed} bytes, got {got}")]
    Truncated {
        /// The header's name in the specification.
        header: &'static str,
        /// Its length in bytes.
        needed: usize,
        /// The bytes there were.
        got: usize,
    },
    /// The pad count exceeds the bytes behind the headers.
    #[error("{pad} pad bytes announced, {got} bytes behind the headers")]
    PadBeyondPayload {
        /// The announced pad count.
        pad: u8,
        /// The bytes there were, without the ICRC.
        got: usize,
    },
    /// The first byte names no IP version this header can hold.
    #[error("not an IP header: first byte {0:#04x}")]
    NotIp(u8),
    /// Source and destination of a path are not of one address family.
    #[error("source and destination are of different address families")]
    MixedFamilies,
    /// A management datagram of another class, version or attribute than asked for.
    #[error("not a {0}")]
    NotA(&'static str),
}

/// Splits the fixed-size header called `header` off the front of `bytes`.
#[inline]
fn take<'a, const LEN: usize>(
    header: &'static str,
    bytes: &'a [u8],
) -> Result<(&'a [u8; LEN], &'a [u8]), WireError> {
    bytes
        .split_first_chunk::<LEN>()
        .ok_or(WireError::Truncated {
            header,
            needed: LEN,
            got: bytes.len(),
        })
}

/// The big-endian 16-bit field at `at`.
#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 24-bit field at `at`.
#[inline]
fn be24(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]])
}

/// The big-endian 32-bit field at `at`.
#[inline]
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The big-endian 64-bit field at `at`.
#[inline]
fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Writes the low 24 bits of `value` big-endian at `at`.
#[inline]
fn put24(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 3].copy_from_slice(&value.to_be_bytes()[1..]);
}

#[cfg(test)]
mod check {
    //! The three tests that every header has.

    use std::fmt::Debug;

    use super::WireError;

    /// `known` are the bytes of `value`; `reserved` has a one for each bit that is not carried.
    pub(super) fn header<T: Debug + PartialEq, const LEN: usize>(
        value: T,
        known: [u8; LEN],
        reserved: [u8; LEN],
        parse: impl for<'a> Fn(&'a [u8]) -> Result<(T, &'a [u8]), WireError>,
        emit: impl Fn(&T, &mut [u8; LEN]),
    ) {
        let emitted = |value: &T| {
            let mut dirty = [0xA5; LEN];
            emit(value, &mut dirty);
            dirty
        };

        assert_eq!(emitted(&value), known, "known bytes out");
        let mut longer = known.to_vec();
        longer.extend_from_slice(b"rest");
        assert_eq!(parse(&longer), Ok((value, &b"rest"[..])), "known bytes in");

        for bit in 0..LEN * 8 {
            let mut flipped = known;
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            let (parsed, _) = parse(&flipped).expect("long enough");
            let mut expected = flipped;
            for (byte, mask) in expected.iter_mut().zip(reserved) {
                *byte &= !mask;
            }
            assert_eq!(
                emitted(&parsed),
                expected,
                "bit {bit} round-trips or is reserved"
            );
        }

        for short in 0..LEN {
            match parse(&known[..short]) {
                Err(WireError::Truncated { needed, got, .. }) => {
                    assert_eq!((needed, got), (LEN, short));
                }
                other => panic!("{short} bytes: expected Truncated, got {other:?}"),
            }
        }
    }
}
