//! Memory that other processes of this machine map: moved into a memory file, handed out, taken back.
//!
//! [`Memory::share`] puts the bytes into a `memfd` that is sealed against resizing, so that whoever maps it never faults.
//! [`Memory::map`] is the other process's side; it believes nothing that it was told.
//!
//! # Taking back
//!
//! First nobody is given the file any more ([`Memory::withdraw`]), and those who have it are told. A peer's mapping cannot
//! be taken from it, so then the memory leaves instead ([`Memory::unshare`]): the same file is mapped
//! privately over the same addresses, and the kernel is told to write to each page, which gives us a copy of it. What a
//! peer that was stopped in the middle of a copy writes later goes to pages that nobody here looks at. The kernel makes
//! each copy together with the change of the page table, so nothing that this process writes meanwhile is lost: that is
//! why the copy is not ours, and why memory in use moves to private pages and never to another file.
//!
//! Linux alone has such files; elsewhere memory is not shared.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::memory::{Allocation, Kind};
use crate::resident::resident_runs;
use crate::{Memory, file};

/// Why memory was not shared. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There are other handles, and it may not move under them.
    #[error("memory has other handles and cannot move")]
    InUse,
    /// It is not ours to move: foreign memory, or a file that is mapped writable.
    #[error("memory is not ours to move")]
    Foreign,
    /// The system has no descriptor or no memory left, or no such files.
    #[error("memory could not be moved into a memory file")]
    System(#[source] io::Error),
}

/// Why a descriptor of another process was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Something else than was announced: no memory, not sealed, not a regular file, or not to be written.
    #[error("the descriptor is no {0}")]
    NotA(&'static str),
    /// There are fewer bytes than announced.
    #[error("{len} bytes were announced, but there are {size}")]
    TooShort {
        /// Bytes announced.
        len: u64,
        /// Bytes there are.
        size: u64,
    },
    /// The system refused.
    #[error("the descriptor could not be mapped")]
    System(#[from] io::Error),
}

/// What stands behind a descriptor that is given to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A memory file of a fixed size, by [`Memory::share`].
    Sealed,
    /// A file that is only read ([`crate::FileMapping::map_read`]). It may be truncated at any time.
    File,
}

impl Memory {
    /// Moves the bytes into a memory file, so that other processes can map them by [`Memory::descriptor`].
    ///
    /// Only this handle may exist. Large memory keeps its address, and of it only pages that were touched are copied;
    /// small memory moves. Memory that is shared already stays as it is, whatever handles there are, and so does a file
    /// that is mapped for reading.
    ///
    /// # Errors
    /// [`ShareError`]; the memory is as it was.
    pub fn share(&mut self) -> Result<(), ShareError> {
        if self.descriptor().is_some() {
            return Ok(());
        }
        match &self.allocation().kind {
            Kind::Heap(_) | Kind::Anonymous(_) | Kind::Shared(_) => {}
            Kind::File(..) | Kind::Peer(_) | Kind::Foreign => return Err(ShareError::Foreign),
        }
        let allocation = self.exclusive().ok_or(ShareError::InUse)?;
        let base = allocation.base;
        match &mut allocation.kind {
            Kind::Heap(_) => {
                *allocation = moved(allocation).map_err(ShareError::System)?;
                return Ok(());
            }
            Kind::Anonymous(mapped) => {
                let mapped = page_multiple(*mapped);
                // SAFETY: our own mapping, of which this is the only handle.
                let file = unsafe { share_in_place(base, mapped) }.map_err(ShareError::System)?;
                allocation.kind = Kind::Shared(Shared::new(mapped, file));
            }
            Kind::Shared(shared) => {
                // Withdrawn or private: as an anonymous mapping, once it is all private.
                shared.take_back(base, true);
                // SAFETY: as above.
                let file =
                    unsafe { share_in_place(base, shared.mapped) }.map_err(ShareError::System)?;
                allocation.kind = Kind::Shared(Shared::new(shared.mapped, file));
            }
            Kind::File(..) | Kind::Peer(_) | Kind::Foreign => return Err(ShareError::Foreign),
        }
        Ok(())
    }

