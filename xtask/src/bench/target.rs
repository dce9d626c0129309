//! What Ringmail is to reach, and whether it does: ratios of what was taken in the same round and in the same state.

use super::contest::{self, PAIRS, QPS, counted};
use super::measure::Unit;
use super::results::{Results, State, group_of};
use super::stats;

/// One promise.
pub(crate) struct Target {
    /// What is compared.
    pub(crate) what: String,
    ours: Pick,
    reference: Reference,
    wanted: Wanted,
    unit: Unit,
}

/// Of whom the figure is.
#[derive(Clone, Debug)]
pub(crate) enum Pick {
    /// This contestant.
    One(String),
    /// The best of these.
    Best(Vec<String>),
    /// The worst of these from the best on: what is left of the best when there is more of something.
    Left(Vec<String>),
}

enum Reference {
    Of(Pick),
    /// A number of the unit.
    Fixed(f64),
}

/// What the ratio of ours to the reference is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// A promise in one state.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Of which samples.
    pub(crate) state: State,
    /// Median of ours.
    pub(crate) ours: f64,
    /// Median of the reference.
    pub(crate) reference: f64,
    /// Median of the ratios of the rounds.
    pub(crate) ratio: f64,
    /// Rounds in which both were taken in this state.
    pub(crate) rounds: usize,
    /// Others used the processors in each of them.
    pub(crate) is_noisy: bool,
    /// Whether it is as wanted.
    pub(crate) met: bool,
}

/// A figure of one round.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Value {
    number: f64,
    /// Others used the processors meanwhile.
    is_noisy: bool,
}

impl Wanted {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }

    /// As it is written in the report.
    pub(crate) fn shown(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {}", short(least)),
            Self::AtMost(most) => format!("≤ {}", short(most)),
        }
    }
}

fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Pick {
    /// Everyone it may be.
    fn ids(&self) -> &[String] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Best(ids) | Self::Left(ids) => ids,
        }
    }

    /// Its value in one round and state. None where one of several was taken in another state: it might have been the best.
    fn value(&self, results: &Results, round: u32, state: State, unit: Unit) -> Option<Value> {
        let samples = self.ids().iter().filter_map(|id| results.sample(id, round));
        let is_better = |a: f64, b: f64| if unit.is_cost() { a < b } else { a > b };
        let mut best: Option<f64> = None;
        let (mut left, mut is_noisy) = (None, false);
        for sample in samples {
            if sample.state() != Some(state) {
                return None;
            }
            is_noisy |= sample.is_noisy();
            if best.is_none_or(|best| is_better(sample.value, best)) {
                (best, left) = (Some(sample.value), Some(sample.value));
            } else if left.is_some_and(|left| is_better(left, sample.value)) {
                left = Some(sample.value);
            }
        }
        let number = match self {
            Self::One(_) | Self::Best(_) => best?,
            Self::Left(_) => left?,
        };
        Some(Value { number, is_noisy })
    }

    /// Whether anything of it was measured.
    fn is_there(&self, results: &Results) -> bool {
        self.ids().iter().any(|id| results.has(id))
    }

    fn absence(&self, results: &Results) -> Option<String> {
        let mut contestants = results.contestants.iter();
        let contestant = contestants.find(|one| self.ids().contains(&one.id))?;
        Some(format!("{}: {}", contestant.id, contestant.absence()))
    }
}

impl Target {
    /// What is wanted of the ratio, or of the value where that is a limit.
    pub(crate) fn wanted(&self) -> String {
        match self.reference {
            Reference::Of(_) => self.wanted.shown(),
            Reference::Fixed(limit) => format!("≤ {limit} {}", self.unit.symbol()),
        }
    }

    /// What both are in.
    pub(crate) fn unit(&self) -> Unit {
        self.unit
    }

    /// Whether both sides took part in this run.
    pub(crate) fn is_asked(&self, results: &Results) -> bool {
        let took_part = |pick: &Pick| {
            let mut contestants = results.contestants.iter();
            contestants.any(|one| pick.ids().contains(&one.id))
        };
        took_part(&self.ours)
            && match &self.reference {
                Reference::Of(pick) => took_part(pick),
                Reference::Fixed(_) => true,
            }
    }

