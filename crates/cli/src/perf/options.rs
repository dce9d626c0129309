//! The options of `ringmail perf`, and the cases that they ask for.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::cpu::Pins;
use super::latency::Limit;
use super::plan::{MAX_SIZE, Mode, Operation, Plan, Target, Waiting};
use crate::args::Usage;

/// Measure latency, bandwidth, message rate and processor time of any provider
///
/// Without --connect a second process is started for it on this machine. Latency is measured with one message outstanding:
/// send, write and write_imm are answered, and half of the round trip is shown; read, fetch_add and compare_swap are timed
/// as a whole. Bandwidth is measured with --depth outstanding.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Measure against `ringmail perf --listen` there, run with the same --provider, instead of a process started for this
    #[arg(long, value_name = "HOST[:PORT]", conflicts_with = "listen")]
    pub(super) connect: Option<String>,
    /// Serve measurements to others at this address, or at any, until interrupted
    #[arg(long, value_name = "HOST[:PORT]", num_args = 0..=1)]
    pub(super) listen: Option<Option<String>>,
    /// send, write, read, write_imm, fetch_add, compare_swap, several with commas, or all
    #[arg(short, long, value_name = "OPS", default_value = "send,write,read")]
    op: Operations,
    /// Bytes of a message, such as 8, 64K, 1M, several with commas, or first..last doubling [default: 8,64K]
    #[arg(short, long, value_name = "SIZES")]
    size: Option<Sizes>,
    /// All powers of two from 1 byte to 64 MiB
    #[arg(short, long, conflicts_with = "size")]
    all_sizes: bool,
    /// What to measure [default: both; with --depth latency for 1, bandwidth for more]
    #[arg(short, long, value_enum)]
    mode: Option<Mode>,
    /// Messages outstanding on a queue pair [default: 128, fewer if longer than 64 KiB]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    depth: Option<u32>,
    /// Queue pairs, divided among the threads [default: one a thread]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    qps: Option<u32>,
    /// Threads on each side
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Measure bandwidth in both directions at once
    #[arg(short, long)]
    both: bool,
    /// Seconds that each measurement takes
    #[arg(short = 'D', long, value_name = "SECS", default_value_t = 0.5, value_parser = seconds)]
    duration: f64,
    /// Messages (round trips, if that is measured) of each measurement, instead of a time
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Seconds of warming up before each measurement
    #[arg(long, value_name = "SECS", default_value_t = 0.1, value_parser = seconds)]
    warmup: f64,
    /// Have one of so many messages reported, when bandwidth is measured
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    signal_every: u32,
    /// Check the contents of messages, which takes time
    #[arg(long)]
    verify: bool,
    /// What the target of one-sided operations does; unless it polls, a write is timed to its completion
    #[arg(long, value_enum, default_value_t = Target::Poll)]
    target: Target,
    /// Let other processes run between polls, where there are fewer cores than pollers
    #[arg(long, conflicts_with = "wait")]
    r#yield: bool,
    /// Sleep until there is something, instead of polling
    #[arg(long)]
    wait: bool,
    /// Cores to run on, of the client and of the process started for it, such as 0,1 or 0-1,2-3 [default: any]
    #[arg(long, value_name = "CLIENT[,SERVER]")]
    pub(super) pin: Option<Pins>,
    /// Print a JSON list with an object for each measurement instead
    #[arg(long, conflicts_with = "csv")]
    pub(super) json: bool,
    /// Print comma-separated values instead
    #[arg(long)]
    pub(super) csv: bool,
    /// Show how latencies are distributed
    #[arg(long)]
    pub(super) histogram: bool,
    /// Show what both devices counted, in all and for a message
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Serve the parent process
    #[arg(long, hide = true)]
    pub(super) for_parent: bool,
}

/// What to carry out, each once.
#[derive(Debug, Clone)]
struct Operations(Vec<Operation>);

/// Bytes, each once.
#[derive(Debug, Clone)]
struct Sizes(Vec<usize>);

impl Arguments {
    /// The cases, in the order in which they are shown.
    ///
    /// # Errors
    /// What does not go together.
    pub(super) fn plans(&self) -> Result<Vec<Plan>, Usage> {
        let depth = self.depth.map(|depth| depth as usize);
        let modes: &[Mode] = match (self.mode, depth) {
            (Some(Mode::Latency), _) => &[Mode::Latency],
            (Some(Mode::Bandwidth), _) => &[Mode::Bandwidth],
            (None, Some(1)) => &[Mode::Latency],
            (None, Some(_)) => &[Mode::Bandwidth],
            (None, None) if self.both || self.signal_every > 1 => &[Mode::Bandwidth],
            // More queue pairs than threads are for bandwidth.
            (None, None) if self.qps.is_some_and(|qps| qps > self.threads) => &[Mode::Bandwidth],
            (None, None) => &[Mode::Latency, Mode::Bandwidth],
        };
        let mut plans = Vec::new();
        for &mode in modes {
            for &operation in &self.op.0 {
                for size in self.sizes(operation)? {
                    let plan = self.plan(mode, operation, size, depth);
                    plan.check().map_err(Usage)?;
                    plans.push(plan);
                }
            }
        }
        Ok(plans)
    }

    fn plan(&self, mode: Mode, operation: Operation, size: usize, depth: Option<usize>) -> Plan {
        let depth = match mode {
            Mode::Latency => depth.unwrap_or(1),
            Mode::Bandwidth => depth.unwrap_or_else(|| (OUTSTANDING / size).clamp(4, 128)),
        };
        Plan {
            operation,
            mode,
            size,
            depth,
            qps: self.qps.unwrap_or(self.threads) as usize,
            threads: self.threads as usize,
            both: self.both,
            signal_every: match mode {
                Mode::Latency => 1,
                Mode::Bandwidth => self.signal_every as usize,
            },
            verify: self.verify,
            target: self.target,
            waiting: match (self.r#yield, self.wait) {
                (true, _) => Waiting::Yield,
                (_, true) => Waiting::Block,
                _ => Waiting::Poll,
            },
        }
    }

