//! Two endpoints play ping-pong, and the round trips are timed: `cargo run --release --example ping`.

use std::thread;
use std::time::{Duration, Instant};

use ringmail::{Completion, Domain, EndpointKind, Hints, Reach, Work};

const ROUNDS: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let (server, client) = (open()?, open()?);
    println!("ping over {}", client.info().provider);
    let listener = server.listen("")?;
    let address = listener.address();

    let ponger = thread::spawn(move || -> Result<()> {
        let cq = server.completion_queue(16)?;
        let endpoint = server.endpoint(EndpointKind::Msg, &cq).open()?;
        endpoint.post_one(Work::recv(0, server.buf(8)?))?;
        listener.next(PATIENCE)?.accept(&endpoint, b"")?;
        endpoint.wait_connected(PATIENCE)?;
        for _ in 0..ROUNDS {
            // The buffer comes back with the ping, goes out with the pong, and comes back again.
            let ping = spin(&cq)?;
            endpoint.post_one(Work::recv(0, server.buf(8)?))?;
            endpoint.post_one(Work::send(1, ping.into_buf().expect("the receive's")))?;
            spin(&cq)?;
        }
        Ok(())
    });

    let cq = client.completion_queue(16)?;
    let endpoint = client.endpoint(EndpointKind::Msg, &cq).open()?;
    endpoint.connect(&address, b"", PATIENCE)?;
    let mut times = Vec::with_capacity(ROUNDS);
    let mut ball = client.buf_from(b"ping....")?;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        endpoint.post_one(Work::recv(0, client.buf(8)?))?;
        endpoint.post_one(Work::send(1, ball))?;
        spin(&cq)?;
        ball = spin(&cq)?.into_buf().expect("a send or a receive");
        times.push(start.elapsed());
    }
    ponger.join().expect("the ponger does not panic")?;
    times.sort();
    let at = |share: f64| times[(share * (ROUNDS - 1) as f64) as usize];
    println!(
        "{ROUNDS} round trips: p50 {:?}, p99 {:?}, max {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
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

/// The next completion. Waiting costs a wake-up, so we poll for a moment first.
fn spin(cq: &ringmail::CompletionQueue) -> Result<Completion> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(50) {
        if let Some(completion) = cq.poll_one() {
            return Ok(completion.ok()?);
        }
    }
    Ok(cq.next(PATIENCE)?.ok()?)
}
