//! Records the work that was posted, as data that can be stored and posted again.
//!
//! Bytes are not recorded but their number: a replay moves as much between the same places, for timing or to find a failure again.

use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{Hook, PostedTo};
use crate::{Buf, Op, PostError, RemoteAddr, Segments, Work, WorkFlags};

/// The hook; see the module. Keep a clone of its `Arc` to read it.
#[derive(Debug, Default)]
pub struct Recorder {
    records: Mutex<Vec<(PostedTo, Record)>>,
}

/// One accepted work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// From the work.
    pub context: u64,
    /// What was to be done.
    pub op: Op,
    /// Bytes of each local segment.
    pub segments: Vec<usize>,
    /// The bits of [`WorkFlags`].
    pub flags: u8,
}

impl Recorder {
    /// What was accepted so far, in order, with where it was posted to.
    #[must_use]
    pub fn records(&self) -> Vec<(PostedTo, Record)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(PostedTo, Record)>> {
        self.records.lock().expect("nothing under the lock panics")
    }
}

impl Record {
    fn new(work: &Work) -> Self {
        Self {
            context: work.context,
            op: work.op,
            segments: work
                .local
                .as_slice()
                .iter()
                .map(|segment| segment.len())
                .collect(),
            flags: work.flags.bits(),
        }
    }

    /// The work again, with fresh memory of the same sizes; `remote` says where a recorded place is now. A datagram endpoint
    /// also needs [`Work::to`].
    #[must_use]
    pub fn replay(
        &self,
        mut buf: impl FnMut(usize) -> Buf,
        mut remote: impl FnMut(RemoteAddr) -> RemoteAddr,
    ) -> Work {
        let local: Segments = self.segments.iter().map(|&len| buf(len).into()).collect();
        let op = match self.op {
            Op::Write {
                remote: place,
                immediate,
            } => Op::Write {
                remote: remote(place),
                immediate,
            },
            Op::Read { remote: place } => Op::Read {
                remote: remote(place),
            },
            Op::FetchAdd { remote: place, add } => Op::FetchAdd {
                remote: remote(place),
                add,
            },
            Op::CompareSwap {
                remote: place,
                expected,
                new,
            } => Op::CompareSwap {
                remote: remote(place),
                expected,
                new,
            },
            op @ (Op::Send { .. } | Op::Recv) => op,
        };
        let mut work = Work::new(self.context, op, local);
        work.flags = WorkFlags::from_bits_truncate(self.flags);
        work
    }
}

impl Hook for Recorder {
    fn post(
        &self,
        to: PostedTo,
        work: &mut Vec<Work>,
        next: &dyn Fn(&mut Vec<Work>) -> Result<(), PostError>,
    ) -> Result<(), PostError> {
        let mut records: Vec<_> = work.iter().map(|work| (to, Record::new(work))).collect();
        let outcome = next(work);
        records.truncate(records.len() - work.len());
        self.lock().append(&mut records);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::loopback::Loopback;
    use crate::{EndpointKind, Registry};

    #[test]
    fn what_was_accepted_is_recorded_and_replays() {
        let registry = Registry::new().with(Loopback::new());
        let recorder = Arc::new(Recorder::default());
        let domain = registry
            .open("loopback", &registry.defaults())
            .unwrap()
            .hooked(Arc::clone(&recorder));
        let cq = domain.completion_queue(1).unwrap();
        let endpoint = domain.endpoint(EndpointKind::Rdm, &cq).open().unwrap();
        let own = endpoint
            .addresses()
            .insert(&endpoint.address().unwrap())
            .unwrap();
        let region = domain
            .register(crate::Memory::allocate(64), crate::Access::all())
            .unwrap();
        let write = |context| {
            Work::write(context, Buf::from(&b"12345"[..]), region.remote().at(8))
                .to(own)
                .fenced()
        };
        endpoint
            .post(&mut vec![write(1), write(2)])
            .expect_err("there is room for one");
        let records = recorder.records();
        assert_eq!(records.len(), 1, "what was refused is not recorded");
        let (to, record) = &records[0];
        assert_eq!(*to, PostedTo::Endpoint(endpoint.id()));
        let again = record.replay(Buf::zeroed, |place| place);
        assert_eq!(
            (again.context, again.op, again.len(), again.flags),
            (1, write(1).op, 5, WorkFlags::FENCE)
        );
    }
}
