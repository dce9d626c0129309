//! The software RNIC against the soft-RoCE of a Linux kernel, over a wire that both believe to be real.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ringmail_testbed::{
    Capture, GUEST_IPV4, GUEST_IPV6, HOST_INTERFACE, HOST_IPV4, HOST_IPV6, Judgement, Options,
    Process, Vm, exchange_program,
};

/// Emulated machines are slow, and retries over a faulty wire take their time.
const LIMIT: Duration = Duration::from_secs(120);

/// A program on the software RNIC.
const PEER: &str = env!("CARGO_BIN_EXE_rnic-peer");

/// A machine with soft-RoCE and a wire for packets of up to 9000 bytes.
fn machine() -> Result<Vm> {
    let directory = tempfile::tempdir()?;
    let files = vec![(
        exchange_program(directory.path())?,
        "bin/exchange".to_owned(),
    )];
    let vm = Vm::boot(&Options {
        files,
        mtu: 9000,
        ..Options::default()
    })?;
    vm.add_rxe()?;
    Ok(vm)
}

/// Starts the program at the host's end of the wire.
fn host(vm: &Vm, address: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = vm.namespace().command("env");
    command
        .arg(format!("RINGMAIL_ADDRESS={address}"))
        .arg(PEER)
        .args(arguments);
    vm.namespace().start(command)
}

/// Runs `steps` and checks that both sides' packets were sound and that the kernel had nothing to complain of.
fn over_a_sound_wire(vm: &Vm, steps: impl FnOnce() -> Result<()>) -> Result<Judgement> {
    let capture = Capture::start(vm.namespace(), HOST_INTERFACE)?;
    let outcome = steps();
    let judgement = Judgement::of(&capture.stop(GUEST_IPV4.parse::<IpAddr>()?)?)?;
    outcome.with_context(|| format!("with these packets:\n{judgement}"))?;
    judgement.is_sound()?;
    let complaints = vm
        .run(
            "dmesg | grep -E 'ICRC|WARNING:|BUG:|rxe.*(bad|fail)'",
            LIMIT,
        )?
        .text;
    assert_eq!(complaints, "", "the kernel complains");
    Ok(judgement)
}

/// An address family: the addresses of host and guest, the guest's as a mapped one, and its index among the guest's GIDs.
struct Family {
    host: &'static str,
    guest: &'static str,
    gid: &'static str,
    host_gid: String,
}

fn families() -> [Family; 2] {
    [
        Family {
            host: HOST_IPV4,
            guest: GUEST_IPV4,
            gid: "1",
            host_gid: format!("::ffff:{HOST_IPV4}"),
        },
        Family {
            host: HOST_IPV6,
            guest: GUEST_IPV6,
            gid: "2",
            host_gid: HOST_IPV6.to_owned(),
        },
    ]
}

/// Every operation in both directions: the host connects, and then the guest does.
fn exchange(vm: &Vm, kind: &str, mtu: &str, family: &Family) -> Result<()> {
    let Family {
        host: here,
        guest,
        gid,
        host_gid,
    } = family;
    let responder = vm.spawn(&format!("exchange {kind} {gid} {mtu}"), LIMIT)?;
    responder.wait_for("listening")?;
    host(vm, here, &["exchange", kind, mtu, guest])?
        .finish(LIMIT)?
        .succeeded()?;
    responder.finish()?.succeeded()?;

    let responder = host(vm, here, &["exchange", kind, mtu])?;
    responder.wait_for("listening", LIMIT)?;
    vm.run(&format!("exchange {kind} {gid} {mtu} {host_gid}"), LIMIT)?
        .succeeded()?;
    responder.finish(LIMIT)?.succeeded()?;
    Ok(())
}

#[test]
fn every_operation_works_with_the_kernel_both_ways() -> Result<()> {
    let vm = machine()?;
    for family in &families() {
        for (kind, mtu) in [("rc", "1024"), ("rc", "4096"), ("uc", "1024")] {
            let judgement = over_a_sound_wire(&vm, || exchange(&vm, kind, mtu, family))?;
            let operations = judgement.operations();
            let stranger = operations
                .keys()
                .find(|name| !name.starts_with("RC ") && !name.starts_with("UC "));
            assert_eq!(
                stranger, None,
                "nothing but what the kernel knows: {operations:?}"
            );
            if kind == "rc" {
                for name in [
                    "RC Fetch Add",
                    "RC Compare Swap",
                    "RC RDMA Read Response Middle",
                    "RC Atomic Acknowledge",
                ] {
                    assert!(operations.contains_key(name), "no {name} in {operations:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_faulty_wire_to_the_kernel_loses_nothing() -> Result<()> {
    let vm = machine()?;
    vm.run(
        "tc qdisc add dev eth0 root netem loss 5% duplicate 2% reorder 3% delay 1ms",
        LIMIT,
    )?
    .succeeded()?;
    let [ipv4, _] = families();
    over_a_sound_wire(&vm, || exchange(&vm, "rc", "1024", &ipv4))?;
    Ok(())
}

#[test]
fn connections_are_managed_with_the_kernel_both_ways() -> Result<()> {
    let vm = machine()?;
    for Family {
        host: here, guest, ..
    } in families()
    {
        let judgement = over_a_sound_wire(&vm, || {
            let server = vm.spawn(&format!("rping -s -d -a {guest} -V -C 20"), LIMIT)?;
            server.wait_for("rdma_listen")?;
            host(&vm, here, &["rping", "20", guest])?
                .finish(LIMIT)?
                .succeeded()?;
            // It ends with an error when its client disconnects; the client has checked the data.
            server.finish()?;

            let server = host(&vm, here, &["rping", "20"])?;
            server.wait_for("listening", LIMIT)?;
            vm.run(&format!("rping -c -a {here} -V -C 20"), LIMIT)?
                .succeeded()?;
            server.finish(LIMIT)?.succeeded()?;
            Ok(())
        })?;
        let operations = judgement.operations();
        for name in [
            "ConnectRequest",
            "ConnectReply",
            "ReadyToUse",
            "DisconnectRequest",
            "DisconnectReply",
        ] {
            // One for each connection; a slow guest may be asked again.
            let count = operations.get(format!("CM: {name}").as_str());
            assert!(
                count.is_some_and(|count| *count >= 2),
                "{name} in {operations:?}"
            );
        }
    }
    Ok(())
}
