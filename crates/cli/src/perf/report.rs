//! What was measured, as numbers with names: one row a case, for JSON, CSV and [`super::table`].

use std::collections::BTreeMap;

use serde::Serialize;

use super::client::Measured;
use super::control::Account;
use super::latency::{TICKS, Times};
use super::plan::{Mode, Operation, Target, Waiting};

/// One case. Times are microseconds; of a ping-pong they are half of the round trip. What was not measured is null.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) provider: &'static str,
    pub(super) op: Operation,
    pub(super) mode: Mode,
    pub(super) size: usize,
    pub(super) depth: usize,
    pub(super) qps: usize,
    pub(super) threads: usize,
    pub(super) both: bool,
    pub(super) signal_every: usize,
    pub(super) target: Target,
    pub(super) waiting: Waiting,
    pub(super) verified: bool,
    /// Messages sent; with latency, round trips or operations timed.
    pub(super) iterations: u64,
    pub(super) seconds: f64,
    /// Of all directions together; of a ping-pong, of one.
    pub(super) gbit_per_s: f64,
    pub(super) mmsg_per_s: f64,
    pub(super) min_us: Option<f64>,
    pub(super) mean_us: Option<f64>,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    pub(super) p999_us: Option<f64>,
    pub(super) max_us: Option<f64>,
    /// Whether the times are halves of a round trip.
    pub(super) half_round_trip: bool,
    /// Trips that were timed together.
    pub(super) timed_together: Option<u64>,
    /// Processor time in nanoseconds: of both sides, and of each.
    pub(super) cpu_ns_per_byte: f64,
    pub(super) cpu_ns_per_message: f64,
    pub(super) client_cpu_ns_per_message: f64,
    pub(super) server_cpu_ns_per_message: Option<f64>,
    /// Packets, on both sides; null where there are none to count.
    pub(super) drops: Option<u64>,
    pub(super) retransmissions: Option<u64>,
    pub(super) socket_calls_per_message: Option<f64>,
    pub(super) copies_per_byte: Option<f64>,
    /// What each device counted meanwhile.
    pub(super) client_counters: BTreeMap<String, u64>,
    pub(super) server_counters: BTreeMap<String, u64>,
    /// Microseconds, and how many took as long or less and longer than the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) histogram: Option<Vec<(f64, u64)>>,
    /// Messages in all directions, for what a message costs.
    #[serde(skip)]
    pub(super) messages: u64,
    #[serde(skip)]
    pub(super) times: Option<Times>,
}

