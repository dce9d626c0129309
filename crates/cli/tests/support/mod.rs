//! Runs the real program and looks at what it leaves.

#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// The program with a clean environment, to be given arguments.
pub(crate) fn ringmail() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmail"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGMAIL_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    ringmail()
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// What it printed.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

/// What it complained of.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

/// That it failed with `code` and one line that contains `part`.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, part: &str) {
    let complaint = stderr(output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "standard error: {complaint}"
    );
    assert!(
        complaint.contains(part),
        "expected `{part}` in: {complaint}"
    );
    assert_eq!(
        complaint.lines().count(),
        1,
        "more than one line: {complaint}"
    );
}
