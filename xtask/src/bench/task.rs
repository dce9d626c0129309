//! One sample of one contestant: starts its programs and reads what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child::{self, Call};
use super::measure::{self, Measure, Unit};

/// What a contestant does.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// A raw probe of ours, with these arguments.
    Probe(Vec<String>),
    /// `ucx_perftest` over these transports.
    Ucx {
        transports: &'static str,
        test: &'static str,
        size: usize,
        /// Messages in a second, roughly: it counts and does not look at the clock.
        rate: f64,
    },
    /// `fi_pingpong` over this provider.
    PingPong {
        provider: &'static str,
        endpoint: &'static str,
        size: usize,
        /// Round trips in a second, roughly.
        rate: f64,
    },
    /// `ringmail perf`, so many of it at once.
    Perf {
        arguments: Vec<String>,
        environment: Vec<(&'static str, &'static str)>,
        at_once: usize,
        /// Of each figure, to make it like the others of its group.
        share: f64,
    },
    /// A file is copied.
    Copy { by: Copier, to: Place },
    /// Memory of an idle queue pair.
    QueuePair,
}

/// Who copies a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Copier {
    /// `cp` of the system.
    Coreutils,
    /// `ringmail cp` over this provider.
    Ringmail(&'static str),
}

/// Where a file is copied, from and to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// A file system in memory.
    Memory,
    /// The file system of the build directory.
    Disk,
}

/// The programs, and what all samples share.
pub(crate) struct Tools {
    /// Our raw probes.
    pub(crate) probe: PathBuf,
    /// Ringmail.
    pub(crate) ringmail: PathBuf,
    /// Time of a sample.
    pub(crate) time: Duration,
    /// Bytes of the file that is copied.
    pub(crate) file: u64,
    /// A directory for files of this run, on disk.
    pub(crate) disk: PathBuf,
    /// The same, in memory.
    pub(crate) memory: PathBuf,
}

impl Tools {
    /// The raw probes on the two cores.
    pub(crate) fn probe(&self) -> Call {
        Call::new(self.probe.to_string_lossy())
    }

    fn seconds(&self) -> String {
        format!("{:.2}", self.time.as_secs_f64())
    }

    fn folder(&self, place: Place) -> &Path {
        match place {
            Place::Memory => &self.memory,
            Place::Disk => &self.disk,
        }
    }

