//! `ringmail ping`.

mod support;

use support::{assert_fails, providers, report, ringmail, run, stdout};

#[test]
fn round_trips_of_every_kind_and_size_are_measured() {
    for provider in providers() {
        for operation in ["send", "write", "read"] {
            for size in ["0", "1", "64", "100000"] {
                let output = run([
                    "--provider",
                    provider,
                    "ping",
                    "--json",
                    "-c",
                    "20",
                    "-o",
                    operation,
                    "-s",
                    size,
                ]);
                let report = report(&output);
                assert_eq!(report["provider"], provider);
                assert_eq!(report["operation"], operation);
                assert_eq!(report["count"], 20);
                let time = |name: &str| report[name].as_f64().unwrap();
                assert!(
                    0.0 < time("min_us") && time("min_us") <= time("p50_us"),
                    "{report}"
                );
                assert!(
                    time("p50_us") <= time("p99_us") && time("p99_us") <= time("max_us"),
                    "{report}"
                );
            }
        }
    }
}

#[test]
fn percentiles_are_printed_for_humans() {
    let output = run(["--provider", "loopback", "ping", "-c", "1"]);
    let text = stdout(&output);
    for part in ["1 round trips of 64 bytes", "p50", "p99", "max", "loopback"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn a_peer_that_is_not_there_is_said() {
    let output = ringmail()
        .args(["--provider", "loopback", "ping", "loopback:4294967295"])
        .output()
        .unwrap();
    assert_fails(&output, 1, "nobody answers at loopback:4294967295");
    assert_eq!(run(["ping", "-s", "1048577"]).status.code(), Some(2));
    assert_eq!(run(["ping", "-c", "0"]).status.code(), Some(2));
}
