//! Debian packages, downloaded and unpacked without installing them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// A kernel has 70 MB; a slow line gets ten minutes for it.
const LIMIT: Duration = Duration::from_secs(600);

/// Unpacks `packages` with everything that they depend on, and the newest `linux-image-amd64`, into `root`.
///
/// The C library and all else come with them, so that nothing of this machine mixes in.
pub(crate) fn unpack(packages: &[&str], root: &Path) -> Result<()> {
    let downloads = tempfile::tempdir().context("no temporary directory")?;
    let download = |names: &[String]| {
        let mut command = Command::new("apt-get");
        command
            .args(["download", "--quiet"])
            .args(names)
            .current_dir(downloads.path());
        process::run(command, LIMIT)?.succeeded()
    };
    let mut names = with_dependencies(packages)?;
    names.push(kernel_package()?);
    download(&names)?;
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(downloads.path())? {
        let mut command = Command::new("dpkg-deb");
        command.arg("--extract").arg(entry?.path()).arg(root);
        process::run(command, LIMIT)?.succeeded()?;
    }
    Ok(())
}

/// The packages that a machine with nothing installed would install for `packages`.
fn with_dependencies(packages: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("apt-get");
    command.args([
        "--quiet=2",
        "--print-uris",
        "--option=Dir::State::status=/dev/null",
    ]);
    command
        .args([
            "--option=Debug::NoLocking=1",
            "--no-install-recommends",
            "install",
        ])
        .args(packages);
    let text = process::run(command, LIMIT)?.succeeded()?;
    // 'https://server/pool/name_version_arch.deb' name_version_arch.deb size checksum
    let files = text
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split(' ').nth(1));
    let names: Vec<String> = files
        .filter_map(|file| Some(file.split_once('_')?.0.to_owned()))
        .collect();
    if names.is_empty() {
        bail!(
            "apt-get knows none of {}: are the package lists empty? (apt-get update)",
            packages.join(" ")
        );
    }
    Ok(names)
}

/// The package of the kernel itself, that `linux-image-amd64` stands for.
fn kernel_package() -> Result<String> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", "linux-image-amd64"]);
    let text = process::run(command, LIMIT)?.succeeded()?;
    let depends = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends
        .context(
            "linux-image-amd64 depends on no kernel: are the package lists empty? (apt-get update)",
        )?
        .into())
}