    /// The file that another process maps to reach the bytes, from its beginning: of shared memory that was not
    /// withdrawn, and of a file mapped for reading.
    #[must_use]
    pub fn descriptor(&self) -> Option<(Arc<File>, Backing)> {
        match &self.allocation().kind {
            Kind::Shared(shared) => {
                let mut state = shared.lock();
                let State::Open { file, given } = &mut *state else {
                    return None;
                };
                *given = true;
                Some((Arc::clone(file), Backing::Sealed))
            }
            Kind::File(_, Some(file)) => Some((Arc::clone(file), Backing::File)),
            _ => None,
        }
    }

    /// Hands the bytes to nobody any more, until they are shared again. Answers whether somebody may have them mapped, whom only
    /// [`Memory::unshare`] will keep out; a file that is only read is not taken from those who have it.
    pub fn withdraw(&self) -> bool {
        let Kind::Shared(shared) = &self.allocation().kind else {
            return false;
        };
        let mut state = shared.lock();
        match std::mem::replace(&mut *state, State::Private) {
            State::Open { file, given } => *state = State::Withdrawn { file, given },
            other => *state = other,
        }
        matches!(*state, State::Withdrawn { given: true, .. })
    }

    /// Takes back what was withdrawn: when this returns, no other process reaches the bytes, whatever it still has mapped. The
    /// address and the content stay, also for other handles, which may be in use meanwhile. Waits for no process.
    ///
    /// If this is the only handle, pages that were never touched stay so; else they are made.
    ///
    /// Does nothing to other memory. Running out of memory aborts, as for a `Vec`.
    pub fn unshare(&mut self) {
        let Kind::Shared(shared) = &self.allocation().kind else {
            return;
        };
        if shared.is_open() {
            return;
        }
        let exclusive = self.exclusive().is_some();
        let allocation = self.allocation();
        if let Kind::Shared(shared) = &allocation.kind {
            shared.take_back(allocation.base, exclusive);
        }
    }

    /// Drops the handle. If there are others, what was withdrawn is taken back for them as by [`Memory::unshare`]; if not, the
    /// content is wanted by nobody and is not copied.
    pub fn discard(mut self) {
        if self.exclusive().is_none() {
            self.unshare();
        }
    }

    /// Maps `len` bytes that another process announced, from the beginning of the file that it gave.
    ///
    /// # Errors
    /// [`MapError`]: the file is not what it was said to be.
    pub fn map(file: File, len: u64, writable: bool, backing: Backing) -> Result<Self, MapError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(MapError::NotA("regular file"));
        }
        match backing {
            Backing::Sealed if !is_sealed(&file) => {
                return Err(MapError::NotA("sealed memory"));
            }
            Backing::File if writable => return Err(MapError::NotA("file to be written")),
            _ => {}
        }
        let size = metadata.len();
        if len > size {
            return Err(MapError::TooShort { len, size });
        }
        if backing == Backing::File {
            return Ok(file::map(&Arc::new(file), len, false)?);
        }
        let len = file::mappable(len)?;
        if len == 0 {
            return Ok(Self::allocate(0));
        }
        let mapped = page_multiple(len);
        let protection = if writable {
            READ_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { map_at(None, mapped, protection, libc::MAP_SHARED, Some(&file)) }?;
        Ok(Self::of(Allocation {
            base,
            len,
            kind: Kind::Peer(mapped),
            writable,
        }))
    }
}

/// The file behind shared memory.
pub(crate) struct Shared {
    /// Bytes of the mapping and of the file: whole pages.
    pub(crate) mapped: usize,
    /// Held while the memory is taken back: whoever asks for that too returns when it is done.
    state: Mutex<State>,
}

enum State {
    /// Whoever asks gets the file; `given` says that somebody did.
    Open { file: Arc<File>, given: bool },
    /// Nobody gets it any more, but those who have it reach the memory.
    Withdrawn { file: Arc<File>, given: bool },
    /// The pages are this process's own.
    Private,
}

