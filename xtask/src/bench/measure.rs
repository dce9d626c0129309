//! What one program found, read from what it printed.
//!
//! Latencies are one way in microseconds, rates in millions of messages a second, bandwidths in 10^9 bits a second.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// What a group of contestants is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Of latency.
    Microseconds,
    /// Of messages.
    MillionsPerSecond,
    /// Of payload.
    GbitPerSecond,
    /// Of memory.
    Bytes,
}

impl Unit {
    /// As it is written behind a number.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::MillionsPerSecond => "M/s",
            Self::GbitPerSecond => "Gbit/s",
            Self::Bytes => "bytes",
        }
    }

    /// Whether less is better.
    pub(crate) fn is_cost(self) -> bool {
        matches!(self, Self::Microseconds | Self::Bytes)
    }

    /// Its field in the JSON of `ringmail perf` and the probes.
    fn field(self) -> &'static str {
        match self {
            Self::Microseconds => "p50_us",
            Self::MillionsPerSecond => "mmsg_per_s",
            Self::GbitPerSecond => "gbit_per_s",
            Self::Bytes => "bytes",
        }
    }
}

/// One value, and what else the program told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measure {
    /// In the unit that was asked for.
    pub(crate) value: f64,
    /// `p99_us`, `drops`, …
    pub(crate) more: BTreeMap<String, f64>,
}

impl From<f64> for Measure {
    fn from(value: f64) -> Self {
        Self {
            value,
            more: BTreeMap::new(),
        }
    }
}

/// Reads the object, or the first of the list, that `ringmail perf` and the probes print.
pub(crate) fn from_json(text: &str, unit: Unit) -> Result<Measure> {
    let json: Value = serde_json::from_str(text).context("not JSON")?;
    let object = json.get(0).unwrap_or(&json);
    let number = |name: &str| object.get(name).and_then(Value::as_f64);
    let value = number(unit.field()).with_context(|| format!("no {}", unit.field()))?;
    let more = KEPT.iter().filter_map(|&name| {
        let value = number(name).filter(|_| name != unit.field())?;
        Some((name.to_owned(), value))
    });
    Ok(Measure {
        value,
        more: more.collect(),
    })
}

