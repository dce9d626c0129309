//! The guest's kernel and initial file system: Debian's kernel and RDMA programs with a busybox around them.
//!
//! Made once, under the build directory, and again when the recipe below changes. Deleting it makes it anew with the
//! packages of the day.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::modules::Modules;
use crate::packages;
use crate::process;

/// Packages unpacked for the guest, besides what they depend on.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "coreutils",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "perftest",
    "rdmacm-utils",
];

/// Kernel modules loaded in the guest, besides what they need. Some are asked for by name at run time only.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "crc32_generic",
    "crc32c_generic",
    "ib_core",
    "ib_uverbs",
    "rdma_rxe",
    "rdma_cm",
    "rdma_ucm",
    "veth",
    "dummy",
    "sch_netem",
];

/// Programs in the guest's PATH: all of these directories, of those packages, that are not busybox.
const PROGRAMS: &[&str] = &[
    "ibv_", "ib_", "rping", "ucmatose", "udaddy", "udpong", "cmtime", "rdma", "ip", "tc", "ss",
];

/// The first process of the guest.
const INIT: &str = include_str!("../guest/init");

/// Files that the guest boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system, an uncompressed cpio archive.
    pub initramfs: PathBuf,
}

impl Image {
    /// The image, made if it is not there yet: downloads 80 MB of Debian packages then.
    ///
    /// # Errors
    /// No `apt-get`, packages that cannot be downloaded, or no room.
    pub fn get() -> Result<Self> {
        let image = Self::place();
        let directory = image.kernel.parent().expect("a file in a directory");
        let parent = directory.parent().expect("below the build directory");
        fs::create_dir_all(parent)?;
        // Tests run side by side: one makes the image, the others wait for it.
        let lock = fs::File::create(parent.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        if !Self::is_made() {
            let unfinished = tempfile::tempdir_in(parent)?;
            make(unfinished.path()).context("cannot make the guest's image")?;
            fs::rename(unfinished.keep(), directory)?;
        }
        Ok(image)
    }

    /// Whether [`Image::get`] finds it made.
    pub fn is_made() -> bool {
        Self::place().kernel.exists()
    }

    /// Where the image of this recipe belongs.
    fn place() -> Self {
        let mut recipe = DefaultHasher::new();
        (PACKAGES, MODULES, PROGRAMS, INIT, include_str!("image.rs")).hash(&mut recipe);
        let directory = build_directory().join(format!("testbed/image-{:016x}", recipe.finish()));
        Self {
            kernel: directory.join("kernel"),
            initramfs: directory.join("initramfs"),
        }
    }
}

/// Where cargo builds.
fn build_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    )
}

fn make(directory: &Path) -> Result<()> {
    let unpacked = tempfile::tempdir_in(directory)?;
    let root = unpacked.path();
    packages::unpack(PACKAGES, root)?;
    fs::copy(
        only_match(&root.join("boot"), "vmlinuz-")?,
        directory.join("kernel"),
    )?;

    let mut archive = Archive::default();
    for mount_point in ["dev", "proc", "sys", "tmp", "run", "root"] {
        archive.directory(mount_point);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    add_busybox(&mut archive, root)?;
    add_programs(&mut archive, root)?;
    add_modules(&mut archive, root)?;
    fs::write(directory.join("initramfs"), archive.finish())?;
    Ok(())
}

fn add_busybox(archive: &mut Archive, root: &Path) -> Result<()> {
    let busybox = root.join("bin/busybox");
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    let mut command = Command::new(&busybox);
    command.arg("--list");
    for applet in process::run(command, Duration::from_secs(10))?
        .succeeded()?
        .lines()
    {
        // The full programs serve better: busybox's know nothing of RDMA and network emulation.
        if !matches!(applet, "busybox" | "ip" | "tc") {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
    }
    Ok(())
}

/// Adds the programs, the verbs provider that they load, and every shared library that these name.
fn add_programs(archive: &mut Archive, root: &Path) -> Result<()> {
    const PROVIDER: &str = "usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so";
    let mut libraries = BTreeSet::new();
    for directory in ["bin", "sbin", "usr/bin", "usr/sbin"] {
        for entry in fs::read_dir(root.join(directory))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = PROGRAMS.iter().any(|program| {
                name == *program || program.ends_with('_') && name.starts_with(program)
            });
            if wanted && entry.file_type()?.is_file() && is_elf(&entry.path())? {
                archive.file(&format!("bin/{name}"), 0o755, &read(&entry.path())?);
                libraries.extend(libraries_of(&entry.path(), root)?);
            }
        }
    }
    let provider = only_match(&root.join("usr/lib/x86_64-linux-gnu/libibverbs"), "librxe-")?;
    libraries.extend(libraries_of(&provider, root)?);
    archive.file(PROVIDER, 0o755, &read(&provider)?);
    archive.file(
        "lib/libstdbuf.so",
        0o755,
        &read(&root.join("usr/libexec/coreutils/libstdbuf.so"))?,
    );
    archive.file("etc/libibverbs.d/rxe.driver", 0o644, b"driver rxe\n");
    // Loaded by name when a thread ends itself.
    libraries.insert(root.join("lib/x86_64-linux-gnu/libgcc_s.so.1"));
    for library in libraries {
        let name = library
            .file_name()
            .context("a library has a name")?
            .to_string_lossy()
            .into_owned();
        archive.file(
            &format!("lib/x86_64-linux-gnu/{name}"),
            0o755,
            &read(&library)?,
        );
    }
    archive.link("lib64", "lib/x86_64-linux-gnu");
    Ok(())
}

/// Adds the modules with a list of their names in the order of loading.
fn add_modules(archive: &mut Archive, root: &Path) -> Result<()> {
    let modules = Modules::below(&root.join("lib/modules"))?.with_needs(MODULES)?;
    let order: String = modules
        .iter()
        .map(|(name, _)| format!("{name}\n"))
        .collect();
    archive.file("lib/modules/order", 0o644, order.as_bytes());
    for (name, content) in modules {
        archive.file(&format!("lib/modules/{name}.ko"), 0o644, &content);
    }
    Ok(())
}

/// The shared libraries that `program` needs, found below `root`, with the loader itself.
fn libraries_of(program: &Path, root: &Path) -> Result<Vec<PathBuf>> {
    let loader = root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let path = ["lib", "usr/lib"].map(|lib| {
        root.join(lib)
            .join("x86_64-linux-gnu")
            .display()
            .to_string()
    });
    let mut command = Command::new(&loader);
    command
        .args(["--library-path", &path.join(":"), "--list"])
        .arg(program);
    let text = process::run(command, Duration::from_secs(30))?.succeeded()?;
    let mut libraries = vec![loader];
    // "libc.so.6 => /root/lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)"; the loader and the vDSO have no arrow.
    for line in text.lines() {
        if let Some((name, found)) = line.split_once(" => ") {
            let found = Path::new(found.split(" (").next().unwrap_or(found));
            if !found.starts_with(root) {
                bail!(
                    "{} needs {}, which its packages do not hold",
                    program.display(),
                    name.trim()
                );
            }
            libraries.push(found.to_owned());
        }
    }
    Ok(libraries)
}

fn is_elf(path: &Path) -> Result<bool> {
    Ok(
        fs::metadata(path)?.permissions().mode() & 0o111 != 0
            && read(path)?.starts_with(b"\x7fELF"),
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn only_match(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        (None, _) => bail!("no {prefix}* in {}", directory.display()),
        (Some(_), Some(_)) => bail!("several {prefix}* in {}", directory.display()),
    }
}
