//! Exposes memory to other processes and waits for a letter in it: `cargo run --example letter_server [HOST:PORT]`, and then
//! `letter_client` with the address that it prints.

use std::time::Duration;

use ringmail::{Access, EndpointKind, Hints, Memory, Reach, Work};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = ringmail::registry();
    let config = registry.config()?;
    let hints = Hints {
        reach: Reach::Host,
        ..Hints::default()
    };
    let domain = registry.open_selected(&registry.select(&hints, &config)?, &config)?;

    // What clients may read and write without our help, and what they need to know of it: 24 bytes.
    let region = domain.register(
        Memory::allocate(4096),
        Access::REMOTE_READ | Access::REMOTE_WRITE,
    )?;
    region.write(0, b"write to me")?;
    let listener = domain.listen(std::env::args().nth(1).unwrap_or_default())?;
    println!("listening at {}", listener.address());

    let cq = domain.completion_queue(16)?;
    let endpoint = domain.endpoint(EndpointKind::Msg, &cq).open()?;
    endpoint.post_one(Work::recv(0, domain.buf(8)?))?;
    let request = listener.next(PATIENCE)?;
    request.accept(&endpoint, &region.remote().to_bytes())?;
    endpoint.wait_connected(PATIENCE)?;

    // The message comes after the write before it, so the letter is there.
    let notice = cq.next(PATIENCE)?.ok()?;
    let len = notice.immediate.unwrap_or(0).min(4096);
    let mut letter = vec![0; len as usize];
    region.read(0, &mut letter)?;
    println!("a letter: {}", String::from_utf8_lossy(&letter));
    Ok(())
}
