//! A network of the test's own, in which every interface and process ends with the test.
//!
//! The namespace has no name: it lives while its first process does, and that one ends when our end of a pipe is closed,
//! by us or by our death. As it is also the first process of a process namespace, the kernel then kills every process
//! inside, and removes the interfaces with the last.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, Output, Process};

/// Setting up an interface takes milliseconds; a busy machine may take longer.
const SETUP_LIMIT: Duration = Duration::from_secs(30);

/// The first process: makes the directory, says where it and itself are, and removes it when its input ends. /proc is
/// still the outer one, so that the number is the one outside.
const HOLD: &str = r#"directory=$(mktemp --directory) && read -r pid rest </proc/self/stat && echo "$pid $directory" && cat >/dev/null
rm -rf "$directory""#;

/// A network namespace with the processes in it. Dropping it ends them all.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    /// The first process inside, as seen from outside.
    pid: u32,
    directory: PathBuf,
}

impl Namespace {
    /// Makes an empty network, with only `lo`, which is up.
    ///
    /// # Errors
    /// Without the right to make namespaces, or without the programs `unshare` and `ip`.
    pub fn new() -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--", "sh", "-c", HOLD])
            // What interrupts us must not interrupt the one that cleans up after us.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start unshare (package util-linux)")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped above")).read_line(&mut line)?;
        let mut namespace = Self {
            holder,
            pid: 0,
            directory: PathBuf::new(),
        };
        let Some((pid, directory)) = line.trim_end().split_once(' ') else {
            bail!("cannot make a network namespace: that needs root");
        };
        namespace.pid = pid.parse().context("a process has a number")?;
        namespace.directory = directory.into();
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A directory for files that live as long as the namespace.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command that runs `program` inside. It ends with the process that stands for it outside, or with the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.pid))
            .args(["--net", "--pid", "--"]);
        command
            .args(["setpriv", "--pdeathsig=KILL", "--"])
            .arg(program);
        command
    }

    /// Runs `program` inside to its end, with nothing on its standard input.
    ///
    /// # Errors
    /// It cannot be started or does not end within `limit`. A status other than 0 is no error.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: &[A],
        limit: Duration,
    ) -> Result<Output> {
        let mut command = self.command(program);
        command.args(arguments);
        process::run(command, limit)
    }

    /// Starts `program` inside, with its standard input piped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: &[A],
    ) -> Result<Process> {
        let mut command = self.command(program);
        command.args(arguments);
        self.start(command)
    }

    /// Starts a command made by [`Namespace::command`], with its standard input piped.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, mut command: Command) -> Result<Process> {
        command.stdin(Stdio::piped());
        Process::spawn(command)
    }

    /// Runs `ip` inside with the words of `arguments`, such as `link set lo up`, and returns what it printed.
    ///
    /// # Errors
    /// `ip` is missing (package iproute2) or refuses.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        self.run("ip", &words, SETUP_LIMIT)?.succeeded()
    }

    /// Makes a pair of connected interfaces, `inner` inside this namespace and `outer` inside `other`.
    ///
    /// # Errors
    /// The names are taken, or `ip` is missing.
    pub fn connect(&self, inner: &str, other: &Self, outer: &str) -> Result<()> {
        let arguments = format!(
            "link add {inner} type veth peer name {outer} netns {}",
            other.pid
        );
        // From the outer process namespace, as the number of a process outside names the other network.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.pid))
            .args(["--net", "--", "ip"]);
        command.args(arguments.split_whitespace());
        process::run(command, SETUP_LIMIT)?.succeeded()?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // The wait ends once the kernel has killed what was inside.
        let _ = self.holder.wait();
    }
}
