//! A Linux kernel with soft-RoCE to test against: Debian's, in QEMU, on a network shared with the test.
//!
//! Software emulation only, so that it runs wherever QEMU does: it boots in seconds. The guest's `eth0` and the interface
//! [`HOST_INTERFACE`] of the machine's own namespace are the two ends of one wire. Commands travel over a virtual serial
//! card, not over that wire.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cpio::Archive;
use crate::image::Image;
use crate::namespace::Namespace;
use crate::process::{self, Output, Process, complete_lines};
use crate::transcript::Transcript;

/// The host's end of the wire, in the machine's namespace.
pub const HOST_INTERFACE: &str = "tap0";
/// The host's IPv4 address on the wire.
pub const HOST_IPV4: &str = "10.9.0.1";
/// The guest's IPv4 address on the wire.
pub const GUEST_IPV4: &str = "10.9.0.2";
/// The host's IPv6 address on the wire.
pub const HOST_IPV6: &str = "fd00:9::1";
/// The guest's IPv6 address on the wire.
pub const GUEST_IPV6: &str = "fd00:9::2";

/// The guest's RDMA device, once [`Vm::add_rxe`] has made it.
pub const RXE: &str = "rxe0";

/// How many commands can run in the guest at once.
const SHELLS: u32 = 6;

/// Booting takes 4 to 8 seconds on an idle processor.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Setting up a device takes well under a second on an idle processor.
const SETUP_LIMIT: Duration = Duration::from_secs(60);

/// What a machine is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// The largest IP packet on the wire, 1280 to 65535 bytes.
    pub mtu: u16,
    /// More files for the guest: where each is here, and where it shall be there (without a leading slash). Executable.
    pub files: Vec<(PathBuf, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            mtu: 1500,
            files: Vec::new(),
        }
    }
}

/// Compiles the guest's program that runs every operation of a queue pair (`guest/exchange.c`) into `directory`, and says
/// where it is.
///
/// # Errors
/// No compiler or no header (packages gcc, libc6-dev, libibverbs-dev).
pub fn exchange_program(directory: &Path) -> Result<PathBuf> {
    let program = directory.join("exchange");
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&program);
    compiler
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/exchange.c"))
        .arg("-libverbs");
    process::run(compiler, SETUP_LIMIT)?
        .succeeded()
        .context("packages gcc, libc6-dev and libibverbs-dev")?;
    Ok(program)
}

/// A booted machine. Dropping it ends it and everything in its namespace.
#[derive(Debug)]
pub struct Vm {
    qemu: Process,
    namespace: Namespace,
    idle: Mutex<Vec<Shell>>,
    commands: AtomicU32,
}

