//! `ringmail cp` of files of this machine, over every provider that is here.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use support::{Running, Scene, assert_fails, providers, random, ringmail, stderr};

#[test]
fn a_file_arrives_with_its_bytes_mode_and_time_by_remote_reads() {
    for provider in providers() {
        let scene = Scene::new();
        let bytes = random(3_000_001);
        scene.write("source", &bytes);
        fs::set_permissions(scene.path("source"), fs::Permissions::from_mode(0o640)).unwrap();
        let time = UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_000);
        fs::File::open(scene.path("source"))
            .unwrap()
            .set_modified(time)
            .unwrap();

        let report = scene.cp_json(provider, &["source", "copy"]);

        assert_eq!(scene.read("copy"), bytes, "over {provider}");
        let metadata = fs::metadata(scene.path("copy")).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        assert_eq!(metadata.modified().unwrap(), time);
        assert_eq!(report["provider"], provider);
        assert_eq!(report["bytes"], 3_000_001);
        assert_eq!(report["rdma_reads"], 3_000_001_u64.div_ceil(256 << 10));
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        assert!(
            report["gbit_per_s"].as_f64().unwrap() > 0.0
                && report["seconds"].as_f64().unwrap() > 0.0
        );
        assert_eq!(
            scene.names(),
            ["copy", "source"],
            "something was left over {provider}"
        );
    }
}

#[test]
fn files_of_every_odd_length_arrive() {
    for provider in providers() {
        let scene = Scene::new();
        for len in [0, 1, 4095, 4096, 4097, 12_288, 100_001] {
            let bytes = random(len);
            scene.write("source", &bytes);
            let report = scene.cp_json(provider, &["--block-size", "4096", "source", "copy"]);
            assert_eq!(scene.read("copy"), bytes, "{len} bytes over {provider}");
            assert_eq!(report["rdma_reads"], len.div_ceil(4096));
            assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        }
    }
}

#[test]
fn a_directory_arrives_with_everything_in_it() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir_all(scene.path("tree/inner/empty")).unwrap();
        let (large, small) = (random(600_000), random(10));
        scene.write("tree/large", &large);
        scene.write("tree/inner/small", &small);
        scene.write("tree/inner/nothing", b"");
        symlink("inner/small", scene.path("tree/link")).unwrap();
        symlink("/nowhere", scene.path("tree/dangling")).unwrap();
        fs::set_permissions(scene.path("tree/inner"), fs::Permissions::from_mode(0o555)).unwrap();

        let report = scene.cp_json(provider, &["-r", "tree", "copy"]);

        assert_eq!(scene.read("copy/large"), large);
        assert_eq!(scene.read("copy/inner/small"), small);
        assert_eq!(scene.read("copy/inner/nothing"), b"");
        assert!(scene.path("copy/inner/empty").is_dir());
        assert_eq!(
            fs::read_link(scene.path("copy/link")).unwrap(),
            Path::new("inner/small")
        );
        assert_eq!(
            fs::read_link(scene.path("copy/dangling")).unwrap(),
            Path::new("/nowhere")
        );
        let mode = |name: &str| fs::metadata(scene.path(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode("copy/inner"), 0o555);
        let time = |name: &str| fs::metadata(scene.path(name)).unwrap().modified().unwrap();
        assert_eq!(time("copy"), time("tree"));
        assert_eq!(time("copy/inner"), time("tree/inner"));
        assert_eq!(
            (&report["files"], &report["failed"]),
            (&3.into(), &0.into())
        );
        assert_eq!(report["bytes"], 600_010);
        // In the order of names: inner/nothing, inner/small, large.
        let all = [&small[..], &large].concat();
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&all)));
        let mut names: Vec<_> = fs::read_dir(scene.path("copy"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["dangling", "inner", "large", "link"]);
        for directory in ["tree/inner", "copy/inner"] {
            fs::set_permissions(scene.path(directory), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_copied_of_a_directory_is_said_and_the_rest_is_copied() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir(scene.path("tree")).unwrap();
        scene.write("tree/file", b"file");
        scene.pipe("tree/pipe");
        fs::create_dir_all(scene.path("copy/tree")).unwrap();

        let output = scene.cp(provider, &["-r", "tree", "copy"]);

        assert_eq!(output.status.code(), Some(1));
        let complaint = stderr(&output);
        assert!(
            complaint.contains("pipe is neither a regular file nor a directory"),
            "{complaint}"
        );
        assert_eq!(scene.read("copy/tree/file"), b"file");
        assert!(!scene.path("copy/tree/pipe").exists());
    }
}

#[test]
fn a_directory_is_not_copied_into_itself_for_ever() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir(scene.path("tree")).unwrap();
        scene.write("tree/file", b"file");
        let output = scene.cp(provider, &["-r", "tree", "tree/copy"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("is the destination"),
            "{}",
            stderr(&output)
        );
        assert_eq!(scene.read("tree/copy/file"), b"file");
        assert!(!scene.path("tree/copy/copy").exists());
    }
}

