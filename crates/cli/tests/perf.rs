//! `ringmail perf`.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Running, assert_fails, networks, providers, ringmail, run, stderr, stdout};

/// The rows of a successful `perf --json` without a warm-up.
#[track_caller]
fn rows(provider: &str, arguments: &str) -> Vec<Value> {
    let output = perf(provider, &format!("--json {arguments}"));
    assert!(
        output.status.success(),
        "{provider} {arguments}: {}",
        stderr(&output)
    );
    serde_json::from_slice(&output.stdout).expect("a JSON list")
}

/// Pollers yield: tests have fewer cores than pollers.
fn perf(provider: &str, arguments: &str) -> Output {
    let waits = arguments.contains("--wait");
    let how = if waits { None } else { Some("--yield") };
    let first = ["--provider", provider, "perf", "--warmup", "0"];
    let words = first.into_iter().chain(how);
    run(words.chain(arguments.split_whitespace()))
}

#[test]
fn every_operation_is_measured_and_its_contents_are_right() {
    for provider in providers() {
        let rows = rows(provider, "--op all --size 1,5000 --iterations 20 --verify");
        assert_eq!(rows.len(), 2 * (4 * 2 + 2), "{provider}");
        for row in rows {
            assert_eq!(row["provider"], provider);
            let count = row["iterations"].as_u64().unwrap();
            assert!((20..=32).contains(&count), "{row}");
            let number = |name: &str| {
                row[name]
                    .as_f64()
                    .unwrap_or_else(|| panic!("{name}: {row}"))
            };
            assert!(number("gbit_per_s") > 0.0 && number("mmsg_per_s") > 0.0);
            assert!(number("cpu_ns_per_message") > 0.0 && number("cpu_ns_per_byte") > 0.0);
            if row["mode"] == "latency" {
                assert!(0.0 < number("min_us") && number("min_us") <= number("p50_us"));
                assert!(number("p50_us") <= number("p99_us"));
                assert!(number("p99_us") <= number("p999_us"));
                assert!(number("p999_us") <= number("max_us"));
            } else {
                assert!(row["p50_us"].is_null(), "{row}");
            }
        }
    }
}

#[test]
fn a_row_has_all_its_fields() {
    let fields = [
        "provider",
        "op",
        "mode",
        "size",
        "depth",
        "qps",
        "threads",
        "both",
        "signal_every",
        "target",
        "waiting",
        "verified",
        "iterations",
        "seconds",
        "gbit_per_s",
        "mmsg_per_s",
        "min_us",
        "mean_us",
        "p50_us",
        "p99_us",
        "p999_us",
        "max_us",
        "half_round_trip",
        "timed_together",
        "cpu_ns_per_byte",
        "cpu_ns_per_message",
        "client_cpu_ns_per_message",
        "server_cpu_ns_per_message",
        "drops",
        "retransmissions",
        "socket_calls_per_message",
        "copies_per_byte",
        "client_counters",
        "server_counters",
    ];
    for row in rows("loopback", "--op write --size 8 --iterations 3") {
        let found: BTreeSet<_> = row
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(found, BTreeSet::from(fields));
    }
    let row = &rows("loopback", "--op read --size 8 --depth 1 -n 3 --histogram")[0];
    let steps = row["histogram"].as_array().expect("it was asked for");
    let all: u64 = steps.iter().map(|step| step[1].as_u64().unwrap()).sum();
    assert_eq!(Some(all), row["iterations"].as_u64());
}

#[test]
fn what_a_message_cost_is_counted_on_both_sides() {
    for row in rows("softroce", "--op write --size 64 --iterations 200") {
        assert!(row["drops"].is_u64() && row["retransmissions"].is_u64());
        assert!(row["socket_calls_per_message"].as_f64().unwrap() > 0.0);
        // Out of the source, and into the target.
        assert!(row["copies_per_byte"].as_f64().unwrap() >= 2.0, "{row}");
        assert!(row["server_cpu_ns_per_message"].as_f64().unwrap() > 0.0);
        for side in ["client_counters", "server_counters"] {
            assert!(row[side]["packets_sent"].as_u64().unwrap() > 0, "{row}");
        }
    }
}

#[test]
fn many_queue_pairs_threads_and_directions_are_driven() {
    for provider in providers() {
        for arguments in [
            "--op all --size 300 --depth 8 --qps 4 --threads 2 --both",
            "--op send,write,read --size 100 --depth 16 --signal-every 5 --both",
            "--op all --depth 1 --size 8 --threads 2",
            "--op write,read,fetch_add --size 8 --target spin",
            "--op write,read,fetch_add --size 8 --target sleep --depth 1",
            "--op send,write_imm,read --size 8 --wait",
        ] {
            let arguments = format!("{arguments} --iterations 40 --verify");
            for row in rows(provider, &arguments) {
                assert!(row["iterations"].as_u64().unwrap() >= 40, "{row}");
            }
        }
    }
}

