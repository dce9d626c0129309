//! A descriptor that becomes readable when something happened: wakes sleepers in `poll(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A flag with a file descriptor: readable once raised, until lowered.
#[derive(Debug)]
pub(crate) struct Signal {
    read: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    write: OwnedFd,
}

impl Signal {
    /// A lowered signal.
    #[cfg(target_os = "linux")]
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two numbers; a descriptor that it returns is ours alone.
        let read = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { read })
    }

    /// A lowered signal.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: pipe writes two descriptors, which are ours alone; fcntl takes them and numbers.
        unsafe {
            if libc::pipe(fds.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            for fd in fds {
                libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            Ok(Self {
                read: OwnedFd::from_raw_fd(fds[0]),
                write: OwnedFd::from_raw_fd(fds[1]),
            })
        }
    }

    /// Makes the descriptor readable.
    pub(crate) fn raise(&self) {
        #[cfg(target_os = "linux")]
        let fd = self.read.as_raw_fd();
        #[cfg(not(target_os = "linux"))]
        let fd = self.write.as_raw_fd();
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes are read from a live array. A full counter or pipe is readable as it is.
        unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }

    /// Makes the descriptor unreadable until it is raised again; whether it was raised.
    pub(crate) fn lower(&self) -> bool {
        let mut bytes = [0u8; 512];
        let mut raised = false;
        loop {
            // SAFETY: at most the array's length is written into it.
            let got = unsafe {
                libc::read(
                    self.read.as_raw_fd(),
                    bytes.as_mut_ptr().cast(),
                    bytes.len(),
                )
            };
            if got <= 0 {
                return raised;
            }
            raised = true;
            if cfg!(target_os = "linux") {
                return true;
            }
        }
    }

    /// Sleeps until it is raised or `timeout` has passed (`None`: for ever); whether it is raised. Leaves it raised.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        wait_readable([Some(self.read.as_raw_fd()), None], timeout)[0]
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// Sleeps until one of `fds` is readable or `timeout` has passed (`None`: for ever); which of them are. A signal
/// handler may end the sleep early.
pub(crate) fn wait_readable(fds: [Option<i32>; 2], timeout: Option<Duration>) -> [bool; 2] {
    // A negative descriptor is passed over.
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.unwrap_or(-1),
        events: libc::POLLIN,
        revents: 0,
    });
    #[cfg(target_os = "linux")]
    {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as libc::c_long,
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: two live pollfds and a timespec or null; the signal mask is left alone.
        unsafe { libc::ppoll(polled.as_mut_ptr(), 2, timeout, std::ptr::null()) };
    }
    #[cfg(not(target_os = "linux"))]
    {
        let millis = timeout.map_or(-1, |timeout| {
            let millis = timeout.as_nanos().div_ceil(1_000_000);
            millis.min(i32::MAX as u128) as i32
        });
        // SAFETY: two live pollfds.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, millis) };
    }
    polled.map(|polled| polled.revents != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_signal_is_readable_until_lowered() {
        let signal = Signal::new().unwrap();
        assert!(!signal.wait(Some(Duration::ZERO)));
        signal.raise();
        signal.raise();
        assert!(signal.wait(None));
        assert!(
            signal.wait(Some(Duration::ZERO)),
            "waiting does not lower it"
        );
        assert!(signal.lower());
        assert!(!signal.lower());
        assert!(!signal.wait(Some(Duration::from_micros(1))));
    }
}
