//! Which cores the two sides run on.

use std::str::FromStr;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// One core for each side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    /// Of the side that measures.
    pub(crate) first: usize,
    /// Of the other.
    pub(crate) second: usize,
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |word: &str| word.parse().ok().filter(|&core| core < CpuSet::MAX_CPU);
        text.split_once(',')
            .and_then(|(first, second)| {
                Some(Self {
                    first: read(first)?,
                    second: read(second)?,
                })
            })
            .ok_or_else(|| "two numbers of cores, such as 0,1".to_owned())
    }
}

/// Keeps the calling thread on `core`.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))
}