impl Shared {
    fn new(mapped: usize, file: File) -> Self {
        let state = State::Open {
            file: Arc::new(file),
            given: false,
        };
        Self {
            mapped,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under the lock panics")
    }

    fn is_open(&self) -> bool {
        matches!(*self.lock(), State::Open { .. })
    }

    /// Makes the pages private. `exclusive`: nobody in this process accesses them meanwhile.
    fn take_back(&self, base: NonNull<u8>, exclusive: bool) {
        let mut state = self.lock();
        let (file, given) = match std::mem::replace(&mut *state, State::Private) {
            State::Open { file, given } | State::Withdrawn { file, given } => (file, given),
            State::Private => return,
        };
        // SAFETY: our own mapping of this file, as long as it. The content stays; `exclusive` is the caller's word.
        unsafe { make_private(&file, base, self.mapped, exclusive) };
        if given {
            forget_pages(&file, self.mapped);
        }
    }

    /// Unmaps the memory; pages that a peer still maps do not outlive it.
    ///
    /// # Safety
    /// - `base` is where this memory is mapped, and nobody uses it any more.
    pub(crate) unsafe fn unmap(&mut self, base: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(base.as_ptr().cast(), self.mapped) };
        let state = self.state.get_mut().expect("nothing under the lock panics");
        if let State::Open { file, given: true } | State::Withdrawn { file, given: true } = state {
            forget_pages(file, self.mapped);
        }
    }
}

/// A copy of a small allocation in a memory file.
fn moved(from: &Allocation) -> io::Result<Allocation> {
    let mapped = page_multiple(from.len.max(1));
    let file = memory_file(mapped)?;
    // SAFETY: in bounds and initialised; the caller has the only handle, so nobody writes meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(from.base.as_ptr(), from.len) };
    file.write_all_at(bytes, 0)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe { map_at(None, mapped, READ_WRITE, libc::MAP_SHARED, Some(&file)) }?;
    Ok(Allocation {
        base,
        len: from.len,
        kind: Kind::Shared(Shared::new(mapped, file)),
        writable: true,
    })
}

/// Puts a memory file with the same content in the place of a private mapping.
///
/// # Safety
/// - The `mapped` bytes at `base` are a private mapping of our own, whole pages, which nobody accesses meanwhile.
unsafe fn share_in_place(base: NonNull<u8>, mapped: usize) -> io::Result<File> {
    let file = memory_file(mapped)?;
    let runs = resident_runs(base, mapped);
    for run in &runs {
        // SAFETY: within the mapping, which nobody accesses meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(base.as_ptr().add(run.start), run.len()) };
        file.write_all_at(bytes, run.start as u64)?;
    }
    // SAFETY: replaces a mapping of our own by one with the same content.
    unsafe {
        map_at(
            Some(base),
            mapped,
            READ_WRITE,
            libc::MAP_SHARED,
            Some(&file),
        )
    }?;
    for run in runs {
        // What was touched before is at hand again. A hint: its failure costs time only.
        // SAFETY: populating changes no byte.
        unsafe {
            libc::madvise(
                base.as_ptr().add(run.start).cast(),
                run.len(),
                libc::MADV_POPULATE_WRITE,
            );
        }
    }
    Ok(file)
}

/// Maps the file privately over its own mapping and gives this process a copy of each page.
///
/// # Safety
/// - The `mapped` bytes at `base` are our shared mapping of `file`, from its beginning.
/// - If `exclusive`, nobody in this process accesses them meanwhile.
unsafe fn make_private(file: &File, base: NonNull<u8>, mapped: usize, exclusive: bool) {
    // SAFETY: replaces our own mapping by one of the same file; accesses of this process find the one or the other.
    let private = unsafe {
        map_at(
            Some(base),
            mapped,
            READ_WRITE,
            libc::MAP_PRIVATE,
            Some(file),
        )
    };
    if let Err(error) = private {
        out_of_memory(mapped, &error);
    }
    let mut at = 0;
    while at < mapped {
        let data = if exclusive {
            next_data(file, at, mapped)
        } else {
            at..mapped
        };
        // SAFETY: untouched pages of a mapping of our own, which nobody accesses meanwhile, become fresh untouched pages.
        let fresh = data.start == at
            || unsafe {
                let hole = base.add(at);
                map_at(
                    Some(hole),
                    data.start - at,
                    READ_WRITE,
                    libc::MAP_PRIVATE,
                    None,
                )
                .is_ok()
            };
        let from = if fresh { data.start } else { at };
        // SAFETY: within the mapping.
        unsafe { own_pages(base.add(from), data.end - from) };
        at = data.end;
    }
}

