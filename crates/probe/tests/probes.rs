//! Every probe runs, briefly, and answers a figure; how good it is depends on the machine and is not asked.

use std::process::Command;

use serde_json::Value;

fn probe(arguments: &[&str]) -> Value {
    // A machine of one core has both sides there.
    let cores = match std::thread::available_parallelism() {
        Ok(count) if count.get() > 1 => "0,1",
        _ => "0,0",
    };
    let output = Command::new(env!("CARGO_BIN_EXE_ringmail-probe"))
        .args(["--seconds", "0.1", "--cores", cores, "--json"])
        .args(arguments)
        .output()
        .expect("the probe can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("a JSON object")
}

fn positive(figure: &Value, field: &str) -> f64 {
    let value = figure[field].as_f64().unwrap_or_default();
    assert!(value > 0.0, "{field} in {figure}");
    value
}

#[test]
fn a_cache_line_crosses() {
    positive(&probe(&["line"]), "p50_us");
}

#[test]
fn memory_is_copied() {
    positive(&probe(&["copy", "--size", "65536"]), "gbit_per_s");
}

#[test]
fn datagrams_and_messages_come_back() {
    for name in ["udp-latency", "tcp-latency"] {
        let figure = probe(&[name, "--size", "8"]);
        let (median, tail) = (positive(&figure, "p50_us"), positive(&figure, "p99_us"));
        assert!(median <= tail, "{figure}");
    }
}

#[test]
fn streams_are_counted_by_who_receives_them() {
    positive(&probe(&["tcp-stream"]), "gbit_per_s");
    let figure = probe(&["udp-stream", "--segment", "4112"]);
    let bits = positive(&figure, "gbit_per_s") * 1e9;
    let datagrams = positive(&figure, "mmsg_per_s") * 1e6;
    assert!((bits / datagrams / 8.0 - 4112.0).abs() < 1.0, "{figure}");
}

#[test]
fn a_core_that_is_not_there_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringmail-probe"))
        .args(["line", "--cores", "1000,1"])
        .output()
        .expect("the probe can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("cannot run on core 1000"), "{error}");
}
