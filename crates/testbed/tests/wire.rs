//! Packets as others see them: captured on an interface, dissected by Wireshark, checked against the specification.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use ringmail_testbed::{Capture, Judgement, Namespace};

fn kernel_capture(name: &str) -> PathBuf {
    format!(
        "{}/../roce/tests/data/{name}.pcap",
        env!("CARGO_MANIFEST_DIR")
    )
    .into()
}

#[test]
fn the_kernels_packets_are_sound_and_named() -> Result<()> {
    let of = |name| Judgement::of(&kernel_capture(name));
    let (ipv4, ipv6, cm) = (of("rxe_ipv4")?, of("rxe_ipv6")?, of("rxe_cm_ipv4")?);
    for judgement in [&ipv4, &ipv6, &cm] {
        judgement.is_sound()?;
    }
    assert_eq!(ipv4.operations()["RC Fetch Add"], 12);
    assert_eq!(ipv6.operations()["UC Send Middle"], 24);
    assert_eq!(cm.operations()["CM: ConnectRequest"], 4);
    Ok(())
}

#[test]
fn a_packet_with_one_wrong_bit_is_found() -> Result<()> {
    let mut capture = fs::read(kernel_capture("rxe_ipv4"))?;
    // In the ICRC of the last packet.
    *capture.last_mut().expect("not empty") ^= 1;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("changed.pcap");
    fs::write(&path, capture)?;
    let judgement = Judgement::of(&path)?;
    assert_eq!(
        judgement
            .0
            .iter()
            .filter(|packet| !packet.icrc_is_right)
            .count(),
        1
    );
    judgement.is_sound().expect_err("one is wrong");
    Ok(())
}

#[test]
fn a_capture_holds_what_has_passed_the_interface() -> Result<()> {
    let (near, far) = (Namespace::new()?, Namespace::new()?);
    near.connect("near", &far, "far")?;
    near.ip("addr add 10.9.1.1/24 dev near")?;
    far.ip("addr add 10.9.1.2/24 dev far")?;
    near.ip("link set near up")?;
    far.ip("link set far up")?;
    let peer: IpAddr = "10.9.1.2".parse()?;

    let capture = Capture::start(&near, "near")?;
    let send =
        r"for i in 1 2 3; do printf 'no RoCEv2, but long enough' >/dev/udp/10.9.1.2/4791; done";
    near.run("bash", &["-c", send], std::time::Duration::from_secs(30))?
        .succeeded()?;
    let judgement = Judgement::of(&capture.stop(peer)?)?;

    assert_eq!(judgement.0.len(), 3);
    assert!(
        judgement
            .0
            .iter()
            .all(|packet| packet.source == "10.9.1.1" && !packet.icrc_is_right)
    );
    Ok(())
}
