//! Owner and initiator together: in one process, where every way to the memory exists, and in two where it matters.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fabric::provider::Registration as _;
use fabric::{Access, FileMapping, RemoteAddr, Status};
use mem::{Buf, Memory};

use super::exports::Answer;
use super::exports::Registration;
use super::imports::Limits;
use super::{Cache, Exports, HostileAnswer, Import, Imports, Learned, Resolved, Stop};

const READ: Access = Access::REMOTE_READ;
const WRITE: Access = Access::REMOTE_WRITE;
const ATOMIC: Access = Access::REMOTE_ATOMIC;

/// An owner, and an initiator that has greeted it.
struct Pair {
    exports: Arc<Exports>,
    imports: Arc<Imports>,
    cache: Cache,
}

fn descriptors(answer: &Answer) -> Vec<OwnedFd> {
    let dup = |file: &Arc<std::fs::File>| file.try_clone().expect("duplicated").into();
    answer.files.iter().map(dup).collect()
}

fn own_pid() -> libc::pid_t {
    libc::pid_t::try_from(std::process::id()).expect("a process")
}

impl Pair {
    fn new() -> Self {
        Self::with_limits(Limits {
            regions: 100,
            bytes: 1 << 40,
        })
    }

    fn with_limits(limits: Limits) -> Self {
        let exports = Exports::new().expect("a table");
        let hello = exports.hello();
        let imports =
            Imports::with_limits(own_pid(), &hello.bytes, descriptors(&hello), limits).unwrap();
        Self {
            cache: Cache::new(Arc::clone(&imports)),
            exports,
            imports,
        }
    }

    fn register(&self, memory: &mut Memory, access: Access) -> Registered {
        let registration = self.exports.register(memory, access).expect("registered");
        Registered(registration)
    }

    fn ask(&self, key: u64) -> Learned {
        let answer = self.exports.answer(key);
        let files = descriptors(&answer);
        self.imports
            .learn(key, &answer.bytes, files)
            .expect("honest")
    }

    /// What becomes of an access, after the owner was asked if need be.
    fn reach(&mut self, remote: RemoteAddr, len: usize, access: Access) -> Reach<'_> {
        if matches!(self.cache.resolve(remote, len, access), Resolved::Ask)
            && self.ask(remote.key) == Learned::Unknown
        {
            return Reach::Refused(Status::RemoteAccess);
        }
        match self.cache.resolve(remote, len, access) {
            Resolved::Here(import) => Reach::Here(import),
            Resolved::Delegate => Reach::Delegate,
            Resolved::Refused(status) => Reach::Refused(status),
            Resolved::Nothing => Reach::Nothing,
            Resolved::Ask => panic!("asked twice"),
        }
    }

    fn here(&mut self, remote: RemoteAddr, len: usize, access: Access) -> &Import {
        match self.reach(remote, len, access) {
            Reach::Here(import) => import,
            other => panic!("not reached from here: {other:?}"),
        }
    }
}

enum Reach<'a> {
    Here(&'a Import),
    Delegate,
    Refused(Status),
    Nothing,
}