impl Row {
    pub(super) fn new(provider: &'static str, measured: &Measured, histogram: bool) -> Self {
        let plan = &measured.plan;
        let times = measured.times.as_ref();
        let halves = if plan.is_ping_pong() { 2.0 } else { 1.0 };
        let iterations = match times {
            Some(times) => times.histogram.len() * times.block,
            None => measured.flows.iter().map(|flow| flow.messages).sum(),
        };
        let messages = if plan.is_ping_pong() {
            2 * iterations
        } else {
            iterations
        };
        let seconds = match times {
            Some(times) => times.elapsed.as_secs_f64(),
            None => {
                let longest = measured.flows.iter().map(|flow| flow.elapsed).max();
                longest.unwrap_or_default().as_secs_f64()
            }
        };
        let per_second = match times {
            Some(_) => iterations as f64 / seconds,
            None => {
                let rates = measured.flows.iter();
                rates
                    .map(|flow| flow.messages as f64 / flow.elapsed.as_secs_f64())
                    .sum()
            }
        };
        let (own, peers) = (&measured.own, &measured.peers);
        let each = |nanos: u64| nanos as f64 / messages.max(1) as f64;
        let client = each(own.cpu.unwrap_or(0));
        let server = peers.cpu.map(each);
        let both_cpu = client + server.unwrap_or(0.0);
        let at = |quantile: f64| {
            times.map(|times| us(times.histogram.value_at_quantile(quantile), halves))
        };
        Self {
            provider,
            op: plan.operation,
            mode: plan.mode,
            size: plan.size,
            depth: plan.depth,
            qps: plan.qps,
            threads: plan.threads,
            both: plan.both,
            signal_every: plan.signal_every,
            target: plan.target,
            waiting: plan.waiting,
            verified: plan.verify,
            iterations,
            seconds,
            gbit_per_s: per_second * plan.size as f64 * 8.0 / 1e9,
            mmsg_per_s: per_second / 1e6,
            min_us: times.map(|times| us(times.histogram.min(), halves)),
            mean_us: times.map(|_| seconds * 1e6 / iterations.max(1) as f64 / halves),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: times.map(|times| us(times.histogram.max(), halves)),
            half_round_trip: plan.is_ping_pong(),
            timed_together: times.map(|times| times.block),
            cpu_ns_per_byte: both_cpu / plan.size as f64,
            cpu_ns_per_message: both_cpu,
            client_cpu_ns_per_message: client,
            server_cpu_ns_per_message: server,
            drops: sum(own, peers, &["packets_dropped"]),
            retransmissions: sum(own, peers, &["packets_retransmitted"]),
            socket_calls_per_message: sum(own, peers, &["send_calls", "receive_calls"]).map(each),
            copies_per_byte: sum(own, peers, &["bytes_copied"])
                .map(|bytes| each(bytes) / plan.size as f64),
            client_counters: own.counted.iter().cloned().collect(),
            server_counters: peers.counted.iter().cloned().collect(),
            histogram: times.filter(|_| histogram).map(|times| {
                let recorded = times.histogram.iter_recorded();
                recorded
                    .map(|step| {
                        let count = step.count_since_last_iteration() * times.block;
                        (us(step.value_iterated_to(), halves), count)
                    })
                    .collect()
            }),
            messages,
            times: measured.times.clone(),
        }
    }

    pub(super) const CSV_HEADER: &'static str = "provider,op,mode,size,depth,qps,threads,both,iterations,seconds,\
        gbit_per_s,mmsg_per_s,min_us,mean_us,p50_us,p99_us,p999_us,max_us,\
        cpu_ns_per_byte,cpu_ns_per_message,drops,retransmissions";

    /// One line under [`Row::CSV_HEADER`]; what was not measured is empty.
    pub(super) fn csv(&self) -> String {
        let time = |time: Option<f64>| time.map_or_else(String::new, |time| format!("{time:.4}"));
        let count = |count: Option<u64>| count.map_or_else(String::new, |count| count.to_string());
        [
            self.provider.to_owned(),
            self.op.name().to_owned(),
            self.mode.name().to_owned(),
            self.size.to_string(),
            self.depth.to_string(),
            self.qps.to_string(),
            self.threads.to_string(),
            self.both.to_string(),
            self.iterations.to_string(),
            format!("{:.6}", self.seconds),
            format!("{:.4}", self.gbit_per_s),
            format!("{:.6}", self.mmsg_per_s),
            time(self.min_us),
            time(self.mean_us),
            time(self.p50_us),
            time(self.p99_us),
            time(self.p999_us),
            time(self.max_us),
            format!("{:.4}", self.cpu_ns_per_byte),
            format!("{:.1}", self.cpu_ns_per_message),
            count(self.drops),
            count(self.retransmissions),
        ]
        .join(",")
    }
}

/// Microseconds of what a histogram holds.
pub(super) fn us(ticks: u64, halves: f64) -> f64 {
    ticks as f64 / TICKS as f64 / 1000.0 / halves
}

/// The sum of some counters on both sides, if there are any of them.
fn sum(own: &Account, peers: &Account, names: &[&str]) -> Option<u64> {
    let all = own.counted.iter().chain(&peers.counted);
    let found: Vec<u64> = all
        .filter(|(name, _)| names.contains(&name.as_str()))
        .map(|(_, value)| *value)
        .collect();
    (!found.is_empty()).then(|| found.iter().sum())
}