/// The next range from `at` that has pages, in whole pages; short gaps are left in. Empty and at the end if there is none.
fn next_data(file: &File, at: usize, mapped: usize) -> std::ops::Range<usize> {
    let seek = |from: usize, whence| {
        let from = libc::off_t::try_from(from).expect("no more than isize::MAX bytes");
        // SAFETY: a call on an open descriptor.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
        usize::try_from(found).map(|found| found.min(mapped))
    };
    // ENXIO: nothing but hole up to the end. Any other error is as good as "all data".
    let none = || io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO);
    let start = match seek(at, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(_) if none() => return mapped..mapped,
        Err(_) => at,
    };
    let mut end = start;
    loop {
        end = seek(end, libc::SEEK_HOLE).unwrap_or(mapped);
        match seek(end, libc::SEEK_DATA) {
            Ok(next) if end < mapped && next < mapped && next - end < SHORT_GAP => end = next,
            _ => return start..end,
        }
    }
}

/// Has each page of a private mapping copied from its file.
///
/// # Safety
/// - The range is mapped privately and writable, in whole pages.
unsafe fn own_pages(start: NonNull<u8>, len: usize) {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(OWN_AT_ONCE);
        // SAFETY: writing to a page without changing it is what populating does.
        let failed = unsafe {
            libc::madvise(
                start.as_ptr().add(done).cast(),
                part,
                libc::MADV_POPULATE_WRITE,
            ) != 0
        };
        if failed {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => continue,
                // Before Linux 5.14.
                // SAFETY: the caller's promise.
                Some(libc::EINVAL) => unsafe { touch_pages(start.add(done), part) },
                _ => out_of_memory(len, &error),
            }
        }
        done += part;
    }
}

