//! The benchmarks: Ringmail, its alternatives and raw probes of the machine, compared in one run; and the crates' own.
//!
//! The comparison keeps all samples as JSON and writes its report wholly from them, so that a report can be written again
//! without measuring. Absolute figures say little: the machine changes from minute to minute.

mod chart;
mod child;
mod contest;
mod machine;
mod measure;
mod random;
mod report;
mod results;
mod schedule;
mod stats;
mod svg;
mod target;
mod task;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::need::Need;
use crate::runner::cargo;
use contest::Group;
use results::Results;
use schedule::Plan;
use task::Tools;

/// Every benchmark of a crate: its package, its name, and the question that it answers.
const BENCHES: &[(&str, &str, &str)] = &[
    (
        "ringmail-mem",
        "copy",
        "how much slower than memcpy are copies of exposed memory?",
    ),
    (
        "ringmail-roce",
        "wire",
        "what do headers and checksums cost a packet?",
    ),
    (
        "ringmail-rnic",
        "two_processes",
        "how close does the device come to the sockets beneath it?",
    ),
];

/// What to measure.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run this benchmark of a crate instead of the comparison
    #[arg(value_parser = BENCHES.iter().map(|bench| bench.1).collect::<Vec<_>>())]
    bench: Option<String>,
    /// Few and short samples, within three minutes instead of fifteen
    #[arg(long, conflicts_with = "bench")]
    quick: bool,
    /// Only contestants whose name contains this, such as latency/ or shm; may be repeated
    #[arg(long, value_name = "PATTERN", conflicts_with = "bench")]
    only: Vec<String>,
    /// Times that each contestant is measured
    #[arg(long, value_name = "N", conflicts_with = "bench", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Order of the contestants
    #[arg(long, default_value_t = 1, conflicts_with = "bench")]
    seed: u64,
    /// Write the report of these results, without measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["bench", "quick", "only", "rounds", "seed"])]
    report_only: Option<PathBuf>,
    /// Directory for the report [default: docs/benchmarks of a whole run, else target/benchmarks]
    #[arg(long, value_name = "DIR", conflicts_with = "bench")]
    output: Option<PathBuf>,
}

/// Compares, or runs one benchmark of a crate.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(bench) = &arguments.bench {
        return of_crate(bench);
    }
    let is_whole = !arguments.quick && arguments.only.is_empty();
    let output = match &arguments.output {
        Some(directory) => directory.clone(),
        None if is_whole => root().join("docs/benchmarks"),
        None => root().join("target/benchmarks"),
    };
    let results = match &arguments.report_only {
        Some(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("{} holds no results", file.display()))?
        }
        None => compare(arguments)?,
    };
    write(&results, &output)?;
    println!("\nreport: {}", output.join("README.md").display());
    Ok(ExitCode::SUCCESS)
}

/// Measures everything that was asked for.
fn compare(arguments: &Arguments) -> Result<Results> {
    let mut groups = contest::groups();
    select(&mut groups, &arguments.only);
    if groups.is_empty() {
        let names: Vec<_> = contest::groups()
            .into_iter()
            .map(|group| group.name)
            .collect();
        bail!(
            "no contestant's name contains that: they are GROUP/WHO/WHAT, and the groups {}",
            names.join(", ")
        );
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        bail!("the comparison needs two cores");
    }
    if let Err(lack) = Need::Packages(&["ucx-utils", "libfabric-bin"]).meet() {
        // Their rows of the report then say so.
        println!("without the alternatives: {lack:#}");
    }
    let tools = tools(arguments)?;
    let plan = Plan {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 2 } else { 6 }),
        budget: Duration::from_secs(if arguments.quick { 165 } else { 870 }),
        seed: arguments.seed,
    };
    // What was measured survives an interruption.
    let kept = root().join("target/benchmarks/unfinished.json");
    let results = schedule::run(&groups, &tools, &plan, |results| {
        if let Err(error) = save(results, &kept) {
            println!("cannot keep what was measured: {error:#}");
        }
    })?;
    let _ = fs::remove_file(kept);
    Ok(results)
}