impl std::fmt::Debug for Reach<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("here"),
            Self::Delegate => f.write_str("delegate"),
            Self::Refused(status) => write!(f, "refused: {status}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// A registration that ends as `fabric` ends it.
struct Registered(Registration);

impl Deref for Registered {
    type Target = Registration;

    fn deref(&self) -> &Registration {
        &self.0
    }
}

impl Registered {
    fn at(&self, offset: u64) -> RemoteAddr {
        RemoteAddr {
            addr: self.remote_addr().wrapping_add(offset),
            key: self.remote_key(),
        }
    }

    fn revoke(self, memory: &mut Memory) {
        self.deregister();
        memory.unshare();
    }
}

fn bytes(memory: &Memory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.copy_out(offset, &mut bytes).expect("in bounds");
    bytes
}

fn memory_of(bytes: &[u8]) -> Memory {
    Buf::from(bytes).into_memory()
}

#[test]
fn everything_is_done_in_mapped_memory() {
    let mut pair = Pair::new();
    for len in [64, 100_000] {
        let mut memory = Memory::allocate(len);
        let region = pair.register(&mut memory, Access::all());
        let source = memory_of(b"0123456789");
        let at = region.at(40);
        let import = pair.here(at, 10, WRITE);
        import.write(at.addr, &source, 0, 10).unwrap();
        import.write_bytes(at.addr + 10, b"ab").unwrap();
        assert_eq!(bytes(&memory, 40, 12), b"0123456789ab");
        let into = Memory::allocate(20);
        import.read(at.addr + 2, &into, 5, 10).unwrap();
        assert_eq!(bytes(&into, 5, 10), b"23456789ab");
        assert_eq!(import.fetch_add(region.at(0).addr, 5), Ok(0));
        assert_eq!(import.compare_swap(region.at(0).addr, 5, 9), Ok(5));
        assert_eq!(memory.load_u64(0), Ok(9));
    }
}

#[test]
fn what_was_not_exposed_is_refused() {
    let mut pair = Pair::new();
    let mut memory = Memory::allocate(1000);
    let region = pair.register(&mut memory, READ | ATOMIC);
    let refused = |reach: Reach<'_>, status| {
        assert!(
            matches!(reach, Reach::Refused(is) if is == status),
            "{reach:?}"
        );
    };
    let outside = [
        (1000, 1),
        (999, 2),
        (0, 1001),
        (u64::MAX, 1),
        (8, usize::MAX),
    ];
    for (offset, len) in outside {
        refused(
            pair.reach(region.at(offset), len, READ),
            Status::RemoteAccess,
        );
    }
    refused(pair.reach(region.at(0), 8, WRITE), Status::RemoteAccess);
    refused(
        pair.reach(region.at(4), 8, ATOMIC),
        Status::RemoteInvalidRequest,
    );
    refused(pair.reach(region.at(1000), 8, ATOMIC), Status::RemoteAccess);
    let mut stranger = region.at(0);
    stranger.key ^= 1;
    refused(pair.reach(stranger, 8, READ), Status::RemoteAccess);
    assert!(matches!(pair.reach(stranger, 0, WRITE), Reach::Nothing));
    let local = pair.register(&mut Memory::allocate(8), Access::LOCAL);
    refused(pair.reach(local.at(0), 8, READ), Status::RemoteAccess);
    local.deregister();
    // The same of the owner, who is asked by a peer that believes otherwise.
    let source = Memory::allocate(2000);
    let key = region.remote_key();
    let write = |addr, len| pair.exports.execute_write(key, addr, &source, 0, len);
    assert_eq!(write(region.at(0).addr, 8), Err(Status::RemoteAccess));
    assert_eq!(write(0, 0), Ok(()));
    for (offset, len) in outside {
        let read = pair
            .exports
            .execute_read(key, region.at(offset).addr, &source, 0, len);
        assert_eq!(read, Err(Status::RemoteAccess));
    }
    let add = |key, offset| {
        pair.exports
            .execute_fetch_add(key, region.at(offset).addr, 1)
    };
    assert_eq!(add(key, 4), Err(Status::RemoteInvalidRequest));
    assert_eq!(add(key ^ 1, 8), Err(Status::RemoteAccess));
    assert_eq!(add(key, 8), Ok(0));
}

