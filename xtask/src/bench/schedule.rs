//! The order of samples: rounds in which every contestant has its turn, so that whatever the machine does meets all alike.
//!
//! A sample is repeated at once where the cores changed their distance or others used the processors meanwhile, and at the end of
//! its group's turn where most of the group was taken in the other state. What is replaced stays in the results, marked. Repetitions
//! are bounded in number, and there are none while the run is behind its schedule: a machine that is busy throughout is measured
//! busy, and marked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::contest::{Group, Member};
use super::machine::{self, Usage};
use super::measure::Unit;
use super::random::Random;
use super::results::{Contestant, Method, Results, Sample, State};
use super::task::{Task, Tools};

/// How much is measured.
pub(crate) struct Plan {
    /// Times that each contestant is measured.
    pub(crate) rounds: u32,
    /// No round is begun that would likely end later, and no sample after it.
    pub(crate) budget: Duration,
    /// Of the orders.
    pub(crate) seed: u64,
}

/// Measures all of `groups`. What is known is handed to `keep` after each round.
pub(crate) fn run(
    groups: &[Group],
    tools: &Tools,
    plan: &Plan,
    mut keep: impl FnMut(&Results),
) -> Result<Results> {
    let mut run = Run {
        tools,
        results: Results {
            machine: machine::describe(),
            method: Method {
                rounds: 0,
                seconds: tools.time.as_secs_f64(),
                seed: plan.seed,
                took: 0.0,
            },
            contestants: contestants(groups, tools),
            samples: Vec::new(),
        },
        failures: HashMap::new(),
        line: machine::line(&tools.probe())?,
        start: Instant::now(),
        budget: plan.budget,
        progress: 0.0,
    };
    let members: usize = groups.iter().map(|group| group.members.len()).sum();
    let mut longest = Duration::ZERO;
    for round in 0..plan.rounds {
        if run.start.elapsed() + longest > plan.budget {
            println!("no time for more than {round} of {} rounds", plan.rounds);
            break;
        }
        let begun = Instant::now();
        run.results.method.rounds = round + 1;
        for (number, group) in groups.iter().enumerate() {
            let seed = plan.seed ^ u64::from(round) << 32 ^ number as u64;
            run.turn(group, round, &mut Random::new(seed))?;
            let share = group.members.len() as f64 / members as f64;
            run.progress += share / f64::from(plan.rounds);
        }
        longest = longest.max(begun.elapsed());
        run.results.method.took = run.start.elapsed().as_secs_f64();
        keep(&run.results);
    }
    Ok(run.results)
}

fn contestants(groups: &[Group], tools: &Tools) -> Vec<Contestant> {
    let members = groups.iter().flat_map(|group| &group.members);
    let contestants = members.map(|member| Contestant {
        id: member.id.clone(),
        command: member.task.shown(tools),
        ..Contestant::default()
    });
    contestants.collect()
}

struct Run<'a> {
    tools: &'a Tools,
    results: Results,
    /// How often each contestant failed since it last succeeded.
    failures: HashMap<String, u32>,
    /// The time of a cache line when it was last asked.
    line: f64,
    start: Instant,
    budget: Duration,
    /// The share of the run that is done, but for the group under way.
    progress: f64,
}