#[test]
fn what_is_not_there_or_not_allowed_is_said_in_one_line() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", b"bytes");
        scene.pipe("pipe");
        fs::create_dir(scene.path("directory")).unwrap();
        for (arguments, complaint) in [
            (["missing", "copy"], "missing: no such file or directory"),
            (["directory", "copy"], "is a directory: copy it with -r"),
            (["pipe", "copy"], "neither a directory nor a regular file"),
            (
                ["source", "missing/copy"],
                "cannot write missing/copy: there is no directory missing",
            ),
            (["source", "missing/"], "missing/ is not a directory"),
            (
                ["source", "pipe"],
                "pipe is neither a regular file nor a directory",
            ),
            (["source", "source"], "are the same file"),
            (["source", "."], "are the same file"),
        ] {
            assert_fails(&scene.cp(provider, &arguments), 1, complaint);
        }
        assert_eq!(scene.names(), ["directory", "pipe", "source"]);
        assert_eq!(scene.read("source"), b"bytes");
    }
}

#[test]
fn a_command_that_makes_no_sense_ends_with_code_2() {
    let scene = Scene::new();
    scene.write("source", b"bytes");
    assert_fails(
        &scene.cp("loopback", &["source", "ringmail://host/copy"]),
        2,
        "run `ringmail serve` here",
    );
    assert_fails(
        &scene.cp("loopback", &["ringmail://host", "copy"]),
        2,
        "names no file",
    );
    assert_eq!(scene.cp("loopback", &["source"]).status.code(), Some(2));
    assert_fails(
        &scene.cp("carrier-pigeon", &["source", "copy"]),
        1,
        "no provider is called carrier-pigeon",
    );
}

#[test]
fn faults_and_captures_are_refused_by_a_provider_without_packets() {
    let scene = Scene::new();
    scene.write("source", b"bytes");
    for variable in [
        ("RINGMAIL_FAULTS", "loss=1%"),
        ("RINGMAIL_CAPTURE", "capture.pcapng"),
    ] {
        let output = scene
            .command("loopback", &["source", "copy"])
            .env(variable.0, variable.1)
            .output()
            .unwrap();
        assert_fails(&output, 1, "loopback");
    }
    assert_eq!(scene.names(), ["source"]);
}

#[test]
fn a_variable_that_is_mistyped_is_said_once_with_what_was_meant() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", b"bytes");
        let output = scene
            .command(provider, &["source", "copy"])
            .env("RINGMAIL_FAULT", "loss=1%")
            .output()
            .unwrap();
        assert!(output.status.success());
        let complaint = stderr(&output);
        assert!(
            complaint.contains("RINGMAIL_FAULT sets nothing: is RINGMAIL_FAULTS meant?"),
            "{complaint}"
        );
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
}

