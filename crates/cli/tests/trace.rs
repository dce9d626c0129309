//! `ringmail trace`.

mod support;

use support::{assert_fails, run, stdout};

/// A pcap file of raw IPv4 packets, each a RoCEv2 payload from 192.0.2.1 to 192.0.2.2.
fn pcap(payloads: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xA1B2_C3D4_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for (index, payload) in payloads.iter().enumerate() {
        let total = 28 + payload.len();
        for word in [100, index as u32 * 1000, total as u32, total as u32] {
            file.extend(word.to_le_bytes());
        }
        let length = (total as u16).to_be_bytes();
        file.extend([0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 17, 0, 0]);
        file.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        let length = (total as u16 - 20).to_be_bytes();
        file.extend([0xC0, 0, 0x12, 0xB7, length[0], length[1], 0, 0]);
        file.extend(*payload);
    }
    file
}

/// RC SEND Only, to queue pair 0x11, PSN 7, eight bytes, with a checksum that is none.
const SEND: &[u8] = &[
    0x04, 0, 0xFF, 0xFF, 0, 0, 0, 0x11, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0,
];

#[test]
fn a_capture_is_one_line_a_packet_and_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("two.pcap");
    std::fs::write(&file, pcap(&[SEND, &[0xFF; 5]])).unwrap();
    let output = run(["trace".as_ref(), file.as_os_str()]);
    assert!(output.status.success());
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for part in [
        "192.0.2.1 > 192.0.2.2",
        "RC SEND Only",
        "qp 0x000011",
        "psn 7",
        "8 bytes",
        "WRONG ICRC",
    ] {
        assert!(lines[0].contains(part), "no `{part}` in {}", lines[0]);
    }
    assert!(
        lines[1].contains("0.001000") && lines[1].contains("no RoCEv2 packet"),
        "{}",
        lines[1]
    );
}

#[test]
fn a_file_that_is_no_capture_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    std::fs::write(&file, "not a capture").unwrap();
    assert_fails(
        &run(["trace".as_ref(), file.as_os_str()]),
        1,
        "neither a pcapng nor a pcap file",
    );
    assert_fails(
        &run(["trace", "/nonexistent/capture"]),
        1,
        "/nonexistent/capture",
    );
    let cut = pcap(&[SEND]);
    std::fs::write(&file, &cut[..cut.len() - 1]).unwrap();
    assert_fails(&run(["trace".as_ref(), file.as_os_str()]), 1, "cut short");
}
