//! Two hosts: copies and pings between two network namespaces.

mod support;

use std::path::Path;
use std::time::Duration;

use support::{Scene, far_networks, is_root, random};
use testbed::Namespace;

#[test]
fn files_and_pings_go_from_one_host_to_another() {
    if !is_root() {
        eprintln!("skipped: making networks needs root");
        return;
    }
    if !Path::new("/usr/sbin/ip").exists() && !Path::new("/sbin/ip").exists() {
        eprintln!("skipped: making networks needs the Debian package iproute2");
        return;
    }
    let scene = Scene::new();
    let bytes = random(3 << 20);
    scene.write("file", &bytes);
    let file = scene.path("file");
    let copy = scene.path("copy");
    for provider in far_networks() {
        let arguments = |words: &[&str]| {
            let all = [&["--provider", provider], words].concat();
            all.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        for address in ["192.0.2.1", "[2001:db8::1]"] {
            let (one, other) = hosts();
            let serve = arguments(&["serve", "--listen", address, file.to_str().unwrap()]);
            let server = one.spawn(PROGRAM, &serve).unwrap();
            let line = server.wait_for("ringmail://", LIMIT).unwrap();
            assert_eq!(line, format!("ringmail://{address}:7471{}", file.display()));
            // Without the port, which is ours.
            let cp = arguments(&["cp", &line.replace(":7471", ""), copy.to_str().unwrap()]);
            let copied = other.run(PROGRAM, &cp, LIMIT).unwrap();
            assert!(copied.is_success(), "{copied}");
            assert!(
                scene.read("copy") == bytes,
                "the copy differs over {provider}"
            );
            std::fs::remove_file(&copy).unwrap();

            let (one, other) = hosts();
            let listen = arguments(&["ping", "--listen", address]);
            let echo = one.spawn(PROGRAM, &listen).unwrap();
            echo.wait_for("answering at", LIMIT).unwrap();
            let ping = arguments(&["ping", "--count", "10", address]);
            let pinged = other.run(PROGRAM, &ping, LIMIT).unwrap();
            assert!(pinged.is_success(), "{pinged}");
            assert!(pinged.text.contains("10 round trips"), "{pinged}");
        }
    }
}

/// Two hosts on one wire, 192.0.2.1 and 2.
fn hosts() -> (Namespace, Namespace) {
    let (one, other) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    one.connect("left", &other, "right").unwrap();
    for (host, interface, number) in [(&one, "left", 1), (&other, "right", 2)] {
        host.ip(&format!("address add 192.0.2.{number}/24 dev {interface}"))
            .unwrap();
        host.ip(&format!(
            "address add 2001:db8::{number}/64 dev {interface} nodad"
        ))
        .unwrap();
        host.ip(&format!("link set {interface} up")).unwrap();
    }
    (one, other)
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringmail");
const LIMIT: Duration = Duration::from_secs(60);