/// As populating, page by page: an atomic write that changes nothing.
///
/// # Safety
/// - The range is mapped writable, in whole pages.
unsafe fn touch_pages(start: NonNull<u8>, len: usize) {
    for at in (0..len).step_by(page()) {
        // SAFETY: an aligned word of the range, accessed as the crate's invariant says.
        unsafe {
            std::sync::atomic::AtomicU64::from_ptr(start.as_ptr().add(at).cast())
                .fetch_or(0, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// Frees the pages of a file that only peers still map; they find zeros there.
fn forget_pages(file: &File, len: usize) {
    let len = libc::off_t::try_from(len).expect("no more than isize::MAX bytes");
    // SAFETY: a call on an open descriptor. If it fails, the pages live as long as the peers' mappings.
    unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            0,
            len,
        );
    }
}

/// A new memory file of `len` zeroed bytes whose size cannot change.
fn memory_file(len: usize) -> io::Result<File> {
    let create = |flags| {
        // SAFETY: the name ends in a zero; a new descriptor answers it, or -1.
        let fd = unsafe { libc::memfd_create(c"ringmail".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and ours.
        Ok(unsafe { File::from_raw_fd(fd) })
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Before Linux 6.3 the flag is not known.
    let file = match create(flags | libc::MFD_NOEXEC_SEAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => create(flags),
        other => other,
    }?;
    file.set_len(len as u64)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: a call on an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Whether a file can never become shorter: no access to a mapping of it faults.
fn is_sealed(file: &File) -> bool {
    // SAFETY: a call on an open descriptor.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return false;
    }
    // Files of huge pages have seals too, but can run out of pages when touched.
    // SAFETY: `statfs` is a C struct for which zeroes are valid; the call writes the local given.
    unsafe {
        let mut system: libc::statfs = std::mem::zeroed();
        libc::fstatfs(file.as_raw_fd(), &raw mut system) == 0 && system.f_type == libc::TMPFS_MAGIC
    }
}

/// Maps `len` bytes of a file from its beginning, or fresh ones.
///
/// # Safety
/// - If `at` is given, the range is ours to replace.
unsafe fn map_at(
    at: Option<NonNull<u8>>,
    len: usize,
    protection: libc::c_int,
    flags: libc::c_int,
    file: Option<&File>,
) -> io::Result<NonNull<u8>> {
    let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
    let anonymous = if file.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    // SAFETY: the caller's promise.
    let base = unsafe {
        libc::mmap(
            at.map_or(std::ptr::null_mut(), |at| at.as_ptr().cast()),
            len,
            protection,
            flags | fixed | anonymous,
            file.map_or(-1, |file| file.as_raw_fd()),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(base.cast()).expect("mmap chooses no null address"))
}

fn out_of_memory(len: usize, error: &io::Error) -> ! {
    // Half taken back: neither the peers' nor ours. There is no way on, as when a `Vec` cannot grow.
    eprintln!("taking back {len} shared bytes: {error}");
    std::process::abort()
}

pub(crate) fn page() -> usize {
    // SAFETY: a plain call.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("pages have a size")
}

fn page_multiple(len: usize) -> usize {
    len.next_multiple_of(page())
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Untouched gaps up to here are made with their neighbours: each gap kept is a mapping of its own, of which a process has
/// 65,530 at most.
const SHORT_GAP: usize = 2 << 20;

/// Populating answers an interruption at once only between calls.
const OWN_AT_ONCE: usize = 64 << 20;

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::resident::resident_runs;
    use crate::{AccessError, Buf, FileMapping};
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    const LARGE: usize = 1 << 20;

    /// Shared memory and what a peer sees of it.
    fn shared(mut memory: Memory) -> (Memory, Memory) {
        memory.share().expect("memory of our own with one handle");
        let peer = peer(&memory);
        (memory, peer)
    }

    fn peer(memory: &Memory) -> Memory {
        let (file, backing) = memory.descriptor().expect("shared");
        assert_eq!(backing, Backing::Sealed);
        Memory::map(
            file.try_clone().unwrap(),
            memory.len() as u64,
            true,
            backing,
        )
        .unwrap()
    }

    fn content(memory: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; memory.len()];
        memory.copy_out(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_peer_sees_what_was_there_and_what_comes() {
        for len in [1, 8, 5000, 70_001, LARGE] {
            let before: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
            let (memory, peer) = shared(Buf::from(&before[..]).into_memory());
            assert_eq!(content(&memory), before);
            assert_eq!(content(&peer), before);
            memory.copy_in(len - 1, &[0xaa]).unwrap();
            peer.copy_in(0, &[0xbb]).unwrap();
            assert_eq!(content(&memory), content(&peer));
            assert_eq!(content(&peer)[0], 0xbb);
        }
    }

    #[test]
    fn large_memory_keeps_its_address_and_untouched_pages_stay_untouched() {
        let mut memory = Memory::allocate(1 << 30);
        memory.copy_in(500_000_000, &[7; 10_000]).unwrap();
        let addr = memory.addr();
        memory.share().unwrap();
        assert_eq!(memory.addr(), addr);
        let (file, _) = memory.descriptor().unwrap();
        let in_use = file.metadata().unwrap().blocks() * 512;
        assert!(in_use <= 4 * page() as u64, "{in_use} bytes were copied");
        memory.withdraw();
        memory.unshare();
        let runs = resident_runs(memory.base(), 1 << 30);
        let resident: usize = runs.iter().map(std::ops::Range::len).sum();
        assert!(resident <= 4 * page(), "{resident} bytes were made");
        let mut bytes = [0; 10_000];
        memory.copy_out(500_000_000, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 10_000]);
    }

    #[test]
    fn what_was_taken_back_is_beyond_a_peers_reach() {
        for len in [100, LARGE] {
            let (mut memory, peer) = shared(Memory::allocate(len));
            peer.copy_in(0, &[1; 50]).unwrap();
            memory.unshare();
            peer.copy_in(1, &[1; 2]).expect("open: nothing happens");
            memory.withdraw();
            memory.unshare();
            peer.copy_in(0, &[2; 100]).unwrap();
            memory.copy_in(90, &[3; 10]).unwrap();
            let mut expected = [0; 100];
            expected[..50].fill(1);
            expected[90..].fill(3);
            assert_eq!(content(&memory)[..100], expected);
            assert_eq!(content(&peer)[..100], [2; 100]);
            let buf = Buf::try_from(memory).expect("private again");
            assert_eq!(buf[..100], expected);
        }
    }

    #[test]
    fn shared_memory_becomes_a_buf_only_by_being_taken_back() {
        let (memory, peer) = shared(Memory::allocate(LARGE));
        peer.store_u64(8, 5).unwrap();
        let buf = Buf::try_from(memory).expect("the last handle");
        peer.store_u64(8, 6).unwrap();
        assert_eq!(buf[8], 5);
        assert!(
            Buf::try_from(peer).is_err(),
            "a peer's memory is never ours"
        );
    }

    #[test]
    fn memory_can_be_shared_taken_back_and_shared_again() {
        let (mut memory, first) = shared(Memory::allocate(LARGE));
        first.store_u64(0, 1).unwrap();
        memory.withdraw();
        memory.unshare();
        assert!(memory.descriptor().is_none());
        memory.share().unwrap();
        let second = peer(&memory);
        first.store_u64(0, 2).unwrap();
        assert_eq!(second.load_u64(0), Ok(1));
        second.store_u64(8, 3).unwrap();
        assert_eq!(memory.load_u64(8), Ok(3));
        assert_eq!(memory.load_u64(0), Ok(1));
    }

    #[test]
    fn memory_with_other_handles_stays_where_it_is() {
        let mut memory = Memory::allocate(LARGE);
        let other = memory.clone();
        assert!(matches!(memory.share(), Err(ShareError::InUse)));
        drop(other);
        memory.share().unwrap();
        let mut other = memory.clone();
        other.share().expect("it is shared already");
    }

    #[test]
    fn withdrawn_memory_is_given_to_nobody() {
        let mut memory = Memory::allocate(LARGE);
        memory.share().unwrap();
        assert!(!memory.withdraw(), "nobody was given it");
        assert!(memory.descriptor().is_none());
        memory.share().unwrap();
        let peer = peer(&memory);
        assert!(memory.withdraw(), "somebody was given it");
        assert!(memory.descriptor().is_none());
        let mut other = memory.clone();
        assert!(matches!(other.share(), Err(ShareError::InUse)));
        other.discard();
        peer.store_u64(0, 1).unwrap();
        assert_eq!(
            memory.load_u64(0),
            Ok(0),
            "discarding took it back for the rest"
        );
    }

    #[test]
    fn pages_of_discarded_memory_do_not_live_on_in_a_peers_mapping() {
        let (memory, peer) = shared(Memory::allocate(LARGE));
        memory.populate(0, LARGE).unwrap();
        let (file, _) = memory.descriptor().unwrap();
        assert!(file.metadata().unwrap().blocks() > 0);
        memory.discard();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        peer.copy_in(0, &[1; 10])
            .expect("no fault: zeros are there");
    }

    #[test]
    fn the_owners_writes_while_memory_is_taken_back_are_kept() {
        const WORDS: usize = LARGE / 4096;
        for _ in 0..20 {
            let (memory, peer) = shared(Memory::allocate(LARGE));
            let stop = AtomicBool::new(false);
            let add = || {
                let memory = &memory;
                for added in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return added;
                    }
                    let at = added as usize % WORDS * 4096;
                    memory.fetch_add(at, 1).expect("in bounds");
                }
                0
            };
            let added: u64 = std::thread::scope(|scope| {
                let writers = [scope.spawn(add), scope.spawn(add)];
                while memory.load_u64(LARGE - 4096) == Ok(0) {
                    std::thread::yield_now();
                }
                memory.withdraw();
                memory.clone().unshare();
                stop.store(true, Ordering::Relaxed);
                writers.into_iter().map(|one| one.join().unwrap()).sum()
            });
            let kept = |at| memory.load_u64(at * 4096).unwrap();
            assert_eq!((0..WORDS).map(kept).sum::<u64>(), added);
            drop(peer);
        }
    }

    #[test]
    fn a_file_that_is_only_read_can_be_given() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![9; 10_000]).unwrap();
        let mapping = FileMapping::open_read(file.path()).unwrap();
        let (given, backing) = mapping.memory().descriptor().unwrap();
        assert_eq!(backing, Backing::File);
        let given = || given.try_clone().unwrap();
        let peer = Memory::map(given(), 10_000, false, backing).unwrap();
        peer.populate_read(0, 10_000).unwrap();
        assert_eq!(content(&peer), vec![9; 10_000]);
        assert_eq!(peer.copy_in(0, &[1]), Err(AccessError::ReadOnly));
        assert!(Memory::map(given(), 10_001, false, backing).is_err());
        assert!(Memory::map(given(), 10_000, true, backing).is_err());
        file.as_file().set_len(0).unwrap();
        assert_eq!(peer.copy_out(0, &mut [0; 8]), Err(AccessError::Fault));
        let mut memory = mapping.memory().clone();
        memory.share().expect("nothing needs to be done");
        let writable = FileMapping::map_write(file.reopen().unwrap(), 10).unwrap();
        assert!(writable.memory().descriptor().is_none());
    }

    #[test]
    fn what_is_not_what_it_was_said_to_be_is_not_mapped() {
        let refused = |file: &File, len, backing| {
            let file = file.try_clone().unwrap();
            Memory::map(file, len, false, backing).expect_err("hostile")
        };
        // Not sealed: it could be cut off under whoever maps it.
        // SAFETY: a new descriptor, ours.
        let unsealed = unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            File::from_raw_fd(libc::memfd_create(c"hostile".as_ptr(), flags))
        };
        unsealed.set_len(8192).unwrap();
        let error = refused(&unsealed, 8192, Backing::Sealed);
        assert!(matches!(error, MapError::NotA(_)), "{error}");
        // Too short, by one byte and by much.
        let sealed = memory_file(page()).unwrap();
        for len in [page() as u64 + 1, u64::MAX] {
            let error = refused(&sealed, len, Backing::Sealed);
            assert!(matches!(error, MapError::TooShort { .. }), "{error}");
        }
        // A plain file as memory, and things that are no files at all.
        let plain = tempfile::tempfile().unwrap();
        plain.set_len(8192).unwrap();
        let directory = File::open("/").unwrap();
        let device = File::open("/dev/zero").unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        for file in [&plain, &directory, &device, &pipe] {
            let error = refused(file, 4096, Backing::Sealed);
            assert!(matches!(error, MapError::NotA(_)), "{error}");
        }
        for file in [&directory, &device, &pipe] {
            let error = refused(file, 4096, Backing::File);
            assert!(matches!(error, MapError::NotA(_)), "{error}");
        }
        // A descriptor that only names a file, and one that may not be written.
        let named = File::open("/proc/self/exe").unwrap();
        let error = Memory::map(named, 8, true, Backing::File).unwrap_err();
        assert!(matches!(error, MapError::NotA(_)), "{error}");
    }

    #[test]
    fn out_of_descriptors_memory_stays_as_it_is() {
        const CHILD: &str = "RINGMAIL_MEM_TEST_DESCRIPTORS";
        if std::env::var_os(CHILD).is_none() {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "shared::tests::out_of_descriptors_memory_stays_as_it_is",
                ])
                .env(CHILD, "1")
                .status()
                .unwrap();
            assert!(status.success());
            return;
        }
        let few = libc::rlimit {
            rlim_cur: 20,
            rlim_max: 20,
        };
        // SAFETY: sets a limit of this process, which ends with this test.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) };
        let mut all: Vec<_> = (0..30).map(|_| Memory::allocate(64)).collect();
        let shared = all
            .iter_mut()
            .filter_map(|memory| memory.share().ok())
            .count();
        assert!(shared > 0 && shared < 20);
        let memory = all.last_mut().unwrap();
        assert!(matches!(memory.share(), Err(ShareError::System(_))));
        memory.store_u64(0, 1).unwrap();
        assert_eq!(memory.load_u64(0), Ok(1));
    }
}
