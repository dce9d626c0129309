//! Checks the invariant CRC of RoCEv2 packets (IBA Vol. 1, 7.8.1 and annex A17): a second opinion.
//!
//! Written from the specification with a CRC of one bit at a time, so that it shares nothing with the code that it
//! judges. Slow; for captures only.

use anyhow::{Result, bail};

const UDP: u8 = 17;

/// Whether the ICRC of an IP packet that carries RoCEv2 is right.
///
/// # Errors
/// The packet is too short, a fragment, or not UDP over IP.
pub(crate) fn is_right(packet: &[u8]) -> Result<bool> {
    let mut packet = packet.to_vec();
    let (header, length) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3FFF;
            if fragment != 0 || packet[9] != UDP {
                bail!("an IPv4 packet that is a fragment or not UDP");
            }
            // Routers may change type of service, time to live and with them the checksum.
            for at in [1, 8, 10, 11] {
                packet[at] = 0xFF;
            }
            (
                usize::from(packet[0] & 0x0F) * 4,
                u16::from_be_bytes([packet[2], packet[3]]).into(),
            )
        }
        Some(6) if packet.len() >= 40 => {
            if packet[6] != UDP {
                bail!("an IPv6 packet that is not UDP");
            }
            let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            // Traffic class, flow label, hop limit.
            packet[0] |= 0x0F;
            for at in [1, 2, 3, 7] {
                packet[at] = 0xFF;
            }
            (40, length)
        }
        _ => bail!("not an IP packet"),
    };
    // UDP header, BTH, ICRC.
    if length < header + 8 + 12 + 4 || packet.len() < length {
        bail!("{} bytes are too few for RoCEv2", packet.len());
    }
    // A short Ethernet frame is padded behind the packet.
    packet.truncate(length);
    let (covered, icrc) = packet.split_at_mut(length - 4);
    // The UDP checksum, and the BTH's byte with the congestion bits.
    covered[header + 6] = 0xFF;
    covered[header + 7] = 0xFF;
    covered[header + 8 + 4] = 0xFF;
    // In place of a local routing header, which RoCE has not.
    let mut crc = crc32(!0, &[0xFF; 8]);
    crc = crc32(crc, covered);
    Ok((!crc).to_le_bytes() == icrc)
}

/// Feeds bytes into the CRC of Ethernet: polynomial 0x04C11DB7, least significant bit first.
fn crc32(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xEDB8_8320
            } else {
                crc >> 1
            };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcap;

    /// Captured from the Linux kernel's soft-RoCE.
    fn captures() -> Vec<Vec<u8>> {
        ["rxe_ipv4", "rxe_cm_ipv4", "rxe_ipv6"]
            .iter()
            .map(|name| {
                format!(
                    "{}/../roce/tests/data/{name}.pcap",
                    env!("CARGO_MANIFEST_DIR")
                )
            })
            .flat_map(|path| {
                pcap::packets(&std::fs::read(path).expect("in the tree")).expect("a capture")
            })
            .collect()
    }

    #[test]
    fn the_kernels_packets_are_right() {
        let packets = captures();
        assert!(packets.len() > 500, "{} packets", packets.len());
        for packet in packets {
            assert!(is_right(&packet).expect("RoCEv2"), "{packet:02x?}");
        }
    }

    #[test]
    fn a_changed_bit_is_found_where_the_crc_covers_it_and_only_there() {
        // IPv4, then the offsets of its header, UDP's and the BTH's that may change on the way.
        let packet = captures().remove(0);
        let may_change = [1, 8, 10, 11, 20 + 6, 20 + 7, 28 + 4];
        for at in 12..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 0x10;
            assert_eq!(
                is_right(&changed).expect("RoCEv2"),
                may_change.contains(&at),
                "byte {at}"
            );
        }
    }

    #[test]
    fn the_crc_is_the_well_known_one() {
        assert_eq!(!crc32(!0, b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn what_is_not_rocev2_is_refused() {
        let packet = captures().remove(0);
        for length in 0..packet.len() {
            assert!(is_right(&packet[..length]).is_err(), "{length} bytes");
        }
    }
}
