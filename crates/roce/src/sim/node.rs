//! The NIC around a simulated queue pair: memory in a vector, keys in a table, completions in a list.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::host::{AccessDenied, Arrival, AtomicOp, Host, Payload, Transmit};
use crate::qp::Qp;
use crate::time::Instant;
use crate::verbs::{Access, Completion, Path, QpEvent, RecvWork, SgeList};
use crate::wire::icrc::{self, IdBasis, Identification};
use crate::wire::{Headers, Key, MAX_HEADERS, ROCE_PORT};

/// Told of every write that a peer makes into exposed memory, with the memory as it then is.
pub type Watch = Box<dyn FnMut(&[u8], u64, usize) + Send>;

/// Exposed memory under a key.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// What peers may do.
    pub access: Access,
}

/// All of a simulated machine but its queue pair.
#[derive(Default)]
pub struct Machine {
    /// Memory; an address is an index.
    pub memory: Vec<u8>,
    /// By remote key.
    pub regions: BTreeMap<u32, Region>,
    /// Posted receives.
    pub receives: VecDeque<RecvWork>,
    /// What the send queue reported.
    pub sent: Vec<Completion>,
    /// What the receive queue reported.
    pub received: Vec<Completion>,
    /// Asynchronous events.
    pub events: Vec<QpEvent>,
    /// Told of every placement.
    pub watch: Option<Watch>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("sent", &self.sent)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Machine {
    fn range(&self, addr: u64, length: u64) -> Result<std::ops::Range<usize>, AccessDenied> {
        let end = addr.checked_add(length).ok_or(AccessDenied)?;
        if end > self.memory.len() as u64 {
            return Err(AccessDenied);
        }
        Ok(addr as usize..end as usize)
    }

    fn exposed(
        &self,
        rkey: Key,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<std::ops::Range<usize>, AccessDenied> {
        let region = self.regions.get(&rkey.0).ok_or(AccessDenied)?;
        let end = va.checked_add(length).ok_or(AccessDenied)?;
        if va < region.start || end > region.end || !region.access.contains(access) {
            return Err(AccessDenied);
        }
        self.range(va, length)
    }

    /// The bytes of `length` from `offset` on in a local list.
    pub fn gather(
        &self,
        from: &SgeList,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, AccessDenied> {
        let mut bytes = Vec::with_capacity(length as usize);
        let mut skip = offset;
        for sge in from.as_slice() {
            let piece = &self.memory[self.range(sge.addr, u64::from(sge.length))?];
            let from = skip.min(piece.len() as u64) as usize;
            skip -= from as u64;
            let take = (piece.len() - from).min(length as usize - bytes.len());
            bytes.extend_from_slice(&piece[from..from + take]);
        }
        if bytes.len() == length as usize {
            Ok(bytes)
        } else {
            Err(AccessDenied)
        }
    }
}

impl Host for Machine {
    fn check_remote(
        &mut self,
        rkey: Key,
        va: u64,
        length: u64,
        access: Access,
    ) -> Result<(), AccessDenied> {
        self.exposed(rkey, va, length, access).map(|_| ())
    }

    fn place(&mut self, rkey: Key, va: u64, data: &[u8]) -> Result<(), AccessDenied> {
        let range = self.exposed(rkey, va, data.len() as u64, Access::REMOTE_WRITE)?;
        self.memory[range].copy_from_slice(data);
        if let Some(watch) = &mut self.watch {
            watch(&self.memory, va, data.len());
        }
        Ok(())
    }

    fn atomic(&mut self, rkey: Key, va: u64, op: AtomicOp) -> Result<u64, AccessDenied> {
        let range = self.exposed(rkey, va, 8, Access::REMOTE_ATOMIC)?;
        let word: &mut [u8; 8] = (&mut self.memory[range]).try_into().expect("eight bytes");
        let original = u64::from_ne_bytes(*word);
        let new = match op {
            AtomicOp::FetchAdd(add) => original.wrapping_add(add),
            AtomicOp::CompareSwap { compare, swap } if compare == original => swap,
            AtomicOp::CompareSwap { .. } => original,
        };
        *word = new.to_ne_bytes();
        Ok(original)
    }

    fn invalidate(&mut self, rkey: Key) -> Result<(), AccessDenied> {
        self.regions.remove(&rkey.0).map(|_| ()).ok_or(AccessDenied)
    }

    fn scatter(&mut self, to: &SgeList, offset: u64, data: &[u8]) -> Result<(), AccessDenied> {
        let (mut skip, mut rest) = (offset, data);
        for sge in to.as_slice() {
            let range = self.range(sge.addr, u64::from(sge.length))?;
            let piece = &mut self.memory[range];
            let from = skip.min(piece.len() as u64) as usize;
            skip -= from as u64;
            let take = (piece.len() - from).min(rest.len());
            piece[from..from + take].copy_from_slice(&rest[..take]);
            rest = &rest[take..];
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(AccessDenied)
        }
    }

    fn take_recv(&mut self) -> Option<RecvWork> {
        self.receives.pop_front()
    }

    fn take_own_recv(&mut self) -> Option<RecvWork> {
        self.receives.pop_front()
    }

    fn complete_send(&mut self, completion: Completion) {
        self.sent.push(completion);
    }

    fn complete_recv(&mut self, completion: Completion) {
        self.received.push(completion);
    }

    fn event(&mut self, event: QpEvent) {
        self.events.push(event);
    }
}

/// A machine with its queue pair and its end of the wire.
pub struct Node {
    /// The engine.
    pub qp: Qp,
    /// Everything around it.
    pub machine: Machine,
    /// Its address.
    pub address: IpAddr,
    basis: IdBasis,
    /// Packets whose checksum was wrong.
    pub damaged: u64,
}

impl Node {
    /// A machine of `memory` zero bytes.
    pub fn new(qp: Qp, address: IpAddr, memory: usize) -> Self {
        let machine = Machine {
            memory: vec![0; memory],
            ..Machine::default()
        };
        Self {
            qp,
            machine,
            address,
            basis: IdBasis::new(),
            damaged: 0,
        }
    }

    /// A packet arrived from `source`.
    pub fn receive(&mut self, now: Instant, source: IpAddr, packet: &[u8]) {
        let path = wire_path(source, self.address);
        if !path
            .verify(packet, Identification::Known(0), &mut self.basis)
            .is_valid()
        {
            self.damaged += 1;
            return;
        }
        let Ok((headers, payload)) = Headers::parse(packet) else {
            return;
        };
        let arrival = Arrival {
            source,
            destination: self.address,
            traffic_class: 0,
            hop_limit: 64,
            udp_length: packet.len() as u16 + 8,
        };
        self.qp
            .handle_packet(now, &arrival, &headers, payload, &mut self.machine);
    }

    /// The packets to be sent at `now`, at most `room` a call of the engine.
    pub fn transmit(&mut self, now: Instant, room: usize, mut send: impl FnMut(&Path, Vec<u8>)) {
        while self.transmit_once(now, room, &mut send) {}
    }

    /// The same, of one call. Whether there are more that found no room.
    pub fn transmit_once(
        &mut self,
        now: Instant,
        room: usize,
        mut send: impl FnMut(&Path, Vec<u8>),
    ) -> bool {
        // The burst reads memory while the engine reports completions: lend each its own part.
        let mut burst = Burst {
            memory: Machine {
                memory: std::mem::take(&mut self.machine.memory),
                ..Machine::default()
            },
            room,
            packets: Vec::new(),
        };
        burst.memory.regions.clone_from(&self.machine.regions);
        let more = self.qp.poll_transmit(now, &mut self.machine, &mut burst);
        self.machine.memory = burst.memory.memory;
        for (path, packet) in burst.packets {
            send(&path, packet);
        }
        more
    }
}

struct Burst {
    memory: Machine,
    room: usize,
    packets: Vec<(Path, Vec<u8>)>,
}

impl Transmit for Burst {
    fn has_room(&self) -> bool {
        self.packets.len() < self.room
    }

    fn is_polled(&self) -> bool {
        true
    }

    fn allowance(&self) -> u32 {
        u32::MAX
    }

    fn send(
        &mut self,
        path: &Path,
        headers: &Headers,
        payload: Payload<'_>,
    ) -> Result<(), AccessDenied> {
        let bytes = match payload {
            Payload::Empty => Vec::new(),
            Payload::Gather {
                from,
                offset,
                length,
            } => self.memory.gather(from, offset, length)?,
            Payload::Exposed { rkey, va, length } => {
                let range =
                    self.memory
                        .exposed(rkey, va, u64::from(length), Access::REMOTE_READ)?;
                self.memory.memory[range].to_vec()
            }
            Payload::Bytes(bytes) => bytes.to_vec(),
        };
        assert_eq!(
            (bytes.len() + usize::from(headers.bth.pad)) % 4,
            0,
            "the pad completes the payload"
        );
        let mut front = [0; MAX_HEADERS];
        let length = headers.emit(&mut front);
        let mut packet = front[..length].to_vec();
        packet.extend_from_slice(&bytes);
        packet.extend(std::iter::repeat_n(0, usize::from(headers.bth.pad)));
        let icrc = wire_path(path.source, path.destination)
            .start(packet.len() + 4, 0)
            .headers(&packet[..length])
            .payload(&packet[length..])
            .finish();
        packet.extend_from_slice(&icrc);
        self.packets.push((*path, packet));
        Ok(())
    }
}

fn wire_path(source: IpAddr, destination: IpAddr) -> icrc::Path {
    icrc::Path::new(
        SocketAddr::new(source, ROCE_PORT),
        SocketAddr::new(destination, ROCE_PORT),
    )
    .expect("both addresses are of one family")
}
