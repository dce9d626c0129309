//! Processor time, and on which cores it is spent.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use cpu_time::ProcessTime;
use rustix::thread::{CpuSet, sched_setaffinity};

/// What this process has spent on all cores, in the kernel too.
pub(super) fn time() -> Duration {
    // What the system refuses, it refuses both times: the difference is nothing.
    ProcessTime::try_now().map_or(Duration::ZERO, |time| time.as_duration())
}

/// Cores to run on: `3`, or `2-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cores {
    first: usize,
    last: usize,
}

impl Cores {
    /// Has this thread, and those that it starts from now on, run there.
    ///
    /// # Errors
    /// Cores that are not there.
    pub(super) fn pin(self) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        for core in self.first..=self.last {
            set.set(core);
        }
        sched_setaffinity(None, &set).with_context(|| format!("cannot run on cores {self}"))
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let core = |text: &str| {
            text.parse()
                .ok()
                .filter(|core| *core < CpuSet::MAX_CPU)
                .ok_or_else(|| format!("expected cores such as 3 or 2-3, not {text}"))
        };
        let (first, last) = (core(first)?, core(last)?);
        if first > last {
            return Err(format!("{first}-{last} are no cores"));
        }
        Ok(Self { first, last })
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Those of the client, and those of the server: `0,1` or `0-1,2-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pins {
    pub(super) own: Cores,
    pub(super) peer: Option<Cores>,
}

impl FromStr for Pins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(',') {
            Some((own, peer)) => Self {
                own: own.parse()?,
                peer: Some(peer.parse()?),
            },
            None => Self {
                own: text.parse()?,
                peer: None,
            },
        })
    }
}
