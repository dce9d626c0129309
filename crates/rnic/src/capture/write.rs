//! Writes a capture: one section, one interface, one enhanced packet block per packet.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Direction;
use super::ip::Envelope;

/// A capture file being written. Packets are buffered until [`Writer::flush`] or 64 KiB have gathered.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    packet: Vec<u8>,
    failed: bool,
}

impl Writer {
    /// Creates `path`, replacing what was there. Where another device is writing a capture to it just now, the name
    /// gets this process's number appended: programs that start each other share their environment.
    ///
    /// # Errors
    /// What opening the file answers.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut named = path.to_owned();
        let mut others = 0;
        let file = loop {
            match open_locked(&named) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && others < 1000 => {
                    let mut name = path.as_os_str().to_owned();
                    name.push(format!(".{}", std::process::id()));
                    if others > 0 {
                        name.push(format!(".{others}"));
                    }
                    named = name.into();
                    others += 1;
                }
                opened => break opened?,
            }
        };
        if others > 0 {
            tracing::info!(capture = %named.display(), "the capture is being written already; using a file beside it");
        }
        file.set_len(0)?;
        let mut writer = Self {
            file,
            path: named,
            buffer: Vec::with_capacity(2 * FLUSH_AT),
            packet: Vec::new(),
            failed: false,
        };
        writer.buffer.extend_from_slice(&SECTION);
        writer.buffer.extend_from_slice(&INTERFACE);
        writer.flush();
        Ok(writer)
    }

    /// The file's name.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a packet, stamped with the present time.
    pub(crate) fn packet(
        &mut self,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        identification: u16,
        payload: &[u8],
    ) {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_nanos() as u64);
        self.packet.clear();
        Envelope {
            source,
            destination,
            identification,
        }
        .wrap(payload, &mut self.packet);
        let len = self.packet.len() as u32;
        let padded = len.next_multiple_of(4);
        // Block header and times, packet, one option of flags and the end of options, total length.
        let total = 28 + padded + 12 + 4;
        let mut word = |value: u32| self.buffer.extend_from_slice(&value.to_le_bytes());
        word(ENHANCED_PACKET);
        word(total);
        word(0);
        word((time >> 32) as u32);
        word(time as u32);
        word(len);
        word(len);
        self.buffer.extend_from_slice(&self.packet);
        self.buffer
            .extend_from_slice(&[0; 3][..(padded - len) as usize]);
        let mut word = |value: u32| self.buffer.extend_from_slice(&value.to_le_bytes());
        word(u32::from(OPTION_FLAGS) | 4 << 16);
        word(match direction {
            Direction::Received => 1,
            Direction::Sent => 2,
        });
        word(0);
        word(total);
        if self.buffer.len() >= FLUSH_AT {
            self.flush();
        }
    }

    /// Hands what was buffered to the system. A full disk ends the capture, not the program; it is said once.
    pub(crate) fn flush(&mut self) {
        if !self.failed
            && let Err(error) = self.file.write_all(&self.buffer)
        {
            tracing::warn!(%error, capture = %self.path.display(), "the capture ends here");
            self.failed = true;
        }
        self.buffer.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Opens without truncating, and takes the lock that says "being written".
fn open_locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    #[cfg(unix)]
    {
        use std::os::fd::AsRawFd as _;
        // SAFETY: flock takes an open descriptor and touches no memory.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

const FLUSH_AT: usize = 64 << 10;
pub(super) const ENHANCED_PACKET: u32 = 6;
pub(super) const OPTION_FLAGS: u16 = 2;

/// Section header block: little-endian, version 1.0, of unknown length.
const SECTION: [u8; 28] = [
    0x0A, 0x0D, 0x0D, 0x0A, 28, 0, 0, 0, 0x4D, 0x3C, 0x2B, 0x1A, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF,
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 28, 0, 0, 0,
];

/// Interface description block: raw IP, no snapshot length, times in nanoseconds.
const INTERFACE: [u8; 32] = [
    1, 0, 0, 0, 32, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 32, 0,
    0, 0,
];