impl Run<'_> {
    /// One round of one group.
    fn turn(&mut self, group: &Group, round: u32, random: &mut Random) -> Result<()> {
        let mut order: Vec<&Member> = group.members.iter().collect();
        random.shuffle(&mut order);
        for member in &order {
            self.take(group, member, round)?;
        }
        let usual = self.usual_state(group, round);
        for _ in 0..MOST_RETURNS {
            let strays: Vec<&&Member> = (order.iter())
                .filter(|member| {
                    self.latest(&member.id, round)
                        .is_some_and(|sample| sample.state() != Some(usual))
                })
                .collect();
            // Where the machine stays in the other state there is nothing to wait for.
            if strays.is_empty() || State::of_line(self.line) != usual || self.is_late() {
                break;
            }
            for member in strays {
                self.take(group, member, round)?;
            }
        }
        Ok(())
    }

    /// Samples until one is undisturbed, or enough were tried; the last replaces all earlier ones of this round.
    fn take(&mut self, group: &Group, member: &Member, round: u32) -> Result<()> {
        // What a test counts does not change from round to round.
        let once = matches!(member.task, Task::QueuePair);
        let is_over = self.start.elapsed() > self.budget;
        if (once && round > 0) || is_over || self.is_out(&member.id) {
            return Ok(());
        }
        for _ in 0..MOST_TRIES {
            let Some(sample) = self.sample(group, member, round)? else {
                return Ok(());
            };
            let settled = once || (sample.state().is_some() && !sample.is_noisy());
            for earlier in &mut self.results.samples {
                earlier.kept &= earlier.round != round || earlier.id != sample.id;
            }
            self.results.samples.push(sample);
            if settled || self.is_late() {
                break;
            }
        }
        Ok(())
    }

    fn sample(&mut self, group: &Group, member: &Member, round: u32) -> Result<Option<Sample>> {
        let (line_before, usage) = (self.line, Usage::now());
        let outcome = member.task.run(group.unit, self.tools);
        let noise = Usage::now().others_since(usage);
        self.line = machine::line(&self.tools.probe())?;
        let measure = match outcome {
            Ok(measure) => measure,
            Err(error) => {
                println!("{:<48} failed: {error:#}", member.id);
                self.fail(&member.id, format!("{error:#}"));
                return Ok(None);
            }
        };
        self.failures.remove(&member.id);
        let sample = Sample {
            id: member.id.clone(),
            round,
            value: measure.value,
            more: measure.more,
            // What is counted does not depend on where the cores are.
            line_before: if group.unit == Unit::Bytes {
                self.line
            } else {
                line_before
            },
            line_after: self.line,
            noise,
            kept: true,
        };
        println!(
            "{:<48} {:>10.3} {:<7} {}{}",
            sample.id,
            sample.value,
            group.unit.symbol(),
            sample.state().map_or("changing", State::name),
            if sample.is_noisy() { ", noisy" } else { "" }
        );
        Ok(Some(sample))
    }

    /// Keeps a failure. Whoever fails again and again is not asked any more.
    fn fail(&mut self, id: &str, reason: String) {
        let count = self.failures.entry(id.to_owned()).or_default();
        *count += 1;
        let most = if self.results.has(id) { 3 } else { 2 };
        let contestants = &mut self.results.contestants;
        if let Some(contestant) = contestants.iter_mut().find(|one| one.id == id) {
            contestant.is_out = *count >= most;
            contestant.failures.push(reason);
        }
    }

    /// Whether the run is behind its schedule.
    fn is_late(&self) -> bool {
        self.start.elapsed() > self.budget.mul_f64(self.progress) + GRACE
    }

    fn is_out(&self, id: &str) -> bool {
        let mut contestants = self.results.contestants.iter();
        contestants.any(|one| one.id == id && one.is_out)
    }

    fn latest(&self, id: &str, round: u32) -> Option<&Sample> {
        let mut samples = self.results.samples.iter().rev();
        samples.find(|sample| sample.kept && sample.round == round && sample.id == id)
    }

    /// The state in which most of a group was taken.
    fn usual_state(&self, group: &Group, round: u32) -> State {
        let samples = group
            .members
            .iter()
            .filter_map(|member| self.latest(&member.id, round)?.state());
        let (near, all) = samples.fold((0, 0), |(near, all), state| {
            (near + u32::from(state == State::Near), all + 1)
        });
        if near * 2 >= all {
            State::Near
        } else {
            State::Far
        }
    }
}

/// What a run may be behind its schedule.
const GRACE: Duration = Duration::from_secs(5);
/// Samples at once of one contestant.
const MOST_TRIES: u32 = 3;
/// Times that a group returns to those of the other state.
const MOST_RETURNS: u32 = 1;
