//! The other end of a local command: this program once more, as a process of its own.
//!
//! The child gets a token on its standard input and answers one line on its standard output: where it listens, or why it does
//! not. It ends when its standard input does, so it never outlives its parent, however that ends.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use fabric::{Address, Config, Domain};
use serde::{Deserialize, Serialize};

use crate::device;
use crate::protocol::Token;

/// The parent's side. Dropping it ends the child.
#[derive(Debug)]
pub(crate) struct Responder {
    child: Child,
    /// Where it listens.
    pub(crate) address: Address,
    /// What it wants to see.
    pub(crate) token: Token,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Listening(Address),
    Failed(String),
}

impl Responder {
    /// Starts this program with `arguments`, on the provider of `domain`.
    ///
    /// # Errors
    /// What starting answers, or why the child does not listen.
    pub(crate) fn start(
        arguments: &[OsString],
        config: &Config,
        domain: &Domain,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(&program);
        // All that the parent was told comes in the variables, so what its own environment says of files must not.
        for variable in ["RINGMAIL_CAPTURE", "RINGMAIL_CONFIG", "RINGMAIL_ADDRESS"] {
            command.env_remove(variable);
        }
        // Said once is enough.
        for (variable, _) in device::unknown_variables(config) {
            command.env_remove(variable);
        }
        let mut child = command
            .args(arguments)
            .envs(device::environment(config, domain))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let token = Token::random();
        let mut line = String::new();
        let input = child.stdin.as_mut().expect("piped above");
        let told = writeln!(input, "{}", token.to_hex());
        let output = child.stdout.take().expect("piped above");
        let heard = told.and_then(|()| BufReader::new(output).read_line(&mut line));
        let mut responder = Self {
            child,
            address: Address::ANY,
            token,
        };
        match heard.ok().and_then(|_| serde_json::from_str(&line).ok()) {
            Some(Answer::Listening(address)) => responder.address = address,
            Some(Answer::Failed(reason)) => bail!(reason),
            None => return Err(anyhow!("the serving process ended before it listened")),
        }
        Ok(responder)
    }

    /// Whether the child runs still.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Responder {
    /// Whether the child still runs.
    ///
    /// # Errors
    /// How it ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(anyhow!("the other process has ended early: {status}")),
            Err(error) => Err(error).context("cannot look after the other process"),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let start = Instant::now();
        while start.elapsed() < LAST_MOMENT {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                _ => return,
            }
        }
        // It was stopped, or hangs.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a child may take to end by itself.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// The child's side: takes the token and arranges to end with the parent.
///
/// # Errors
/// What reading standard input answers; a token that is none.
pub(crate) fn follow_parent() -> anyhow::Result<Token> {
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .context("cannot read standard input")?;
    let token =
        Token::from_hex(line.trim_end()).context("this option is for the program's own use")?;
    thread::Builder::new().name("parent".to_owned()).spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    })?;
    Ok(token)
}

/// The child's side: tells the parent where it listens, or why not.
///
/// # Errors
/// What writing to standard output answers: the parent is gone.
pub(crate) fn answer_parent(listening: &anyhow::Result<Address>) -> io::Result<()> {
    let answer = match listening {
        Ok(address) => Answer::Listening(address.clone()),
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    let answer = serde_json::to_string(&answer).expect("text can be written as JSON");
    let mut out = io::stdout().lock();
    writeln!(out, "{answer}").and_then(|()| out.flush())
}
