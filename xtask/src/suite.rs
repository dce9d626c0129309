//! The test suites: their table, and running them.

use std::fmt::Write as _;
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::need::{self, Need};
use crate::runner::{self, cargo};
use crate::tally::Tally;

/// A named set of tests with what it needs of the machine.
struct Suite {
    name: &'static str,
    about: &'static str,
    needs: &'static [Need],
    /// The commands that it runs, in order.
    steps: fn(&Selection) -> Vec<Command>,
}

/// Every suite, in the order in which they run.
const SUITES: &[Suite] = &[
    Suite {
        name: "fast",
        about: "formatting, lints, unit and integration tests, doc tests, documentation",
        needs: &[],
        steps: fast,
    },
    Suite {
        name: "mutants",
        about: "rules of the protocol taken out one by one: a named test must notice",
        needs: &[],
        steps: mutants,
    },
    Suite {
        name: "wire",
        about: "packets between two network namespaces, as Wireshark and the specification see them",
        needs: &[
            Need::Root,
            Need::Packages(&["ethtool", "iproute2", "tcpdump", "tshark", "util-linux"]),
        ],
        steps: wire,
    },
    Suite {
        name: "kernel",
        about: "against the soft-RoCE of a Linux kernel, in a virtual machine",
        needs: &[
            Need::Root,
            Need::Device("/dev/net/tun"),
            Need::Packages(&[
                "gcc",
                "iproute2",
                "libc6-dev",
                "libibverbs-dev",
                "qemu-system-x86",
                "tcpdump",
                "tshark",
                "util-linux",
            ]),
            Need::GuestImage,
        ],
        steps: kernel,
    },
    Suite {
        name: "soak",
        about: "new random seeds of the simulation for a minute, with --long for an hour",
        needs: &[],
        steps: soak,
    },
];

/// Which suites to run.
#[derive(Args, Default)]
pub(crate) struct Selection {
    /// Run only this suite; may be repeated.
    #[arg(long = "suite", value_name = "NAME", value_parser = known_suite)]
    suites: Vec<String>,
    /// Soak for an hour instead of a minute.
    #[arg(long)]
    long: bool,
}

impl Selection {
    fn includes(&self, suite: &Suite) -> bool {
        self.suites.is_empty() || self.suites.iter().any(|name| name == suite.name)
    }
}

/// Runs the selected suites and prints the closing line.
pub(crate) fn run(selection: &Selection) -> Result<ExitCode> {
    let mut total = Tally::default();
    let mut remarks = Vec::new();
    for suite in SUITES.iter().filter(|suite| selection.includes(suite)) {
        println!("\n== {}: {}", suite.name, suite.about);
        if let Err(lack) = suite.needs.iter().try_for_each(Need::meet) {
            // Root can have everything that a suite needs, so that nothing excuses leaving it out.
            let failed = need::is_root();
            let verdict = if failed { "FAILED" } else { "skipped" };
            remarks.push(format!("suite {} {verdict}: {lack:#}", suite.name));
            println!("{}", remarks[remarks.len() - 1]);
            total += Tally {
                passed: 0,
                failed: failed.into(),
                skipped: (!failed).into(),
            };
            continue;
        }
        let mut tally = Tally::default();
        for mut step in (suite.steps)(selection) {
            let counted = runner::run(&mut step)?;
            if counted.failed > 0 {
                remarks.push(format!(
                    "suite {} FAILED: {}",
                    suite.name,
                    runner::shown(&step)
                ));
            }
            tally += counted;
        }
        remarks.push(format!("suite {}: {tally}", suite.name));
        total += tally;
    }
    println!("\n{}", remarks.join("\n"));
    println!("{total}");
    Ok(if total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes everything there that the suite of that name needs.
pub(crate) fn meet_needs_of(name: &str) -> Result<()> {
    let suite = SUITES
        .iter()
        .find(|suite| suite.name == name)
        .expect("a suite of the table");
    suite.needs.iter().try_for_each(Need::meet)
}

/// The suites as lines of help.
pub(crate) fn table() -> String {
    let mut text = String::from("Suites:\n");
    for suite in SUITES {
        writeln!(text, "  {:<8}{}", suite.name, suite.about).expect("writing to a string");
    }
    text
}

fn known_suite(name: &str) -> Result<String> {
    if SUITES.iter().any(|suite| suite.name == name) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    bail!("no suite of that name; there are {}", names.join(", "))
}

fn fast(_: &Selection) -> Vec<Command> {
    let mut doc = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let mut steps = vec![
        cargo(&["fmt", "--all", "--check"]),
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ]),
        tests(&["--workspace"], None),
        doc,
    ];
    if runner::has_nextest() {
        // It does not know them; `cargo test` has run them already.
        steps.push(cargo(&["test", "--workspace", "--doc"]));
    }
    steps
}

fn mutants(_: &Selection) -> Vec<Command> {
    // They share one copy of the crate.
    vec![tests(
        &["--package=xtask", "--features=mutants", "--test=mutants"],
        Some(1),
    )]
}

fn wire(_: &Selection) -> Vec<Command> {
    vec![tests(
        &[
            "--package=ringmail-testbed",
            "--features=wire",
            "--test=namespace",
            "--test=wire",
            "--test=rnic_wire",
        ],
        None,
    )]
}

fn kernel(_: &Selection) -> Vec<Command> {
    // One machine at a time: each keeps a processor busy.
    vec![tests(
        &[
            "--package=ringmail-testbed",
            "--features=kernel",
            "--test=kernel",
            "--test=rnic_kernel",
        ],
        Some(1),
    )]
}

fn soak(selection: &Selection) -> Vec<Command> {
    // The tests run side by side, so that all of them share the time.
    let mut simulation = tests(
        &[
            "--release",
            "--package=ringmail-roce",
            "--test=simulation",
            // Optimisation has once made a difference that only these figures showed.
            "--test=goodput",
        ],
        Some(4),
    );
    simulation.env(
        "RINGMAIL_SIM_SECONDS",
        if selection.long { "3600" } else { "60" },
    );
    vec![simulation]
}

/// Runs tests with the better runner where it is installed.
fn tests(selection: &[&str], threads: Option<u32>) -> Command {
    let nextest = runner::has_nextest();
    // Everything is run before the verdict: one failure does not hide another.
    let mut command = if nextest {
        cargo(&["nextest", "run", "--no-fail-fast", "--no-tests=pass"])
    } else {
        cargo(&["test", "--no-fail-fast"])
    };
    command.args(selection);
    if let Some(threads) = threads {
        if !nextest {
            command.arg("--");
        }
        command.arg(format!("--test-threads={threads}"));
    }
    command
}
