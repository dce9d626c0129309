//! What a suite needs of the machine, and how to get it.
//!
//! As root missing Debian packages are installed; anyone else is told what to type. Nothing else of the machine is changed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use testbed::Image;

/// One thing that a suite needs of the machine.
#[derive(Clone, Copy, Debug)]
#[allow(
    dead_code,
    reason = "the suites of the wire and the kernel will need them"
)]
pub(crate) enum Need {
    /// Debian packages, by name.
    Packages(&'static [&'static str]),
    /// The right to make network namespaces and interfaces.
    Root,
    /// A character device.
    Device(&'static str),
    /// The kernel and the file system of the guest.
    GuestImage,
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

impl Need {
    /// Makes the need met, or says why it cannot be.
    pub(crate) fn meet(&self) -> Result<()> {
        match *self {
            Self::Packages(names) => install(names),
            Self::Root if is_root() => Ok(()),
            Self::Root => bail!("needs root, for network namespaces of its own: run it with sudo"),
            Self::Device(path) if Path::new(path).exists() => Ok(()),
            Self::Device(path) => bail!("needs {path}, which this machine does not have"),
            Self::GuestImage => guest_image(),
        }
    }
}

/// Installs those of `names` that are missing.
fn install(names: &[&'static str]) -> Result<()> {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "needs Debian packages: sudo apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    println!("installing {}", missing.join(" "));
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(&missing);
    // The package lists of a fresh machine are empty, and old ones name packages that are gone: so update first, once.
    if !(apt_get(&["update", "--quiet"])? && apt_get(&arguments)?) {
        bail!("cannot install {}", missing.join(" "));
    }
    Ok(())
}

/// Makes the guest's image where there is none yet.
fn guest_image() -> Result<()> {
    if !Image::is_made() {
        println!("making the guest's image from Debian's packages");
        // It is made of the newest packages, which old lists may not name or name after they are gone.
        if is_root() && !apt_get(&["update", "--quiet"])? {
            bail!("cannot update the package lists");
        }
        Image::get()?;
    }
    Ok(())
}

fn is_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn apt_get(arguments: &[&str]) -> Result<bool> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    Ok(status.success())
}