    /// Why there is no verdict.
    pub(crate) fn absence(&self, results: &Results) -> String {
        let mut missing = vec![&self.ours];
        if let Reference::Of(pick) = &self.reference {
            missing.push(pick);
        }
        let missing = missing.into_iter().filter(|pick| !pick.is_there(results));
        let mut reasons: Vec<String> = missing.filter_map(|pick| pick.absence(results)).collect();
        reasons.dedup();
        if reasons.is_empty() {
            "no round had both in one state".to_owned()
        } else {
            reasons.join("; ")
        }
    }

    /// The verdict in each state that occurred.
    pub(crate) fn verdicts(&self, results: &Results) -> Vec<Verdict> {
        let verdicts = State::ALL.map(|state| self.verdict(results, state));
        verdicts.into_iter().flatten().collect()
    }

    fn verdict(&self, results: &Results, state: State) -> Option<Verdict> {
        let mut rounds = Vec::new();
        for round in 0..results.method.rounds {
            let reference = match &self.reference {
                Reference::Of(pick) => pick.value(results, round, state, self.unit),
                Reference::Fixed(limit) => Some(Value {
                    number: *limit,
                    is_noisy: false,
                }),
            };
            let ours = self.ours.value(results, round, state, self.unit);
            rounds.extend(ours.zip(reference));
        }
        // Noisy rounds count only where there is no quiet one.
        let is_quiet = |(ours, reference): &(Value, Value)| !ours.is_noisy && !reference.is_noisy;
        let is_noisy = !rounds.iter().any(is_quiet);
        rounds.retain(|round| is_noisy || is_quiet(round));
        let median = |of: fn(&(Value, Value)) -> f64| {
            stats::median(&rounds.iter().map(of).collect::<Vec<f64>>())
        };
        let ratio = median(|(ours, reference)| ours.number / reference.number)?;
        Some(Verdict {
            state,
            ours: median(|(ours, _)| ours.number)?,
            reference: median(|(_, reference)| reference.number)?,
            ratio,
            rounds: rounds.len(),
            is_noisy,
            met: self.wanted.holds(ratio),
        })
    }
}

/// All promises, in the order of the report.
pub(crate) fn targets() -> Vec<Target> {
    let mut targets = small();
    for size in ["64k", "1m"] {
        targets.extend(bulk(size));
    }
    targets.push(compare(
        "softroce: writes of 1 MiB with 1 % loss, selective repeat, against lossless",
        one("loss/softroce/loss-selective-repeat"),
        one("loss/softroce/lossless-selective-repeat"),
        Wanted::AtLeast(0.8),
    ));
    targets.extend(scaling());
    for place in ["tmpfs", "disk"] {
        for (provider, least) in [("shm", 0.8), ("softroce", 0.4)] {
            targets.push(compare(
                &format!("{provider}: `cp` on {place}, against coreutils"),
                one(&format!("cp-{place}/{provider}/cp")),
                one(&format!("cp-{place}/coreutils/cp")),
                Wanted::AtLeast(least),
            ));
        }
    }
    targets.push(Target {
        what: "softroce: memory of an idle queue pair".to_owned(),
        ours: one("memory/softroce/idle-queue-pair"),
        reference: Reference::Fixed(16_384.0),
        wanted: Wanted::AtMost(1.0),
        unit: Unit::Bytes,
    });
    targets
}

/// Of latency and message rate.
fn small() -> Vec<Target> {
    let mut targets = Vec::new();
    for op in ["write", "send", "write-to-a-spinning-target"] {
        let name = op.replace('-', " ");
        let ours = one(&format!("latency/softroce/{op}"));
        targets.push(compare(
            &format!("softroce: {name}, 8 bytes, against raw UDP"),
            ours.clone(),
            one("latency/raw/udp"),
            Wanted::AtMost(1.3),
        ));
        targets.push(compare(
            &format!("softroce: {name}, 8 bytes, against the best of UCX and libfabric over tcp"),
            ours,
            Pick::Best(all(
                "latency",
                &["ucx-tcp", "libfabric-tcp", "libfabric-tcp-rxm"],
            )),
            Wanted::AtMost(1.0),
        ));
    }
    for (op, test, most) in [("write", "put", 1.2), ("send", "am", 1.0)] {
        targets.push(compare(
            &format!("shm: {op}, 8 bytes, against UCX posix {test}_lat"),
            one(&format!("latency/shm/{op}")),
            one(&format!("latency/ucx-posix/{test}")),
            Wanted::AtMost(most),
        ));
    }
    targets.push(compare(
        "softroce: rate of 8-byte writes, against raw UDP in segments of 64 bytes",
        one("rate/softroce/write"),
        one("rate/raw/udp-64-byte-segments"),
        Wanted::AtLeast(1.0 / 6.0),
    ));
    targets.push(compare(
        "softroce: rate of 8-byte writes, against the best of UCX over tcp",
        one("rate/softroce/write"),
        Pick::Best(all("rate", &["ucx-tcp"])),
        Wanted::AtLeast(8.0),
    ));
    targets.push(compare(
        "shm: best rate of 8-byte messages, against the best of UCX posix",
        Pick::Best(all("rate", &["shm"])),
        Pick::Best(all("rate", &["ucx-posix"])),
        Wanted::AtLeast(0.9),
    ));
    targets
}