impl Vm {
    /// Boots a machine in a namespace of its own.
    ///
    /// # Errors
    /// Something that it needs is missing, or the guest is not ready within two minutes: the error then shows its console.
    pub fn boot(options: &Options) -> Result<Self> {
        let image = Image::get()?;
        let namespace = Namespace::new()?;
        let directory = namespace.directory();
        namespace.ip(&format!("tuntap add {HOST_INTERFACE} mode tap"))?;
        namespace.ip(&format!("addr add {HOST_IPV4}/24 dev {HOST_INTERFACE}"))?;
        namespace.ip(&format!(
            "addr add {HOST_IPV6}/64 dev {HOST_INTERFACE} nodad"
        ))?;
        namespace.ip(&format!("link set {HOST_INTERFACE} mtu {} up", options.mtu))?;

        let listeners = (0..SHELLS)
            .map(|shell| UnixListener::bind(directory.join(format!("shell{shell}"))))
            .collect::<Result<Vec<_>, _>>()?;
        let initramfs = initramfs(&image, options, directory)?;
        let settings = format!(
            "guest.mtu={} guest.ipv4={GUEST_IPV4}/24 guest.ipv6={GUEST_IPV6}/64",
            options.mtu
        );
        let mut qemu = namespace.command("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-m", &options.memory_mib.to_string(), "-kernel"])
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-append",
            &format!("console=ttyS0 quiet panic=-1 {settings}"),
        ])
        .args([
            "-serial",
            &format!("file:{}", directory.join("console").display()),
        ])
        .args([
            "-netdev",
            &format!("tap,id=wire,ifname={HOST_INTERFACE},script=no,downscript=no"),
        ])
        .args(["-device", "virtio-net-pci,netdev=wire,romfile="])
        .args(["-device", "virtio-serial-pci"]);
        for shell in 0..SHELLS {
            let path = directory.join(format!("shell{shell}"));
            qemu.args([
                "-chardev",
                &format!("socket,id=shell{shell},path={}", path.display()),
            ]);
            qemu.args(["-device", &format!("virtserialport,chardev=shell{shell}")]);
        }
        qemu.stdin(Stdio::null());
        let vm = Self {
            qemu: Process::spawn(qemu).context("package qemu-system-x86")?,
            namespace,
            idle: Mutex::default(),
            commands: AtomicU32::new(0),
        };
        vm.connect(&listeners)
            .with_context(|| format!("the guest does not start:\n{}", vm.console()))?;
        Ok(vm)
    }

    /// Waits until every shell of the guest is ready.
    fn connect(&self, listeners: &[UnixListener]) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        for listener in listeners {
            let input = accept(listener, deadline).with_context(|| self.qemu.text())?;
            let shell = Shell {
                transcript: Transcript::of(input.try_clone()?),
                input,
            };
            if shell
                .transcript
                .wait_for(deadline, |text| text.contains("ready\n").then_some(()))
                .is_none()
            {
                bail!("no shell answers\n{}", self.qemu.text());
            }
            self.give_back(shell);
        }
        Ok(())
    }

    /// Sets up soft-RoCE, the device [`RXE`], on the guest's end of the wire.
    ///
    /// # Errors
    /// The guest's kernel refuses.
    pub fn add_rxe(&self) -> Result<()> {
        self.run(
            &format!("rdma link add {RXE} type rxe netdev eth0"),
            SETUP_LIMIT,
        )?
        .succeeded()?;
        Ok(())
    }

    /// The network that the machine shares with its test, with the host's end of the wire in it.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Everything that the guest's kernel has said so far.
    pub fn console(&self) -> String {
        fs::read(self.namespace.directory().join("console"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Runs a shell script in the guest to its end.
    ///
    /// # Errors
    /// It does not end within `limit` (it is killed then), or the guest is gone. A status other than 0 is no error.
    pub fn run(&self, script: &str, limit: Duration) -> Result<Output> {
        self.spawn(script, limit)?.finish()
    }

    /// Starts a shell script in the guest. It is killed `limit` from now.
    ///
    /// # Errors
    /// Too many run already, or the guest is gone.
    pub fn spawn(&self, script: &str, limit: Duration) -> Result<Running<'_>> {
        let shell = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut shell = shell.context("every shell of the guest is busy")?;
        let mark = format!(
            "--end-of-{}--",
            self.commands.fetch_add(1, Ordering::Relaxed)
        );
        let request = format!("{mark} {}\n{script}\n{mark}\n", limit.as_secs().max(1));
        shell
            .input
            .write_all(request.as_bytes())
            .context("the guest is gone")?;
        Ok(Running {
            vm: self,
            command: script.to_owned(),
            mark,
            deadline: Instant::now() + limit,
            shell,
        })
    }

    fn give_back(&self, shell: Shell) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(shell);
    }
}

/// One of the guest's shells, that runs one script after the other.
#[derive(Debug)]
struct Shell {
    input: UnixStream,
    /// Everything that it has ever printed.
    transcript: Transcript,
}

/// A script that runs in the guest. If it is dropped before its end, the script ends at its limit.
#[derive(Debug)]
pub struct Running<'vm> {
    vm: &'vm Vm,
    command: String,
    mark: String,
    deadline: Instant,
    shell: Shell,
}

