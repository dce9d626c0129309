//! `ringmail serve` and copies from it, over every provider that reaches another process.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use support::{
    Running, Scene, Server, as_nobody, assert_fails, far_networks, is_root, networks,
    networks_with, random, report, ringmail, stderr, stdout,
};

#[test]
fn a_served_directory_is_read_by_several_clients_at_once() {
    for provider in networks() {
        let scene = Scene::new();
        fs::create_dir(scene.path("served")).unwrap();
        let bytes = random(4 << 20);
        scene.write("served/file", &bytes);
        let server = Server::start(scene.ringmail(provider, &["serve", "served"]));
        let url = format!("{}/file", server.url());
        assert!(
            url.starts_with("ringmail://127.") || url.starts_with("ringmail://shm:"),
            "{url}"
        );
        let clients = ["1", "2", "3"].map(|copy| {
            let command = &mut scene.command(provider, &["--json", &url, copy]);
            (copy, support::piped(command).spawn().unwrap())
        });
        for (copy, client) in clients {
            let report = report(&client.wait_with_output().unwrap());
            assert_eq!(report["bytes"], bytes.len());
            assert_eq!(scene.read(copy), bytes, "over {provider}");
        }
        scene.cp_json(provider, &["-r", server.url(), "tree"]);
        assert_eq!(scene.read("tree/file"), bytes);
    }
}

#[test]
fn what_is_not_served_is_refused() {
    for provider in networks() {
        let scene = Scene::new();
        fs::create_dir(scene.path("served")).unwrap();
        scene.write("secret", b"secret");
        std::os::unix::fs::symlink("../secret", scene.path("served/link")).unwrap();
        let server = Server::start(scene.ringmail(provider, &["serve", "served"]));
        let url = server.url();
        for path in ["../secret", "link"] {
            let output = scene.cp(provider, &[&format!("{url}/{path}"), "copy"]);
            assert_fails(&output, 1, "is not in a served directory");
        }
        let host = url
            .strip_suffix(&format!("{}/served", scene.path("").display()).replace("//", "/"))
            .unwrap();
        assert_fails(
            &scene.cp(provider, &[&format!("{host}/etc/passwd"), "copy"]),
            1,
            "/etc/passwd is not in a served directory",
        );
        assert_fails(
            &scene.cp(provider, &[&format!("{url}/missing"), "copy"]),
            1,
            "missing: no such file on the server",
        );
        assert_eq!(scene.names(), ["secret", "served"]);
    }
}

