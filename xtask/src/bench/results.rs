//! What was measured, as it is kept: `results.json` holds all that the report is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Where and with what, in the order of the report: "kernel", "Linux 6.12".
    pub(crate) machine: Vec<(String, String)>,
    /// How: rounds, seconds a sample, seed.
    pub(crate) method: Method,
    /// Who took part, or why not.
    pub(crate) contestants: Vec<Contestant>,
    /// Every sample that was taken.
    pub(crate) samples: Vec<Sample>,
}

/// How samples were taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Method {
    /// Rounds that were begun.
    pub(crate) rounds: u32,
    /// Seconds of one sample, where the program takes a time.
    pub(crate) seconds: f64,
    /// Of the order within each round.
    pub(crate) seed: u64,
    /// Seconds of the whole run.
    pub(crate) took: f64,
}

/// One that was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Contestant {
    /// `group/who/what`.
    pub(crate) id: String,
    /// What was run, without ports and paths.
    pub(crate) command: String,
    /// Why each sample failed that did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
    /// It failed so often that it was not asked any more.
    #[serde(default)]
    pub(crate) is_out: bool,
}

impl Contestant {
    /// Why there are no samples.
    pub(crate) fn absence(&self) -> &str {
        let last = self.failures.last();
        last.map_or("no time was left", String::as_str)
    }
}

/// One sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Of the contestant.
    pub(crate) id: String,
    /// In which round.
    pub(crate) round: u32,
    /// In the unit of the group.
    pub(crate) value: f64,
    /// What the program told besides: `p99_us`, `drops`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) more: BTreeMap<String, f64>,
    /// Nanoseconds of a cache line there and back, before.
    pub(crate) line_before: f64,
    /// The same, afterwards.
    pub(crate) line_after: f64,
    /// Share of the processors that others used meanwhile.
    pub(crate) noise: f64,
    /// False where a later sample of the same round replaced it.
    pub(crate) kept: bool,
}

/// How far the two cores are from each other; it changes from minute to minute on virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// They share a cache.
    Near,
    /// They do not.
    Far,
}

impl State {
    /// Both, in the order of the report.
    pub(crate) const ALL: [Self; 2] = [Self::Near, Self::Far];

    /// Told by the time of a cache line there and back, in nanoseconds.
    pub(crate) fn of_line(nanoseconds: f64) -> Self {
        if nanoseconds < 130.0 {
            Self::Near
        } else {
            Self::Far
        }
    }

    /// Its word in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }
}

impl Sample {
    /// The state in which it was taken; none where that changed meanwhile.
    pub(crate) fn state(&self) -> Option<State> {
        let (before, after) = (
            State::of_line(self.line_before),
            State::of_line(self.line_after),
        );
        (before == after).then_some(before)
    }

    /// Whether others used the processors meanwhile.
    pub(crate) fn is_noisy(&self) -> bool {
        self.noise > MOST_NOISE
    }
}

impl Results {
    /// The kept samples of one contestant in one state.
    pub(crate) fn samples(&self, id: &str, state: State) -> Vec<&Sample> {
        let kept = self.samples.iter().filter(|sample| sample.kept);
        kept.filter(|sample| sample.id == id && sample.state() == Some(state))
            .collect()
    }

    /// The kept sample of one contestant in one round.
    pub(crate) fn sample(&self, id: &str, round: u32) -> Option<&Sample> {
        let mut kept = self.samples.iter().filter(|sample| sample.kept);
        kept.find(|sample| sample.round == round && sample.id == id)
    }

    /// Whether anything was measured of it.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.samples.iter().any(|sample| sample.id == id)
    }

    /// The state in which more samples were taken of the groups whose names begin so.
    pub(crate) fn usual_state(&self, groups: &str) -> State {
        let count = |state| {
            let all = self.samples.iter().filter(|sample| sample.kept);
            all.filter(|sample| sample.id.starts_with(groups) && sample.state() == Some(state))
                .count()
        };
        if count(State::Far) > count(State::Near) {
            State::Far
        } else {
            State::Near
        }
    }
}

/// The first part of an id.
pub(crate) fn group_of(id: &str) -> &str {
    id.split('/').next().unwrap_or_default()
}

/// What a quiet machine uses besides.
const MOST_NOISE: f64 = 0.08;
