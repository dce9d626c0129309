//! The software RNIC with waiting built in: one operation at a time, and no wait without a limit.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rnic::{Cq, Device, DeviceConfig, Mr, Pd, Qp, QpInit};
use roce::verbs::{
    Access, Completion, Local, Mtu, Operation, Path, QpAttr, QpState, QpType, RecvWork, Remote,
    Retries, SendFlags, SendWork, Sge, SgeList, Status, UdDestination, ack_timeout,
};
use roce::wire::{Psn, Qpn};

use crate::neighbour::Hello;

/// Emulated machines are slow, and so are retries over a faulty link.
const LIMIT: Duration = Duration::from_secs(60);

/// The Q_Key of our datagrams.
const QKEY: u32 = 0x1111_1111;

/// A device and a protection domain.
#[derive(Debug)]
pub(crate) struct Nic {
    device: Device,
    pd: Pd,
}

impl Nic {
    /// Opens the device that the environment asks for.
    pub(crate) fn open() -> Result<Self> {
        let config = DeviceConfig::from_env().map_err(anyhow::Error::msg)?;
        let device = Device::open(&config)?;
        let pd = device.alloc_pd()?;
        Ok(Self { device, pd })
    }

    /// The device's address.
    pub(crate) fn address(&self) -> IpAddr {
        self.device.address()
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Registers `length` zeroed bytes.
    pub(crate) fn region(&self, length: usize, access: Access) -> Result<Region> {
        Ok(Region(self.pd.register(
            mem::Memory::allocate(length),
            None,
            access,
        )?))
    }

    /// Makes a queue pair with a completion queue for each direction.
    pub(crate) fn queue_pair(&self, kind: QpType) -> Result<QueuePair> {
        let (send_cq, recv_cq) = (
            self.device.create_cq(64, None)?,
            self.device.create_cq(64, None)?,
        );
        let qp = self.pd.create_qp(&QpInit {
            recv_cq: &recv_cq,
            ..QpInit::new(kind, &send_cq)
        })?;
        Ok(QueuePair {
            qp,
            send_cq,
            recv_cq,
        })
    }
}

/// Registered memory.
#[derive(Debug)]
pub(crate) struct Region(Mr);

impl Region {
    /// Writes `bytes` at `offset`.
    pub(crate) fn put(&self, offset: u32, bytes: &[u8]) -> Result<()> {
        Ok(self.0.memory().copy_in(offset as usize, bytes)?)
    }

    /// Copies `length` bytes from `offset`.
    pub(crate) fn bytes(&self, offset: u32, length: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.0.memory().copy_out(offset as usize, &mut bytes)?;
        Ok(bytes)
    }

    /// A piece of it for a gather or scatter list.
    pub(crate) fn piece(&self, offset: u32, length: u32) -> Sge {
        self.0.sge(offset.into(), length)
    }

    /// How peers name the byte at `offset`.
    pub(crate) fn remote(&self, offset: u32) -> Remote {
        Remote {
            addr: self.0.iova() + u64::from(offset),
            rkey: self.0.rkey(),
        }
    }
}

/// A queue pair and its completions.
#[derive(Debug)]
pub(crate) struct QueuePair {
    qp: Qp,
    send_cq: Cq,
    recv_cq: Cq,
}

impl QueuePair {
    /// Its number.
    pub(crate) fn number(&self) -> Qpn {
        self.qp.qpn()
    }

    /// The queue pair itself.
    pub(crate) fn inner(&self) -> &Qp {
        &self.qp
    }

    /// Brings it from reset to ready, towards `them`.
    pub(crate) fn connect(&self, mtu: Mtu, psn: Psn, them: &Hello) -> Result<()> {
        let kind = self.qp.qp_type();
        let mut init = QpAttr {
            state: Some(QpState::Init),
            pkey: Some(0xFFFF),
            ..QpAttr::default()
        };
        let mut receive = QpAttr {
            state: Some(QpState::Rtr),
            ..QpAttr::default()
        };
        let mut send = QpAttr {
            state: Some(QpState::Rts),
            sq_psn: Some(psn),
            ..QpAttr::default()
        };
        if kind == QpType::Ud {
            init.qkey = Some(QKEY);
        } else {
            init.access = Some(Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC);
            receive.path = Some(self.path_to(them));
            receive.path_mtu = Some(mtu);
            receive.dest_qpn = Some(them.qpn);
            receive.rq_psn = Some(them.psn);
        }
        if kind == QpType::Rc {
            receive.max_dest_rd_atomic = Some(4);
            receive.min_rnr_timer = Some(12);
            send.timeout = Some(ack_timeout(14));
            send.retry_count = Some(Retries::Limited(7));
            send.rnr_retry = Some(Retries::Unlimited);
            send.max_rd_atomic = Some(4);
        }
        for attr in [init, receive, send] {
            self.qp
                .modify(&attr)
                .with_context(|| format!("to {:?}", attr.state))?;
        }
        Ok(())
    }

    fn path_to(&self, them: &Hello) -> Path {
        Path::new(self.qp.device().address(), them.address)
    }

    /// Runs one operation to its end; a datagram needs to know whither.
    pub(crate) fn run(
        &self,
        operation: Operation,
        piece: Sge,
        datagram_to: Option<&Hello>,
    ) -> Result<()> {
        let pieces = if piece.length == 0 {
            SgeList::EMPTY
        } else {
            list(piece)
        };
        let destination = datagram_to.map(|them| UdDestination {
            path: self.path_to(them),
            qpn: them.qpn,
            qkey: QKEY,
        });
        let local = Local::Gather(pieces);
        self.qp.post_send(SendWork {
            wr_id: 0,
            operation,
            flags: SendFlags::SIGNALED,
            local,
            destination,
        })?;
        self.next_of(&self.send_cq)?;
        Ok(())
    }

    /// Posts a receive.
    pub(crate) fn post_receive(&self, wr_id: u64, piece: Sge) -> Result<()> {
        Ok(self.qp.post_recv(&RecvWork {
            wr_id,
            sges: list(piece),
        })?)
    }

    /// Waits for the next message, which must have been received well.
    pub(crate) fn received(&self) -> Result<Completion> {
        self.next_of(&self.recv_cq)
    }

    fn next_of(&self, cq: &Cq) -> Result<Completion> {
        let deadline = Instant::now() + LIMIT;
        let mut completions = Vec::with_capacity(1);
        while cq.poll(&mut completions, 1)? == 0 {
            if Instant::now() > deadline {
                bail!("nothing completes: {:?}", self.qp.attr()?);
            }
            // The peer may need our processor.
            thread::yield_now();
        }
        let completion = completions[0];
        ensure!(
            completion.status == Status::Success,
            "{:?}",
            completion.status
        );
        Ok(completion)
    }
}

fn list(piece: Sge) -> SgeList {
    SgeList::new(&[piece]).expect("one piece")
}
