//! The machine: what it is, how far its cores are from each other, and whether others use it.

use std::fs;
use std::process::Command;

use super::child::Call;

/// What is measured with, in the order of the report. No name of a host, a user or a path.
pub(crate) fn describe() -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory =
        first_number(&read("/proc/meminfo"), "MemTotal:").unwrap_or_default() / 1_048_576.0;
    let rows = [
        ("date", said("date", &["-u", "+%F"])),
        (
            "processor",
            format!(
                "{} × {}",
                cores,
                field(&read("/proc/cpuinfo"), "model name")
            ),
        ),
        ("memory", format!("{memory:.0} GiB")),
        (
            "kernel",
            format!(
                "Linux {}",
                kernel_version(&read("/proc/sys/kernel/osrelease"))
            ),
        ),
        ("system", os_name(&read("/etc/os-release"))),
        (
            "receive buffer",
            format!(
                "default {}, at most {} bytes unless privileged",
                read("/proc/sys/net/core/rmem_default").trim(),
                read("/proc/sys/net/core/rmem_max").trim()
            ),
        ),
        ("Ringmail", revision()),
        ("compiler", said("rustc", &["--version"])),
        ("UCX", ucx_version(&said("ucx_info", &["-v"]))),
        (
            "libfabric",
            field(&said("fi_info", &["--version"]), "libfabric"),
        ),
        ("coreutils", said("cp", &["--version"])),
    ];
    let known = rows.into_iter().filter(|(_, text)| !text.is_empty());
    known
        .map(|(name, text)| (name.to_owned(), first_line(&text).to_owned()))
        .collect()
}

/// The commit, and whether the tree differs from it.
fn revision() -> String {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"]);
    let changed = !said("git", &["status", "--porcelain", "--untracked-files=no"])
        .trim()
        .is_empty();
    let remark = if changed { " and changes" } else { "" };
    format!("commit {}{remark}", commit.trim())
}

/// The numbers alone: what follows them is the name that somebody gave his build.
fn kernel_version(release: &str) -> &str {
    release.trim().split('-').next().unwrap_or_default()
}

fn ucx_version(text: &str) -> String {
    let line = first_line(text);
    line.trim_start_matches(['#', ' '])
        .trim_start_matches("Version ")
        .to_owned()
}

fn os_name(text: &str) -> String {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

/// The text behind `name:` in the first line that begins with it.
fn field(text: &str, name: &str) -> String {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or("", |(_, value)| value.trim()).to_owned()
}

fn first_number(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().find_map(|word| word.parse().ok())
}

/// What the processors have done so far, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Everything but idling, of all processors.
    all: f64,
    /// Of those, ticks of this process and of its children that ended.
    ours: f64,
    /// All ticks, idle ones included.
    total: f64,
}

impl Usage {
    /// What it is now.
    pub(crate) fn now() -> Self {
        Self::parse(&read("/proc/stat"), &read("/proc/self/stat"))
    }

    /// Reads `cpu user nice system idle iowait irq softirq steal …`, and fields 14 to 17 of a process: its times and its
    /// children's. Interrupts are left out: nobody can tell whose they are.
    fn parse(machine: &str, process: &str) -> Self {
        let line = machine.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .take(8)
            .collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or_default();
        // The name in parentheses may hold anything.
        let times = process.rsplit_once(')').map_or("", |(_, rest)| rest);
        let times = times.split_whitespace().skip(11).take(4);
        Self {
            all: at(0) + at(1) + at(2) + at(7),
            ours: times.filter_map(|word| word.parse::<f64>().ok()).sum(),
            total: ticks.iter().sum(),
        }
    }

    /// The share of the processors that others used since `before`.
    pub(crate) fn others_since(&self, before: Self) -> f64 {
        let others = (self.all - before.all) - (self.ours - before.ours);
        let total = self.total - before.total;
        if total > 0.0 {
            // Ticks are coarse: one of them is no noise.
            ((others - 1.0) / total).max(0.0)
        } else {
            0.0
        }
    }
}

/// Nanoseconds of a cache line there and back between the two cores.
pub(crate) fn line(probe: &Call) -> anyhow::Result<f64> {
    let call = probe.clone().args(["line", "--seconds", "0.01", "--json"]);
    let text = call.output(std::time::Duration::from_secs(10))?;
    let measure = super::measure::from_json(&text, super::measure::Unit::Microseconds)?;
    Ok(measure.value * 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_use_is_what_we_did_not() {
        let process = |ticks: u32| format!("7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 2 3 4 20 0");
        let before = Usage::parse("cpu  100 0 50 1000 0 9 9 0 0 0\n", &process(10));
        let after = Usage::parse("cpu  180 0 70 1100 0 9 9 0 0 0\n", &process(89));
        // 100 ticks busy, 79 of them ours, one forgiven, of 200.
        assert!((after.others_since(before) - 0.1).abs() < 1e-9);
        assert_eq!(before.others_since(before), 0.0);
    }

    #[test]
    fn the_machine_is_described_without_its_name() {
        let rows = describe();
        assert!(
            rows.iter()
                .any(|(name, text)| name == "kernel" && text.len() > 6)
        );
        let host = read("/proc/sys/kernel/hostname");
        let host = host.trim();
        if host.len() > 3 {
            assert!(rows.iter().all(|(_, text)| !text.contains(host)));
        }
        assert_eq!(kernel_version("6.12.3-mine\n"), "6.12.3");
        assert_eq!(ucx_version("# Version 1.13.1\n# Git branch\n"), "1.13.1");
    }
}
