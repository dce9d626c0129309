//! Which pictures the report has.

use super::contest::{self, Group, SIZES};
use super::results::{Results, State};
use super::stats;
use super::svg::{self, Bar, Row, Series, Spread};

/// A picture with its file name.
pub(crate) struct Chart {
    /// Such as `latency.svg`.
    pub(crate) file: String,
    /// What it shows, for those who do not see it.
    pub(crate) alt: String,
    /// The group below whose heading it stands.
    pub(crate) group: String,
    /// The picture itself.
    pub(crate) svg: String,
}

/// Pictures of all that was measured.
pub(crate) fn charts(results: &Results) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (file, title, names, is_log) in BARS {
        charts.extend(bars(results, file, title, names, *is_log));
    }
    charts.extend(bandwidth(results));
    charts
}

/// File, title, groups of one unit, whether the axis has decades.
type Bars = (&'static str, &'static str, &'static [&'static str], bool);

const BARS: &[Bars] = &[
    (
        "latency",
        "Latency of small messages, one way",
        &["latency"],
        true,
    ),
    ("rate", "Rate of 8-byte messages", &["rate"], true),
    (
        "receive-buffer",
        "Writes of 1 MiB by receive buffer",
        &["receive-buffer"],
        false,
    ),
    ("loss", "Goodput with 1 % loss", &["loss"], false),
    (
        "scaling",
        "Bandwidth over queue pairs and pairs of processes",
        &["scaling-bandwidth", "scaling-pairs"],
        false,
    ),
    (
        "scaling-rate",
        "Rate of 8-byte writes over queue pairs",
        &["scaling-rate"],
        false,
    ),
    ("cp", "Copying a file", &["cp-tmpfs", "cp-disk"], false),
];

fn bars(results: &Results, file: &str, title: &str, names: &[&str], is_log: bool) -> Option<Chart> {
    let groups: Vec<Group> = contest::groups()
        .into_iter()
        .filter(|group| names.contains(&group.name.as_str()))
        .collect();
    let unit = groups.first()?.unit;
    let members = groups.iter().flat_map(|group| &group.members);
    let labels: Vec<String> = members.clone().map(|one| label(&one.id, false)).collect();
    let (mut rows, mut states) = (Vec::new(), Vec::new());
    for member in members {
        let bars: Vec<(State, Bar)> = State::ALL
            .into_iter()
            .filter_map(|state| Some((state, bar(results, &member.id, state)?)))
            .collect();
        states.extend(bars.iter().map(|(state, _)| *state));
        let name = label(&member.id, false);
        let is_ambiguous = labels.iter().filter(|other| **other == name).count() > 1;
        if !bars.is_empty() {
            rows.push(Row {
                label: label(&member.id, is_ambiguous),
                bars: bars.into_iter().map(|(_, bar)| bar).collect(),
            });
        }
    }
    let better = if unit.is_cost() { "less" } else { "more" };
    let subtitle = format!(
        "{}; medians from least to most; {better} is better",
        legend(&states)
    );
    (!rows.is_empty()).then(|| Chart {
        file: format!("{file}.svg"),
        alt: title.to_owned(),
        group: names[0].to_owned(),
        svg: svg::bars(title, &subtitle, unit.symbol(), &rows, is_log),
    })
}

fn bar(results: &Results, id: &str, state: State) -> Option<Bar> {
    let spread = spread(results, id, state)?;
    let who = id.split('/').nth(1).unwrap_or_default();
    Some(Bar {
        class: match who {
            "softroce" | "shm" => "ours",
            "raw" => "raw",
            _ => "other",
        },
        spread,
        is_pale: state == State::Far,
    })
}

fn spread(results: &Results, id: &str, state: State) -> Option<Spread> {
    let summary = stats::summary(results, id, state)?;
    Some(Spread {
        median: summary.median,
        min: summary.min,
        max: summary.max,
    })
}

fn legend(states: &[State]) -> &'static str {
    match (states.contains(&State::Near), states.contains(&State::Far)) {
        (true, true) => "full: the cores share a cache (near), pale: they do not (far)",
        (false, true) => "the cores do not share a cache (far)",
        _ => "the cores share a cache (near)",
    }
}

/// Who and what, from an id; with the group where there are several.
pub(crate) fn label(id: &str, with_group: bool) -> String {
    let mut parts = id.split('/');
    let group = parts.next().unwrap_or_default();
    let who = parts.next().unwrap_or_default();
    let what = parts.next().unwrap_or_default().replace('-', " ");
    if with_group {
        let group = group.split_once('-').map_or("", |(_, rest)| rest);
        format!("{who} {what} ({group})")
    } else {
        format!("{who} {what}")
    }
}

/// Lines of the bandwidth chart: who, what, dashed.
const LINES: [(&str, &str, bool); 10] = [
    ("softroce", "write", false),
    ("shm", "write", false),
    ("ucx-tcp", "put", false),
    ("ucx-tcp", "tag", true),
    ("ucx-posix", "put", false),
    ("ucx-posix", "tag", true),
    ("raw", "copy", true),
    ("raw", "udp-4112-byte-segments", true),
    ("raw", "tcp-64-KiB-writes", true),
    ("libfabric-tcp", "msg", false),
];

fn bandwidth(results: &Results) -> Option<Chart> {
    let state = results.usual_state("bandwidth-");
    let places: Vec<String> = SIZES.iter().map(|(name, _)| size_label(name)).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let series = LINES
        .iter()
        .enumerate()
        .map(|(colour, (who, what, is_dashed))| {
            let points = SIZES.iter().enumerate().filter_map(|(place, (size, _))| {
                let id = format!("bandwidth-{size}/{who}/{what}");
                Some((place, spread(results, &id, state)?))
            });
            Series {
                label: format!("{who} {}", what.replace('-', " ")),
                colour,
                is_dashed: *is_dashed,
                points: points.collect(),
            }
        });
    let series: Vec<Series> = series.filter(|one| !one.points.is_empty()).collect();
    let title = "Bandwidth over the size of messages";
    let subtitle = format!(
        "{}; medians from least to most; more is better",
        legend(&[state])
    );
    (!series.is_empty()).then(|| Chart {
        file: "bandwidth.svg".to_owned(),
        alt: title.to_owned(),
        group: format!("bandwidth-{}", SIZES[0].0),
        svg: svg::lines(
            title,
            &subtitle,
            ("bytes of a message", "Gbit/s"),
            &places,
            &series,
        ),
    })
}

fn size_label(name: &str) -> String {
    name.replace('k', " KiB").replace('m', " MiB")
}
