//! The passive mark: UDP source ports by which software peers suspect one another.
//!
//! RoCEv2 leaves the source port to the sender (it is entropy for routers), so it can carry a hint that no stranger
//! notices. The ports of an address are a keyed hash of it; a receiver recomputes them. A hit is a suspicion only
//! (one stranger in a few thousand hits by chance): the extensions start after an exchange that proves it.

use std::net::IpAddr;

/// The source ports that a device at `ip` may send from, in the order they are tried. All lie in 0xC000-0xFFFF.
pub(crate) fn ports(ip: IpAddr) -> [u16; CANDIDATES] {
    let mut bytes = [0u8; 16];
    match ip {
        IpAddr::V4(v4) => {
            bytes[10..12].fill(0xFF);
            bytes[12..].copy_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    std::array::from_fn(|candidate| {
        let mut hash = fnv(KEY, &bytes);
        hash = fnv(hash, &[candidate as u8]);
        // FNV's low bits mix poorly over so few bytes: fold the high half in.
        let folded = (hash ^ (hash >> 32)) as u32;
        0xC000 | ((folded ^ (folded >> 14)) as u16 & 0x3FFF)
    })
}

/// Whether a datagram from `port` of `ip` bears the mark.
pub(crate) fn is_marked(ip: IpAddr, port: u16) -> bool {
    ports(ip).contains(&port)
}

fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// How many ports an address has: more than one, so that a taken port does not hide a device.
const CANDIDATES: usize = 4;

/// Changes when the extensions become incompatible, so that the generations do not bother each other.
const KEY: u64 = u64::from_be_bytes(*b"RINGML/1");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lie_in_the_range_of_roce_and_differ_by_address() {
        let mut distinct = std::collections::HashSet::new();
        for last in 1..=200u8 {
            let ip = IpAddr::from([127, 0, 0, last]);
            let ports = ports(ip);
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
        assert!(hits <= CANDIDATES, "{hits} ports of 16384 are marked");
    }
}