/// Of bandwidth with messages of one size.
fn bulk(size: &str) -> Vec<Target> {
    let group = format!("bandwidth-{size}");
    let shown = if size == "1m" { "1 MiB" } else { "64 KiB" };
    let id = |rest: &str| one(&format!("{group}/{rest}"));
    let against = |whom: &str, reference, least| {
        compare(
            &format!("softroce: writes of {shown}, against {whom}"),
            id("softroce/write"),
            reference,
            Wanted::AtLeast(least),
        )
    };
    let libfabric = ["libfabric-tcp", "libfabric-tcp-rxm", "libfabric-udp-rxd"];
    let mut targets = vec![
        against(
            "raw UDP in segments of 4,112 bytes",
            id("raw/udp-4112-byte-segments"),
            0.5,
        ),
        against("a TCP stream", id("raw/tcp-64-KiB-writes"), 1.0),
        against(
            "the best of UCX over tcp",
            Pick::Best(all(&group, &["ucx-tcp"])),
            1.0,
        ),
        against(
            "the best of libfabric over a network",
            Pick::Best(all(&group, &libfabric)),
            1.0,
        ),
    ];
    if size == "1m" {
        targets.push(compare(
            "softroce: reads of 1 MiB, against writes",
            id("softroce/read"),
            id("softroce/write"),
            Wanted::AtLeast(0.8),
        ));
    }
    targets.push(compare(
        &format!("shm: writes of {shown}, against copying memory"),
        id("shm/write"),
        id("raw/copy"),
        Wanted::AtLeast(0.9),
    ));
    targets
}

/// What is left of the best of each series when there is still more of what it counts.
fn scaling() -> Vec<Target> {
    let mut targets = Vec::new();
    for provider in ["softroce", "shm"] {
        let qps = |group: &str| {
            QPS.map(|qps| format!("{group}/{provider}/{}", counted(qps, "queue-pair")))
                .to_vec()
        };
        let pairs = PAIRS.map(|pairs| {
            format!(
                "scaling-pairs/{provider}/{}",
                counted(pairs, "process-pair")
            )
        });
        for (what, ids) in [
            (
                "writes of 64 KiB on 1 to 512 queue pairs",
                qps("scaling-bandwidth"),
            ),
            ("8-byte writes on 1 to 512 queue pairs", qps("scaling-rate")),
            (
                "writes of 64 KiB by 1 to 4 pairs of processes",
                pairs.to_vec(),
            ),
        ] {
            targets.push(compare(
                &format!("{provider}: {what}, the least from the best on, against the best"),
                Pick::Left(ids.clone()),
                Pick::Best(ids),
                Wanted::AtLeast(0.8),
            ));
        }
    }
    targets
}

fn compare(what: &str, ours: Pick, reference: Pick, wanted: Wanted) -> Target {
    let group = group_of(&ours.ids()[0]).to_owned();
    let unit = contest::groups()
        .into_iter()
        .find(|one| one.name == group)
        .map(|one| one.unit);
    Target {
        what: what.to_owned(),
        ours,
        reference: Reference::Of(reference),
        wanted,
        unit: unit.expect("a group of the contest"),
    }
}

fn one(id: &str) -> Pick {
    Pick::One(id.to_owned())
}

