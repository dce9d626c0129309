//! One packet as one line for humans.
//!
//! ```text
//! RC RDMA WRITE First  qp 0x000012 psn 1234  va 0x00007f0012345678 rkey 0x00001a2b len 65536  1024 bytes
//! UD SEND Only  qp 0x000001 psn 0  CM REQ id 0x4d2ba1fd tcp:7174 qp 0x000011 psn 13202491
//! ```
//!
//! Addresses, times and what is wrong with a checksum are the caller's to add.

use std::fmt;

use crate::wire::cm::Message;
use crate::wire::extension::Hello;
use crate::wire::{Headers, Opcode, Operation, Qpn, WireError};

/// A packet, ready to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    headers: Headers,
    payload: &'a [u8],
}

impl<'a> Line<'a> {
    /// The packet that is a whole UDP payload.
    ///
    /// # Errors
    /// What [`Headers::parse`] finds wrong.
    pub fn parse(udp_payload: &'a [u8]) -> Result<Self, WireError> {
        let (headers, payload) = Headers::parse(udp_payload)?;
        Ok(Self::new(headers, payload))
    }

    /// A packet that is parsed already; `payload` without pad and ICRC.
    pub const fn new(headers: Headers, payload: &'a [u8]) -> Self {
        Self { headers, payload }
    }

    /// Is this a management datagram?
    fn is_management(&self) -> bool {
        self.headers.bth.dest_qp == Qpn::GSI && self.headers.deth.is_some()
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bth = &self.headers.bth;
        write!(f, "{}  qp {} psn {}", bth.opcode, bth.dest_qp, bth.psn)?;
        extensions(f, &self.headers)?;
        if self.is_management() {
            f.write_str("  ")?;
            management(f, self.payload)?;
        } else if !self.payload.is_empty() {
            write!(f, "  {} bytes", self.payload.len())?;
        }
        flags(f, &self.headers)
    }
}

/// What the extension headers say.
fn extensions(f: &mut fmt::Formatter<'_>, headers: &Headers) -> fmt::Result {
    if let Some(deth) = headers.deth {
        write!(f, "  from qp {} qkey {:#010x}", deth.source_qp, deth.qkey)?;
    }
    if let Some(reth) = headers.reth {
        write!(
            f,
            "  va {:#018x} rkey {} len {}",
            reth.va, reth.rkey, reth.length
        )?;
    }
    if let Some(atomic) = headers.atomic {
        write!(f, "  va {:#018x} rkey {}", atomic.va, atomic.rkey)?;
        if headers.bth.opcode == Opcode::Rc(Operation::FetchAdd) {
            write!(f, " add {}", atomic.swap_or_add)?;
        } else {
            write!(
                f,
                " compare {:#x} swap {:#x}",
                atomic.compare, atomic.swap_or_add
            )?;
        }
    }
    if let Some(aeth) = headers.aeth {
        write!(f, "  {} msn {}", aeth.syndrome, aeth.msn)?;
    }
    if let Some(ack) = headers.atomic_ack {
        write!(f, " original {:#x}", ack.original)?;
    }
    if let Some(sack) = headers.sack {
        let ahead: u32 = sack.bitmap.iter().map(|word| word.count_ones()).sum();
        write!(
            f,
            "  expects {} window {} has {ahead} ahead",
            sack.expected, sack.window
        )?;
    }
    if let Some(imm) = headers.imm {
        write!(f, "  imm {:#010x}", imm.0)?;
    }
    if let Some(ieth) = headers.ieth {
        write!(f, "  invalidates rkey {}", ieth.rkey)?;
    }
    Ok(())
}

/// What asks for attention.
fn flags(f: &mut fmt::Formatter<'_>, headers: &Headers) -> fmt::Result {
    let bth = &headers.bth;
    for (is_set, name) in [
        (bth.ack_request, "ack requested"),
        (bth.solicited, "solicited"),
        (bth.fecn, "FECN"),
        (bth.becn, "BECN"),
    ] {
        if is_set {
            write!(f, "  [{name}]")?;
        }
    }
    if bth.version != 0 {
        write!(f, "  [version {}]", bth.version)?;
    }
    Ok(())
}

