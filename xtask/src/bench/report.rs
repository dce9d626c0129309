//! The report: what was measured, as Markdown. It says only what is in the results.

use std::fmt::Write as _;

use super::chart::{self, Chart};
use super::contest::{self, Group};
use super::measure::Unit;
use super::results::{Contestant, Results, State};
use super::stats;
use super::svg::number;
use super::target;

/// Writes the report; `charts` lie beside it.
pub(crate) fn render(results: &Results, charts: &[Chart]) -> String {
    let mut text = String::new();
    text.push_str(INTRODUCTION);
    machine(&mut text, results);
    targets(&mut text, results);
    for group in contest::groups() {
        section(&mut text, results, &group, charts);
    }
    commands(&mut text, results);
    text
}

const INTRODUCTION: &str = "# Benchmarks

Written by `cargo xtask bench`. Two processes on one machine, pinned to two of its cores, both spinning unless said otherwise.
Ringmail, its alternatives and raw probes of the machine take turns; figures compare only with those of the same run and state.

";

fn machine(text: &mut String, results: &Results) {
    text.push_str("## The machine\n\n| | |\n|---|---|\n");
    for (name, value) in &results.machine {
        line(text, format_args!("| {name} | {value} |"));
    }
    let method = &results.method;
    let kept: Vec<_> = results
        .samples
        .iter()
        .filter(|sample| sample.kept)
        .collect();
    let count = |state| kept.iter().filter(|one| one.state() == Some(state)).count();
    let noisy = kept.iter().filter(|sample| sample.is_noisy()).count();
    let changing = kept
        .iter()
        .filter(|sample| sample.state().is_none())
        .count();
    line(
        text,
        format_args!(
            "\n{} rounds of samples of {} s, in an order shuffled from seed {}; {:.0} minutes. In each round every contestant has its \
         turn. The two cores of a virtual machine may or may not share a cache, and that changes from minute to minute: *near* is a \
         cache line there and back in less than 130 ns, *far* is more. It is asked before and after every sample. Of {} samples {} \
         are near, {} far; {} in which it changed are left out, and {} in which other processes used the processors count only where \
         there is nothing else. {} more were replaced by repetitions.\n\n\
         Figures are medians, with the least and the most in parentheses. Ratios are medians of the ratios within one round.\n",
            method.rounds,
            number(method.seconds),
            method.seed,
            (method.took / 60.0).ceil(),
            kept.len(),
            count(State::Near),
            count(State::Far),
            changing,
            noisy,
            results.samples.len() - kept.len(),
        ),
    );
}

fn targets(text: &mut String, results: &Results) {
    let asked: Vec<_> = target::targets()
        .into_iter()
        .filter(|target| target.is_asked(results))
        .collect();
    if asked.is_empty() {
        return;
    }
    text.push_str(
        "## Targets\n\nBehind the state stands how many rounds count: in them both sides were taken in it.\n\n| target | state | ours | reference | ratio | wanted | |\n|---|---|---:|---:|---:|---:|---|\n",
    );
    let mut missing = Vec::new();
    for target in &asked {
        let verdicts = target.verdicts(results);
        if verdicts.is_empty() {
            missing.push(format!("- {}: {}", target.what, target.absence(results)));
        }
        for verdict in verdicts {
            let unit = target.unit().symbol();
            // The memory of a queue pair does not depend on where the cores are.
            let state = match target.unit() {
                Unit::Bytes => "any",
                _ => &format!(
                    "{}, {}{}",
                    verdict.state.name(),
                    verdict.rounds,
                    if verdict.is_noisy { ", noisy" } else { "" }
                ),
            };
            line(
                text,
                format_args!(
                    "| {} | {state} | {} {unit} | {} {unit} | {} | {} | {} |",
                    target.what,
                    number(verdict.ours),
                    number(verdict.reference),
                    number(verdict.ratio),
                    target.wanted(),
                    if verdict.met { "met" } else { "**missed**" },
                ),
            );
        }
    }
    if !missing.is_empty() {
        line(
            text,
            format_args!("\nWithout a verdict:\n\n{}", missing.join("\n")),
        );
    }
    text.push('\n');
}

