//! Counts tests from what their runners print: `cargo nextest`'s summary and `test result:` lines.
//!
//! Knows only these two formats; a runner that dies before its closing line is the caller's to notice.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ran and succeeded.
    pub(crate) passed: u32,
    /// Ran and did not succeed, or could not be run although they should.
    pub(crate) failed: u32,
    /// Did not run.
    pub(crate) skipped: u32,
}

impl Tally {
    /// One failure that no test runner counted: a check that refused, a runner that broke.
    pub(crate) const ONE_FAILURE: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Reads a runner's closing line; `None` for every other line.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let line = without_colours(line);
        // Nextest shows what a failed test printed, its own `test result:` included, but indented.
        let counts = if line.starts_with("test result:") {
            line.as_str()
        } else if line.trim_start().starts_with("Summary [") {
            line.split_once("tests run:")
                .or_else(|| line.split_once("test run:"))?
                .1
        } else {
            return None;
        };
        let mut tally = Self::default();
        let words: Vec<&str> = counts.split_whitespace().collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].trim_start_matches('(').parse::<u32>() else {
                continue;
            };
            // "3 passed (1 slow)": slow ones are among the passed, and so are flaky and leaky ones.
            match pair[1].trim_matches([',', ';', ')']) {
                "passed" => tally.passed += count,
                "failed" | "timed" | "exec" => tally.failed += count,
                "skipped" | "ignored" => tally.skipped += count,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The line without the escape sequences of terminal colours.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            rest.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn counts(line: &str, passed: u32, failed: u32, skipped: u32) {
        assert_eq!(
            Tally::from_line(line),
            Some(Tally {
                passed,
                failed,
                skipped
            }),
            "{line}"
        );
    }

    #[test]
    fn closing_lines_of_cargo_test_are_counted() {
        counts(
            "test result: ok. 7 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            7,
            0,
            2,
        );
        counts(
            "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 9 filtered out",
            1,
            3,
            0,
        );
    }

    #[test]
    fn closing_lines_of_nextest_are_counted() {
        counts(
            "     Summary [   0.016s] 1 test run: 1 passed, 0 skipped",
            1,
            0,
            0,
        );
        counts(
            "     Summary [   1.2s] 9 tests run: 6 passed (1 slow, 1 flaky), 2 failed, 1 timed out, 4 skipped",
            6,
            3,
            4,
        );
        counts(
            "\u{1b}[32;1m     Summary\u{1b}[0m [   0.0s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m passed, \u{1b}[1m0\u{1b}[0m skipped",
            2,
            0,
            0,
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "",
            "test a::b ... ok",
            "running 3 tests",
            "warning: 3 passed",
            "Summary of changes",
            "    test result: FAILED. 0 passed; 1 failed",
        ] {
            assert_eq!(Tally::from_line(line), None, "{line}");
        }
    }
}