#[test]
fn an_existing_file_is_replaced_and_a_directory_is_filled() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", b"new");
        scene.write("copy", b"old and longer");
        scene.write("file", b"old");
        symlink("file", scene.path("link")).unwrap();
        fs::create_dir(scene.path("directory")).unwrap();
        for destination in ["copy", "directory", "link"] {
            scene.cp_json(provider, &["source", destination]);
        }
        assert_eq!(scene.read("copy"), b"new");
        assert_eq!(scene.read("directory/source"), b"new");
        assert_eq!(scene.read("file"), b"new", "a link is written through");
        assert!(scene.path("link").is_symlink());
    }
}

#[test]
fn a_copy_that_was_killed_is_taken_up_and_never_had_its_final_name() {
    for provider in providers() {
        let scene = Scene::new();
        let bytes = random(16 << 20);
        scene.write("source", &bytes);
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        assert!(!scene.path("copy").exists());
        copy.kill();
        assert_eq!(
            scene.names(),
            [".copy.ringmail-journal", ".copy.ringmail-part", "source"],
            "over {provider}"
        );

        let report = scene.cp_json(provider, SMALL_BLOCKS);

        assert_eq!(scene.read("copy"), bytes);
        let resumed = report["bytes_resumed"].as_u64().unwrap();
        assert!(resumed > 0, "nothing was taken up over {provider}");
        assert_eq!(report["bytes"], bytes.len());
        assert_eq!(
            report["rdma_reads"].as_u64().unwrap(),
            (bytes.len() as u64 - resumed) / 4096
        );
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        assert_eq!(scene.names(), ["copy", "source"]);
    }
}

#[test]
fn blocks_of_a_part_that_were_damaged_are_read_again() {
    for provider in providers() {
        let scene = Scene::new();
        let bytes = random(16 << 20);
        scene.write("source", &bytes);
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        copy.kill();
        let part = scene.path(".copy.ringmail-part");
        let mut partial = fs::read(&part).unwrap();
        partial.iter_mut().step_by(8192).for_each(|byte| *byte ^= 1);
        fs::write(&part, partial).unwrap();
        scene.cp_json(provider, SMALL_BLOCKS);
        assert_eq!(scene.read("copy"), bytes, "over {provider}");
    }
}

#[test]
fn a_part_of_a_source_that_has_changed_since_is_not_taken_up() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", &random(16 << 20));
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        copy.kill();
        let bytes = random(16 << 20);
        scene.write("source", &bytes);
        let report = scene.cp_json(provider, SMALL_BLOCKS);
        assert_eq!(report["bytes_resumed"], 0);
        assert_eq!(scene.read("copy"), bytes);
    }
}

#[test]
fn an_interrupted_directory_is_taken_up_with_the_files_it_has() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir(scene.path("tree")).unwrap();
        let (first, second) = (random(100_000), random(16 << 20));
        scene.write("tree/1", &first);
        scene.write("tree/2", &second);
        let arguments = &["-r", "--block-size", "4096", "tree", "copy"];
        let mut copy = Running::held_up(scene.command(provider, arguments));
        // Of the 25 blocks of the first file and the 4096 of the second.
        copy.wait_for("block=30");
        copy.kill();
        let report = scene.cp_json(provider, arguments);
        assert_eq!(scene.read("copy/1"), first);
        assert_eq!(scene.read("copy/2"), second);
        assert!(
            report["bytes_resumed"].as_u64().unwrap() > 100_000,
            "{report}"
        );
        let all = [first, second].concat();
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&all)));
    }
}

#[test]
fn a_source_truncated_while_it_is_copied_is_an_error_and_no_copy() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", &random(16 << 20));
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        fs::File::options()
            .write(true)
            .open(scene.path("source"))
            .unwrap()
            .set_len(5)
            .unwrap();
        let output = copy.finish();
        assert_eq!(
            output.status.code(),
            Some(1),
            "over {provider}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("truncated"),
            "over {provider}: {}",
            stderr(&output)
        );
        assert!(!scene.path("copy").exists());
    }
}