/// Reads the CSV of `ucx_perftest -f -v`: a line of names, then one of numbers.
pub(crate) fn from_ucx(text: &str, unit: Unit) -> Result<Measure> {
    let mut lines = text.lines().map(str::trim);
    let names = lines
        .find(|line| line.starts_with("iterations,"))
        .context("no table")?;
    let row = lines
        .find(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .context("no figures")?;
    let column = |wanted: &str| -> Result<f64> {
        let at = names.split(',').position(|name| name == wanted);
        let text = at.and_then(|at| row.split(',').nth(at));
        let text = text.with_context(|| format!("no {wanted}"))?;
        text.trim()
            .parse()
            .with_context(|| format!("{wanted}={text}"))
    };
    Ok(Measure::from(match unit {
        Unit::Microseconds => column("50.0_percentile_lat")?,
        Unit::MillionsPerSecond => column("overall_mr")? / 1e6,
        // Its megabyte has 2^20 bytes.
        Unit::GbitPerSecond => column("overall_bw")? * f64::from(1 << 20) * 8.0 / 1e9,
        Unit::Bytes => bail!("it measures no memory"),
    }))
}

/// Reads the table of `fi_pingpong`: a line of names, then one of numbers. Its bandwidth is that of the ping-pong.
pub(crate) fn from_pingpong(text: &str, unit: Unit) -> Result<Measure> {
    let mut lines = text.lines();
    let names = lines
        .find(|line| line.starts_with("bytes"))
        .context("no table")?;
    let row = lines.next().context("no figures")?;
    let column = |wanted: &str| -> Result<f64> {
        let at = names.split_whitespace().position(|name| name == wanted);
        let text = at.and_then(|at| row.split_whitespace().nth(at));
        let text = text.with_context(|| format!("no {wanted}"))?;
        text.parse().with_context(|| format!("{wanted} {text}"))
    };
    Ok(Measure::from(match unit {
        Unit::Microseconds => column("usec/xfer")?,
        Unit::MillionsPerSecond => 1.0 / column("usec/xfer")?,
        // Its megabyte has 10^6 bytes.
        Unit::GbitPerSecond => column("MB/sec")? * 8.0 / 1e3,
        Unit::Bytes => bail!("it measures no memory"),
    }))
}

/// Adds up what ran side by side, and keeps what else one alone told. Latencies of several are not added but averaged.
pub(crate) fn together(mut parts: Vec<Measure>, unit: Unit) -> Measure {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let share = if unit.is_cost() {
        1.0 / parts.len().max(1) as f64
    } else {
        1.0
    };
    let mut sum = Measure::default();
    for part in parts {
        sum.value += part.value * share;
        for name in ["drops", "retransmissions"] {
            if let Some(count) = part.more.get(name) {
                *sum.more.entry(name.to_owned()).or_default() += count;
            }
        }
    }
    sum
}

impl Measure {
    /// A share of it: its value and its times.
    pub(crate) fn times(mut self, share: f64) -> Self {
        self.value *= share;
        for (name, value) in &mut self.more {
            if name.ends_with("_us") {
                *value *= share;
            }
        }
        self
    }
}

/// Fields that are kept besides the value.
const KEPT: &[&str] = &[
    "p50_us",
    "p99_us",
    "p999_us",
    "gbit_per_s",
    "mmsg_per_s",
    "cpu_ns_per_byte",
    "cpu_ns_per_message",
    "socket_calls_per_message",
    "copies_per_byte",
    "drops",
    "retransmissions",
];

#[cfg(test)]
mod tests {
    use super::*;

    // Recorded from UCX 1.13.1 and libfabric 1.17.0 of Debian 12.
    const UCX_LATENCY: &str = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n\
                               200000,0.045,0.459,0.459,16.62,16.62,2178837,2178837\n";
    const UCX_RATE: &str = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n\
                            5000000,0.010,0.018,0.018,417.60,417.60,54735205,54735205\n";
    const UCX_GET: &str = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n \
                           500,1715.809,2570.723,2499.116,389.00,400.14,389,400\n";
    const PINGPONG: &str = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec\n\
                            64k     1k      =1k      125m        0.15s    847.92      77.29       0.01\n";
    const PINGPONG_ALONE: &str =
        "[error] util/pingpong.c:568 : ctrl/read: no data or remote connection closed\n";

    fn near(measure: &Measure, expected: f64) -> bool {
        (measure.value / expected - 1.0).abs() < 1e-3
    }

    #[test]
    fn the_table_of_ucx_is_read() {
        let latency = from_ucx(UCX_LATENCY, Unit::Microseconds).unwrap();
        assert!(near(&latency, 0.045));
        let rate = from_ucx(UCX_RATE, Unit::MillionsPerSecond).unwrap();
        assert!(near(&rate, 54.735_205));
        // 54.7 million messages of 8 bytes: so its megabyte has 2^20 bytes.
        let bandwidth = from_ucx(UCX_RATE, Unit::GbitPerSecond).unwrap();
        assert!(near(&bandwidth, 54.735_205e6 * 64.0 / 1e9));
        let get = from_ucx(UCX_GET, Unit::GbitPerSecond).unwrap();
        assert!(near(&get, 3.356));
        assert!(from_ucx("ucx_perftest: failed\n", Unit::Microseconds).is_err());
        assert!(from_ucx(UCX_GET.lines().next().unwrap(), Unit::Microseconds).is_err());
    }

    #[test]
    fn the_table_of_fi_pingpong_is_read() {
        let latency = from_pingpong(PINGPONG, Unit::Microseconds).unwrap();
        assert!(near(&latency, 77.29));
        // 64 KiB in 77.29 µs: so its megabyte has 10^6 bytes.
        let bandwidth = from_pingpong(PINGPONG, Unit::GbitPerSecond).unwrap();
        assert!(near(&bandwidth, 65_536.0 * 8.0 / 77.29 / 1e3));
        assert!(from_pingpong(PINGPONG_ALONE, Unit::Microseconds).is_err());
    }

    #[test]
    fn our_json_is_read_as_a_list_and_as_an_object() {
        let list = r#"[{"provider":"softroce","op":"write","p50_us":3.25,"p99_us":4.5,"drops":0,"gbit_per_s":0.01}]"#;
        let latency = from_json(list, Unit::Microseconds).unwrap();
        assert_eq!(latency.value, 3.25);
        let more: Vec<(&str, f64)> = (latency.more.iter())
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        assert_eq!(
            more,
            [("drops", 0.0), ("gbit_per_s", 0.01), ("p99_us", 4.5)]
        );
        let object = from_json(r#"{"gbit_per_s":120.5}"#, Unit::GbitPerSecond).unwrap();
        assert_eq!(object, Measure::from(120.5));
        let error = from_json(r#"{"gbit_per_s":null}"#, Unit::GbitPerSecond).unwrap_err();
        assert_eq!(error.to_string(), "no gbit_per_s");
    }

    #[test]
    fn rates_add_up_and_latencies_do_not() {
        let mut parts = vec![Measure::from(2.0), Measure::from(4.0)];
        parts[0].more.insert("drops".to_owned(), 3.0);
        parts[0].more.insert("p99_us".to_owned(), 8.0);
        let half = parts[0].clone().times(0.5);
        assert_eq!((half.value, half.more["p99_us"]), (1.0, 4.0));
        assert_eq!(half.more["drops"], 3.0);
        let sum = together(parts.clone(), Unit::GbitPerSecond);
        assert_eq!((sum.value, sum.more["drops"]), (6.0, 3.0));
        assert_eq!(together(parts, Unit::Microseconds).value, 3.0);
    }
}
