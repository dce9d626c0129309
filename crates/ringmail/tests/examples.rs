//! Every example runs and shows what its README says.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// The program of an example. Cargo builds the examples with the tests, two folders up from here.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the test knows where it is");
    let target: PathBuf = test
        .ancestors()
        .nth(2)
        .expect("it lies in target/PROFILE/deps")
        .into();
    let example = target
        .join("examples")
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        example.exists(),
        "{} is not built: cargo build --examples",
        example.display()
    );
    Command::new(example)
}

/// What an example prints, by the reference provider.
fn run(name: &str) -> String {
    printed(name, example(name).env("RINGMAIL_PROVIDER", "loopback"))
}

fn printed(name: &str, command: &mut Command) -> String {
    let output = command.output().expect("the example starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn ping_times_its_round_trips() {
    assert!(run("ping").contains("10000 round trips: p50"));
}

#[test]
fn remote_write_shows_what_was_written() {
    assert!(run("remote_write").contains("16 bytes arrived: dear memory, ..."));
}

#[test]
fn atomic_counter_draws_each_number_once() {
    assert!(run("atomic_counter").contains("4 workers drew 1000 different numbers"));
}

#[test]
fn file_fetch_makes_an_identical_copy() {
    assert!(run("file_fetch").contains("the copy is identical"));
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_letter_is_written_to_another_process() {
    let mut server = example("letter_server");
    server.env("RINGMAIL_PROVIDER", "softroce");
    let mut server = Server(server.stdout(Stdio::piped()).spawn().expect("it starts"));
    let mut output = BufReader::new(server.0.stdout.take().expect("piped above"));
    let mut line = String::new();
    output.read_line(&mut line).expect("text");
    let address = line.trim().strip_prefix("listening at ");
    let address = address.unwrap_or_else(|| panic!("it does not listen: {line}"));
    let mut client = example("letter_client");
    client.env("RINGMAIL_PROVIDER", "softroce").arg(address);
    let said = printed("letter_client", &mut client);
    assert_eq!(said, "it says: write to me\n");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "a letter: dear memory\n");
}