fn section(text: &mut String, results: &Results, group: &Group, charts: &[Chart]) {
    let is_member = |one: &&Contestant| group.members.iter().any(|member| member.id == one.id);
    let members: Vec<&Contestant> = results.contestants.iter().filter(is_member).collect();
    if members.is_empty() {
        return;
    }
    line(
        text,
        format_args!("## {}\n\n{}\n", group.title, group.about),
    );
    for chart in charts.iter().filter(|chart| chart.group == group.name) {
        line(text, format_args!("![{}]({})\n", chart.alt, chart.file));
    }
    let unit = group.unit.symbol();
    line(
        text,
        format_args!("| | near, {unit} | far, {unit} | besides |\n|---|---:|---:|---|"),
    );
    let mut absent = Vec::new();
    for member in members {
        let label = chart::label(&member.id, false);
        if !results.has(&member.id) {
            absent.push(format!("- {label}: {}", member.absence()));
            continue;
        }
        let cells = State::ALL.map(|state| cell(results, &member.id, state));
        let mut besides = besides(results, &member.id, group.unit);
        besides.extend(
            member
                .failures
                .last()
                .map(|reason| format!("**failed {} ×**: {reason}", member.failures.len())),
        );
        if State::ALL
            .iter()
            .all(|state| results.samples(&member.id, *state).is_empty())
        {
            besides.push("the state changed during each sample".to_owned());
        }
        let besides = besides.join(", ");
        line(
            text,
            format_args!("| {label} | {} | {} | {besides} |", cells[0], cells[1]),
        );
    }
    if !absent.is_empty() {
        line(
            text,
            format_args!("\nNot measured:\n\n{}", absent.join("\n")),
        );
    }
    text.push('\n');
}

fn cell(results: &Results, id: &str, state: State) -> String {
    let Some(summary) = stats::summary(results, id, state) else {
        return "–".to_owned();
    };
    let noisy = if summary.all_noisy { " noisy" } else { "" };
    if summary.count == 1 {
        return format!("{}{noisy}", number(summary.median));
    }
    format!(
        "{} ({}–{}){noisy}",
        number(summary.median),
        number(summary.min),
        number(summary.max)
    )
}

/// What a program told besides, of the state in which there is more of it.
fn besides(results: &Results, id: &str, unit: Unit) -> Vec<String> {
    let [near, far] = State::ALL.map(|state| results.samples(id, state).len());
    let state = if far > near { State::Far } else { State::Near };
    let of = |name| stats::besides(results, id, state, name);
    let mut parts = Vec::new();
    if unit == Unit::Microseconds {
        parts.extend(of("p99_us").map(|time| format!("p99 {} µs", number(time))));
        parts.extend(of("p999_us").map(|time| format!("p99.9 {} µs", number(time))));
    }
    parts.extend(
        of("cpu_ns_per_byte")
            .filter(|_| unit == Unit::GbitPerSecond)
            .map(|time| format!("CPU {} ns/byte", number(time))),
    );
    if unit == Unit::MillionsPerSecond {
        parts.extend(
            of("cpu_ns_per_message").map(|time| format!("CPU {} ns/message", number(time))),
        );
    }
    let calls = of("socket_calls_per_message").filter(|_| unit != Unit::Microseconds);
    parts.extend(calls.map(|calls| format!("{} socket calls/message", number(calls))));
    let copies = of("copies_per_byte").filter(|_| unit == Unit::GbitPerSecond);
    parts.extend(copies.map(|copies| format!("{} copies/byte", number(copies))));
    parts.extend(of("drops").map(|count| format!("{} dropped", number(count))));
    parts.extend(of("retransmissions").map(|count| format!("{} sent again", number(count))));
    parts
}

fn commands(text: &mut String, results: &Results) {
    text.push_str("## Commands\n\nWhat was run. `PORT` is any free one.\n\n```text\n");
    for contestant in &results.contestants {
        line(
            text,
            format_args!("{}\n    {}", contestant.id, contestant.command),
        );
    }
    text.push_str("```\n");
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made up. After a change that is meant, write the report again and look at what differs:
    /// `cargo xtask bench --report-only xtask/src/bench/fixture/results.json --output xtask/src/bench/fixture`
    const RESULTS: &str = include_str!("fixture/results.json");
    const REPORT: &str = include_str!("fixture/README.md");

    #[test]
    fn the_report_says_what_the_results_say() {
        let results: Results = serde_json::from_str(RESULTS).unwrap();
        let charts = chart::charts(&results);
        let files: Vec<&str> = charts.iter().map(|chart| chart.file.as_str()).collect();
        assert_eq!(files, ["latency.svg", "bandwidth.svg"]);
        let report = render(&results, &charts);
        for (written, expected) in report.lines().zip(REPORT.lines()) {
            assert_eq!(written, expected);
        }
        assert_eq!(report.lines().count(), REPORT.lines().count());
    }

    #[test]
    fn pictures_are_well_formed_and_fit_both_grounds() {
        let results: Results = serde_json::from_str(RESULTS).unwrap();
        for chart in chart::charts(&results) {
            let svg = chart.svg;
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
            assert_eq!(
                svg.matches("<text ").count(),
                svg.matches("</text>").count()
            );
            assert!(svg.contains("prefers-color-scheme:dark"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