#[test]
fn a_file_truncated_while_its_directory_is_copied_fails_alone() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir(scene.path("tree")).unwrap();
        scene.write("tree/1", b"first");
        scene.write("tree/2", &random(16 << 20));
        scene.write("tree/3", b"last");
        let arguments = &["-r", "--json", "--block-size", "4096", "tree", "copy"];
        let mut copy = Running::held_up(scene.command(provider, arguments));
        copy.wait_for("block=30");
        let source = fs::File::options().write(true).open(scene.path("tree/2"));
        source.unwrap().set_len(5).unwrap();
        let output = copy.finish();
        let complaint = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "over {provider}");
        assert!(complaint.contains("2: "), "over {provider}: {complaint}");
        assert!(complaint.contains("truncated"), "{provider}: {complaint}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        assert_eq!(
            (&report["files"], &report["failed"]),
            (&2.into(), &1.into()),
            "over {provider}"
        );
        assert_eq!(scene.read("copy/1"), b"first");
        assert_eq!(scene.read("copy/3"), b"last", "over {provider}");
        assert!(!scene.path("copy/2").exists());
    }
}

#[test]
fn names_that_the_copier_uses_itself_arrive_as_any_other() {
    for provider in providers() {
        let scene = Scene::new();
        fs::create_dir(scene.path("tree")).unwrap();
        let large = random(200_000);
        let files = [
            ("file", &large[..]),
            (".file.ringmail-part", b"no part"),
            (".file.ringmail-part~1", b"no part either"),
            (".file.ringmail-journal", b"no journal"),
            (".ringmail-unfinished", b"no mark"),
            (".ringmail-link-part", b"no link"),
        ];
        for (name, content) in files {
            scene.write(&format!("tree/{name}"), content);
        }
        symlink("file", scene.path("tree/link")).unwrap();
        let arguments = &["-r", "--block-size", "4096", "tree", "copy"];
        scene.cp_json(provider, arguments);
        for (name, content) in files {
            let copied = scene.read(&format!("copy/{name}"));
            assert!(copied == content, "{name} differs over {provider}");
        }
        let names = fs::read_dir(scene.path("copy")).unwrap().count();
        assert_eq!(names, files.len() + 1, "something was left over {provider}");

        // A file that only looks like a part of ours is not written over.
        scene.write(".other.ringmail-part", b"somebody's");
        let output = scene.cp(provider, &["tree/file", "other"]);
        assert_fails(&output, 1, ".other.ringmail-part is in the way");
        assert_eq!(scene.read(".other.ringmail-part"), b"somebody's");
    }
}

/// A sparse file of 40 MiB and a few bytes: 100,000 bytes of data at 1 MiB and as many at 20 MiB.
fn sparse(scene: &Scene) -> Vec<u8> {
    let mut bytes = vec![0; (40 << 20) + 11];
    let file = fs::File::create(scene.path("source")).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for start in [1 << 20, 20 << 20] {
        let data = random(100_000);
        file.write_all_at(&data, start as u64).unwrap();
        bytes[start..start + data.len()].copy_from_slice(&data);
    }
    bytes
}