#[test]
fn a_copy_survives_the_death_of_its_server() {
    for provider in networks() {
        let scene = Scene::new();
        fs::create_dir(scene.path("served")).unwrap();
        let bytes = random(16 << 20);
        scene.write("served/file", &bytes);
        let mut server = Server::start(scene.ringmail(provider, &["serve", "served"]));
        let url = format!("{}/file", server.url());
        let mut copy =
            Running::held_up(scene.command(provider, &["--block-size", "4096", &url, "copy"]));
        copy.wait_for("verified");
        server.kill();
        let output = copy.finish();
        assert_eq!(output.status.code(), Some(1), "over {provider}");
        let complaint = stderr(&output);
        let complaint = complaint.lines().last().unwrap();
        assert!(
            complaint.contains("the same command goes on where this one stopped"),
            "{complaint}"
        );
        assert!(!scene.path("copy").exists());

        // The new server has another address; the source is the same.
        let server = Server::start(scene.ringmail(provider, &["serve", "served"]));
        let url = format!("{}/file", server.url());
        let report = scene.cp_json(provider, &["--block-size", "4096", &url, "copy"]);
        assert!(report["bytes_resumed"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(scene.read("copy"), bytes);
        assert_fails(
            &scene.cp(provider, &["ringmail://127.0.0.2:1/file", "other"]),
            1,
            "nobody answers at 127.0.0.2:1 over",
        );
    }
}

#[test]
fn a_server_that_stood_still_is_connected_to_once_more() {
    // Others may read the memory of a process that stands still.
    let provider = "softroce";
    let scene = Scene::new();
    let bytes = random(16 << 20);
    scene.write("file", &bytes);
    let server = Server::start(scene.ringmail(provider, &["serve", "file"]));
    let mut copy = Running::held_up(scene.command(
        provider,
        &["--json", "--block-size", "4096", server.url(), "copy"],
    ));
    copy.wait_for("verified");
    server.signal(Signal::STOP);
    copy.wait_for("does not answer any more; connecting once more (1 of 3)");
    server.signal(Signal::CONT);
    let output = copy.finish();
    let report = report(&output);
    assert_eq!(scene.read("copy"), bytes);
    assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
    assert_eq!(report["bytes_resumed"], 0, "it is one copy: {report}");
    let twice = report["rdma_reads"].as_u64().unwrap() - 4096;
    assert!(twice < 100, "{twice} blocks were read twice");
    assert_eq!(scene.names(), ["copy", "file"]);
}

#[test]
fn a_client_that_dies_does_not_disturb_the_others() {
    for provider in networks() {
        let scene = Scene::new();
        let bytes = random(16 << 20);
        scene.write("file", &bytes);
        let server = Server::start(scene.ringmail(provider, &["serve", "file"]));
        let mut dying = Running::held_up(
            scene.command(provider, &["--block-size", "4096", server.url(), "dying"]),
        );
        dying.wait_for("verified");
        dying.kill();
        scene.cp_json(provider, &[server.url(), "copy"]);
        assert_eq!(scene.read("copy"), bytes);
    }
}

#[test]
fn the_serving_process_of_a_local_copy_dies_with_it() {
    for provider in networks() {
        let scene = Scene::new();
        scene.write("source", &random(16 << 20));
        let mut copy =
            Running::held_up(scene.command(provider, &["--block-size", "4096", "source", "copy"]));
        copy.wait_for("verified");
        copy.kill();
        // The server has the other end of the log too: there is an end only once it is gone.
        copy.wait_for_end();
    }
}

#[test]
fn a_file_that_the_client_may_not_read_is_copied_from_a_server_that_may() {
    if !is_root() {
        eprintln!("skipped: being two users needs root");
        return;
    }
    for provider in far_networks() {
        let scene = Scene::new();
        let bytes = random(1 << 20);
        scene.write("file", &bytes);
        fs::set_permissions(scene.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        let server = Server::start(scene.ringmail(provider, &["serve", "file"]));
        let program = scene.program_for_everyone();
        let nobody = |source: &str| {
            as_nobody(&program)
                .args(["--provider", provider, "cp", "--json", source, "copy"])
                .current_dir(scene.path(""))
                .output()
                .unwrap()
        };
        let denied = nobody("file");
        assert_fails(
            &denied,
            1,
            "permission denied to the process that serves it",
        );
        assert_eq!(report(&nobody(server.url()))["bytes"], bytes.len());
        assert_eq!(scene.read("copy"), bytes);
    }
}

#[test]
fn a_copy_over_a_bad_network_is_right_and_says_what_it_took() {
    for provider in networks_with("faults") {
        let scene = Scene::new();
        let bytes = random(24 << 20);
        scene.write("source", &bytes);
        let output = scene
            .command(provider, &["--json", "source", "copy"])
            .env(
                "RINGMAIL_FAULTS",
                "loss=2%,dup=1%,reorder=3%,corrupt=1%,seed=1",
            )
            .output()
            .unwrap();
        let report = report(&output);
        assert_eq!(scene.read("copy"), bytes, "over {provider}");
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        let counted = |name: &str| {
            report[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name} is not counted: {report}"))
        };
        let packets = counted("packets_sent");
        assert!(packets > bytes.len() as u64 / 4096, "{report}");
        assert!(
            counted("packets_dropped") > packets / 100,
            "2 % are lost and 1 % corrupted: {report}"
        );
        assert!(counted("packets_retransmitted") > 0, "{report}");
    }
}

#[test]
fn faults_that_make_no_sense_are_refused() {
    for provider in networks_with("faults") {
        let scene = Scene::new();
        scene.write("source", b"bytes");
        let output = scene
            .ringmail(provider, &["--faults", "lose=1%", "cp", "source", "copy"])
            .output()
            .unwrap();
        assert_fails(&output, 1, "lose=1%");
    }
}

#[test]
fn a_captured_copy_can_be_traced() {
    for provider in networks_with("capture") {
        let scene = Scene::new();
        scene.write("source", &random(100_000));
        let output = scene
            .ringmail(
                provider,
                &["--capture", "copy.pcapng", "cp", "--json", "source", "copy"],
            )
            .output()
            .unwrap();
        report(&output);
        let trace = ringmail()
            .args(["trace", "copy.pcapng"])
            .current_dir(scene.path(""))
            .output()
            .unwrap();
        assert!(trace.status.success(), "{}", stderr(&trace));
        let text = stdout(&trace);
        for part in [
            "RC RDMA READ Request",
            "RC RDMA READ Response",
            "CM REQ",
            "tx ",
            "rx ",
        ] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        assert!(!text.contains("WRONG ICRC"), "{text}");
    }
}

#[test]
fn a_server_listens_where_it_is_asked_to() {
    for provider in networks() {
        let scene = Scene::new();
        scene.write("file", b"bytes");
        let id = std::process::id();
        let host = format!("127.201.{}.{}", id >> 8 & 0xFF, id & 0xFF);
        let server = Server::start(scene.ringmail(provider, &["serve", "--listen", &host, "file"]));
        assert!(
            server
                .url()
                .starts_with(&format!("ringmail://{host}:7471/")),
            "{}",
            server.url()
        );
        // The port is ours unless it is said.
        let url = server.url().replace(":7471", "");
        scene.cp_json(provider, &[&url, "copy"]);
        assert_eq!(scene.read("copy"), b"bytes");
    }
}

#[test]
fn the_url_that_a_server_prints_is_enough_to_copy_from_it() {
    for provider in networks() {
        let scene = Scene::new();
        scene.write("file", b"bytes");
        let server = Server::start(scene.ringmail(provider, &["serve", "file"]));
        let output = ringmail()
            .args(["cp", server.url(), "copy"])
            .current_dir(scene.path("."))
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{provider}: {}", stderr(&output));
        assert_eq!(scene.read("copy"), b"bytes");
    }
}

#[test]
fn what_cannot_be_served_is_said() {
    for provider in networks() {
        let scene = Scene::new();
        scene.pipe("pipe");
        let serve = |path: &str| scene.ringmail(provider, &["serve", path]).output().unwrap();
        assert_fails(&serve("missing"), 1, "missing: no such file or directory");
        assert_fails(
            &serve("pipe"),
            1,
            "pipe: neither a directory nor a regular file",
        );
        assert_eq!(
            scene
                .ringmail(provider, &["serve"])
                .output()
                .unwrap()
                .status
                .code(),
            Some(2)
        );
    }
}

#[test]
fn a_server_that_may_start_no_more_threads_goes_on() {
    if !is_root() {
        eprintln!("skipped: being another user needs root");
        return;
    }
    let provider = "softroce";
    let scene = Scene::new();
    fs::create_dir(scene.path("served")).unwrap();
    scene.write("served/file", b"bytes");
    for name in ["", "served"] {
        fs::set_permissions(scene.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = as_nobody(&scene.program_for_everyone());
    command
        .args(["--provider", provider, "serve"])
        .arg(scene.path("served"));
    let server = Server::start(command);
    let url = format!("{}/file", server.url());
    server.limit_threads(Some(1));
    assert!(!scene.cp(provider, &[&url, "copy"]).status.success());
    server.limit_threads(None);
    scene.cp_json(provider, &[&url, "copy"]);
    assert_eq!(scene.read("copy"), b"bytes");
}
