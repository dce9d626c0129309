//! The software RNIC between two networks: what every operation looks like on the wire.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ringmail_testbed::{Capture, Judgement, Namespace};

const LIMIT: Duration = Duration::from_secs(120);

/// The program under test.
const PEER: &str = env!("CARGO_BIN_EXE_rnic-peer");

const NEAR_IPV4: &str = "10.9.1.1";
const FAR_IPV4: &str = "10.9.1.2";
const NEAR_IPV6: &str = "fd00:9:1::1";
const FAR_IPV6: &str = "fd00:9:1::2";

/// Two networks with a wire between them.
struct Wire {
    near: Namespace,
    far: Namespace,
}

impl Wire {
    fn new(mtu: u32) -> Result<Self> {
        let (near, far) = (Namespace::new()?, Namespace::new()?);
        near.connect("wire", &far, "wire")?;
        for (end, ipv4, ipv6) in [(&near, NEAR_IPV4, NEAR_IPV6), (&far, FAR_IPV4, FAR_IPV6)] {
            end.ip(&format!("link set wire mtu {mtu} up"))?;
            end.ip(&format!("addr add {ipv4}/24 dev wire"))?;
            end.ip(&format!("addr add {ipv6}/64 dev wire nodad"))?;
            // Bursts are captured before the interface takes them apart, so they must be taken apart earlier.
            end.run(
                "ethtool",
                &["-K", "wire", "tx-udp-segmentation", "off"],
                LIMIT,
            )?
            .succeeded()?;
        }
        Ok(Self { near, far })
    }

    /// Runs the program at both ends and returns what the wire carried meanwhile, and what the near device captured itself.
    fn exchange(
        &self,
        arguments: &[&str],
        near: &str,
        far: &str,
        settings: &[(&str, &str)],
    ) -> Result<[Judgement; 2]> {
        let own = self.near.directory().join("own.pcapng");
        let own_capture = own.to_str().expect("a path of letters").to_owned();
        let capture = Capture::start(&self.near, "wire")?;
        let peer = |end: &Namespace, address: &str, file: &str, more: &[&str]| {
            let mut command = end.command("env");
            command.args([
                format!("RINGMAIL_ADDRESS={address}"),
                format!("RINGMAIL_CAPTURE={file}"),
            ]);
            command.args(
                settings
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
            );
            command.arg(PEER).args(arguments).args(more);
            end.start(command)
        };
        let responder = peer(&self.far, far, "", &[])?;
        responder.wait_for("listening", LIMIT)?;
        let requester = peer(&self.near, near, &own_capture, &[far])?;
        requester.finish(LIMIT)?.succeeded()?;
        responder.finish(LIMIT)?.succeeded()?;
        let wire = capture.stop(far.parse::<IpAddr>()?)?;
        Ok([Judgement::of(&wire)?, Judgement::of(&own)?])
    }
}

const SEND: &[&str] = &[
    "Send First",
    "Send Middle",
    "Send Last",
    "Send Only",
    "Send Last Immediate",
    "Send Only Immediate",
];
const WRITE: &[&str] = &[
    "RDMA Write First",
    "RDMA Write Middle",
    "RDMA Write Last",
    "RDMA Write Only",
    "RDMA Write Last Immediate",
    "RDMA Write Only Immediate",
];
const RELIABLE: &[&str] = &[
    "RDMA Read Request",
    "RDMA Read Response First",
    "RDMA Read Response Middle",
    "RDMA Read Response Last",
    "RDMA Read Response Only",
    "Acknowledge",
    "Atomic Acknowledge",
    "Compare Swap",
    "Fetch Add",
    "Send Last Invalidate",
    "Send Only Invalidate",
];

fn expect_operations(judgement: &Judgement, service: &str, names: &[&[&str]]) {
    let expected: Vec<String> = names
        .iter()
        .copied()
        .flatten()
        .map(|name| format!("{service} {name}"))
        .collect();
    let seen: Vec<&str> = judgement.operations().into_keys().collect();
    for name in &expected {
        assert!(seen.contains(&name.as_str()), "no {name} but {seen:?}");
    }
    for name in seen {
        assert!(
            expected.iter().any(|expected| expected == name),
            "a {name} among {expected:?}"
        );
    }
}

#[test]
fn every_operation_of_every_service_is_sound_on_the_wire() -> Result<()> {
    let wire = Wire::new(1500)?;
    let plain = [("RINGMAIL_EXTENSIONS", "off")];
    for (near, far) in [(NEAR_IPV4, FAR_IPV4), (NEAR_IPV6, FAR_IPV6)] {
        for (kind, service, names) in [
            ("rc", "RC", vec![SEND, WRITE, RELIABLE]),
            ("uc", "UC", vec![SEND, WRITE]),
            ("ud", "UD", vec![&["Send Only", "Send Only Immediate"][..]]),
        ] {
            let [on_the_wire, own] =
                wire.exchange(&["exchange", "--all", kind, "1024"], near, far, &plain)?;
            on_the_wire.is_sound().context("on the wire")?;
            own.is_sound().context("as the device captured it")?;
            expect_operations(&on_the_wire, service, &names);
            expect_operations(&own, service, &names);
        }
    }
    Ok(())
}

#[test]
fn a_connection_is_managed_on_the_wire_as_the_standard_says() -> Result<()> {
    let wire = Wire::new(1500)?;
    for (near, far) in [(NEAR_IPV4, FAR_IPV4), (NEAR_IPV6, FAR_IPV6)] {
        for extensions in ["off", "on"] {
            let settings = [("RINGMAIL_EXTENSIONS", extensions)];
            let [on_the_wire, own] = wire.exchange(&["rping", "5"], near, far, &settings)?;
            own.is_sound().context("as the device captured it")?;
            on_the_wire.is_sound().context("on the wire")?;
            let operations = on_the_wire.operations();
            for name in [
                "ConnectRequest",
                "ConnectReply",
                "ReadyToUse",
                "DisconnectRequest",
                "DisconnectReply",
            ] {
                assert!(
                    operations.contains_key(format!("CM: {name}").as_str()),
                    "no {name} in {operations:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn extensions_add_vendor_packets_only_and_everything_arrives_over_faults() -> Result<()> {
    let wire = Wire::new(1500)?;
    let settings = [
        ("RINGMAIL_EXTENSIONS", "on"),
        ("RINGMAIL_FAULTS", "loss=5%,dup=2%,reorder=3%,seed=3"),
    ];
    for (near, far) in [(NEAR_IPV4, FAR_IPV4), (NEAR_IPV6, FAR_IPV6)] {
        let both = wire.exchange(&["exchange", "--all", "rc", "1024"], near, far, &settings)?;
        for judgement in both {
            judgement.is_sound()?;
            let standard = |name: &str| name.starts_with("RC ");
            let vendor =
                |name: &str| name == "VENDOR (Unknown Attribute)" || name == "Unknown OpCode";
            let operations = judgement.operations();
            assert!(
                operations.keys().any(|name| vendor(name)),
                "the peers know each other: {operations:?}"
            );
            assert!(
                operations.keys().all(|name| standard(name) || vendor(name)),
                "{operations:?}"
            );
        }
    }
    Ok(())
}
