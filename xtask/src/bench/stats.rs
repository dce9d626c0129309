//! Medians, spreads, and ratios of what was taken in the same round and state.

use super::results::{Results, State};

/// What several samples come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    /// The median.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// How many.
    pub(crate) count: usize,
    /// Others used the processors during each of them.
    pub(crate) all_noisy: bool,
}

/// The median; none of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Sums up a contestant in one state. Noisy samples count only where there is no quiet one.
pub(crate) fn summary(results: &Results, id: &str, state: State) -> Option<Summary> {
    let mut samples = results.samples(id, state);
    let all_noisy = samples.iter().all(|sample| sample.is_noisy());
    samples.retain(|sample| all_noisy || !sample.is_noisy());
    let values: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
    Some(Summary {
        median: median(&values)?,
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        count: values.len(),
        all_noisy,
    })
}

/// The median of what a program told besides, over the kept samples of a state.
pub(crate) fn besides(results: &Results, id: &str, state: State, name: &str) -> Option<f64> {
    let samples = results.samples(id, state);
    let values: Vec<f64> = (samples.iter())
        .filter_map(|sample| sample.more.get(name).copied())
        .collect();
    median(&values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Sample;

    fn sample(value: f64, line: f64, noise: f64) -> Sample {
        Sample {
            id: "g/a/b".to_owned(),
            value,
            line_before: line,
            line_after: line,
            noise,
            kept: true,
            ..Sample::default()
        }
    }

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn states_are_summed_up_apart_and_noise_counts_only_where_there_is_nothing_else() {
        let mut changed = sample(99.0, 50.0, 0.0);
        changed.line_after = 300.0;
        let mut replaced = sample(98.0, 50.0, 0.0);
        replaced.kept = false;
        let results = Results {
            samples: vec![
                sample(1.0, 50.0, 0.0),
                sample(3.0, 50.0, 0.0),
                sample(9.0, 50.0, 0.5),
                sample(20.0, 300.0, 0.5),
                changed,
                replaced,
            ],
            ..Results::default()
        };
        let near = summary(&results, "g/a/b", State::Near).unwrap();
        assert_eq!((near.median, near.min, near.max), (2.0, 1.0, 3.0));
        assert!(!near.all_noisy);
        let far = summary(&results, "g/a/b", State::Far).unwrap();
        assert_eq!((far.median, far.count, far.all_noisy), (20.0, 1, true));
        assert_eq!(summary(&results, "g/a/other", State::Near), None);
    }
}
