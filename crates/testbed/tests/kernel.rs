//! The guest's kernel and programs work, before anything of ours meets them.

use std::time::Duration;

use anyhow::Result;
use ringmail_testbed::{GUEST_IPV4, GUEST_IPV6, HOST_IPV4, Options, Vm, exchange_program};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_guest_reports_what_its_commands_print_and_how_they_end() -> Result<()> {
    let vm = Vm::boot(&Options::default())?;
    let output = vm.run("echo one; echo two >&2; printf three; exit 7", LIMIT)?;
    assert_eq!(
        (output.status, output.text.as_str()),
        (7, "one\ntwo\nthree")
    );

    let waiting = vm.spawn(
        "echo listening; exec cat /dev/zero >/dev/null",
        Duration::from_secs(1),
    )?;
    waiting.wait_for("listening")?;
    assert_eq!(waiting.finish()?.status, 137, "killed at its limit");

    vm.run(&format!("ping -c 1 -W 10 {HOST_IPV4}"), LIMIT)?
        .succeeded()?;
    Ok(())
}

#[test]
fn soft_roce_of_the_kernel_talks_to_itself() -> Result<()> {
    let vm = Vm::boot(&Options::default())?;
    vm.add_rxe()?;
    let devices = vm.run("ibv_devinfo -v", LIMIT)?.succeeded()?;
    assert!(
        devices.contains("rxe0") && devices.contains("::ffff:10.9.0.2, RoCE v2"),
        "{devices}"
    );

    let pingpong = "ibv_rc_pingpong -d rxe0 -g 1 -n 100 -c";
    let server = vm.spawn(pingpong, LIMIT)?;
    server.wait_for("local address")?;
    let client = vm
        .run(&format!("{pingpong} {GUEST_IPV4}"), LIMIT)?
        .succeeded()?;
    assert!(client.contains("100 iters"), "{client}");
    server.finish()?.succeeded()?;
    Ok(())
}

#[test]
fn every_operation_of_soft_roce_moves_what_it_should() -> Result<()> {
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
    let ipv4 = (1, format!("::ffff:{GUEST_IPV4}"));
    let ipv6 = (2, GUEST_IPV6.to_owned());
    for (kind, mtu, (gid, address)) in [("rc", 1024, ipv4), ("uc", 4096, ipv6)] {
        let one = vm.spawn(&format!("exchange {kind} {gid} {mtu}"), LIMIT)?;
        one.wait_for("listening")?;
        vm.run(&format!("exchange {kind} {gid} {mtu} {address}"), LIMIT)?
            .succeeded()?;
        one.finish()?.succeeded()?;
    }
    Ok(())
}