#[test]
fn a_revoked_key_is_seen_at_once() {
    let mut pair = Pair::new();
    let mut memory = Memory::allocate(100_000);
    let region = pair.register(&mut memory, Access::all());
    let at = region.at(0);
    pair.here(at, 8, WRITE)
        .write_bytes(at.addr, &[1; 8])
        .unwrap();
    let key = region.remote_key();
    let held = pair.imports.find(key).expect("known");
    region.revoke(&mut memory);
    assert!(!held.is_current());
    assert_eq!(held.write_bytes(at.addr, &[2; 8]), Err(Stop::Changed));
    let failed = Err(Stop::Failed(Status::RemoteOperation));
    assert_eq!(held.fetch_add(at.addr, 1), failed, "not to be done twice");
    assert_eq!(
        held.read(at.addr, &Memory::allocate(8), 0, 8),
        Err(Stop::Changed)
    );
    assert!(matches!(
        pair.reach(at, 8, WRITE),
        Reach::Refused(Status::RemoteAccess)
    ));
    assert_eq!(
        pair.exports.execute_fetch_add(key, at.addr, 1),
        Err(Status::RemoteAccess)
    );
    assert_eq!(pair.imports.size(), (0, 0));
    let buf = Buf::try_from(memory).expect("private again");
    assert_eq!(buf[..8], [1; 8]);
}

#[test]
fn a_peer_can_invalidate_a_key_once() {
    let mut pair = Pair::new();
    let mut memory = Memory::allocate(100);
    let region = pair.register(&mut memory, Access::all());
    let at = region.at(0);
    pair.here(at, 8, WRITE)
        .write_bytes(at.addr, &[1; 8])
        .unwrap();
    let held = pair.imports.find(region.remote_key()).expect("known");
    assert!(pair.exports.invalidate(region.remote_key()));
    assert!(!pair.exports.invalidate(region.remote_key()));
    assert_eq!(held.write_bytes(at.addr, &[2; 8]), Err(Stop::Changed));
    assert_eq!(bytes(&memory, 0, 8), [1; 8]);
    region.revoke(&mut memory);
}

/// Registered twice, by one domain or two: the memory leaves its pages with the first key, and is reached otherwise by the other.
#[test]
fn memory_under_another_key_stays_reachable() {
    let mut pairs = [Pair::new(), Pair::new()];
    for other in [0, 1] {
        let mut memory = Memory::allocate(100_000);
        let first = pairs[0].register(&mut memory, Access::all());
        let second = pairs[other].register(&mut memory.clone(), Access::all());
        let (one, two) = (first.at(0), second.at(0));
        pairs[0]
            .here(one, 8, WRITE)
            .write_bytes(one.addr, &[1; 8])
            .unwrap();
        pairs[other]
            .here(two, 8, WRITE)
            .write_bytes(two.addr + 8, &[2; 8])
            .unwrap();
        let held = pairs[other].imports.find(two.key).expect("known");
        first.revoke(&mut memory);
        assert_eq!(held.write_bytes(two.addr, &[3; 8]), Err(Stop::Changed));
        assert!(matches!(pairs[other].reach(two, 8, WRITE), Reach::Delegate));
        let source = memory_of(&[4; 8]);
        let exports = &pairs[other].exports;
        exports
            .execute_write(two.key, two.addr + 16, &source, 0, 8)
            .unwrap();
        let into = Memory::allocate(32);
        pairs[other]
            .here(two, 32, READ)
            .read(two.addr, &into, 0, 32)
            .unwrap();
        let mut expected = [0; 32];
        expected[..8].fill(1);
        expected[8..16].fill(2);
        expected[16..24].fill(4);
        assert_eq!(bytes(&into, 0, 32), expected);
        second.revoke(&mut memory);
    }
}

/// A region for local work only, of memory that peers reach by another key: its end is nobody's affair.
#[test]
fn the_end_of_a_local_registration_disturbs_no_peer() {
    let mut pair = Pair::new();
    let mut memory = Memory::allocate(100_000);
    let region = pair.register(&mut memory, Access::all());
    let local = pair.register(&mut memory.clone(), Access::LOCAL);
    let at = region.at(0);
    pair.here(at, 8, WRITE);
    local.deregister();
    memory.clone().discard();
    pair.here(at, 8, WRITE)
        .write_bytes(at.addr, &[1; 8])
        .unwrap();
    assert_eq!(bytes(&memory, 0, 8), [1; 8]);
}

