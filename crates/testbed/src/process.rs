//! A program that a test runs: its output can be waited for, and it never outlives its handle.

use std::fmt;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::transcript::Transcript;

/// How a program ended, and all that it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// The exit status: 0 is success; 128 and the signal's number where a signal ended it.
    pub status: i32,
    /// Standard output and standard error, in the order in which they were printed.
    pub text: String,
}

impl Output {
    /// Whether the program ended with status 0.
    pub fn is_success(&self) -> bool {
        self.status == 0
    }

    /// The text of a program that succeeded.
    ///
    /// # Errors
    /// The program failed: the error shows what it printed.
    pub fn succeeded(self) -> Result<String> {
        if !self.is_success() {
            bail!("{self}");
        }
        Ok(self.text)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended with status {}:\n{}",
            self.command, self.status, self.text
        )
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    command: String,
    child: Child,
    transcript: Transcript,
}

impl Process {
    /// Starts `command` with its standard output and standard error collected.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = format!("{command:?}").replace('"', "");
        let (reader, writer) = io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        // Ours of the write ends are in the command; the output ends only once they are closed.
        drop(command);
        Ok(Self {
            command: name,
            child,
            transcript: Transcript::of(reader),
        })
    }

    /// Everything that the program has printed so far.
    pub fn text(&self) -> String {
        self.transcript.text()
    }

    /// Closes the program's standard input, if it was piped: many programs take that as the request to end.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Waits until the program has printed a line that contains `text`, and returns that line.
    ///
    /// # Errors
    /// The program has not printed it within `limit`, or has ended without it.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<String> {
        let line = |so_far: &str| {
            complete_lines(so_far)
                .find(|line| line.contains(text))
                .map(str::to_owned)
        };
        match self.transcript.wait_for(Instant::now() + limit, line) {
            Some(line) => Ok(line),
            None => bail!(
                "`{}` did not print {text:?} but:\n{}",
                self.command,
                self.text()
            ),
        }
    }

    /// Closes the program's standard input and waits for its end.
    ///
    /// # Errors
    /// It has not ended within `limit`; it is killed then.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        self.close_input();
        let deadline = Instant::now() + limit;
        if !self.has_ended_by(deadline)? {
            bail!(
                "`{}` has not ended within {limit:?}; it printed:\n{}",
                self.command,
                self.text()
            );
        }
        let status = self.child.wait()?;
        // A program that it left behind may hold the output open: what matters has been printed.
        self.transcript
            .wait_for_end(deadline.min(Instant::now() + Duration::from_secs(1)));
        let status = std::os::unix::process::ExitStatusExt::signal(&status)
            .map_or_else(|| status.code().unwrap_or(-1), |signal| 128 + signal);
        Ok(Output {
            command: self.command.clone(),
            status,
            text: self.text(),
        })
    }

    fn has_ended_by(&self, deadline: Instant) -> Result<bool> {
        let end = pidfd_open(self.pid(), PidfdFlags::empty())?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left =
                rustix::event::Timespec::try_from(left).context("a limit beyond all time")?;
            match poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end with nothing on its standard input.
pub(crate) fn run(mut command: Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null());
    Process::spawn(command)?.finish(limit)
}

/// The lines of `text` that have their end already.
pub(crate) fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped());
        Process::spawn(command).expect("sh is everywhere")
    }

    #[test]
    fn output_and_status_are_those_of_the_program() {
        let output = shell("echo one; echo two >&2; exit 3")
            .finish(LIMIT)
            .expect("it ends");
        assert_eq!((output.status, output.text.as_str()), (3, "one\ntwo\n"));
        assert!(output.succeeded().is_err());
    }

    #[test]
    fn a_line_can_be_waited_for_while_the_program_runs() {
        let mut process = shell("echo listening on 7; cat; echo bye");
        assert_eq!(
            process.wait_for("listening", LIMIT).expect("it is printed"),
            "listening on 7"
        );
        process.close_input();
        assert_eq!(
            process.finish(LIMIT).expect("it ends").text,
            "listening on 7\nbye\n"
        );
    }

    #[test]
    fn waiting_for_what_never_comes_ends_with_the_program() {
        let error = shell("echo something else")
            .wait_for("listening", LIMIT)
            .expect_err("never printed");
        assert!(error.to_string().contains("something else"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_at_the_limit() {
        let process = shell("exec sleep 1000");
        let pid = process.pid();
        process
            .finish(Duration::from_millis(10))
            .expect_err("it sleeps");
        assert!(
            rustix::process::test_kill_process(pid).is_err(),
            "{pid:?} still runs"
        );
    }
}
