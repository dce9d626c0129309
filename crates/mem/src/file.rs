//! Files as memory: mapped shared, guarded against truncation.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::Memory;
use crate::guard::Guard;
use crate::memory::{Allocation, Kind};

/// A file and the memory that shows its content.
///
/// The mapping is as long as the file was when mapped, and lives as long as any clone of its [`Memory`].
#[derive(Debug)]
pub struct FileMapping {
    file: Arc<File>,
    memory: Memory,
}

impl FileMapping {
    /// Opens a file and maps it read-only.
    ///
    /// # Errors
    /// What opening or mapping answers: not found, no permission, not a regular file.
    pub fn open_read(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::map_read(File::open(path)?)
    }

    /// Creates a file (or truncates the one there) of `len` bytes whose blocks are all allocated, and maps it writable.
    ///
    /// # Errors
    /// What creating, allocating or mapping answers; a full disk is `StorageFull` here and never a fault later.
    pub fn create(path: impl AsRef<Path>, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Self::map_write(file, len)
    }

    /// Maps an open file read-only, all of its present length.
    ///
    /// # Errors
    /// What `mmap` answers; `InvalidInput` if it is no regular file.
    pub fn map_read(file: File) -> io::Result<Self> {
        let len = regular_len(&file)?;
        let file = Arc::new(file);
        let memory = map(&file, len, false)?;
        Ok(Self { file, memory })
    }

    /// Resizes an open file (opened for reading and writing) to `len` bytes, allocates its blocks and maps it writable.
    /// Bytes that were there within `len` stay.
    ///
    /// # Errors
    /// What resizing, allocating or mapping answers; a full disk is `StorageFull`.
    pub fn map_write(file: File, len: u64) -> io::Result<Self> {
        if regular_len(&file)? != len {
            file.set_len(len)?;
        }
        allocate(&file, len)?;
        let file = Arc::new(file);
        let memory = map(&file, len, true)?;
        Ok(Self { file, memory })
    }

    /// The mapped bytes.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The file, for its metadata or `sync_all`.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

fn regular_len(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only a regular file can be mapped",
        ));
    }
    Ok(metadata.len())
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let len = libc::off_t::try_from(len).map_err(|_| too_long())?;
    loop {
        // SAFETY: a call on an open descriptor; it answers the error instead of setting errno.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64) -> io::Result<()> {
    Ok(())
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "file is longer than the address space",
    )
}

/// A length that fits into the address space.
pub(crate) fn mappable(len: u64) -> io::Result<usize> {
    usize::try_from(len)
        .ok()
        .filter(|&len| isize::try_from(len).is_ok())
        .ok_or_else(too_long)
}

