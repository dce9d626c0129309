//! Several workers draw numbers from one counter in another's memory, and no number is drawn twice:
//! `cargo run --example atomic_counter`.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use ringmail::{
    Access, Address, Domain, EndpointKind, Hints, Kinds, Memory, Operations, Reach, RemoteRegion,
    Work,
};

const WORKERS: usize = 4;
const DRAWS: usize = 250;
const PATIENCE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let domain = open()?;
    println!("counting over {}", domain.info().provider);
    let counter = domain.register(Memory::allocate(8), Access::REMOTE_ATOMIC)?;
    let cq = domain.completion_queue(16)?;
    // Reliable datagrams: one endpoint serves all workers, and nobody accepts connections by hand.
    let server = domain.endpoint(EndpointKind::Rdm, &cq).open()?;
    let address = server.address()?;

    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (address, counter) = (address.clone(), counter.remote());
            thread::spawn(move || draw(&address, counter))
        })
        .collect();
    let mut drawn = HashSet::new();
    for worker in workers {
        for number in worker.join().expect("a worker does not panic")? {
            assert!(drawn.insert(number), "{number} was drawn twice");
        }
    }
    println!("{WORKERS} workers drew {} different numbers", drawn.len());
    assert_eq!(counter.load(0)?, (WORKERS * DRAWS) as u64);
    Ok(())
}

fn draw(server: &Address, counter: RemoteRegion) -> Result<Vec<u64>> {
    let domain = open()?;
    let cq = domain.completion_queue(16)?;
    let endpoint = domain.endpoint(EndpointKind::Rdm, &cq).open()?;
    let peer = endpoint.addresses().insert(server)?;
    let mut old = domain.buf(8)?;
    let mut numbers = Vec::new();
    for _ in 0..DRAWS {
        endpoint.post_one(Work::fetch_add(0, old, counter, 1).to(peer))?;
        let done = cq.next(PATIENCE)?.ok()?;
        numbers.push(done.fetched().expect("an atomic fetches"));
        old = done.into_buf().expect("the buffer comes back");
    }
    Ok(numbers)
}

/// The best provider there is, unless `RINGMAIL_PROVIDER` names one.
fn open() -> Result<Domain> {
    let registry = ringmail::registry();
    let config = registry.config()?;
    let hints = Hints {
        kinds: Kinds::RDM,
        operations: Operations::ATOMIC,
        reach: Reach::Process,
        ..Hints::default()
    };
    Ok(registry.open_selected(&registry.select(&hints, &config)?, &config)?)
}
