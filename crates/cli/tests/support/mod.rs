//! Runs the real program and looks at what it leaves.

#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use rustix::process::{Resource, getrlimit};
use serde_json::Value;

/// The program with a clean environment, to be given arguments.
pub(crate) fn ringmail() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_ringmail")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGMAIL_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    ringmail()
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// The providers that are here.
pub(crate) fn providers() -> Vec<&'static str> {
    let names = providers_with(|_| true);
    assert!(names.contains(&"loopback"), "{names:?}");
    names
}

/// Those of them that reach other processes.
pub(crate) fn networks() -> Vec<&'static str> {
    let names = providers_with(|device| device["capabilities"]["reach"] != "process");
    assert!(!names.is_empty(), "no provider reaches another process");
    names
}

/// Those of them that reach other machines, and so other users.
pub(crate) fn far_networks() -> Vec<&'static str> {
    providers_with(|device| device["capabilities"]["reach"] == "network")
}

/// Those of them that can do what only packets make possible: `faults`, `capture`.
pub(crate) fn networks_with(capability: &str) -> Vec<&'static str> {
    providers_with(|device| device["capabilities"][capability] == true)
}

fn providers_with(fits: impl Fn(&Value) -> bool) -> Vec<&'static str> {
    let report: Value =
        serde_json::from_slice(&run(["info", "--json"]).stdout).expect("info is JSON");
    let name = |provider: &Value| {
        let devices = provider["devices"].as_array().expect("a list");
        let name = provider["name"].as_str().expect("a name").to_owned();
        devices.iter().any(&fits).then(|| &*name.leak())
    };
    report["providers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(name)
        .collect()
}

/// What it printed.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("standard output is UTF-8")
}

/// What it complained of.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("standard error is UTF-8")
}

/// That it failed with `code` and one line that contains `part`.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, part: &str) {
    let complaint = stderr(output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "standard error: {complaint}"
    );
    assert!(
        complaint.contains(part),
        "expected `{part}` in: {complaint}"
    );
    assert_eq!(
        complaint.lines().count(),
        1,
        "more than one line: {complaint}"
    );
}

/// Bytes that compress badly, the same in every run.
pub(crate) fn random(len: usize) -> Vec<u8> {
    let mut state = len as u64 + 1;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program as a user who owns nothing; for root only.
pub(crate) fn as_nobody(program: &Path) -> Command {
    let mut command = clean(Command::new(program));
    command.uid(65_534).gid(65_534);
    command
}

/// A directory of the test's own.
pub(crate) struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("the scene is writable");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn pipe(&self, name: &str) {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            self.path(name),
            kind,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("a pipe can be made");
    }

    /// What is in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("the scene is readable");
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The program in it, over that provider.
    pub(crate) fn ringmail(&self, provider: &str, arguments: &[&str]) -> Command {
        let mut command = ringmail();
        command
            .args(["--provider", provider])
            .args(arguments)
            .current_dir(self.directory.path());
        command
    }

    /// `cp` in it, over that provider.
    pub(crate) fn command(&self, provider: &str, arguments: &[&str]) -> Command {
        self.ringmail(provider, &[&["cp"], arguments].concat())
    }

    /// Runs `cp` to its end.
    pub(crate) fn cp(&self, provider: &str, arguments: &[&str]) -> Output {
        self.command(provider, arguments)
            .output()
            .expect("the program starts")
    }

    /// Runs `cp --json`, which must succeed; answers its report.
    #[track_caller]
    pub(crate) fn cp_json(&self, provider: &str, arguments: &[&str]) -> Value {
        report(
            &self
                .command(provider, arguments)
                .arg("--json")
                .output()
                .expect("the program starts"),
        )
    }

    /// Runs a shell script in it that may mount file systems; `None`, with a line that says why, where that cannot be.
    pub(crate) fn in_mount_namespace(&self, script: &str) -> Option<Output> {
        if !is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let mut command = clean(Command::new("unshare"));
        command
            .args(["--mount", "sh", "-c", script])
            .current_dir(self.directory.path());
        let output = command.output().expect("unshare is there");
        assert_ne!(
            output.status.code(),
            Some(77),
            "root cannot mount: {}",
            stderr(&output)
        );
        Some(output)
    }

    /// A copy of the program that other users can reach.
    pub(crate) fn program_for_everyone(&self) -> PathBuf {
        let copy = self.path("ringmail");
        fs::copy(env!("CARGO_BIN_EXE_ringmail"), &copy).expect("the program can be copied");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("it is ours");
        copy
    }
}

/// The JSON object at the end of a successful copy.
#[track_caller]
pub(crate) fn report(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "standard error: {}",
        stderr(output)
    );
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "more than one object: {text}");
    serde_json::from_str(&text).expect("the report is JSON")
}

/// With its output for us.
pub(crate) fn piped(command: &mut Command) -> &mut Command {
    command.stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// A server under way.
pub(crate) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts a server of one directory and waits until it listens.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut url = String::new();
        let output = child.stdout.take().expect("piped above");
        BufReader::new(output)
            .read_line(&mut url)
            .expect("it prints a URL");
        assert!(
            url.starts_with("ringmail://"),
            "the server does not listen: {url}"
        );
        let url = url.trim_end().to_owned();
        Self { child, url }
    }

    /// Of what is served.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Limits the threads of its user, who is nobody; `None` is as many as that may have at all.
    pub(crate) fn limit_threads(&self, limit: Option<u64>) {
        let limit = limit.or_else(|| getrlimit(Resource::Nproc).maximum);
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
        let status = as_nobody(Path::new("prlimit"))
            .arg(format!("--pid={}", self.child.id()))
            .arg(format!("--nproc={limit}:"))
            .status();
        assert!(status.expect("prlimit is there").success());
    }

    /// Has it stand still, or go on.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("it runs");
    }

    /// Ends it as if by a crash, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program under way.
pub(crate) struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    seen: String,
}

impl Running {
    /// Starts a program that logs every block to a pipe that is read only as far as the test wants: it cannot run ahead.
    pub(crate) fn held_up(command: Command) -> Self {
        Self::start(command, "ringmail=trace")
    }

    /// Starts a program that logs what it decides.
    pub(crate) fn logging(command: Command) -> Self {
        Self::start(command, "ringmail=debug")
    }

    fn start(mut command: Command, log: &str) -> Self {
        let mut child = command
            .env("RINGMAIL_LOG", log)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = BufReader::with_capacity(256, child.stderr.take().expect("piped above"));
        Self {
            child,
            log,
            seen: String::new(),
        }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Reads its log up to a line that contains `part`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, part: &str) {
        loop {
            let start = self.seen.len();
            let read = self.log.read_line(&mut self.seen).expect("the log is text");
            assert!(read > 0, "it ended without `{part}`: {}", self.seen);
            if self.seen[start..].contains(part) {
                return;
            }
        }
    }

    /// Ends it as if by a crash, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }

    /// Reads its log until nobody has the other end any more.
    pub(crate) fn wait_for_end(&mut self) {
        self.log
            .read_to_string(&mut self.seen)
            .expect("the log is text");
    }

    /// Lets it run to its end.
    pub(crate) fn finish(mut self) -> Output {
        let mut stderr = self.seen.clone().into_bytes();
        self.log
            .read_to_end(&mut stderr)
            .expect("the log can be read");
        let mut stdout = Vec::new();
        self.child
            .stdout
            .take()
            .expect("piped above")
            .read_to_end(&mut stdout)
            .expect("the output can be read");
        let status = self.child.wait().expect("it is ours");
        Output {
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
