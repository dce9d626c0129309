//! Runs one command of a suite, passes its output on as it comes, and counts its tests.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result};

use crate::tally::Tally;

/// A cargo command of the toolchain that built us, quiet about nothing.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    if io::stdout().is_terminal() {
        // We stand between cargo and the terminal, so it would not see one.
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Whether `cargo nextest` is there; `cargo test` serves where it is not.
pub(crate) fn has_nextest() -> bool {
    cargo(&["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs `command` to its end. A command that fails without counting a failed test counts as one failure.
pub(crate) fn run(command: &mut Command) -> Result<Tally> {
    println!("\n$ {}", shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    let errors = child.stderr.take().expect("piped above");
    let output = child.stdout.take().expect("piped above");
    let counting = thread::spawn(move || pass_on(errors, io::stderr()));
    let mut tally = pass_on(output, io::stdout());
    tally += counting.join().expect("passing output on does not panic");
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        tally += Tally::ONE_FAILURE;
    }
    Ok(tally)
}

/// Copies lines from `from` to `to`, counting on the way.
fn pass_on(from: impl Read, mut to: impl Write) -> Tally {
    let mut tally = Tally::default();
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        // Our reader may be gone; the tests still run to their end.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        if let Some(counted) = Tally::from_line(&String::from_utf8_lossy(&line)) {
            tally += counted;
        }
        line.clear();
    }
    tally
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words: Vec<String> = Vec::new();
    for (name, value) in command.get_envs() {
        if name != "CARGO_TERM_COLOR" {
            let value = value.unwrap_or_default();
            words.push(format!(
                "{}={}",
                name.to_string_lossy(),
                value.to_string_lossy()
            ));
        }
    }
    let program = std::path::Path::new(command.get_program());
    words.push(
        program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    );
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        run(Command::new("sh").args(["-c", script])).expect("sh is everywhere")
    }

    #[test]
    fn tests_are_counted_over_both_streams() {
        let script = "echo 'test result: ok. 2 passed; 0 failed'; echo 'Summary [ 1s] 3 tests run: 3 passed' >&2";
        assert_eq!(
            shell(script),
            Tally {
                passed: 5,
                failed: 0,
                skipped: 0
            }
        );
    }

    #[test]
    fn a_command_that_fails_without_a_count_is_one_failure() {
        assert_eq!(shell("exit 3"), Tally::ONE_FAILURE);
        let counted = shell("echo 'test result: FAILED. 1 passed; 2 failed'; exit 101");
        assert_eq!(
            counted,
            Tally {
                passed: 1,
                failed: 2,
                skipped: 0
            }
        );
    }
}
