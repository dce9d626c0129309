//! Real packets of the Linux kernel's soft-RoCE: every one parses, re-emits to the same bytes and has
//! its ICRC accepted. Their origin is told in `tests/data/README.md`.

#[path = "support/pcap.rs"]
mod pcap;

use std::collections::BTreeSet;

use pcap::Packet;
use ringmail_roce::trace::Line;
use ringmail_roce::wire::cm::{IpCm, Message};
use ringmail_roce::wire::icrc::{IdBasis, Identification, Verdict};
use ringmail_roce::wire::mad::MAD_LEN;
use ringmail_roce::wire::{Headers, ICRC_LEN, MAX_HEADERS, Qpn};

const CAPTURES: [(&str, usize); 3] = [("rxe_ipv4", 252), ("rxe_cm_ipv4", 119), ("rxe_ipv6", 168)];

fn every_packet(mut visit: impl FnMut(&str, &Packet)) {
    for (name, count) in CAPTURES {
        let packets = pcap::read(name);
        assert_eq!(packets.len(), count, "packets in {name}");
        for (number, packet) in packets.iter().enumerate() {
            visit(&format!("{name} packet {}", number + 1), packet);
        }
    }
}

#[test]
fn every_packet_re_emits_to_the_same_bytes() {
    let mut names = BTreeSet::new();
    every_packet(|which, packet| {
        let udp = &packet.udp_payload;
        let (headers, payload) = Headers::parse(udp).expect(which);
        names.insert(headers.bth.opcode.to_string());

        let mut out = [0xA5; MAX_HEADERS];
        let len = headers.emit(&mut out);
        let mut again = out[..len].to_vec();
        again.extend_from_slice(payload);
        again.resize(again.len() + usize::from(headers.bth.pad), 0);
        let icrc = packet
            .path()
            .start(udp.len(), packet.identification)
            .headers(&again[..len])
            .payload(&again[len..]);
        again.extend(icrc.finish());
        assert_eq!(again, *udp, "{which}: {}", headers.bth.opcode);
        assert_eq!((again.len() - ICRC_LEN) % 4, 0);
    });
    let expected = [
        "RC SEND Only",
        "RC RDMA READ Request",
        "RC Fetch Add",
        "UC SEND First",
    ];
    for name in expected {
        assert!(names.contains(name), "{name} is in the captures: {names:?}");
    }
}

#[test]
fn every_connection_management_message_re_emits_to_the_same_bytes() {
    let mut names = BTreeSet::new();
    for packet in pcap::read("rxe_cm_ipv4") {
        let (headers, payload) = Headers::parse(&packet.udp_payload).expect("a packet");
        if headers.bth.dest_qp != Qpn::GSI {
            continue;
        }
        let (transaction, message) = Message::parse(payload).expect("a CM message");
        let mut again = [0xA5; MAD_LEN];
        message.emit(transaction, &mut again);
        assert_eq!(again[..], *payload, "{message:?}");
        names.insert(message.name());

        if let Message::Req(req) = message {
            let (ip, _) = IpCm::parse(&req.private_data).expect("an IP-CM header");
            assert_eq!(ip.source(), packet.source.ip());
            assert_eq!(ip.destination(), packet.destination.ip());
            assert_eq!(req.primary.local_gid.ip(), packet.source.ip());
            assert_eq!(req.primary.remote_gid.ip(), packet.destination.ip());
            assert!(req.service.port().is_some(), "{}", req.service);
        }
    }
    for name in ["REQ", "REP", "RTU", "DREQ", "DREP", "SIDR_REQ", "SIDR_REP"] {
        assert!(names.contains(name), "{name} is in the capture: {names:?}");
    }
}

#[test]
fn a_receiver_that_sees_no_identification_finds_it() {
    let mut basis = IdBasis::new();
    let mut found = 0;
    every_packet(|which, packet| {
        let verdict =
            packet
                .path()
                .verify(&packet.udp_payload, Identification::Unknown, &mut basis);
        match packet.identification {
            0 => assert_eq!(verdict, Verdict::Exact, "{which}"),
            id => {
                assert_eq!(verdict, Verdict::Identified(id), "{which}");
                found += 1;
            }
        }
    });
    assert!(found > 100, "{found} packets have an Identification");
}

#[test]
fn a_receiver_that_knows_the_identification_rejects_every_flipped_bit() {
    let mut basis = IdBasis::new();
    let mut seen = BTreeSet::new();
    every_packet(|which, packet| {
        // One packet of each length: the CRC of equally long ones fails alike.
        if !seen.insert((packet.path().is_ipv4(), packet.udp_payload.len())) {
            return;
        }
        let id = Identification::Known(packet.identification);
        let mut bytes = packet.udp_payload.clone();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let verdict = packet.path().verify(&bytes, id, &mut basis);
            assert_eq!(verdict.is_valid(), bit / 8 == 4, "{which} bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    });
}

#[test]
fn a_receiver_that_does_not_know_it_rejects_nearly_every_flipped_bit() {
    let mut basis = IdBasis::new();
    let (mut flips, mut accepted) = (0, 0);
    let packets = pcap::read("rxe_cm_ipv4");
    for packet in &packets {
        let mut bytes = packet.udp_payload.clone();
        for bit in (0..bytes.len() * 8).filter(|bit| bit / 8 != 4) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let verdict = packet
                .path()
                .verify(&bytes, Identification::Unknown, &mut basis);
            flips += 1;
            accepted += u32::from(verdict.is_valid());
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    // 2^-16 is what the rule admits of random errors; the same bit of equally long packets is the
    // same error, so the number is lumpy.
    assert!(accepted <= flips / 4096, "{accepted} of {flips}");
}

#[test]
fn every_packet_is_one_line_for_humans() {
    let mut lines = Vec::new();
    every_packet(|which, packet| {
        lines.push(Line::parse(&packet.udp_payload).expect(which).to_string());
    });
    for expected in [
        "CM REQ id 0x4d2ba1fd tcp:7174 qp 0x000011 psn 13202491",
        "CM REP id 0xe813ac6c to 0x4d2ba1fd qp 0x000011",
        "RC RDMA READ Request  qp 0x000011",
        "ACK msn",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{expected}"
        );
    }
}
