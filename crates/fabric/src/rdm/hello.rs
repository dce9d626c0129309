//! What endpoints tell each other while they connect, as private data.
//!
//! ```text
//! | 'R' | version 1 | incarnation (4) | attempt (4) | length | address text ... |
//! ```
//!
//! Big-endian. Whatever follows is padding of the wire format. An answer has no address.

use crate::Address;

/// Most bytes of a hello: fits the private data of a connection request (56 bytes by the RDMA CM's IP addressing).
pub(super) const LONGEST: usize = 56;

const HEAD: usize = 11;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// Random for each opened endpoint: another one at the same address is another life.
    pub(super) incarnation: u32,
    /// Counts what the sender has tried with this peer; a lower one is older.
    pub(super) attempt: u32,
    /// Where the sender is reached; empty in an answer.
    pub(super) address: Address,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The other way round is under way and wins.
    Yield,
    /// A newer connection is there already.
    Stale,
}

impl Hello {
    /// None if the address is too long.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let address = self.address.as_str().as_bytes();
        let len = u8::try_from(address.len()).ok()?;
        let mut bytes = vec![b'R', 1];
        bytes.extend(self.incarnation.to_be_bytes());
        bytes.extend(self.attempt.to_be_bytes());
        bytes.push(len);
        bytes.extend(address);
        (bytes.len() <= LONGEST).then_some(bytes)
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let &[b'R', 1, i0, i1, i2, i3, a0, a1, a2, a3, len] = head else {
            return None;
        };
        let text = std::str::from_utf8(rest.get(..len.into())?).ok()?;
        Some(Self {
            incarnation: u32::from_be_bytes([i0, i1, i2, i3]),
            attempt: u32::from_be_bytes([a0, a1, a2, a3]),
            address: text.into(),
        })
    }
}

impl Refusal {
    pub(super) fn to_bytes(self) -> [u8; 2] {
        [b'R', if self == Self::Yield { b'y' } else { b's' }]
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [b'R', b'y', ..] => Some(Self::Yield),
            [b'R', b's', ..] => Some(Self::Stale),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_padding_and_nothing_else() {
        let hello = Hello {
            incarnation: 0x0102_0304,
            attempt: 7,
            address: "192.0.2.1:7471".into(),
        };
        let mut bytes = hello.to_bytes().unwrap();
        assert_eq!(&bytes[..12], b"R\x01\x01\x02\x03\x04\0\0\0\x07\x0e1");
        for len in 0..bytes.len() {
            assert_eq!(Hello::parse(&bytes[..len]), None, "{len} bytes");
        }
        bytes.resize(LONGEST, 0);
        assert_eq!(Hello::parse(&bytes), Some(hello));
        bytes[1] = 2;
        assert_eq!(Hello::parse(&bytes), None);
    }

    #[test]
    fn an_address_that_does_not_fit_is_refused() {
        let hello = Hello {
            incarnation: 0,
            attempt: 0,
            address: "x".repeat(LONGEST - HEAD + 1).into(),
        };
        assert_eq!(hello.to_bytes(), None);
    }
}
