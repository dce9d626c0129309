//! All transport headers of one packet.
//!
//! IBA Vol. 1, 9.2 to 9.5: which extension headers follow the BTH is a matter of the opcode alone.
//! Checking the ICRC is [`super::icrc`]'s.

use super::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Deth, ICRC_LEN, Ieth, Immediate, Opcode, Reth, Sack,
    WireError,
};

/// Room for the headers of any packet, in bytes: BTH, AETH and SACK are the longest.
pub const MAX_HEADERS: usize = Bth::LEN + Aeth::LEN + Sack::LEN;

/// The transport headers of one packet, in the order of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each type says what it is")]
pub struct Headers {
    pub bth: Bth,
    pub deth: Option<Deth>,
    pub reth: Option<Reth>,
    pub atomic: Option<AtomicEth>,
    pub aeth: Option<Aeth>,
    pub atomic_ack: Option<AtomicAckEth>,
    pub sack: Option<Sack>,
    pub imm: Option<Immediate>,
    pub ieth: Option<Ieth>,
}

impl Headers {
    /// A packet with no extension headers yet: the caller sets those that the opcode has.
    #[inline]
    pub const fn new(bth: Bth) -> Self {
        Self {
            bth,
            deth: None,
            reth: None,
            atomic: None,
            aeth: None,
            atomic_ack: None,
            sack: None,
            imm: None,
            ieth: None,
        }
    }

    /// Reads the headers of a packet, given its whole UDP payload; also returns the packet's payload,
    /// without pad and ICRC. An unknown opcode is taken to have a BTH only.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::PadBeyondPayload`].
    #[inline]
    pub fn parse(udp_payload: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let (bth, rest) = Bth::parse(udp_payload)?;
        let mut headers = Self::new(bth);
        let rest = headers.parse_extensions(rest)?;

        let pad = usize::from(bth.pad);
        if let Some(end) = rest.len().checked_sub(ICRC_LEN + pad) {
            return Ok((headers, &rest[..end]));
        }
        Err(match rest.len().checked_sub(ICRC_LEN) {
            Some(got) => WireError::PadBeyondPayload { pad: bth.pad, got },
            None => WireError::Truncated {
                header: "ICRC",
                needed: ICRC_LEN,
                got: rest.len(),
            },
        })
    }

    #[inline]
    fn parse_extensions<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], WireError> {
        /// Reads one header into its field and moves on.
        macro_rules! header {
            ($field:ident, $header:ident) => {{
                let (header, behind) = $header::parse(rest)?;
                self.$field = Some(header);
                rest = behind;
            }};
        }

        let operation = match self.bth.opcode {
            Opcode::Rc(operation) | Opcode::Uc(operation) => operation,
            Opcode::Ud(operation) => {
                header!(deth, Deth);
                operation
            }
            Opcode::Sack => {
                header!(aeth, Aeth);
                header!(sack, Sack);
                return Ok(rest);
            }
            Opcode::Cnp | Opcode::Unknown(_) => return Ok(rest),
        };
        if operation.has_reth() {
            header!(reth, Reth);
        }
        if operation.has_atomic_eth() {
            header!(atomic, AtomicEth);
        }
        if operation.has_aeth() {
            header!(aeth, Aeth);
        }
        if operation.has_atomic_ack() {
            header!(atomic_ack, AtomicAckEth);
        }
        if operation.has_immediate() {
            header!(imm, Immediate);
        }
        if operation.has_ieth() {
            header!(ieth, Ieth);
        }
        Ok(rest)
    }

    /// Writes the headers that are set to the front of `out`; returns their length in bytes.
    ///
    /// # Panics
    /// When more headers are set than any packet has, so that they exceed [`MAX_HEADERS`].
    #[inline]
    pub fn emit(&self, out: &mut [u8; MAX_HEADERS]) -> usize {
        let mut at = 0;
        /// Writes one header if it is set.
        macro_rules! header {
            ($field:expr) => {
                if let Some(header) = &$field {
                    let room = out[at..].first_chunk_mut().expect("a packet's headers fit");
                    header.emit(room);
                    at += room.len();
                }
            };
        }

        header!(Some(self.bth));
        header!(self.deth);
        header!(self.reth);
        header!(self.atomic);
        header!(self.aeth);
        header!(self.atomic_ack);
        header!(self.sack);
        header!(self.imm);
        header!(self.ieth);
        at
    }

    /// Length of the headers that are set, in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "there is always a BTH")]
    pub const fn len(&self) -> usize {
        const fn of(present: bool, len: usize) -> usize {
            if present { len } else { 0 }
        }

        Bth::LEN
            + of(self.deth.is_some(), Deth::LEN)
            + of(self.reth.is_some(), Reth::LEN)
            + of(self.atomic.is_some(), AtomicEth::LEN)
            + of(self.aeth.is_some(), Aeth::LEN)
            + of(self.atomic_ack.is_some(), AtomicAckEth::LEN)
            + of(self.sack.is_some(), Sack::LEN)
            + of(self.imm.is_some(), Immediate::LEN)
            + of(self.ieth.is_some(), Ieth::LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Psn, Qpn};

    /// A packet of 300 bytes with the given opcode.
    fn packet(opcode: u8, pad: u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..300).map(|i| i as u8).collect();
        let mut bth = Bth::new(opcode.into(), Qpn::new(7), Psn::new(9));
        bth.pad = pad;
        bth.emit(bytes.first_chunk_mut().expect("long enough"));
        bytes
    }

    #[test]
    fn the_opcode_says_which_headers_there_are() {
        for opcode in 0..=u8::MAX {
            let bytes = packet(opcode, 0);
            let (headers, payload) = Headers::parse(&bytes).expect("long enough");
            let mut again = [0; MAX_HEADERS];
            let len = headers.emit(&mut again);

            assert_eq!(len, headers.len());
            assert_eq!(len + payload.len() + ICRC_LEN, bytes.len());
            let (emitted, _) =
                Headers::parse(&[&again[..len], &bytes[len..]].concat()).expect("same");
            assert_eq!(emitted, headers, "opcode {opcode:#04x}");
        }
    }

    #[test]
    fn lengths_by_operation() {
        for (opcode, len) in [
            (0x04, 12),
            (0x0B, 32),
            (0x0C, 28),
            (0x0E, 12),
            (0x10, 16),
            (0x12, 24),
            (0x13, 40),
            (0x17, 16),
            (0x65, 24),
            (0x81, 12),
            (0xC1, 56),
        ] {
            let bytes = packet(opcode, 0);
            let (headers, _) = Headers::parse(&bytes).expect("long enough");
            assert_eq!(headers.len(), len, "{}", headers.bth.opcode);
        }
    }

    #[test]
    fn every_short_length_is_an_error() {
        for opcode in 0..=u8::MAX {
            let bytes = packet(opcode, 3);
            let (headers, _) = Headers::parse(&bytes).expect("long enough");
            let least = headers.len() + 3 + ICRC_LEN;
            assert!(Headers::parse(&bytes[..least]).is_ok_and(|(_, payload)| payload.is_empty()));
            for short in 0..least {
                assert!(
                    Headers::parse(&bytes[..short]).is_err(),
                    "{opcode:#04x} {short}"
                );
            }
        }
    }
}
