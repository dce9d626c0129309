//! After set-up and a first round, a program's posts and polls allocate nothing, and no thread keeps another from the device.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fabric::{
    Access, Address, Completion, CompletionQueue, Domain, Endpoint, EndpointKind, Memory,
    MemoryRegion, Registry, Work,
};
use ringmail_softroce::Softroce;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: u64 = 64;
const SOON: Duration = Duration::from_secs(20);

struct Side {
    endpoint: Endpoint,
    cq: CompletionQueue,
    region: MemoryRegion,
    domain: Domain,
}

impl Side {
    fn open() -> Self {
        let registry = Registry::new().with(Softroce::new());
        let mut config = registry.defaults();
        config.set("address", "fresh").unwrap();
        let domain = registry.open("softroce", &config).unwrap();
        let cq = domain.completion_queue(1024).unwrap();
        Self {
            endpoint: domain.endpoint(EndpointKind::Msg, &cq).open().unwrap(),
            region: domain
                .register(Memory::allocate(64 << 10), Access::all())
                .unwrap(),
            cq,
            domain,
        }
    }

    /// Attempts on the device that found another thread at it.
    fn contended(&self) -> u64 {
        let counters = self.domain.counters();
        let contended = counters.iter().find(|(name, _)| *name == "lock_contended");
        contended.expect("it is counted").1
    }
}

fn pair() -> (Side, Side) {
    let (a, b) = (Side::open(), Side::open());
    let listener = b.domain.listen(Address::ANY).unwrap();
    a.endpoint.start_connect(&listener.address(), b"").unwrap();
    listener
        .next(SOON)
        .unwrap()
        .accept(&b.endpoint, b"")
        .unwrap();
    a.endpoint.wait_connected(SOON).unwrap();
    b.endpoint.wait_connected(SOON).unwrap();
    (a, b)
}

/// Writes, then sends that are received, of registered memory; posted one by one, polled one by one and many at a time.
fn round(a: &Side, b: &Side, out: &mut Vec<Completion>) {
    let part = |side: &Side| side.region.slice(0..256).unwrap();
    for context in 0..DEPTH {
        let work = Work::write(context, part(a), b.region.remote().at(512));
        a.endpoint.post_one(work).unwrap();
        b.endpoint.post_one(Work::recv(context, part(b))).unwrap();
    }
    let (mut ended, mut received) = (0, 0);
    while ended < DEPTH {
        ended += u64::from(a.cq.poll_one().is_some());
        assert!(b.cq.poll_one().is_none(), "a write is not announced");
    }
    for context in 0..DEPTH {
        a.endpoint.post_one(Work::send(context, part(a))).unwrap();
    }
    ended = 0;
    while ended < DEPTH || received < DEPTH {
        out.clear();
        ended += a.cq.poll(out, 16) as u64;
        received += b.cq.poll(out, 16) as u64;
    }
}

#[test]
fn posts_and_polls_allocate_nothing_and_find_the_device_free() {
    let (a, b) = pair();
    let mut out = Vec::with_capacity(64);
    for _ in 0..20 {
        round(&a, &b, &mut out);
    }
    // A busy machine may lose packets and find a buffer that was never needed before, or stop a thread in the middle; a
    // habit shows in every try.
    let (mut fewest, mut freest) = (u64::MAX, u64::MAX);
    for _ in 0..5 {
        let contended = a.contended() + b.contended();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..20 {
            round(&a, &b, &mut out);
        }
        fewest = fewest.min(ALLOCATIONS.load(Ordering::Relaxed) - before);
        freest = freest.min(a.contended() + b.contended() - contended);
    }
    let operations = 20 * 3 * DEPTH;
    assert_eq!(fewest, 0, "allocations in {operations} operations");
    // The helpers look now and then whether the program still polls.
    assert!(
        freest <= operations / 100,
        "{freest} times in {operations} operations another thread was at the device"
    );
}
