//! How many there are in a second: each lane is kept full, and whatever is reported makes room for the next.

use std::time::{Duration, Instant};

use super::latency::Limit;
use super::plan::Plan;
use super::team::{Team, Watch};

/// What was sent, and how long that took until the last of it was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    pub(super) messages: u64,
    pub(super) elapsed: Duration,
}

/// Sends until the limit; without one until the peer has ended.
///
/// # Errors
/// What failed.
pub(super) fn send(
    team: &mut Team,
    plan: &Plan,
    limit: Option<Limit>,
    watch: &Watch,
) -> anyhow::Result<Flow> {
    let every = plan.signal_every as u64;
    let before = team.sent();
    let start = Instant::now();
    let mut ending = match limit {
        Some(Limit::Count(count)) => {
            team.set_goals(|lane| lane.sent + count.next_multiple_of(every));
            true
        }
        _ => {
            team.set_goals(|_| u64::MAX);
            false
        }
    };
    let mut turns = 0u32;
    loop {
        team.refill()?;
        if team.turn()? == 0 {
            if ending && team.is_drained() {
                break;
            }
            team.idle()?;
        }
        turns = turns.wrapping_add(1);
        if team.is_time(turns) {
            team.look_around(watch)?;
            let is_over = match limit {
                Some(Limit::Time(limit)) => start.elapsed() >= limit,
                Some(Limit::Count(_)) => false,
                None => team.is_ended(),
            };
            if is_over && !ending {
                ending = true;
                // Up to the next that is reported, and with it all before.
                team.set_goals(|lane| lane.sent.next_multiple_of(every));
            }
        }
    }
    let flow = Flow {
        messages: team.sent() - before,
        elapsed: start.elapsed(),
    };
    team.tell(watch)?;
    Ok(flow)
}