/// What a management datagram says.
fn management(f: &mut fmt::Formatter<'_>, mad: &[u8]) -> fmt::Result {
    if let Ok(hello) = Hello::parse(mad) {
        let what = if hello.is_reply { "reply" } else { "request" };
        return write!(f, "hello {what} version {}", hello.offer.version);
    }
    let Ok((_, message)) = Message::parse(mad) else {
        return write!(f, "management datagram of {} bytes", mad.len());
    };
    write!(f, "CM {}", message.name())?;
    match message {
        Message::Req(m) => {
            write!(
                f,
                " id {} {} qp {} psn {}",
                m.local, m.service, m.qpn, m.psn
            )
        }
        Message::Rep(m) => {
            write!(
                f,
                " id {} to {} qp {} psn {}",
                m.local, m.remote, m.qpn, m.psn
            )
        }
        Message::Rej(m) => write!(f, " id {} to {}: {}", m.local, m.remote, m.reason),
        Message::Mra(m) => write!(f, " id {} to {}", m.local, m.remote),
        Message::Rtu(m) => write!(f, " id {} to {}", m.local, m.remote),
        Message::Dreq(m) => write!(f, " id {} to {}", m.local, m.remote),
        Message::Drep(m) => write!(f, " id {} to {}", m.local, m.remote),
        Message::SidrReq(m) => write!(f, " id {:#010x} {}", m.request, m.service),
        Message::SidrRep(m) => {
            write!(
                f,
                " id {:#010x} {}: qp {} {}",
                m.request, m.service, m.qpn, m.status
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Aeth, Bth, ICRC_LEN, Key, NakCode, Psn, Reth, Sack, Syndrome};

    fn headers(opcode: Opcode) -> Headers {
        Headers::new(Bth::new(opcode, Qpn::new(0x12), Psn::new(1234)))
    }

    #[test]
    fn a_write_names_its_target() {
        let mut write = headers(Opcode::Rc(Operation::WriteFirst));
        write.reth = Some(Reth {
            va: 0x7F00_1234_5678,
            rkey: Key(0x1A2B),
            length: 65536,
        });
        write.bth.ack_request = true;
        assert_eq!(
            Line::new(write, &[0; 1024]).to_string(),
            "RC RDMA WRITE First  qp 0x000012 psn 1234  \
             va 0x00007f0012345678 rkey 0x00001a2b len 65536  1024 bytes  [ack requested]"
        );
    }

    #[test]
    fn a_refusal_says_why() {
        let mut nak = headers(Opcode::Rc(Operation::Acknowledge));
        nak.aeth = Some(Aeth {
            syndrome: Syndrome::Nak(NakCode::RemoteAccess),
            msn: 7,
        });
        assert_eq!(
            Line::new(nak, &[]).to_string(),
            "RC Acknowledge  qp 0x000012 psn 1234  NAK remote access error msn 7"
        );
    }

    #[test]
    fn a_selective_acknowledgement_says_what_is_missing() {
        let mut sack = headers(Opcode::Sack);
        sack.aeth = Some(Aeth {
            syndrome: Syndrome::ACK,
            msn: 7,
        });
        sack.sack = Some(Sack {
            expected: Psn::new(1235),
            window: 64,
            bitmap: [6, 0, 0, 1],
        });
        assert_eq!(
            Line::new(sack, &[]).to_string(),
            "SACK  qp 0x000012 psn 1234  ACK msn 7  expects 1235 window 64 has 3 ahead"
        );
    }

    #[test]
    fn any_bytes_are_one_line_or_an_error() {
        for opcode in 0..=u8::MAX {
            let mut bytes = vec![0xFF; 300];
            bytes[0] = opcode;
            bytes[1] = 0;
            let line = Line::parse(&bytes).expect("long enough").to_string();
            assert!(!line.contains('\n'), "{line}");
        }
        assert!(Line::parse(&[0; Bth::LEN + ICRC_LEN - 1]).is_err());
    }
}
