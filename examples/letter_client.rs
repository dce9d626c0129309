//! Reads and writes the memory of another process: `cargo run --example letter_client ADDRESS [TEXT]`, with the address that
//! `letter_server` prints.

use std::time::Duration;

use ringmail::{EndpointKind, Hints, Reach, RemoteRegion, Segments, Work};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("where does the server listen?")?;
    let text = arguments.next().unwrap_or_else(|| "dear memory".to_owned());

    let registry = ringmail::registry();
    let config = registry.config()?;
    let hints = Hints {
        reach: Reach::Host,
        ..Hints::default()
    };
    let domain = registry.open_selected(&registry.select(&hints, &config)?, &config)?;
    let cq = domain.completion_queue(16)?;
    let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open()?;
    let accepted = endpoint.connect(&address.as_str().into(), b"", PATIENCE)?;
    let remote = RemoteRegion::from_bytes(&accepted).ok_or("the server names no memory")?;

    // The server's program takes no part in either of these.
    endpoint.post_one(Work::read(1, domain.buf(11)?, remote))?;
    let greeting = cq.next(PATIENCE)?.ok()?;
    println!("it says: {}", String::from_utf8_lossy(greeting.data()));
    let letter = domain.buf_from(text.as_bytes())?;
    endpoint.post_one(Work::write(2, letter, remote))?;
    cq.next(PATIENCE)?.ok()?;

    // This wakes it: an empty message, with four bytes beside it.
    let notice = Work::send(3, Segments::none()).with_immediate(text.len() as u32);
    endpoint.post_one(notice)?;
    cq.next(PATIENCE)?.ok()?;
    Ok(())
}
