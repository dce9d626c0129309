//! Puts blocks into their destination, on a thread of its own: while one block is written, the next arrives.
//!
//! Writing by calls is what makes a new file fast: pages that are written whole need not be zeroed first, as those
//! of a mapping must.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fabric::Buf;

/// Where blocks go.
pub(super) trait Destination: Send + Sync {
    /// Stores bytes.
    ///
    /// # Errors
    /// What the system answers.
    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads bytes back.
    ///
    /// # Errors
    /// What the system answers; `UnexpectedEof` where there are none.
    fn get(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Says before anything is stored how many bytes will be.
    ///
    /// # Errors
    /// `StorageFull` if there is no room for them.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// Makes a range all zeros, without storing them if that can be.
    ///
    /// # Errors
    /// What the system answers.
    fn clear(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// The thread and the way to it.
#[derive(Debug)]
pub(super) struct Store {
    /// Taken to end the thread.
    jobs: Option<Sender<Job>>,
    done: Receiver<Vec<Stored>>,
    /// Done, and not given back yet.
    ready: VecDeque<Stored>,
    busy: usize,
    thread: Option<JoinHandle<()>>,
}

/// A block, its buffer, and the CRC32C of what is stored; or why it could not be.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) buf: Buf,
    pub(super) sum: io::Result<u32>,
}

struct Job {
    destination: Arc<dyn Destination>,
    number: u64,
    offset: u64,
    buf: Buf,
    /// Of the bytes to be stored; none if they are there already and only checksummed.
    sum: Option<u32>,
}

impl Store {
    /// Starts the thread.
    ///
    /// # Errors
    /// What starting it answers.
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, work) = channel::<Job>();
        let (ready, done) = channel();
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Ok(job) = work.recv() {
                    // Several at once: to wake who waits for them takes as long as to store a part of a block.
                    let mut done = vec![job.run()];
                    while done.len() < BATCH
                        && let Ok(job) = work.try_recv()
                    {
                        done.push(job.run());
                    }
                    if ready.send(done).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            ready: VecDeque::new(),
            busy: 0,
            thread: Some(thread),
        })
    }

    /// Has the bytes of `buf` stored, whose checksum is `sum`.
    pub(super) fn put(
        &mut self,
        destination: &Arc<dyn Destination>,
        number: u64,
        offset: u64,
        buf: Buf,
        sum: u32,
    ) {
        self.start_job(destination, number, offset, buf, Some(sum));
    }

    /// As [`Store::put`], but done when it returns: few blocks are not worth waking a thread.
    pub(super) fn put_now(
        destination: &Arc<dyn Destination>,
        number: u64,
        offset: u64,
        buf: Buf,
        sum: u32,
    ) -> Stored {
        let sum = destination.put(offset, &buf).map(|()| sum);
        Stored { number, buf, sum }
    }

    /// Has what is stored checksummed, as many bytes as `buf` has.
    pub(super) fn check(
        &mut self,
        destination: &Arc<dyn Destination>,
        number: u64,
        offset: u64,
        buf: Buf,
    ) {
        self.start_job(destination, number, offset, buf, None);
    }

    /// Blocks that it has and that were not given back yet.
    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    /// A block that is done, if there is one.
    pub(super) fn poll(&mut self) -> Option<Stored> {
        if self.ready.is_empty() {
            self.ready.extend(self.done.try_recv().ok()?);
        }
        self.busy -= 1;
        self.ready.pop_front()
    }

    /// The next block that is done; none if there is none within `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<Stored> {
        if !self.ready.is_empty() {
            return self.poll();
        }
        match self.done.recv_timeout(timeout) {
            Ok(done) => {
                self.ready.extend(done);
                self.poll()
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the thread that stores blocks panicked"),
        }
    }

    fn start_job(
        &mut self,
        destination: &Arc<dyn Destination>,
        number: u64,
        offset: u64,
        buf: Buf,
        sum: Option<u32>,
    ) {
        let job = Job {
            destination: Arc::clone(destination),
            number,
            offset,
            buf,
            sum,
        };
        let jobs = self.jobs.as_ref().expect("taken only at the end");
        jobs.send(job).expect("the thread lives as long as this");
        self.busy += 1;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, that was printed.
            let _ = thread.join();
        }
    }
}

impl Job {
    fn run(self) -> Stored {
        let Self {
            destination,
            number,
            offset,
            mut buf,
            sum,
        } = self;
        let sum = match sum {
            Some(sum) => destination.put(offset, &buf).map(|()| sum),
            None => (destination.get(offset, &mut buf)).map(|()| crc32c::crc32c(&buf)),
        };
        Stored { number, buf, sum }
    }
}

/// A file that has its length already.
impl Destination for File {
    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn get(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let room = rustix::fs::fstatvfs(self)?;
        // Some network file systems do not know.
        if room.f_blocks == 0 {
            return Ok(());
        }
        let free = room.f_bfree.saturating_mul(room.f_frsize);
        let own = rustix::fs::fstat(self)?.st_blocks as u64 * 512;
        if bytes > free.saturating_add(own) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn clear(&self, offset: u64, len: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{FallocateFlags, fallocate};
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(self, flags, offset, len).is_ok() {
                return Ok(());
            }
        }
        let zeros = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let some = &zeros[..(len - done).min(1 << 20) as usize];
            self.write_all_at(some, offset + done)?;
            done += some.len() as u64;
        }
        Ok(())
    }
}

/// Bytes for ourselves, as long as they are to be.
impl Destination for Mutex<Vec<u8>> {
    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut memory = self.lock().expect("nothing under the lock panics");
        let memory = memory.get_mut(offset as usize..).unwrap_or_default();
        let place = memory.get_mut(..bytes.len());
        place
            .ok_or(io::ErrorKind::StorageFull)?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn get(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let memory = self.lock().expect("nothing under the lock panics");
        let memory = memory.get(offset as usize..).unwrap_or_default();
        let there = memory.get(..bytes.len());
        bytes.copy_from_slice(there.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn clear(&self, offset: u64, len: u64) -> io::Result<()> {
        self.put(offset, &vec![0; len as usize])
    }
}

/// Most blocks that are given back at once.
const BATCH: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_stored_and_found_again() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let file: Arc<dyn Destination> = Arc::new(file);
        let mut store = Store::start().unwrap();
        store.put(&file, 7, 95, Buf::from(&b"block"[..]), 42);
        assert_eq!(store.busy(), 1);
        let stored = store.wait(SOON).expect("it is stored");
        assert_eq!((stored.number, store.busy()), (7, 0));
        assert_eq!(stored.sum.unwrap(), 42);
        store.check(&file, 8, 95, Buf::zeroed(5));
        let found = store.wait(SOON).expect("it is found");
        assert_eq!(&found.buf[..], b"block");
        assert_eq!(found.sum.unwrap(), crc32c::crc32c(b"block"));
        store.check(&file, 9, 96, Buf::zeroed(5));
        let missing = store.wait(SOON).expect("it is answered").sum.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_cleared_is_zero_and_takes_no_room() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 3 << 20], 0).unwrap();
        file.clear(1 << 20, 1 << 20).unwrap();
        let mut bytes = [1; 4];
        file.get((1 << 20) - 2, &mut bytes).unwrap();
        assert_eq!(bytes, [9, 9, 0, 0]);
        file.get((2 << 20) - 2, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 9, 9]);
        assert_eq!(file.metadata().unwrap().len(), 3 << 20);
        assert!(file.reserve(u64::MAX).is_err());
    }

    const SOON: Duration = Duration::from_secs(10);
}