impl Running<'_> {
    /// Everything that the script has printed so far.
    pub fn text(&self) -> String {
        printed(&self.shell.transcript.text(), &self.mark).to_owned()
    }

    /// Waits until the script has printed a line that contains `text`, and returns that line.
    ///
    /// # Errors
    /// The script has ended, or its limit has passed, without it.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        let found = self.shell.transcript.wait_for(self.deadline, |so_far| {
            let so_far = printed(so_far, &self.mark);
            if let Some(line) = complete_lines(so_far).find(|line| line.contains(text)) {
                return Some(Some(line.to_owned()));
            }
            status(so_far, &self.mark).map(|_| None)
        });
        match found.flatten() {
            Some(line) => Ok(line),
            None => bail!(
                "`{}` in the guest did not print {text:?} but:\n{}",
                self.command,
                self.text()
            ),
        }
    }

    /// Waits for the script's end.
    ///
    /// # Errors
    /// It does not end within its limit, or the guest is gone.
    pub fn finish(self) -> Result<Output> {
        self.follow(|_| {})
    }

    /// Waits for the script's end and passes on what it prints as it comes.
    ///
    /// # Errors
    /// It does not end within its limit, or the guest is gone.
    pub fn follow(self, mut print: impl FnMut(&str)) -> Result<Output> {
        // The guest kills the script at the limit, but may be slow to say so.
        let deadline = self.deadline + Duration::from_secs(10);
        let mut passed_on = 0;
        let end = self.shell.transcript.wait_for(deadline, |so_far| {
            let so_far = printed(so_far, &self.mark);
            let end = status(so_far, &self.mark);
            // Up to the last complete line: the rest may be the beginning of the mark.
            let text = match end {
                Some((text, _)) => text,
                None => &so_far[..so_far.rfind('\n').unwrap_or(0)],
            };
            if let Some(more) = text.get(passed_on..).filter(|more| !more.is_empty()) {
                print(more);
                passed_on = text.len();
            }
            end.map(|(text, status)| (text.to_owned(), status))
        });
        let Some((text, status)) = end else {
            bail!(
                "`{}` in the guest does not end; it printed:\n{}\n{}",
                self.command,
                self.text(),
                self.vm.console()
            );
        };
        self.vm.give_back(self.shell);
        Ok(Output {
            command: format!("{} (in the guest)", self.command),
            status,
            text,
        })
    }
}

/// What the script marked by `mark` has printed so far, with its end if it has ended.
fn printed<'a>(transcript: &'a str, mark: &str) -> &'a str {
    transcript
        .split_once(&format!("{mark}\n"))
        .map_or("", |(_, printed)| printed)
}

/// Splits the text of a script that has ended from its status.
fn status<'a>(printed: &'a str, mark: &str) -> Option<(&'a str, i32)> {
    let (text, end) = printed.split_once(&format!("\n{mark} "))?;
    let (status, _) = end.split_once('\n')?;
    Some((text, status.parse().ok()?))
}

/// The archive that the guest starts from: the image's, followed by one of the additional files.
fn initramfs(image: &Image, options: &Options, directory: &Path) -> Result<PathBuf> {
    if options.files.is_empty() {
        return Ok(image.initramfs.clone());
    }
    let mut more = Archive::default();
    for (here, there) in &options.files {
        more.file(
            there,
            0o755,
            &fs::read(here).with_context(|| here.display().to_string())?,
        );
    }
    let path = directory.join("initramfs");
    fs::copy(&image.initramfs, &path)?;
    fs::OpenOptions::new()
        .append(true)
        .open(&path)?
        .write_all(&more.finish())?;
    Ok(path)
}

fn accept(listener: &UnixListener, deadline: Instant) -> Result<UnixStream> {
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))
        .context("a limit beyond all time")?;
    if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&left))? == 0 {
        bail!("QEMU does not open its serial card");
    }
    Ok(listener.accept()?.0)
}