    /// The file that is copied there, made at the first call and read once, so that it lies in the page cache.
    fn source(&self, place: Place) -> Result<PathBuf> {
        let path = self.folder(place).join("source");
        if fs::metadata(&path).is_ok_and(|file| file.len() == self.file) {
            return Ok(path);
        }
        fs::create_dir_all(self.folder(place))?;
        let mut random = super::random::Random::new(self.file);
        let mut file = fs::File::create(&path)?;
        let mut block = vec![0u8; 1 << 20];
        for _ in 0..self.file >> 20 {
            for word in block.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            std::io::Write::write_all(&mut file, &block)?;
        }
        file.sync_all()?;
        Ok(path)
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        for folder in [&self.memory, &self.disk] {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Task {
    /// What is typed to do the same by hand; of servers their call, too.
    pub(crate) fn shown(&self, tools: &Tools) -> String {
        match self {
            Self::Probe(arguments) => probe_call(tools, arguments).shown(),
            Self::Ucx { .. } | Self::PingPong { .. } => {
                let (server, client) = self.pair("PORT", tools);
                format!("{} & {}", server.shown(), client.shown())
            }
            Self::Perf { at_once, .. } => {
                let times = if *at_once > 1 {
                    format!("{at_once} × ")
                } else {
                    String::new()
                };
                format!("{times}{}", self.perf_call(tools).shown())
            }
            Self::Copy { by, .. } => by.call(tools, Path::new("SRC"), Path::new("DST")).shown(),
            Self::QueuePair => queue_pair_call().shown(),
        }
    }

    /// Takes one sample.
    pub(crate) fn run(&self, unit: Unit, tools: &Tools) -> Result<Measure> {
        // Connecting and starting take their time besides; nothing takes this much.
        let limit = tools.time * 4 + Duration::from_secs(15);
        match self {
            Self::Probe(arguments) => {
                measure::from_json(&probe_call(tools, arguments).output(limit)?, unit)
            }
            Self::Ucx { .. } => measure::from_ucx(&self.between_two(tools, limit)?, unit),
            Self::PingPong { provider, .. } => {
                let text = self.between_two(tools, limit).map_err(|error| {
                    let found = Call::new("fi_info").args(["-p", provider]).output(limit);
                    let lack = |_| format!("this libfabric has no provider {provider}");
                    found.err().map(lack).map_or(error, anyhow::Error::msg)
                })?;
                measure::from_pingpong(&text, unit)
            }
            Self::Perf { at_once, share, .. } => {
                let call = self.perf_call(tools);
                let running: Vec<_> = (0..*at_once)
                    .map(|_| call.start(limit, Stdio::piped()))
                    .collect::<Result<_>>()?;
                let parts: Vec<Measure> = (running.into_iter())
                    .map(|one| measure::from_json(&one.output()?, unit))
                    .collect::<Result<_>>()?;
                Ok(measure::together(parts, unit).times(*share))
            }
            Self::Copy { by, to } => copy(*by, *to, tools),
            Self::QueuePair => queue_pair(),
        }
    }

    /// Starts the server of an opponent, waits until it listens, and answers what its client printed.
    fn between_two(&self, tools: &Tools, limit: Duration) -> Result<String> {
        let port = child::free_port()?;
        let (server, client) = self.pair(&port.to_string(), tools);
        let _server = server.start(limit, Stdio::null())?;
        child::wait_for_listener(port, Duration::from_secs(5))?;
        client.output(limit)
    }

    fn pair(&self, port: &str, tools: &Tools) -> (Call, Call) {
        let messages = |rate: f64| ((rate * tools.time.as_secs_f64()) as u64).max(10);
        match self {
            Self::Ucx {
                transports,
                test,
                size,
                rate,
            } => {
                let call = Call::new("ucx_perftest")
                    .env("UCX_TLS", *transports)
                    .env("UCX_NET_DEVICES", "lo")
                    .env("UCX_LOG_LEVEL", "error");
                let count = messages(*rate);
                let client = call
                    .clone()
                    .args(["127.0.0.1", "-p", port, "-t", test, "-f", "-v"])
                    .args(["-s".to_owned(), size.to_string()])
                    .args(["-n".to_owned(), count.to_string()])
                    .args(["-w".to_owned(), (count / 10).to_string()]);
                (call.args(["-p", port]).on_core(1), client.on_core(0))
            }
            Self::PingPong {
                provider,
                endpoint,
                size,
                rate,
            } => {
                let mut call = Call::new("fi_pingpong").args(["-p", provider, "-e", endpoint]);
                if !matches!(*provider, "shm" | "sm2") {
                    call = call.args(["-d", "lo"]);
                }
                let call = call
                    .args(["-S".to_owned(), size.to_string()])
                    .args(["-I".to_owned(), messages(*rate).to_string()]);
                let client = call.clone().args(["-P", port, "127.0.0.1"]);
                (call.args(["-B", port]).on_core(1), client.on_core(0))
            }
            _ => unreachable!("only opponents have a server of their own"),
        }
    }

    fn perf_call(&self, tools: &Tools) -> Call {
        let Self::Perf {
            arguments,
            environment,
            ..
        } = self
        else {
            unreachable!("asked of `ringmail perf` only")
        };
        let mut call = Call::new(tools.ringmail.to_string_lossy());
        for (name, value) in environment {
            call = call.env(*name, *value);
        }
        call.arg("perf").args(arguments.iter().cloned()).args([
            "--pin",
            "0,1",
            "--duration",
            &tools.seconds(),
            "--json",
        ])
    }
}

fn probe_call(tools: &Tools, arguments: &[String]) -> Call {
    (tools.probe())
        .args(arguments.iter().cloned())
        .args(["--seconds", &tools.seconds(), "--json"])
}

impl Copier {
    fn call(self, tools: &Tools, from: &Path, to: &Path) -> Call {
        let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
        let call = match self {
            Self::Coreutils => Call::new("cp").arg("--reflink=never"),
            Self::Ringmail(provider) => {
                Call::new(tools.ringmail.to_string_lossy()).args(["cp", "--provider", provider])
            }
        };
        call.args([from, to])
    }
}

/// Copies the file to a fresh name. What was written earlier is on disk before the clock starts, and nothing waits for the disk
/// while it runs.
fn copy(by: Copier, place: Place, tools: &Tools) -> Result<Measure> {
    let source = tools.source(place)?;
    let copy = tools.folder(place).join("copy");
    let _ = fs::remove_file(&copy);
    Call::new("sync").output(Duration::from_secs(60))?;
    let call = by.call(tools, &source, &copy);
    let start = Instant::now();
    let outcome = call.output(Duration::from_secs(60));
    let seconds = start.elapsed().as_secs_f64();
    let length = fs::metadata(&copy).map(|file| file.len());
    let _ = fs::remove_file(&copy);
    outcome?;
    if length? != tools.file {
        bail!("the copy is not of the source's length");
    }
    Ok(Measure::from(tools.file as f64 * 8.0 / 1e9 / seconds))
}

fn queue_pair_call() -> Call {
    Call::new("cargo").args([
        "test",
        "--quiet",
        "--package",
        "ringmail-rnic",
        "--test",
        "no_alloc",
        "an_idle_queue_pair_is_small",
        "--",
        "--nocapture",
    ])
}

/// Asks the test that counts.
fn queue_pair() -> Result<Measure> {
    let text = queue_pair_call().output(Duration::from_secs(300))?;
    bytes_of_a_queue_pair(&text).context("the test does not say how much")
}

fn bytes_of_a_queue_pair(text: &str) -> Option<Measure> {
    let line = text
        .lines()
        .find(|line| line.contains("bytes a connected queue pair"))?;
    let bytes = line.split_whitespace().next()?.parse::<f64>().ok()?;
    Some(Measure::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_queue_pair_are_read_from_the_test() {
        let text =
            "running 1 test\n5248 bytes a connected queue pair of 128 sends and 128 receives\n.\n";
        assert_eq!(bytes_of_a_queue_pair(text), Some(Measure::from(5248.0)));
        assert_eq!(bytes_of_a_queue_pair("running 0 tests\n"), None);
    }
}
