//! Mutation check: rules of the protocol are taken out one by one, and a named test must notice.
//!
//! Each mutant is a copy of `crates/roce` below the target directory with one piece of text replaced. It must build,
//! and the test that guards the rule must fail on it. A piece of text that is no longer there fails as well: then
//! the rule has moved, and its mutant has to follow.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, io};

/// A rule and its guard.
struct Mutant {
    file: &'static str,
    /// What makes the rule.
    rule: &'static str,
    /// What stands there without it.
    without: &'static str,
    /// The test target, and the test in it.
    guard: (&'static str, &'static str),
}

#[test]
fn without_the_replay_of_duplicates_an_atomic_is_lost() {
    survives_not(&Mutant {
        file: "src/qp/responder.rs",
        rule: "self.repeat(now, link, packet, headers);",
        without: "",
        guard: (
            "qp",
            "reliability::a_duplicate_atomic_is_answered_from_the_saved_result",
        ),
    });
}

#[test]
fn without_the_saved_result_an_atomic_is_executed_twice() {
    survives_not(&Mutant {
        file: "src/qp/responder.rs",
        rule: "if ahead < 0 {",
        without: "if ahead < 0 && !packet.is_atomic() {",
        guard: (
            "qp",
            "reliability::a_duplicate_atomic_is_answered_from_the_saved_result",
        ),
    });
}

#[test]
fn without_the_rnr_branch_a_message_is_lost() {
    survives_not(&Mutant {
        file: "src/qp/responder.rs",
        rule: "Err(Refusal::NotReady) => Outcome::NotReady,",
        without: "Err(Refusal::NotReady) => Outcome::Done(1),",
        guard: (
            "qp",
            "reliability::a_send_waits_for_a_receive_as_long_as_the_receiver_asks",
        ),
    });
}

#[test]
fn without_the_wait_after_an_rnr_nak_the_receiver_is_pestered() {
    survives_not(&Mutant {
        file: "src/qp/requester.rs",
        rule: "self.not_ready_until = Some(now + rnr_delay(timer));",
        without: "let _ = rnr_delay(timer);",
        guard: (
            "qp",
            "reliability::a_send_waits_for_a_receive_as_long_as_the_receiver_asks",
        ),
    });
}

#[test]
fn without_the_ordering_rule_a_later_write_is_seen_early() {
    survives_not(&Mutant {
        file: "src/qp/reorder.rs",
        rule: "self.held_bytes + payload.len() > MOST_HELD",
        without: "false",
        guard: ("qp", "ordering::what_waits_behind_a_gap_is_bounded"),
    });
    survives_not(&Mutant {
        file: "src/qp/responder.rs",
        rule: "None => reorder.hold(headers, payload, count),",
        without: "None => match headers.reth {
                    Some(reth) if host.place(reth.rkey, reth.va, payload).is_ok() => reorder.note_placed(psn),
                    _ => reorder.hold(headers, payload, count),
                },",
        guard: ("qp", "ordering::a_write_behind_a_lost_one_is_not_seen_before_it"),
    });
}

#[test]
fn without_the_rule_for_last_packets_the_end_of_a_write_is_seen_early() {
    survives_not(&Mutant {
        file: "src/qp/responder.rs",
        rule: "let middle = (packet == Packet::WriteMiddle && payload.len() == link.mtu() as usize)
                .then(|| self.inbound.middle_ahead(link.mtu(), ahead))
                .flatten();",
        without: "let middle = (packet.is_write() && !packet.starts_message())
                .then(|| self.inbound.middle_ahead(link.mtu(), ahead - 1))
                .flatten()
                .map(|(rkey, va)| (rkey, va + u64::from(link.mtu())));",
        guard: (
            "qp",
            "ordering::the_last_packet_of_a_write_is_never_placed_ahead_of_a_gap",
        ),
    });
}

#[test]
fn without_the_fence_a_read_sees_what_was_written_after_it() {
    survives_not(&Mutant {
        file: "src/qp/requester.rs",
        rule: "SendFlags::FENCE) && !self.reads.is_empty()",
        without: "SendFlags::FENCE) && false",
        guard: (
            "qp",
            "ordering::fenced_work_starts_after_every_earlier_read_has_finished",
        ),
    });
}

#[test]
fn without_the_check_of_rights_a_wrong_key_writes() {
    survives_not(&Mutant {
        file: "src/qp/inbound.rs",
        rule: "if length != 0
                    && host",
        without: "if false
                    && host",
        guard: (
            "qp",
            "misuse::an_access_beyond_the_region_is_refused_before_its_first_byte",
        ),
    });
}

/// Checks that the guard passes on the original and fails on the mutant.
fn survives_not(mutant: &Mutant) {
    let copy = Copy::make().expect("a copy of the crate");
    let path = copy.0.join("crates/roce").join(mutant.file);
    let original = fs::read_to_string(&path).expect("the file of the rule");
    assert!(
        original.contains(mutant.rule),
        "{} no longer has `{}`",
        mutant.file,
        mutant.rule
    );

    let sound = copy.test(mutant.guard);
    assert!(
        sound.status.success(),
        "the guard fails without a mutation:\n{}",
        text(&sound)
    );
    fs::write(&path, original.replacen(mutant.rule, mutant.without, 1)).expect("the mutant");
    let mutated = copy.test(mutant.guard);
    fs::write(&path, original).expect("the original");
    let text = text(&mutated);
    assert!(
        !mutated.status.success(),
        "nobody noticed that `{}` is gone:\n{text}",
        mutant.rule
    );
    assert!(
        text.contains("test result: FAILED. 0 passed; 1 failed"),
        "the mutant does not build:\n{text}"
    );
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

/// A workspace that holds nothing but a copy of `crates/roce`.
struct Copy(PathBuf);

impl Copy {
    fn make() -> io::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the workspace");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let copy = target.join("mutants");
        let _ = fs::remove_dir_all(copy.join("crates"));
        copy_tree(&root.join("crates/roce"), &copy.join("crates/roce"))?;
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        let mut kept = String::new();
        for line in manifest
            .lines()
            .filter(|line| !line.starts_with("default-members"))
        {
            kept += if line.starts_with("members") {
                "members = [\"crates/roce\"]"
            } else {
                line
            };
            kept.push('\n');
        }
        fs::write(copy.join("Cargo.toml"), kept)?;
        fs::copy(root.join("Cargo.lock"), copy.join("Cargo.lock"))?;
        Ok(Self(copy))
    }

    fn test(&self, (target, name): (&str, &str)) -> Output {
        Command::new(env!("CARGO"))
            .args([
                "test",
                "--package=ringmail-roce",
                "--test",
                target,
                "--",
                "--exact",
                name,
            ])
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", self.0.join("target"))
            .env("RUSTFLAGS", "-Awarnings")
            .output()
            .expect("cargo")
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
