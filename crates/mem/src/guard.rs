//! Turns the bus error of a truncated file mapping into a flag.
//!
//! Touching a mapped page that its file no longer has raises `SIGBUS`. Our handler, for an address in a guarded mapping,
//! puts a zeroed page there, marks the mapping poisoned and returns: the access goes on and its caller sees the mark.
//! Any other bus error goes to the handler that was there before.
//!
//! The handler must be async-signal-safe: it reads a table of atomics without locks and makes one system call. The table
//! grows by blocks that are never freed, so it can be read at any time.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock};

/// A mapping with its entry in the table. Unmaps on drop.
pub(crate) struct Guard {
    base: NonNull<u8>,
    mapped: usize,
    slot: &'static Slot,
}

impl Guard {
    /// Takes over a mapping of `mapped` bytes at `base` and watches it.
    ///
    /// # Safety
    /// - `base` and `mapped` are exactly what `mmap` answered and was asked; nobody else unmaps them.
    /// - Replacing a page of it by an anonymous one harms nobody.
    pub(crate) unsafe fn new(base: NonNull<u8>, mapped: usize) -> io::Result<Self> {
        install()?;
        let slot = Slot::claim();
        slot.watch(base.as_ptr().addr(), mapped);
        Ok(Self { base, mapped, slot })
    }

    /// Whether an access found a page missing.
    pub(crate) fn is_poisoned(&self) -> bool {
        // Relaxed: the handler runs on the thread that made the access, between it and this load.
        self.slot.poisoned.load(Ordering::Relaxed)
    }

    pub(crate) fn mapped(&self) -> usize {
        self.mapped
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours by the promise of `new`, and its last user is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
        self.slot.release();
    }
}

/// One guarded range. `version` is odd while the rest changes.
struct Slot {
    taken: AtomicBool,
    version: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
    poisoned: AtomicBool,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            taken: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    fn claim() -> &'static Self {
        let mut block: &'static Block = &FIRST;
        loop {
            for slot in &block.slots {
                if !slot.taken.swap(true, Ordering::Acquire) {
                    return slot;
                }
            }
            block = block.next_or_grow();
        }
    }

    fn watch(&self, start: usize, len: usize) {
        self.change(start, len);
    }

    fn release(&self) {
        self.change(0, 0);
        self.taken.store(false, Ordering::Release);
    }

    fn change(&self, start: usize, len: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // Release: pairs with the acquire fence in `contains`; a reader of new values sees the odd version.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// Whether the range holds `addr`. A slot in change never does: whoever faults keeps its own mapping's slot as it is.
    fn contains(&self, addr: usize) -> bool {
        // Acquire: pairs with the last store in `change`.
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        // Acquire: pairs with the release fence in `change`.
        fence(Ordering::Acquire);
        let unchanged = self.version.load(Ordering::Relaxed) == version;
        unchanged && version.is_multiple_of(2) && addr.wrapping_sub(start) < len
    }
}

struct Block {
    slots: [Slot; 64],
    next: AtomicPtr<Self>,
}

impl Block {
    const fn empty() -> Self {
        Self {
            slots: [const { Slot::empty() }; 64],
            next: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Self> {
        // Acquire: pairs with the exchange in `next_or_grow`.
        // SAFETY: null, or a block leaked by `next_or_grow`.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    fn next_or_grow(&self) -> &'static Self {
        if let Some(next) = self.next() {
            return next;
        }
        let block = Box::into_raw(Box::new(Self::empty()));
        // Release: pairs with the load in `next`.
        match self.next.compare_exchange(
            std::ptr::null_mut(),
            block,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            // SAFETY: just leaked, and never freed from here on.
            Ok(_) => unsafe { &*block },
            Err(other) => {
                // SAFETY: not published, so still only ours.
                drop(unsafe { Box::from_raw(block) });
                // SAFETY: published blocks are never freed.
                unsafe { &*other }
            }
        }
    }
}

static FIRST: Block = Block::empty();
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once a process.
fn install() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = INSTALLING.lock().expect("nothing below panics");
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: `sigaction` is a C struct for which zeroes are valid; the calls read and write the locals given.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Before ours is in place, so that the handler always finds it.
        let _ = PREVIOUS.set(previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `info`.
    let addr = unsafe { (*info).si_addr() }.addr();
    if !mend(addr) {
        // SAFETY: the arguments are those that the kernel gave us.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Puts a zeroed page at `addr` if a guarded mapping holds it.
fn mend(addr: usize) -> bool {
    let mut block = Some(&FIRST);
    while let Some(current) = block {
        for slot in &current.slots {
            if slot.contains(addr) {
                slot.poisoned.store(true, Ordering::Relaxed);
                return replace_page(addr);
            }
        }
        block = current.next();
    }
    false
}

fn replace_page(addr: usize) -> bool {
    // SAFETY: `sysconf`, `mmap` and errno's location are plain calls, safe in a handler here; the page replaced belongs to a
    // guarded mapping, whose owner agreed to it in `Guard::new`. errno is restored for the code that was interrupted.
    unsafe {
        let errno = errno_location();
        let saved = *errno;
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let start = addr & !(page - 1);
        let mended = libc::mmap(
            std::ptr::without_provenance_mut(start),
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        *errno = saved;
        mended != libc::MAP_FAILED
    }
}

#[cfg(any(target_os = "linux", target_os = "emscripten"))]
use libc::__errno_location as errno_location;
#[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
use libc::__error as errno_location;

/// Does what would have been done without us.
///
/// # Safety
/// - The arguments are those of a signal handler now running.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS
        .get()
        .expect("set before the handler was installed");
    let handler = previous.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The access faults again on return, and now ends the process as it would have.
        // SAFETY: restores an action that the kernel gave us; async-signal-safe.
        unsafe { libc::sigaction(signal, previous, std::ptr::null_mut()) };
        return;
    }
    // SAFETY: the kernel held this address as the handler of the kind that the flags say.
    unsafe {
        if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            call(signal);
        }
    }
}