#[test]
fn foreign_memory_is_read_from_here_and_written_by_its_owner() {
    let mut pair = Pair::new();
    let mut host = vec![7_u8; 1000];
    let base = NonNull::new(host.as_mut_ptr()).unwrap();
    // SAFETY: the vector outlives the handles and is not looked at while they live.
    let mut memory = unsafe { Memory::foreign(base, 1000, true) };
    let region = pair.register(&mut memory, Access::all());
    let at = region.at(1);
    let into = Memory::allocate(10);
    pair.here(at, 10, READ).read(at.addr, &into, 0, 10).unwrap();
    assert_eq!(bytes(&into, 0, 10), [7; 10]);
    assert!(matches!(pair.reach(at, 10, WRITE), Reach::Delegate));
    let source = memory_of(&(0..100).collect::<Vec<u8>>());
    let write = |len| {
        let exports = &pair.exports;
        exports.execute_write(at.key, at.addr, &source, 0, len)
    };
    assert_eq!(write(100), Ok(()));
    assert_eq!(write(1000), Err(Status::RemoteAccess));
    assert_eq!(bytes(&memory, 1, 100), bytes(&source, 0, 100));
    pair.imports.process().forbid();
    assert!(matches!(pair.reach(at, 10, READ), Reach::Delegate));
    pair.exports
        .execute_read(at.key, at.addr, &into, 0, 10)
        .unwrap();
    assert_eq!(bytes(&into, 0, 10), bytes(&source, 0, 10));
    drop(region);
}

#[test]
fn a_file_is_read_where_it_lies_and_its_truncation_is_an_error() {
    let mut pair = Pair::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![9; 50_000]).unwrap();
    let mapping = FileMapping::open_read(file.path()).unwrap();
    let region = pair.register(&mut mapping.memory().clone(), READ);
    let at = region.at(0);
    let into = Memory::allocate(50_000);
    pair.here(at, 50_000, READ)
        .read(at.addr, &into, 0, 50_000)
        .unwrap();
    assert_eq!(bytes(&into, 0, 50_000), vec![9; 50_000]);
    assert_eq!(pair.imports.size(), (1, 50_000));
    file.as_file().set_len(0).unwrap();
    let import = pair.here(at, 50_000, READ);
    let failed = import.read(at.addr, &into, 0, 50_000);
    assert_eq!(failed, Err(Stop::Failed(Status::RemoteOperation)));
    // The other way round: a file here that cannot take what is read.
    let mut memory = Memory::allocate(100_000);
    let region = pair.register(&mut memory, READ);
    let mapping = FileMapping::create(file.path(), 100_000).unwrap();
    mapping.file().set_len(0).unwrap();
    let at = region.at(0);
    let failed = pair
        .here(at, 100_000, READ)
        .read(at.addr, mapping.memory(), 0, 100_000);
    assert_eq!(failed, Err(Stop::Failed(Status::LocalProtection)));
}

