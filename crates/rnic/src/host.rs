//! What the engine sees of the device: memory by key, queues, and the burst that is being filled.
//!
//! Both views are made for one queue pair and one call; they borrow what the core lock guards.

use mem::Memory;
use roce::host::{AccessDenied, AtomicOp, Host, Payload, Transmit};
use roce::verbs::{Access, Completion, MAX_SGE, Path, QpEvent, RecvWork, SgeList};
use roce::wire::{Headers, Key, MAX_HEADERS};

use crate::event::{AsyncEvent, EventQueue};
use crate::qp::QpShared;
use crate::region::{PdId, RegionTable};
use crate::udp::Burst;
use crate::udp::burst::{Destination, Source, Span};

/// Memory, queues and events of one queue pair.
pub(crate) struct QpHost<'a> {
    pub(crate) regions: &'a RegionTable,
    pub(crate) qp: &'a QpShared,
    pub(crate) events: &'a EventQueue,
    /// Completions, which become visible when the call to the engine is over and its consequences are.
    pub(crate) completions: &'a mut Vec<Reported>,
    /// Bytes that were placed.
    pub(crate) copied: &'a mut u64,
}

/// A completion, and for which of a queue pair's completion queues.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reported {
    Send(Completion),
    Recv(Completion),
}

impl Host for QpHost<'_> {
    fn check_remote(
        &mut self,
        rkey: Key,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<(), AccessDenied> {
        self.regions
            .remote(rkey, self.qp.pd, va, length, access)
            .map(|_| ())
    }

    fn place(&mut self, rkey: Key, va: u64, data: &[u8]) -> Result<(), AccessDenied> {
        let (memory, offset) = self.regions.remote(
            rkey,
            self.qp.pd,
            va,
            data.len() as u64,
            Access::REMOTE_WRITE,
        )?;
        *self.copied += data.len() as u64;
        memory.copy_in(offset, data).map_err(|_| AccessDenied)
    }

    fn atomic(&mut self, rkey: Key, va: u64, op: AtomicOp) -> Result<u64, AccessDenied> {
        let (memory, offset) =
            self.regions
                .remote(rkey, self.qp.pd, va, 8, Access::REMOTE_ATOMIC)?;
        let before = match op {
            AtomicOp::FetchAdd(add) => memory.fetch_add(offset, add),
            AtomicOp::CompareSwap { compare, swap } => memory.compare_swap(offset, compare, swap),
        };
        before.map_err(|_| AccessDenied)
    }

    fn invalidate(&mut self, rkey: Key) -> Result<(), AccessDenied> {
        self.regions.invalidate(rkey, self.qp.pd)
    }

    fn scatter(&mut self, to: &SgeList, offset: u64, data: &[u8]) -> Result<(), AccessDenied> {
        *self.copied += data.len() as u64;
        let (mut skip, mut rest) = (offset, data);
        for sge in to.as_slice() {
            let length = u64::from(sge.length);
            if skip >= length {
                skip -= length;
                continue;
            }
            let now = rest.len().min((length - skip) as usize);
            if now == 0 {
                break;
            }
            let (memory, at) = self.writable(sge.lkey, sge.addr.wrapping_add(skip), now as u64)?;
            let (piece, later) = rest.split_at(now);
            memory.copy_in(at, piece).map_err(|_| AccessDenied)?;
            (skip, rest) = (0, later);
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(AccessDenied)
        }
    }

    fn take_recv(&mut self) -> Option<RecvWork> {
        match &self.qp.srq {
            Some(srq) => srq.take(self.events),
            None => self.qp.receives.pop(),
        }
    }

    fn take_own_recv(&mut self) -> Option<RecvWork> {
        self.qp.receives.pop()
    }

    fn complete_send(&mut self, completion: Completion) {
        self.completions.push(Reported::Send(completion));
    }

    fn complete_recv(&mut self, completion: Completion) {
        self.completions.push(Reported::Recv(completion));
    }

    fn event(&mut self, event: QpEvent) {
        self.events.push(AsyncEvent::Qp(self.qp.qpn, event));
    }
}

impl QpHost<'_> {
    /// Memory for what arrives. Receives of a shared queue may lie in that queue's domain (IBA 10.2.9.1).
    #[inline]
    fn writable(&self, lkey: Key, va: u64, length: u64) -> Result<(&Memory, usize), AccessDenied> {
        let access = Access::LOCAL_WRITE;
        let found = self.regions.local(lkey, self.qp.pd, va, length, access);
        match (&found, &self.qp.srq) {
            (Err(_), Some(srq)) => self.regions.local(lkey, srq.pd, va, length, access),
            _ => found,
        }
    }
}