#[test]
fn holes_are_neither_read_nor_filled() {
    for provider in providers() {
        let scene = Scene::new();
        let bytes = sparse(&scene);
        let report = scene.cp_json(provider, &["--block-size", "65536", "source", "copy"]);
        assert!(scene.read("copy") == bytes, "over {provider}");
        assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        assert_eq!(report["rdma_reads"], 4, "two blocks at each place");
        let blocks = fs::metadata(scene.path("copy")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks are allocated");
    }
}

#[test]
fn what_an_interrupted_copy_left_in_a_hole_is_gone_when_it_is_taken_up() {
    for provider in providers() {
        let scene = Scene::new();
        let bytes = sparse(&scene);
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        copy.kill();
        let part = fs::File::options()
            .write(true)
            .open(scene.path(".copy.ringmail-part"));
        part.unwrap().write_all_at(&[9; 50_000], 30 << 20).unwrap();
        scene.cp_json(provider, SMALL_BLOCKS);
        assert!(scene.read("copy") == bytes, "over {provider}");
    }
}

#[test]
fn a_source_written_to_while_it_is_copied_is_said() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", &random(16 << 20));
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        fs::File::options()
            .write(true)
            .open(scene.path("source"))
            .unwrap()
            .set_modified(UNIX_EPOCH)
            .unwrap();
        let output = copy.finish();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("changed while it was copied"),
            "{}",
            stderr(&output)
        );
        assert_eq!(scene.names(), ["source"]);
    }
}

#[test]
fn two_copies_to_one_place_do_not_mix() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", &random(16 << 20));
        let mut copy = Running::held_up(scene.command(provider, SMALL_BLOCKS));
        copy.wait_for("verified");
        assert_fails(
            &scene.cp(provider, SMALL_BLOCKS),
            1,
            "copy is being written by another copy",
        );
        assert!(copy.finish().status.success());
        assert_eq!(scene.read("copy"), scene.read("source"));
    }
}

#[test]
fn a_full_disk_and_a_read_only_target_are_errors_that_leave_nothing() {
    for provider in providers() {
        let scene = Scene::new();
        scene.write("source", &random(3 << 20));
        fs::create_dir(scene.path("mounted")).unwrap();
        let program = env!("CARGO_BIN_EXE_ringmail");
        for (options, complaint) in [
            ("size=1m", "no room for 3.00 MiB"),
            ("ro", "Read-only file system"),
        ] {
            let script = format!(
                "mount -t tmpfs -o {options} tmpfs mounted || exit 77
                {program} --provider {provider} cp source mounted/copy
                code=$?; ls -A mounted; exit $code"
            );
            let Some(output) = scene.in_mount_namespace(&script) else {
                return;
            };
            assert_fails(&output, 1, complaint);
            assert_eq!(support::stdout(&output), "", "something was left");
        }
    }
}

#[test]
fn a_read_only_file_is_not_replaced_by_who_may_not_write_it() {
    let scene = Scene::new();
    scene.write("source", b"new");
    scene.write("copy", b"old");
    fs::set_permissions(scene.path("copy"), fs::Permissions::from_mode(0o444)).unwrap();
    if support::is_root() {
        // Root may write everything, so this is another user, who must reach the place.
        fs::set_permissions(scene.path("."), fs::Permissions::from_mode(0o777)).unwrap();
        let program = scene.program_for_everyone();
        let output = support::as_nobody(&program)
            .args(["--provider", "loopback", "cp", "source", "copy"])
            .current_dir(scene.path("."))
            .output()
            .unwrap();
        assert_fails(&output, 1, "copy is read-only");
    } else {
        assert_fails(
            &scene.cp("loopback", &["source", "copy"]),
            1,
            "copy is read-only",
        );
    }
    assert_eq!(scene.read("copy"), b"old");
}

#[test]
fn a_report_that_cannot_be_written_does_not_undo_the_copy() {
    let scene = Scene::new();
    scene.write("source", b"bytes");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = ringmail()
        .args(["--provider", "loopback", "cp", "source", "copy"])
        .current_dir(scene.path("."))
        .stdout(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(scene.read("copy"), b"bytes");
}

/// Many blocks, so that a copy whose log nobody reads is held up among them.
const SMALL_BLOCKS: &[&str] = &["--block-size", "4096", "source", "copy"];

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_made_while_it_is_read_is_refused_and_not_copied_as_nothing() {
    for provider in providers() {
        let scene = Scene::new();
        let output = scene.cp(provider, &["/proc/self/status", "copy"]);
        assert_fails(&output, 1, "says no size");
        assert!(scene.names().is_empty());
    }
}
