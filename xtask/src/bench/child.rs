//! Child processes of a comparison: pinned, bounded in time, always reaped.
//!
//! Each runs under `timeout`, so that none survives even where we are killed ourselves.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A command line with its environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    environment: Vec<(String, String)>,
    words: Vec<String>,
    core: Option<usize>,
}

impl Call {
    /// A call of `program`.
    pub(crate) fn new(program: impl Into<String>) -> Self {
        Self {
            words: vec![program.into()],
            ..Self::default()
        }
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<T: Into<String>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Keeps it on one core.
    pub(crate) fn on_core(mut self, core: usize) -> Self {
        self.core = Some(core);
        self
    }

    /// As one would type it; of the program only its name.
    pub(crate) fn shown(&self) -> String {
        let mut words: Vec<String> = (self.environment.iter())
            .map(|(name, value)| format!("{name}={}", quoted(value)))
            .collect();
        if let Some(core) = self.core {
            words.push(format!("taskset -c {core}"));
        }
        let program = self.words[0].rsplit('/').next().unwrap_or_default();
        words.push(program.to_owned());
        words.extend(self.words[1..].iter().map(|word| quoted(word)));
        words.join(" ")
    }

    /// Starts it; it is ended after `limit` at the latest.
    pub(crate) fn start(&self, limit: Duration, output: impl Into<Stdio>) -> Result<Running> {
        let mut command = Command::new("timeout");
        // In the foreground: an interrupt from the keyboard reaches it too.
        command
            .args(["--foreground", "--kill-after=1"])
            .arg(format!("{:.1}", limit.as_secs_f64()));
        if let Some(core) = self.core {
            command.args(["taskset", "-c", &core.to_string()]);
        }
        let child = command
            .args(&self.words)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start timeout(1)")?;
        Ok(Running(Some(child)))
    }

    /// Runs it to its end and answers what it printed.
    ///
    /// # Errors
    /// The last line of its standard error where it fails, or that it took too long.
    pub(crate) fn output(&self, limit: Duration) -> Result<String> {
        self.start(limit, Stdio::piped())?.output()
    }
}

/// A running child. Dropping it ends it.
pub(crate) struct Running(Option<Child>);

impl Running {
    /// Waits for its end and answers what it printed.
    ///
    /// # Errors
    /// As [`Call::output`].
    pub(crate) fn output(mut self) -> Result<String> {
        let child = self.0.take().expect("taken only here");
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(failure(
                output.status.code(),
                &String::from_utf8_lossy(&output.stderr),
                &String::from_utf8_lossy(&output.stdout)
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // `timeout` passes it on.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// Why a program failed, in one line.
fn failure(code: Option<i32>, error: &str, output: &str) -> String {
    if matches!(code, Some(124 | 137)) {
        return "took too long".to_owned();
    }
    // The line that says "error", else the last one: some explain their usage behind it.
    let said = |text: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut lines = lines.collect::<Vec<_>>().into_iter();
        let error = lines.clone().find(|line| line.contains("error"));
        error.or_else(|| lines.next_back()).map(str::to_owned)
    };
    said(error)
        .or_else(|| said(output))
        .unwrap_or_else(|| "failed and did not say why".to_owned())
}

/// Waits until somebody on this machine listens at TCP `port`, without connecting: a server may serve its first client only.
///
/// # Errors
/// Nobody does after `limit`.
pub(crate) fn wait_for_listener(port: u16, limit: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < limit {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
        let mut tables = tables
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok());
        if tables.any(|table| has_listener(&table, port)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
    bail!("the server did not listen")
}

/// Reads a table of the kernel: `sl local_address rem_address st …`, all hexadecimal.
fn has_listener(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().take(4).collect();
        matches!(fields[..], [_, local, _, "0A"] if local.ends_with(&suffix))
    })
}

/// A TCP port that nobody had a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

fn quoted(word: &str) -> String {
    if word.contains([';', ' ', '*', '&', '|']) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_answered_and_why_it_failed() {
        let limit = Duration::from_secs(10);
        let shell = |script: &str| Call::new("sh").args(["-c", script]).output(limit);
        assert_eq!(shell("echo 7").unwrap(), "7\n");
        let error = shell("echo no such device >&2; exit 3").unwrap_err();
        assert_eq!(error.to_string(), "no such device");
        let error = shell("echo 'error: what?' >&2; echo usage >&2; exit 2").unwrap_err();
        assert_eq!(error.to_string(), "error: what?");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let call = Call::new("sleep").arg("600");
        let error = call.output(Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.to_string(), "took too long");
    }

    #[test]
    fn a_call_is_shown_as_one_would_type_it() {
        let call = Call::new("/somewhere/fi_pingpong")
            .env("UCX_TLS", "tcp,self")
            .args(["-p", "udp;ofi_rxd"])
            .on_core(1);
        let shown = "UCX_TLS=tcp,self taskset -c 1 fi_pingpong -p 'udp;ofi_rxd'";
        assert_eq!(call.shown(), shown);
    }

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:3419 00000000:0000 0A 0\n   \
                     1: 0100007F:341A 0100007F:0016 01 0\n";
        assert!(has_listener(table, 0x3419));
        assert!(!has_listener(table, 0x341A), "connected, not listening");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        wait_for_listener(port, Duration::from_secs(5)).unwrap();
    }
}
