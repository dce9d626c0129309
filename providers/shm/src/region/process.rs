//! A peer's process, whose memory is read with `process_vm_readv(2)` where that is permitted.
//!
//! The right is that of a debugger (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS): the same user, and, where the Yama module is
//! in force, leave given by the process that is read (`PR_SET_PTRACER`, which holds for one process at a time). So it is
//! tried on a word that the peer named in its greeting, at the first use, and given up at the first refusal.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use mem::Memory;

/// A word in the memory of its sender, and its value.
pub(super) struct Greeting {
    /// Keeps the word where it is.
    word: Memory,
    value: u64,
}

pub(super) const GREETING_LEN: usize = 16;

impl Greeting {
    pub(super) fn new(value: u64) -> Self {
        let word = Memory::allocate(8);
        word.store_u64(0, value).expect("eight bytes");
        Self { word, value }
    }

    pub(super) fn to_bytes(&self) -> [u8; GREETING_LEN] {
        let mut bytes = [0; GREETING_LEN];
        bytes[..8].copy_from_slice(&self.word.addr().to_le_bytes());
        bytes[8..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// Another process.
pub(super) struct Process {
    pid: libc::pid_t,
    probe: [u64; 2],
    permission: AtomicU8,
}

/// Why another process's memory was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It is not permitted, and will not be.
    NotPermitted,
    /// The address is not that process's, or the place to read to is not ours; or the process is gone.
    Failed,
}

impl Process {
    /// The process that sent the greeting; `None` if it is none.
    pub(super) fn new(pid: libc::pid_t, greeting: &[u8]) -> Option<Self> {
        let greeting: &[u8; GREETING_LEN] = greeting.try_into().ok()?;
        let (words, _) = greeting.as_chunks::<8>();
        // One that has no number here can neither be read nor be given leave.
        let permission = if pid > 0 { UNTRIED } else { REFUSED };
        if permission == UNTRIED {
            allow(pid);
        }
        Some(Self {
            pid,
            probe: [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])],
            permission: AtomicU8::new(permission),
        })
    }

    /// Whether its memory can be read from here.
    pub(super) fn may_read(&self) -> bool {
        // Relaxed: a mere hint; whoever is late tries and is refused.
        match self.permission.load(Ordering::Relaxed) {
            UNTRIED => self.probe(),
            permission => permission == PERMITTED,
        }
    }

    #[cold]
    fn probe(&self) -> bool {
        let word = Memory::allocate(8);
        let [addr, value] = self.probe;
        let read = self.read(addr, &word, 0, 8).is_ok() && word.load_u64(0) == Ok(value);
        let permission = if read { PERMITTED } else { REFUSED };
        self.permission.store(permission, Ordering::Relaxed);
        read
    }

    /// Copies `len` bytes at `addr` of that process to `into`, in no particular order.
    pub(super) fn read(
        &self,
        addr: u64,
        into: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<(), ReadError> {
        let (base, len) = into.iovec_mut(offset, len).map_err(|_| ReadError::Failed)?;
        let addr = usize::try_from(addr).map_err(|_| ReadError::Failed)?;
        let mut done = 0;
        while done < len {
            let local = libc::iovec {
                iov_base: base.wrapping_add(done).cast(),
                iov_len: len - done,
            };
            let remote = libc::iovec {
                iov_base: std::ptr::without_provenance_mut(addr.wrapping_add(done)),
                iov_len: len - done,
            };
            // SAFETY: writes at most `len - done` bytes of `into`, which lives meanwhile and of which no reference exists; the
            // remote address means nothing here.
            let read = unsafe {
                libc::process_vm_readv(self.pid, &raw const local, 1, &raw const remote, 1, 0)
            };
            match usize::try_from(read) {
                Ok(0) => return Err(ReadError::Failed),
                Ok(read) => done += read,
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EPERM | libc::ENOSYS) => {
                        self.permission.store(REFUSED, Ordering::Relaxed);
                        return Err(ReadError::NotPermitted);
                    }
                    _ => return Err(ReadError::Failed),
                },
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn forbid(&self) {
        self.permission.store(REFUSED, Ordering::Relaxed);
    }
}

/// Lets a process read this one's memory, where Yama asks for leave. The last one named has it.
fn allow(pid: libc::pid_t) {
    let pid = libc::c_ulong::try_from(pid).unwrap_or(0);
    // SAFETY: a plain call. Without Yama it is refused, and not needed.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, pid, 0, 0, 0) };
}

const UNTRIED: u8 = 0;
const PERMITTED: u8 = 1;
const REFUSED: u8 = 2;
