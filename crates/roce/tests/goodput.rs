//! What is kept of the lossless goodput when packets are lost, in virtual time.
//!
//! Each figure follows from its seed; `cargo test -p ringmail-roce --test goodput -- --nocapture` prints them.

use std::time::Duration;

use ringmail_roce::sim::goodput::{Costs, Outcome, Trial, run};

const LOOPBACK: Trial = Trial {
    costs: Costs::LOOPBACK,
    extensions: true,
    loss: 0.0,
    reads: false,
    length: 64 << 10,
    depth: 16,
    messages: 768,
    pauses: None,
    seed: 1,
};

const ROOMY: Trial = Trial {
    costs: Costs::ROOMY,
    ..LOOPBACK
};

const NETWORK: Trial = Trial {
    costs: Costs::NETWORK,
    ..LOOPBACK
};

/// Both sizes that bulk transfers are judged by.
fn sizes(trial: Trial) -> [Trial; 2] {
    [
        trial,
        Trial {
            length: 1 << 20,
            depth: 4,
            messages: 48,
            ..trial
        },
    ]
}

/// The share of the lossless goodput that `trial` keeps at the given loss.
fn kept(trial: Trial, loss: f64) -> f64 {
    let clean = run(&trial);
    let lossy = run(&Trial { loss, ..trial });
    let kept = lossy.gbit / clean.gbit;
    let Trial {
        extensions,
        reads,
        length,
        ..
    } = trial;
    println!(
        "extensions {extensions}, reads {reads}, {length} bytes, loss {loss}: {:.1} of {:.1} Gbit/s, {kept:.3}; \
         lost {} overflown {} sent again {}",
        lossy.gbit, clean.gbit, lossy.lost, lossy.overflown, lossy.again
    );
    kept
}

#[test]
fn one_percent_of_loss_costs_selective_repeat_little_on_one_host() {
    // In a large socket all outstanding messages wait, so each gap costs some of the time that they take.
    for (base, least) in [(LOOPBACK, 0.9), (ROOMY, 0.7)] {
        for reads in [false, true] {
            for trial in sizes(Trial { reads, ..base }) {
                for seed in 1..=3 {
                    let kept = kept(Trial { seed, ..trial }, 0.01);
                    assert!(kept > least, "{trial:?}, seed {seed}: {kept:.3}");
                }
            }
        }
    }
}

#[test]
fn one_percent_of_loss_costs_selective_repeat_less_than_a_fifth_on_a_network() {
    for reads in [false, true] {
        for trial in sizes(Trial { reads, ..NETWORK }) {
            for seed in 1..=3 {
                let kept = kept(Trial { seed, ..trial }, 0.01);
                assert!(kept > 0.8, "{trial:?}, seed {seed}: {kept:.3}");
            }
        }
    }
}

#[test]
fn goodput_does_not_collapse_where_much_is_lost() {
    for base in [LOOPBACK, NETWORK] {
        for reads in [false, true] {
            for trial in sizes(Trial { reads, ..base }) {
                let kept = kept(trial, 0.05);
                assert!(kept > 0.4, "{trial:?}: {kept:.3}");
            }
        }
    }
}

#[test]
fn go_back_n_pays_for_every_loss() {
    let kept = kept(
        Trial {
            extensions: false,
            ..LOOPBACK
        },
        0.01,
    );
    assert!(kept < 0.9, "{kept:.3}: then what is selective repeat for?");
}

#[test]
fn a_peer_whose_core_is_taken_away_costs_a_few_questions_and_nothing_is_sent_twice_but_these() {
    for reads in [false, true] {
        let trial = Trial {
            reads,
            messages: 2_048,
            pauses: Some((Duration::from_millis(1), Duration::from_millis(2))),
            ..LOOPBACK
        };
        let Outcome {
            took,
            again,
            overflown,
            gbit,
            ..
        } = run(&trial);
        let pauses = took.as_millis() as u64 / 3;
        println!("reads {reads}: {gbit:.1} Gbit/s, {pauses} pauses, sent again {again}");
        assert_eq!(overflown, 0, "reads {reads}");
        assert!(
            again <= 5 * pauses,
            "reads {reads}: {again} packets in {pauses} pauses"
        );
    }
}

#[test]
fn nothing_waits_long_whatever_is_lost() {
    let mut worst = (Duration::ZERO, 0, false);
    for reads in [false, true] {
        for seed in 0..400 {
            let took = run(&Trial {
                reads,
                seed,
                loss: 0.05,
                depth: 1,
                messages: 4,
                ..LOOPBACK
            })
            .took;
            worst = worst.max((took, seed, reads));
        }
    }
    println!("worst: {worst:?}");
    assert!(worst.0 < Duration::from_millis(100), "{worst:?}");
}