/// Maps the first `len` bytes of a regular file under a guard. Memory that is only read keeps the file open.
pub(crate) fn map(file: &Arc<File>, len: u64, writable: bool) -> io::Result<Memory> {
    let len = mappable(len)?;
    if len == 0 {
        return Ok(Memory::allocate(0));
    }
    let access = if writable {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    };
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            access,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let base = NonNull::new(base.cast::<u8>()).expect("mmap chooses no null address");
    // SAFETY: just mapped, and handed over; a page replaced hides only bytes that the file no longer has. The kernel maps
    // whole pages, so the words at the end are ours too.
    let guard = unsafe { Guard::new(base, len) }?;
    Ok(Memory::of(Allocation {
        base,
        len: guard.mapped(),
        kind: Kind::File(guard, (!writable).then(|| Arc::clone(file))),
        writable,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AccessError;
    use std::os::unix::process::ExitStatusExt as _;

    fn file_of(len: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![9; len]).unwrap();
        file
    }

    #[test]
    fn a_mapping_shows_the_file_and_refuses_writes() {
        let file = file_of(10_001);
        let mapping = FileMapping::open_read(file.path()).unwrap();
        assert_eq!(mapping.memory().len(), 10_001);
        let mut tail = [0; 3];
        mapping.memory().copy_out(9_998, &mut tail).unwrap();
        assert_eq!(tail, [9; 3]);
        assert_eq!(
            mapping.memory().copy_in(0, &[1]),
            Err(AccessError::ReadOnly)
        );
        assert_eq!(mapping.memory().fetch_add(0, 1), Err(AccessError::ReadOnly));
    }

    #[test]
    fn what_is_written_to_a_mapping_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let mapping = FileMapping::create(&path, 5_003).unwrap();
        mapping.memory().copy_in(5_000, b"end").unwrap();
        drop(mapping);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 5_003);
        assert_eq!(&bytes[5_000..], b"end");
    }

    #[test]
    fn an_empty_file_is_an_empty_memory() {
        let file = file_of(0);
        let mapping = FileMapping::open_read(file.path()).unwrap();
        assert!(mapping.memory().is_empty());
        assert!(mapping.memory().copy_out(0, &mut [0]).is_err());
    }

    #[test]
    fn a_directory_cannot_be_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let error = FileMapping::open_read(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_truncated_while_mapped_is_an_error_and_only_its_own() {
        let (file, other) = (file_of(100_000), file_of(100_000));
        let mapping = FileMapping::open_read(file.path()).unwrap();
        let untouched = FileMapping::open_read(other.path()).unwrap();
        file.as_file().set_len(1).unwrap();
        let mut bytes = vec![0; 100_000];
        assert_eq!(
            mapping.memory().copy_out(0, &mut bytes),
            Err(AccessError::Fault)
        );
        assert!(mapping.memory().is_faulted());
        assert_eq!(mapping.memory().load_u64(0), Err(AccessError::Fault));
        assert_eq!(untouched.memory().copy_out(0, &mut bytes), Ok(()));
        assert_eq!(bytes, vec![9; 100_000]);
    }

    #[test]
    fn a_truncated_destination_is_an_error_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let mapping = FileMapping::create(directory.path().join("new"), 100_000).unwrap();
        mapping.file().set_len(0).unwrap();
        assert_eq!(
            mapping.memory().copy_in(0, &[1; 50_000]),
            Err(AccessError::Fault)
        );
    }

    #[test]
    fn populating_changes_no_byte_and_survives_truncation() {
        let directory = tempfile::tempdir().unwrap();
        let mapping = FileMapping::create(directory.path().join("new"), 100_000).unwrap();
        mapping.memory().copy_in(5_000, b"here").unwrap();
        mapping.memory().populate(4_999, 90_000).unwrap();
        let mut bytes = [0; 6];
        mapping.memory().copy_out(4_999, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0here\0");
        assert!(mapping.memory().populate(99_999, 2).is_err());
        mapping.file().set_len(0).unwrap();
        mapping.memory().populate(0, 100_000).unwrap();
        let read_only = FileMapping::open_read(file_of(10).path()).unwrap();
        assert_eq!(
            read_only.memory().populate(0, 10),
            Err(AccessError::ReadOnly)
        );
    }

    #[test]
    fn more_mappings_than_one_block_of_the_table_are_guarded() {
        let file = file_of(4096);
        let mappings: Vec<_> = (0..200)
            .map(|_| FileMapping::open_read(file.path()).unwrap())
            .collect();
        file.as_file().set_len(0).unwrap();
        for mapping in &mappings {
            assert_eq!(mapping.memory().load_u64(8), Err(AccessError::Fault));
        }
    }

    /// A bus error that is not ours must end the process as before: the test runs itself again to see it die.
    #[test]
    fn a_bus_error_elsewhere_still_ends_the_process() {
        const CHILD: &str = "RINGMAIL_MEM_TEST_BUS_ERROR";
        if std::env::var_os(CHILD).is_none() {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "file::tests::a_bus_error_elsewhere_still_ends_the_process",
                ])
                .env(CHILD, "1")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert_eq!(status.signal(), Some(libc::SIGBUS));
            return;
        }
        let file = file_of(4096);
        let _guarded = FileMapping::open_read(file.path()).unwrap();
        // SAFETY: the limit keeps the child from leaving a core file; the mapping is read once, to fault.
        unsafe {
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            let stray = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_file().as_raw_fd(),
                0,
            );
            file.as_file().set_len(0).unwrap();
            std::ptr::read_volatile(stray.cast::<u8>());
        }
    }
}