/// Peers that execute and peers that map hammer a region while it goes; afterwards it is still.
#[test]
fn nothing_is_written_after_a_registration_has_ended() {
    for _ in 0..10 {
        let mut pair = Pair::new();
        let mut memory = Memory::allocate(200_000);
        let region = pair.register(&mut memory, Access::all());
        let at = region.at(0);
        pair.here(at, 8, WRITE);
        let import = pair.imports.find(at.key).expect("known");
        let exports = &pair.exports;
        let stop = AtomicBool::new(false);
        let source = memory_of(&[7; 200_000]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Refused once the key is gone.
                    let _ = exports.execute_write(at.key, at.addr, &source, 0, 200_000);
                }
            });
            scope.spawn(|| {
                for value in (0..=u8::MAX).cycle() {
                    // Changed once the key is gone; the bytes go where nobody looks.
                    let _ = import.write_bytes(at.addr, &[value; 4096]);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            while memory.load_u64(0) == Ok(0) {
                std::thread::yield_now();
            }
            region.revoke(&mut memory);
            let after = bytes(&memory, 0, 200_000);
            for _ in 0..50 {
                assert!(bytes(&memory, 0, 200_000) == after, "a write came late");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// What was acknowledged before the key went is in the memory that comes back.
#[test]
fn a_write_that_succeeded_is_not_lost_by_revoking() {
    for _ in 0..50 {
        let mut pair = Pair::new();
        let mut memory = Memory::allocate(4096 * 16);
        let region = pair.register(&mut memory, Access::all());
        let at = region.at(0);
        pair.here(at, 8, WRITE);
        let import = pair.imports.find(at.key).expect("known");
        let writer = std::thread::spawn(move || {
            let mut succeeded = 0;
            for value in 1..=u64::MAX {
                let place = at.addr + value % 16 * 4096;
                if import.write_bytes(place, &value.to_ne_bytes()).is_err() {
                    break;
                }
                succeeded = value;
            }
            succeeded
        });
        while memory.load_u64(0) == Ok(0) {
            std::hint::spin_loop();
        }
        region.revoke(&mut memory);
        let succeeded = writer.join().unwrap();
        let last = memory.load_u64((succeeded % 16 * 4096) as usize);
        assert_eq!(last, Ok(succeeded), "a successful write was lost");
    }
}

#[test]
fn what_nobody_uses_is_forgotten_when_there_is_no_room() {
    let mut pair = Pair::with_limits(Limits {
        regions: 4,
        bytes: 10_000,
    });
    let mut memories: Vec<_> = (0..8).map(|_| Memory::allocate(1000)).collect();
    let regions: Vec<_> = memories
        .iter_mut()
        .map(|memory| pair.register(memory, Access::all()))
        .collect();
    for region in &regions {
        assert_eq!(pair.ask(region.remote_key()), Learned::Known);
    }
    assert_eq!(pair.imports.size().0, 4);
    // What is held stays, and what comes then is not mapped, but reached.
    let held: Vec<_> = regions[4..]
        .iter()
        .map(|region| pair.imports.find(region.remote_key()).expect("known"))
        .collect();
    assert!(matches!(
        pair.reach(regions[0].at(0), 8, WRITE),
        Reach::Delegate
    ));
    assert!(held.iter().all(|import| import.is_current()));
    drop(held);
    // Too large at all.
    let mut large = Memory::allocate(20_000);
    let region = pair.register(&mut large, Access::all());
    assert!(matches!(
        pair.reach(region.at(0), 8, WRITE),
        Reach::Delegate
    ));
    let (_, mapped) = pair.imports.size();
    assert!(mapped <= 10_000);
}

#[test]
fn revoked_regions_do_not_pile_up() {
    let mut pair = Pair::new();
    for _ in 0..500 {
        let mut memory = Memory::allocate(5000);
        let region = pair.register(&mut memory, Access::all());
        let at = region.at(0);
        pair.here(at, 8, WRITE)
            .write_bytes(at.addr, &[1; 8])
            .unwrap();
        region.revoke(&mut memory);
    }
    let (known, _) = pair.imports.size();
    assert!(known <= 33, "{known} regions are kept that no longer stand");
}

#[test]
fn a_hostile_answer_is_refused() {
    let pair = Pair::new();
    let mut memory = Memory::allocate(8192);
    let region = pair.register(&mut memory, Access::all());
    let key = region.remote_key();
    let honest = pair.exports.answer(key);
    let learn = |key, change: &dyn Fn(&mut Vec<u8>), files| {
        let mut bytes = honest.bytes.clone();
        change(&mut bytes);
        pair.imports.learn(key, &bytes, files)
    };
    let files = || descriptors(&honest);
    let none = |_: &mut Vec<u8>| {};
    let plain = || vec![tempfile::tempfile().unwrap().into()];
    assert_eq!(
        learn(key ^ 1, &none, files()),
        Err(HostileAnswer),
        "another key"
    );
    assert_eq!(
        learn(key, &none, vec![]),
        Err(HostileAnswer),
        "no descriptor"
    );
    let two = files().into_iter().chain(files()).collect();
    assert_eq!(
        learn(key, &none, two),
        Err(HostileAnswer),
        "two descriptors"
    );
    assert_eq!(
        learn(key, &none, plain()),
        Err(HostileAnswer),
        "a file that is not sealed"
    );
    let place = |bytes: &mut Vec<u8>| bytes[4..8].fill(0xff);
    assert_eq!(
        learn(key, &place, files()),
        Err(HostileAnswer),
        "no such word"
    );
    let len = |bytes: &mut Vec<u8>| bytes[33] = 0x21;
    assert_eq!(
        learn(key, &len, files()),
        Err(HostileAnswer),
        "longer than the file"
    );
    let file = |bytes: &mut Vec<u8>| bytes[0] = 2;
    assert_eq!(
        learn(key, &file, plain()),
        Err(HostileAnswer),
        "a file to be written"
    );
    let foreign = |bytes: &mut Vec<u8>| bytes[0] = 3;
    assert_eq!(
        learn(key, &foreign, files()),
        Err(HostileAnswer),
        "foreign, with a file"
    );
    assert_eq!(
        learn(key, &|bytes| bytes.truncate(40), files()),
        Err(HostileAnswer)
    );
    assert_eq!(pair.imports.size(), (0, 0));
    assert_eq!(learn(key, &none, files()), Ok(Learned::Known));
    let hello = pair.exports.hello();
    let greet = |bytes: &[u8], files| Imports::new(own_pid(), bytes, files).is_ok();
    assert!(!greet(&hello.bytes[1..], descriptors(&hello)));
    assert!(!greet(&hello.bytes, vec![]));
    assert!(!greet(&hello.bytes, plain()));
    assert!(!greet(&hello.bytes, files()), "a table that is too short");
}

#[test]
fn more_regions_than_descriptors_are_all_reached() {
    const CHILD: &str = "RINGMAIL_SHM_TEST_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "region::tests::more_regions_than_descriptors_are_all_reached",
            ])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let few = libc::rlimit {
        rlim_cur: 100,
        rlim_max: 100,
    };
    // SAFETY: sets a limit of this process, which ends with this test.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) };
    let mut pair = Pair::with_limits(Limits {
        regions: 2000,
        bytes: 1 << 40,
    });
    let mut memories: Vec<_> = (0..1000).map(|_| Memory::allocate(64)).collect();
    let mut here = 0;
    let regions: Vec<_> = memories
        .iter_mut()
        .map(|memory| pair.register(memory, Access::all()))
        .collect();
    // The descriptors that are left are enough to hand each over.
    drop(
        memories
            .drain(..20)
            .zip(regions.iter())
            .map(|(memory, region)| {
                region.deregister();
                memory.discard();
            })
            .collect::<Vec<_>>(),
    );
    for (index, (memory, region)) in memories.iter().zip(&regions[20..]).enumerate() {
        let at = region.at(8);
        let value = index as u64;
        match pair.reach(at, 8, WRITE) {
            Reach::Here(import) => {
                here += 1;
                import.write_bytes(at.addr, &value.to_ne_bytes()).unwrap();
            }
            Reach::Delegate => {
                let source = memory_of(&value.to_ne_bytes());
                let exports = &pair.exports;
                exports
                    .execute_write(at.key, at.addr, &source, 0, 8)
                    .unwrap();
            }
            other => panic!("region {index}: {other:?}"),
        }
        assert_eq!(memory.load_u64(8), Ok(value));
    }
    assert!(here > 20 && here < 100, "{here} of 980 were mapped");
}