/// The burst, as one queue pair fills it.
pub(crate) struct QpTransmit<'a> {
    pub(crate) regions: &'a RegionTable,
    pub(crate) pd: PdId,
    pub(crate) burst: &'a mut Burst,
    pub(crate) is_polled: bool,
    pub(crate) allowance: u32,
}

impl Transmit for QpTransmit<'_> {
    #[inline]
    fn has_room(&self) -> bool {
        self.burst.has_room()
    }

    #[inline]
    fn is_polled(&self) -> bool {
        self.is_polled
    }

    #[inline]
    fn allowance(&self) -> u32 {
        self.allowance
    }

    fn send(
        &mut self,
        path: &Path,
        headers: &Headers,
        payload: Payload<'_>,
    ) -> Result<(), AccessDenied> {
        let to = Destination {
            ip: path.destination,
            traffic_class: path.traffic_class,
        };
        let mut bytes = [0; MAX_HEADERS];
        let len = headers.emit(&mut bytes);
        let headers = &bytes[..len];
        let span = |(memory, offset), len: usize| Span {
            memory,
            offset,
            len,
        };
        match payload {
            Payload::Empty => self.push(to, headers, Source::Bytes(&[])),
            Payload::Bytes(bytes) => self.push(to, headers, Source::Bytes(bytes)),
            Payload::Exposed { rkey, va, length } => {
                let found = self.regions.remote(
                    rkey,
                    self.pd,
                    va,
                    u64::from(length),
                    Access::REMOTE_READ,
                )?;
                self.push(to, headers, Source::Changing(span(found, length as usize)))
            }
            Payload::Gather {
                from,
                offset,
                length,
            } => {
                let mut pieces = gather(from, offset, u64::from(length)).map(|(lkey, va, len)| {
                    let found = self
                        .regions
                        .local(lkey, self.pd, va, len, Access::empty())?;
                    Ok(span(found, len as usize))
                });
                let Some(first) = pieces.next() else {
                    return self.push(to, headers, Source::Bytes(&[]));
                };
                let mut spans = [first?; MAX_SGE];
                let mut count = 1;
                for piece in pieces {
                    spans[count] = piece?;
                    count += 1;
                }
                self.push(to, headers, Source::Stable(&spans[..count]))
            }
        }
    }
}

impl QpTransmit<'_> {
    fn push(
        &mut self,
        to: Destination,
        headers: &[u8],
        payload: Source<'_>,
    ) -> Result<(), AccessDenied> {
        // SAFETY: the core sends, or detaches, the burst before it gives up its lock; only under the lock are regions
        // removed. Until the work completes its program leaves the memory alone: that is the contract of posting.
        unsafe { self.burst.push(to, headers, payload) }.map_err(|_| AccessDenied)
    }
}

/// The pieces of `length` bytes from `offset` on: key, address, length, none of them empty.
fn gather(from: &SgeList, offset: u64, length: u64) -> impl Iterator<Item = (Key, u64, u64)> {
    let (mut skip, mut rest) = (offset, length);
    from.as_slice().iter().filter_map(move |sge| {
        let size = u64::from(sge.length);
        if skip >= size {
            skip -= size;
            return None;
        }
        let now = rest.min(size - skip);
        let piece = (sge.lkey, sge.addr.wrapping_add(skip), now);
        skip = 0;
        rest -= now;
        (now > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use roce::verbs::Sge;

    use super::*;

    #[test]
    fn a_gather_takes_the_bytes_asked_for_and_no_empty_piece() {
        let sge = |addr, length| Sge {
            addr,
            length,
            lkey: Key(addr as u32),
        };
        let list = SgeList::new(&[sge(100, 10), sge(200, 0), sge(300, 5), sge(400, 20)]).unwrap();
        let pieces = |offset, length| {
            gather(&list, offset, length)
                .map(|(_, va, len)| (va, len))
                .collect::<Vec<_>>()
        };
        assert_eq!(pieces(0, 35), [(100, 10), (300, 5), (400, 20)]);
        assert_eq!(pieces(4, 3), [(104, 3)]);
        assert_eq!(pieces(10, 6), [(300, 5), (400, 1)]);
        assert_eq!(pieces(12, 23), [(302, 3), (400, 20)]);
        assert_eq!(pieces(35, 0), []);
    }
}
