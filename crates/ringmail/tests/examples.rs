//! Every example runs, by the reference provider, and shows what its README says.

use std::path::PathBuf;
use std::process::Command;

/// What an example prints. Cargo builds the examples with the tests, two folders up from here.
fn run(name: &str) -> String {
    let test = std::env::current_exe().expect("the test knows where it is");
    let target: PathBuf = test
        .ancestors()
        .nth(2)
        .expect("it lies in target/PROFILE/deps")
        .into();
    let example = target
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        example.exists(),
        "{} is not built: cargo build --examples",
        example.display()
    );
    let output = Command::new(example)
        .env("RINGMAIL_PROVIDER", "loopback")
        .output()
        .expect("the example starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn ping_times_its_round_trips() {
    assert!(run("ping").contains("10000 round trips: p50"));
}

#[test]
fn remote_write_shows_what_was_written() {
    assert!(run("remote_write").contains("16 bytes arrived: dear memory, ..."));
}

#[test]
fn atomic_counter_draws_each_number_once() {
    assert!(run("atomic_counter").contains("4 workers drew 1000 different numbers"));
}

#[test]
fn file_fetch_makes_an_identical_copy() {
    assert!(run("file_fetch").contains("the copy is identical"));
}
