//! A file goes from one side's page cache straight into the other's, by reads that the serving program never notices:
//! `cargo run --release --example file_fetch [FILE [COPY]]`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringmail::{Access, Domain, EndpointKind, FileMapping, Hints, Reach, RemoteRegion, Work};

const BLOCK: usize = 256 << 10;
const IN_FLIGHT: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("ringmail-file-fetch-{}", std::process::id()));
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let source = paths.next().map_or_else(std::env::current_exe, Ok)?;
    let copy = paths.next();
    let target = copy.as_ref().unwrap_or(&scratch);
    let same =
        fetch(&source, target).and_then(|()| Ok(std::fs::read(&source)? == std::fs::read(target)?));
    if copy.is_none() {
        // There is none if the source could not be read.
        let _ = std::fs::remove_file(&scratch);
    }
    assert!(same?, "the copy differs");
    println!("the copy is identical");
    Ok(())
}

fn fetch(source: &PathBuf, target: &PathBuf) -> Result<()> {
    let (server, client) = (open()?, open()?);
    // The server shows the file to whoever knows the key, read-only.
    let file = FileMapping::open_read(source)?;
    let exposed = server.register(file.memory().clone(), Access::REMOTE_READ)?;
    let server_cq = server.completion_queue(16)?;
    let passive = server.endpoint(EndpointKind::Msg, &server_cq).open()?;
    let listener = server.listen("")?;

    let cq = client.completion_queue(IN_FLIGHT)?;
    let active = client.endpoint(EndpointKind::Msg, &cq).open()?;
    active.start_connect(&listener.address(), b"")?;
    listener
        .next(PATIENCE)?
        .accept(&passive, &exposed.remote().to_bytes())?;
    let told = active.wait_connected(PATIENCE)?;
    let remote = RemoteRegion::from_bytes(&told).ok_or("the server told nothing")?;

    // The client reads into its own file's mapping: no copy is made in between.
    let len = usize::try_from(remote.len)?;
    let into = client.register(
        FileMapping::create(target, remote.len)?.memory().clone(),
        Access::LOCAL,
    )?;
    let start = Instant::now();
    let (mut posted, mut done) = (0, 0);
    while done < len {
        while posted < len && posted.div_ceil(BLOCK) - done.div_ceil(BLOCK) < IN_FLIGHT {
            let end = (posted + BLOCK).min(len);
            active.post_one(Work::read(
                0,
                into.slice(posted..end)?,
                remote.at(posted as u64),
            ))?;
            posted = end;
        }
        done += cq.next(PATIENCE)?.ok()?.len;
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = len as f64 * 8e-9 / seconds;
    println!(
        "{len} bytes over {} in {seconds:.3} s: {rate:.1} Gbit/s",
        client.info().provider
    );
    Ok(())
}

/// The best provider there is, unless `RINGMAIL_PROVIDER` names one.
fn open() -> Result<Domain> {
    let registry = ringmail::registry();
    let config = registry.config()?;
    let hints = Hints {
        reach: Reach::Process,
        ..Hints::default()
    };
    Ok(registry.open_selected(&registry.select(&hints, &config)?, &config)?)
}
