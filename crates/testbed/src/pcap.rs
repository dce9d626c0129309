//! Reads the IP packets out of a classic pcap file (draft-ietf-opsawg-pcap), Ethernet or raw IP. Newer formats: `tshark`
//! converts them.

use anyhow::{Context, Result, bail};

const ETHERNET: u32 = 1;
const RAW_IP: u32 = 101;

/// The IP packets of `file`; other Ethernet frames are left out.
pub(crate) fn packets(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    const HEADER: usize = 24;
    const RECORD: usize = 16;
    let number = |at: usize| -> Result<u32> {
        let bytes = file.get(at..at + 4).context("the capture ends early")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    // Microseconds or nanoseconds.
    if ![0xA1B2_C3D4, 0xA1B2_3C4D].contains(&number(0)?) {
        bail!("not a little-endian pcap file");
    }
    let link = number(20)?;
    let mut packets = Vec::new();
    let mut at = HEADER;
    while at < file.len() {
        let length = number(at + 8)? as usize;
        at += RECORD;
        let frame = file
            .get(at..at + length)
            .context("the capture ends early")?;
        at += length;
        match link {
            ETHERNET if matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xDD])) => {
                packets.push(frame[14..].to_vec());
            }
            ETHERNET => {}
            RAW_IP => packets.push(frame.to_vec()),
            other => bail!("link type {other}"),
        }
    }
    Ok(packets)
}