#[test]
fn people_get_a_table_and_programs_get_lines() {
    let table = perf(
        "loopback",
        "--op write --size 8 -n 10 --histogram --verbose",
    );
    let table = stdout(&table);
    for part in [
        "write latency: half the round trip in µs",
        "write bandwidth",
        "p99.9",
        "Gbit/s",
        "Mmsg/s",
        "CPU ns/B",
        "percentile",
    ] {
        assert!(table.contains(part), "no {part} in {table}");
    }
    let lines = stdout(&perf("loopback", "--op send,read --size 8 -n 10 --csv"));
    let widths: Vec<_> = lines.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(widths, [22; 5], "{lines}");
    assert!(lines.starts_with("provider,op,mode,size,"), "{lines}");
}

#[test]
fn a_time_limits_a_measurement_too() {
    for row in rows("softroce", "--op write --size 8 --duration 0.02") {
        assert!(row["seconds"].as_f64().unwrap() >= 0.02, "{row}");
    }
}

#[test]
fn a_listener_serves_one_client_after_the_other() {
    for provider in networks() {
        let (mut listener, address) = listen(provider);
        for _ in 0..2 {
            let arguments = format!("--connect {address} --op all --size 8 -n 10 --verify");
            assert_eq!(rows(provider, &arguments).len(), 12);
        }
        listener.kill().unwrap();
        listener.wait().unwrap();
    }
}

#[test]
fn the_address_that_a_listener_prints_is_enough_to_reach_it() {
    for provider in networks() {
        let (mut listener, address) = listen(provider);
        let output = run([
            "perf",
            "--yield",
            "--json",
            "--op=write",
            "--size=8",
            "-n10",
            "--connect",
            &address,
        ]);
        assert!(output.status.success(), "{provider}: {}", stderr(&output));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a JSON list");
        assert_eq!(rows[0]["provider"], provider);
        listener.kill().unwrap();
        listener.wait().unwrap();
    }
}

#[test]
fn a_reader_that_has_enough_ends_it_without_a_complaint() {
    let mut child = ringmail()
        .args(["--provider", "loopback", "perf", "--yield", "--warmup", "0"])
        .args(["--op", "send,write", "--size", "8", "-n", "10"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

/// A listener, and where it listens.
fn listen(provider: &str) -> (Child, String) {
    let mut listener = ringmail()
        .args(["--provider", provider, "perf", "--listen"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let output = listener.stdout.take().expect("piped above");
    BufReader::new(output).read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("answering at ")
        .expect("it listens");
    (listener, address.to_owned())
}

#[test]
fn a_peer_that_is_killed_is_said_and_nothing_hangs() {
    for provider in networks() {
        let mut command = ringmail();
        command.args([
            "--provider",
            provider,
            "perf",
            "--op",
            "send",
            "-m",
            "latency",
        ]);
        command.args(["--yield", "--duration", "600", "--size", "8"]);
        let mut running = Running::logging(command);
        running.wait_for("measuring");
        let server = only_child_of(running.id());
        kill_process(server, Signal::KILL).expect("it runs");
        let output = running.finish();
        assert_eq!(output.status.code(), Some(1));
        let complaint = stderr(&output);
        let last = complaint.lines().last().unwrap();
        assert!(last.contains("has ended early: signal: 9"), "{complaint}");
    }
}

#[test]
fn a_client_that_is_killed_leaves_nobody_behind() {
    for provider in networks() {
        let mut command = ringmail();
        command.args([
            "--provider",
            provider,
            "perf",
            "--op",
            "write",
            "-m",
            "bandwidth",
        ]);
        command.args([
            "--yield",
            "--duration",
            "600",
            "--size",
            "8",
            "--target",
            "spin",
        ]);
        let mut running = Running::logging(command);
        running.wait_for("measuring");
        running.kill();
        // The other process has the same standard error.
        running.wait_for_end();
    }
}

fn only_child_of(id: u32) -> Pid {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let child = children.trim().parse().expect("one child");
    Pid::from_raw(child).expect("no process is 0")
}

#[test]
fn what_cannot_be_measured_is_said() {
    assert_fails(
        &run(["perf", "--mode", "latency", "--depth", "2"]),
        2,
        "--mode bandwidth",
    );
    assert_fails(
        &run(["perf", "--op", "send", "--target", "spin"]),
        2,
        "must poll",
    );
    for wrong in [
        "--op fly",
        "--size 65M",
        "--depth 0",
        "--json --csv",
        "--pin x",
    ] {
        assert_eq!(perf("loopback", wrong).status.code(), Some(2), "{wrong}");
    }
    assert_fails(
        &perf("loopback", "--connect loopback:4294967295"),
        1,
        "nobody answers at loopback:4294967295",
    );
    assert_fails(
        &perf("softroce", "--depth 40000 --op write --size 8"),
        1,
        "lower --depth",
    );
    assert_fails(
        &perf("loopback", "--pin 1023"),
        1,
        "cannot run on cores 1023",
    );
}