    fn sizes(&self, operation: Operation) -> Result<Vec<usize>, Usage> {
        if !operation.is_atomic() {
            return Ok(match &self.size {
                Some(sizes) => sizes.0.clone(),
                None if self.all_sizes => powers(1, MAX_SIZE),
                None => vec![8, 64 << 10],
            });
        }
        let alone = self.op.0.iter().all(|operation| operation.is_atomic());
        match &self.size {
            // Sizes are for the others.
            Some(sizes) if alone && sizes.0 != [8] => Err(Usage(format!(
                "{} is of 8 bytes: leave --size out",
                operation.name()
            ))),
            _ => Ok(vec![8]),
        }
    }

    /// How long each measurement takes.
    pub(super) fn limit(&self) -> Limit {
        match self.iterations {
            Some(count) => {
                let lanes = u64::from(self.qps.unwrap_or(self.threads));
                Limit::Count(count.div_ceil(lanes))
            }
            None => Limit::Time(Duration::from_secs_f64(self.duration)),
        }
    }

    /// How long each is warmed up.
    pub(super) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }
}

impl FromStr for Operations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Vec::new();
        for name in text.split(',') {
            let known = Operation::ALL
                .into_iter()
                .filter(|operation| name == "all" || operation.name() == name.replace('-', "_"));
            let before = found.len();
            found.extend(known);
            if found.len() == before {
                let names = Operation::ALL.map(Operation::name).join(", ");
                return Err(format!("expected {names} or all"));
            }
        }
        Ok(Self(once_each(found)))
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                Some((first, last)) => {
                    let (first, last) = (bytes(first)?, bytes(last.trim_start_matches('='))?);
                    if first > last {
                        return Err(format!("{part} goes down: write the smaller size first"));
                    }
                    found.extend(powers(first, last));
                }
                None => found.push(bytes(part)?),
            }
        }
        Ok(Self(once_each(found)))
    }
}

fn once_each<T: PartialEq + Copy>(all: Vec<T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// The first, its double, and so on up to the last.
fn powers(first: usize, last: usize) -> Vec<usize> {
    std::iter::successors(Some(first), |size| Some(size * 2))
        .take_while(|size| *size <= last)
        .collect()
}

fn bytes(text: &str) -> Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let unit = lower.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = &lower[..lower.len() - unit.len()];
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("expected bytes such as 8, 64K or 1M".to_owned()),
    };
    let number: usize = number
        .parse()
        .map_err(|_| "expected bytes such as 8, 64K or 1M".to_owned())?;
    number
        .checked_mul(1 << shift)
        .filter(|size| (1..=MAX_SIZE).contains(size))
        .ok_or_else(|| format!("{text} is not between 1 byte and 64 MiB"))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, up to a day".to_owned()),
    }
}

/// Bytes outstanding where nobody says how many messages are.
const OUTSTANDING: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plans(line: &str) -> Result<Vec<Plan>, String> {
        let words = ["perf"].into_iter().chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.arguments.plans().map_err(|Usage(reason)| reason)
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = |text: &str| text.parse().map(|Sizes(sizes)| sizes);
        assert_eq!(sizes("8"), Ok(vec![8]));
        assert_eq!(sizes("64K,1m,64kb"), Ok(vec![64 << 10, 1 << 20]));
        assert_eq!(sizes("1..8"), Ok(vec![1, 2, 4, 8]));
        assert_eq!(sizes("1..64M").map(|sizes| sizes.len()), Ok(27));
        for wrong in ["", "0", "65M", "8..4", "x", "1G", "99999999999999999999"] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
        let reason = sizes("1G").unwrap_err();
        assert!(reason.contains("between 1 byte and 64 MiB"), "{reason}");
    }

    #[test]
    fn the_mode_follows_from_what_is_asked() {
        let modes = |line: &str| {
            let plans = plans(line).unwrap();
            let mut modes: Vec<_> = plans.iter().map(|plan| plan.mode).collect();
            modes.dedup();
            modes
        };
        assert_eq!(modes(""), [Mode::Latency, Mode::Bandwidth]);
        assert_eq!(modes("--depth 1"), [Mode::Latency]);
        assert_eq!(modes("--depth 2"), [Mode::Bandwidth]);
        assert_eq!(modes("--depth 1 --mode bandwidth"), [Mode::Bandwidth]);
        assert_eq!(modes("--both"), [Mode::Bandwidth]);
        assert_eq!(plans("-a --op write -m latency").unwrap().len(), 27);
        assert_eq!(plans("--op all -s 64K").unwrap().len(), 12);
    }

    #[test]
    fn what_does_not_go_together_is_said_with_what_does() {
        for (line, part) in [
            ("--mode latency --depth 2", "--mode bandwidth"),
            ("--mode latency --both", "--both measures bandwidth"),
            ("--mode latency --qps 2", "--threads"),
            ("--qps 3 --threads 2", "multiple"),
            ("--op fetch_add --size 64", "8 bytes"),
            ("--op send --target sleep", "must poll"),
            ("--op write --wait", "--target sleep"),
            ("--depth 2 --signal-every 3", "raise --depth"),
            ("--depth 1000 --size 64M --verify", "no --verify"),
            ("--op fly", "expected send"),
        ] {
            let reason = plans(line).expect_err(line);
            assert!(reason.contains(part), "{line}: {reason}");
        }
    }
}
