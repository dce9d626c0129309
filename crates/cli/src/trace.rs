//! `ringmail trace`: a packet capture as one line a packet.
//!
//! Reads pcapng and pcap, of ours or anyone's; shows RoCEv2 packets only. Says which have a wrong ICRC.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use rnic::capture::{Captured, Direction, Reader};
use roce::trace::Line;
use roce::wire::icrc::{IdBasis, Identification, Path, Verdict};

/// Print a packet capture, one line a packet
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A pcapng or pcap file
    file: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let shown = arguments.file.display();
    let reader = Reader::open(&arguments.file).with_context(|| format!("{shown}"))?;
    match print(reader, &mut BufWriter::new(io::stdout().lock())) {
        // Whoever reads us has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.context(format!("{shown}"))),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn print(
    reader: impl Iterator<Item = Result<Captured, rnic::capture::CaptureError>>,
    out: &mut impl io::Write,
) -> anyhow::Result<()> {
    let mut start = None;
    for captured in reader {
        let captured = match captured {
            Ok(captured) => captured,
            Err(error) => {
                // What came before is worth seeing.
                out.flush()?;
                return Err(error.into());
            }
        };
        let start = *start.get_or_insert(captured.time);
        writeln!(out, "{}", line(&captured, start))?;
    }
    out.flush()?;
    Ok(())
}

/// Seconds since the first packet, direction where known, addresses, the packet.
fn line(captured: &Captured, start: u64) -> String {
    let seconds = captured.time.saturating_sub(start) as f64 / 1e9;
    let direction = match captured.direction {
        Some(Direction::Sent) => "tx ",
        Some(Direction::Received) => "rx ",
        None => "",
    };
    let (source, destination) = (captured.source.ip(), captured.destination.ip());
    let packet = match Line::parse(&captured.payload) {
        Ok(line) => line.to_string(),
        Err(error) => format!(
            "{} bytes that are no RoCEv2 packet: {error}",
            captured.payload.len()
        ),
    };
    let wrong = if has_right_icrc(captured) {
        ""
    } else {
        "  WRONG ICRC"
    };
    format!("{seconds:11.6}  {direction}{source} > {destination}  {packet}{wrong}")
}

fn has_right_icrc(captured: &Captured) -> bool {
    let Ok(path) = Path::new(captured.source, captured.destination) else {
        return false;
    };
    let identification = Identification::Known(captured.identification);
    path.verify(&captured.payload, identification, &mut IdBasis::new()) == Verdict::Exact
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
