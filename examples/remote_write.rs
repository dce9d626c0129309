//! One side exposes memory, the other writes into it; the first learns of it by an immediate value:
//! `cargo run --example remote_write`.

use std::time::Duration;

use ringmail::{Access, Domain, EndpointKind, Hints, Memory, Reach, RemoteRegion, Segments, Work};

const PATIENCE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let (target, writer) = (open()?, open()?);
    println!("writing over {}", writer.info().provider);

    // The target exposes a page and tells whoever connects how to reach it.
    let region = target.register(Memory::allocate(4096), Access::REMOTE_WRITE)?;
    let target_cq = target.completion_queue(16)?;
    let passive = target.endpoint(EndpointKind::Msg, &target_cq).open()?;
    passive.post_one(Work::recv(1, Segments::none()))?;
    let listener = target.listen("")?;

    let writer_cq = writer.completion_queue(16)?;
    let active = writer.endpoint(EndpointKind::Msg, &writer_cq).open()?;
    active.start_connect(&listener.address(), b"")?;
    listener
        .next(PATIENCE)?
        .accept(&passive, &region.remote().to_bytes())?;
    let told = active.wait_connected(PATIENCE)?;
    let remote = RemoteRegion::from_bytes(&told).ok_or("the target told nothing")?;

    // The target's program does nothing for this.
    let letter = writer.buf_from(b"dear memory, ...")?;
    active.post_one(Work::write(2, letter, remote.at(128)).with_immediate(16))?;
    writer_cq.next(PATIENCE)?.ok()?;

    let notice = target_cq.next(PATIENCE)?.ok()?;
    let mut letter = vec![0; notice.len];
    region.read(128, &mut letter)?;
    println!(
        "{} bytes arrived: {}",
        notice.len,
        String::from_utf8_lossy(&letter)
    );
    assert_eq!(letter, b"dear memory, ...");

    // Revoked, the memory is private again: an ordinary slice, which no peer can change.
    let page = region.revoke().expect("the last handle");
    assert!(page.starts_with(&[0; 128]));
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