/// All contestants of a group that these put up.
fn all(group: &str, whose: &[&str]) -> Vec<String> {
    let groups = contest::groups();
    let members = groups.into_iter().filter(|one| one.name == group);
    let ids = members.flat_map(|one| one.members).map(|member| member.id);
    ids.filter(|id| {
        let who = id.split('/').nth(1).unwrap_or_default();
        whose.contains(&who)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Sample;

    fn results(samples: &[(&str, u32, f64, f64)]) -> Results {
        let mut results = Results::default();
        for &(id, round, value, line) in samples {
            results.method.rounds = results.method.rounds.max(round + 1);
            results.samples.push(Sample {
                id: id.to_owned(),
                round,
                value,
                line_before: line,
                line_after: line,
                kept: true,
                ..Sample::default()
            });
        }
        results
    }

    #[test]
    fn promises_are_about_contestants_that_exist() {
        let known: Vec<String> = contest::groups()
            .into_iter()
            .flat_map(|group| group.members)
            .map(|member| member.id)
            .collect();
        for target in targets() {
            let mut ids = target.ours.ids().to_vec();
            if let Reference::Of(pick) = &target.reference {
                ids.extend(pick.ids().to_vec());
            }
            assert!(!ids.is_empty(), "{}", target.what);
            for id in ids {
                assert!(known.contains(&id), "{}: {id}", target.what);
            }
        }
    }

    #[test]
    fn ratios_are_of_one_round_and_one_state() {
        let target = compare(
            "",
            one("latency/softroce/write"),
            one("latency/raw/udp"),
            Wanted::AtMost(1.3),
        );
        let results = results(&[
            ("latency/softroce/write", 0, 3.0, 50.0),
            ("latency/raw/udp", 0, 2.0, 50.0),
            // In another state than its reference: says nothing.
            ("latency/softroce/write", 1, 9.0, 300.0),
            ("latency/raw/udp", 1, 2.0, 50.0),
            ("latency/softroce/write", 2, 2.2, 50.0),
            ("latency/raw/udp", 2, 2.0, 50.0),
            ("latency/softroce/write", 3, 4.0, 300.0),
            ("latency/raw/udp", 3, 4.0, 300.0),
        ]);
        let verdicts = target.verdicts(&results);
        let found: Vec<_> = (verdicts.iter())
            .map(|verdict| (verdict.state, verdict.rounds, verdict.met))
            .collect();
        assert_eq!(found, [(State::Near, 2, true), (State::Far, 1, true)]);
        assert!(
            (verdicts[0].ratio - 1.3).abs() < 1e-9,
            "the median of 1.5 and 1.1"
        );
    }

    #[test]
    fn a_noisy_round_counts_only_where_there_is_no_quiet_one() {
        let (ours, raw) = ("latency/softroce/write", "latency/raw/udp");
        let target = compare("", one(ours), one(raw), Wanted::AtMost(1.3));
        let mut results = results(&[
            (ours, 0, 9.0, 50.0),
            (raw, 0, 1.0, 50.0),
            (ours, 1, 2.0, 50.0),
            (raw, 1, 1.0, 50.0),
        ]);
        results.samples[0].noise = 0.5;
        let ratio = |results: &Results| {
            let verdict = &target.verdicts(results)[0];
            (verdict.ratio, verdict.is_noisy)
        };
        assert_eq!(ratio(&results), (2.0, false));
        results.samples[3].noise = 0.5;
        assert_eq!(ratio(&results), (5.5, true), "the median of 9 and 2");
    }

    #[test]
    fn the_best_of_several_is_not_known_where_one_was_taken_in_another_state() {
        let ids = ["a", "b"].map(str::to_owned).to_vec();
        let results = results(&[("a", 0, 1.0, 50.0), ("b", 0, 4.0, 300.0)]);
        let best = Pick::Best(ids);
        assert_eq!(
            best.value(&results, 0, State::Near, Unit::GbitPerSecond),
            None
        );
    }

    #[test]
    fn the_best_and_what_is_left_of_it_know_which_way_is_better() {
        let ids = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let results = results(&[
            ("a", 0, 1.0, 50.0),
            ("b", 0, 4.0, 50.0),
            ("c", 0, 2.0, 50.0),
            ("d", 0, 3.0, 50.0),
        ]);
        let value = |pick: Pick, unit| {
            let value = pick.value(&results, 0, State::Near, unit);
            value.map(|value| value.number)
        };
        let best = Pick::Best(ids.clone());
        assert_eq!(value(best.clone(), Unit::Microseconds), Some(1.0));
        assert_eq!(value(best, Unit::GbitPerSecond), Some(4.0));
        // Growing from one to four is no loss; falling to two is.
        let left = Pick::Left(ids);
        assert_eq!(value(left.clone(), Unit::GbitPerSecond), Some(2.0));
        assert_eq!(value(left, Unit::Microseconds), Some(4.0));
    }
}
