//! A barrier that the owner executes for its peers, so that they need none: `membarrier(2)`.
//!
//! A peer writes data and then looks whether the key still stands. Its processor may look first and write later, which only a
//! full barrier between the two would prevent; that would cost each small write more than the write itself. Instead the
//! owner, which revokes seldom, interrupts the processors on which peers run: after that, whatever a peer wrote before it
//! looked is written.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

/// Orders the writes before it to a peer's memory before the look at the key after it, together with [`for_peers`].
#[inline]
pub(super) fn after_access() {
    if *REGISTERED.get().unwrap_or(&false) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Has this process take part in the barriers of others. Called before anything is imported.
pub(super) fn register() {
    REGISTERED.get_or_init(|| call(REGISTER_GLOBAL_EXPEDITED));
}

/// Passes a full barrier on each processor that runs a process that takes part, and here.
pub(super) fn for_peers() {
    fence(Ordering::SeqCst);
    // Refused (a kernel before 4.16, a sandbox): then peers could not register either, and pass their own.
    call(GLOBAL_EXPEDITED);
}

fn call(command: libc::c_int) -> bool {
    // SAFETY: a plain call without pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

static REGISTERED: OnceLock<bool> = OnceLock::new();

const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;
