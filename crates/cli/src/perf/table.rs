//! The table that is printed for people, in the columns that users of perftest and UCX expect, as rows come in.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::plan::{Mode, Operation, Waiting};
use super::report::{Row, us};

/// What was printed last.
pub(super) struct Table {
    verbose: bool,
    histogram: bool,
    /// What the heading above says.
    heading: Option<(Operation, Mode)>,
}

impl Table {
    pub(super) fn new(verbose: bool, histogram: bool) -> Self {
        Self {
            verbose,
            histogram,
            heading: None,
        }
    }

    /// Prints a row, under a heading if it is the first of its kind.
    ///
    /// # Errors
    /// What writing answers.
    pub(super) fn print(&mut self, out: &mut impl Write, row: &Row) -> io::Result<()> {
        if self.heading != Some((row.op, row.mode)) {
            self.heading = Some((row.op, row.mode));
            writeln!(out, "\n{}", heading(row))?;
            match row.mode {
                Mode::Latency => writeln!(
                    out,
                    "{:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>17}",
                    "bytes",
                    "trips",
                    "min",
                    "p50",
                    "p99",
                    "p99.9",
                    "max",
                    "round trip",
                    "CPU ns/msg"
                ),
                Mode::Bandwidth => writeln!(
                    out,
                    "{:>10} {:>10} {:>6} {:>9} {:>9} {:>9} {:>17} {:>7} {:>7}",
                    "bytes",
                    "messages",
                    "depth",
                    "Gbit/s",
                    "Mmsg/s",
                    "CPU ns/B",
                    "CPU ns/msg",
                    "drops",
                    "resent"
                ),
            }?;
        }
        match row.mode {
            Mode::Latency => print_latency(out, row),
            Mode::Bandwidth => print_bandwidth(out, row),
        }?;
        if self.histogram {
            print_histogram(out, row)?;
        }
        if self.verbose {
            print_counters(out, row)?;
        }
        Ok(())
    }
}

fn heading(row: &Row) -> String {
    let name = row.op.name();
    let mut text = match row.mode {
        Mode::Latency if row.half_round_trip => {
            format!("{name} latency: half the round trip in µs")
        }
        Mode::Latency => format!("{name} latency: post to completion in µs"),
        Mode::Bandwidth if row.both => format!("{name} bandwidth, both directions together"),
        Mode::Bandwidth => format!("{name} bandwidth"),
    };
    if row.qps > 1 {
        text += &format!(", {} queue pairs", row.qps);
    }
    if row.threads > 1 {
        text += &format!(", {} threads a side", row.threads);
    }
    if row.verified {
        text += ", contents checked";
    }
    text += match row.waiting {
        Waiting::Poll => "",
        Waiting::Yield => ", yielding",
        Waiting::Block => ", waiting",
    };
    text
}

fn print_latency(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let time = |time: Option<f64>| {
        let time = time.unwrap_or(0.0);
        if time < 1.0 {
            format!("{time:.3}")
        } else {
            format!("{time:.2}")
        }
    };
    let trip = if row.half_round_trip {
        time(row.p50_us.map(|half| 2.0 * half))
    } else {
        "-".to_owned()
    };
    writeln!(
        out,
        "{:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {trip:>10} {:>17}",
        row.size,
        row.iterations,
        time(row.min_us),
        time(row.p50_us),
        time(row.p99_us),
        time(row.p999_us),
        time(row.max_us),
        cpu(row),
    )?;
    match row.timed_together {
        Some(block) if block > 1 => {
            writeln!(
                out,
                "{:>10} each of these is the mean of {block} in a row",
                ""
            )
        }
        _ => Ok(()),
    }
}

fn print_bandwidth(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let count =
        |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    writeln!(
        out,
        "{:>10} {:>10} {:>6} {:>9.3} {:>9.4} {:>9.3} {:>17} {:>7} {:>7}",
        row.size,
        row.iterations,
        row.depth,
        row.gbit_per_s,
        row.mmsg_per_s,
        row.cpu_ns_per_byte,
        cpu(row),
        count(row.drops),
        count(row.retransmissions),
    )
}

/// Processor time of a message: the client's and the server's.
fn cpu(row: &Row) -> String {
    match row.server_cpu_ns_per_message {
        Some(server) => format!("{:.0} + {server:.0}", row.client_cpu_ns_per_message),
        None => format!("{:.0}", row.client_cpu_ns_per_message),
    }
}

/// How many took how long: a line for each doubling of the distance to all of them.
fn print_histogram(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let Some(times) = &row.times else {
        return Ok(());
    };
    let halves = if row.half_round_trip { 2.0 } else { 1.0 };
    let all = times.histogram.len().max(1);
    writeln!(out, "{:>14} {:>12} {:>12}", "µs", "percentile", "of all")?;
    let mut before = 0;
    for step in times.histogram.iter_quantiles(1) {
        let share = step.count_since_last_iteration() as f64 / all as f64;
        before += step.count_since_last_iteration();
        writeln!(
            out,
            "{:>14.4} {:>12.6} {:>12} {}",
            us(step.value_iterated_to(), halves),
            100.0 * before as f64 / all as f64,
            before * times.block,
            "#".repeat((share * 40.0).ceil() as usize),
        )?;
    }
    Ok(())
}

/// All that either side counted, in all and for a message.
fn print_counters(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let names: BTreeSet<&String> = row
        .client_counters
        .keys()
        .chain(row.server_counters.keys())
        .collect();
    if names.is_empty() {
        return writeln!(out, "{:>14} counts nothing", row.provider);
    }
    writeln!(
        out,
        "{:>26} {:>14} {:>10} {:>14} {:>10}",
        "", "client", "a message", "server", "a message"
    )?;
    for name in names {
        let [client, server] = [&row.client_counters, &row.server_counters]
            .map(|side| side.get(name).copied().unwrap_or(0));
        if client + server > 0 {
            let each = |count: u64| count as f64 / row.messages.max(1) as f64;
            writeln!(
                out,
                "{name:>26} {client:>14} {:>10.4} {server:>14} {:>10.4}",
                each(client),
                each(server)
            )?;
        }
    }
    if let Some(copies) = row.copies_per_byte {
        writeln!(out, "{:>26} {copies:>14.3}", "copies a byte, both sides")?;
    }
    Ok(())
}
