//! What a probe found, as a line for people and as JSON for programs.

use std::fmt;

use serde::Serialize;

/// One measurement. Only the fields that the probe knows are there.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figure {
    /// One way, half of the median round trip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<f64>,
    /// One way, half of the 99th percentile of round trips.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
    /// Bits of payload that arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gbit_per_s: Option<f64>,
    /// Messages or datagrams that arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mmsg_per_s: Option<f64>,
    /// Datagrams that were sent and did not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drops: Option<u64>,
}

impl Figure {
    /// From round trips in nanoseconds.
    pub(crate) fn of_round_trips(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let one_way = |share: f64| {
            let last = nanoseconds.len().saturating_sub(1);
            let at = (last as f64 * share) as usize;
            nanoseconds.get(at).map(|&time| time as f64 / 2000.0)
        };
        Self {
            p50_us: one_way(0.5),
            p99_us: one_way(0.99),
            ..Self::default()
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.p50_us.map(|time| format!("p50 {time:.3} µs one way")),
            self.p99_us.map(|time| format!("p99 {time:.3} µs")),
            self.gbit_per_s.map(|rate| format!("{rate:.2} Gbit/s")),
            self.mmsg_per_s.map(|rate| format!("{rate:.3} M/s")),
            self.drops.map(|drops| format!("{drops} dropped")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_half_of_the_round_trip() {
        let figure = Figure::of_round_trips((1..=101).map(|n| n * 2000).rev().collect());
        assert_eq!((figure.p50_us, figure.p99_us), (Some(51.0), Some(100.0)));
        assert_eq!(figure.to_string(), "p50 51.000 µs one way, p99 100.000 µs");
    }
}