/// Leaves those whose name contains one of `patterns`; everyone where there is none.
fn select(groups: &mut Vec<Group>, patterns: &[String]) {
    let is_wanted =
        |id: &str| patterns.is_empty() || patterns.iter().any(|pattern| id.contains(pattern));
    for group in &mut *groups {
        group.members.retain(|member| is_wanted(&member.id));
    }
    groups.retain(|group| !group.members.is_empty());
}

/// Builds the programs and makes room for files.
fn tools(arguments: &Arguments) -> Result<Tools> {
    for build in [
        &[
            "build",
            "--release",
            "-p",
            "ringmail-probe",
            "-p",
            "ringmail-cli",
        ][..],
        &[
            "test",
            "--quiet",
            "-p",
            "ringmail-rnic",
            "--test",
            "no_alloc",
            "--no-run",
        ],
    ] {
        if !cargo(build).status().context("cargo")?.success() {
            bail!("cargo {} failed", build.join(" "));
        }
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let (disk, memory) = (target.clone(), PathBuf::from("/dev/shm"));
    for folder in [&disk, &memory] {
        sweep(folder);
    }
    let own = format!("{FOLDER}{}", std::process::id());
    Ok(Tools {
        probe: target.join("release/ringmail-probe"),
        ringmail: target.join("release/ringmail"),
        time: Duration::from_millis(if arguments.quick { 200 } else { 500 }),
        file: if arguments.quick { 256 << 20 } else { 1 << 30 },
        disk: disk.join(&own),
        memory: memory.join(own),
    })
}

/// Removes what runs left that were killed: they could not do it themselves.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(FOLDER));
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Of the directories for files that are copied, before the number of the process.
const FOLDER: &str = "ringmail-bench-";

/// Writes the results, the pictures and the report.
fn write(results: &Results, output: &Path) -> Result<()> {
    save(results, &output.join("results.json"))?;
    let charts = chart::charts(results);
    for chart in &charts {
        fs::write(output.join(&chart.file), &chart.svg)?;
    }
    fs::write(output.join("README.md"), report::render(results, &charts))?;
    Ok(())
}

fn save(results: &Results, file: &Path) -> Result<()> {
    let folder = file.parent().context("a file has a directory")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let text = serde_json::to_string_pretty(results)?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Runs one of the crates' benchmarks, which answer narrower questions.
fn of_crate(name: &str) -> Result<ExitCode> {
    let found = BENCHES.iter().find(|bench| bench.1 == name);
    let (package, bench, question) = found.context("a benchmark of the table")?;
    println!("== {bench}: {question}");
    let status = cargo(&["bench", "--package", package, "--bench", bench])
        .status()
        .context("cargo bench")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_runs_left_is_swept_away_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("ringmail-sweep-{}", std::process::id()));
        let living = format!("{FOLDER}{}", std::process::id());
        // Numbers of processes end below 2^22.
        for name in [living.as_str(), "ringmail-bench-4194305", "other"] {
            fs::create_dir_all(folder.join(name).join("inside")).unwrap();
        }
        sweep(&folder);
        let left = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
        let mut left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        left.sort();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(left, ["other", living.as_str()]);
    }

    #[test]
    fn only_those_whose_name_contains_the_pattern_are_measured() {
        let mut groups = contest::groups();
        select(&mut groups, &["raw/udp".to_owned(), "loss/".to_owned()]);
        let ids = groups.iter().flat_map(|group| &group.members);
        assert!(
            ids.clone()
                .all(|member| member.id.contains("raw/udp") || member.id.contains("loss/"))
        );
        assert!(ids.count() > 6);
        select(&mut groups, &["nobody".to_owned()]);
        assert!(groups.is_empty());
    }
}
