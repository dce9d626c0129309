//! Two devices, or two ends of one connection, with the set-up out of sight.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::{Duration, Instant};

use mem::Memory;
use ringmail_rnic::{Cq, Device, DeviceConfig, Mr, Pd, Qp, QpInit};
use roce::verbs::{
    Access, Completion, Local, Mtu, Operation, Path, QpAttr, QpState, QpType, RecvWork, Remote,
    Retries, SendFlags, SendWork, SgeList, Status,
};
use roce::wire::{Psn, Qpn};

/// One side: a device, a domain, a completion queue, a queue pair, and a region that peers may do everything with.
pub(crate) struct Side {
    pub(crate) device: Device,
    pub(crate) pd: Pd,
    pub(crate) cq: Cq,
    pub(crate) qp: Qp,
    pub(crate) mr: Mr,
}

pub(crate) const ALL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC);

impl Side {
    pub(crate) fn new(config: &DeviceConfig, qp_type: QpType, bytes: usize) -> Self {
        let device = Device::open(config).expect("a loopback address is free");
        let pd = device.alloc_pd().unwrap();
        let cq = device.create_cq(1024, None).unwrap();
        let qp = pd
            .create_qp(&QpInit {
                max_recv_sge: 4,
                ..QpInit::new(qp_type, &cq)
            })
            .unwrap();
        let mr = pd.register(Memory::allocate(bytes), None, ALL).unwrap();
        Self {
            device,
            pd,
            cq,
            qp,
            mr,
        }
    }

    /// Where the peer finds byte `offset`.
    pub(crate) fn remote(&self, offset: u64) -> Remote {
        Remote {
            addr: self.mr.iova() + offset,
            rkey: self.mr.rkey(),
        }
    }

    pub(crate) fn local(&self, offset: u64, length: u32) -> Local {
        Local::Gather(SgeList::new(&[self.mr.sge(offset, length)]).unwrap())
    }

    pub(crate) fn post(&self, wr_id: u64, operation: Operation, offset: u64, length: u32) {
        self.qp
            .post_send(work(wr_id, operation, self.local(offset, length)))
            .unwrap();
    }

    pub(crate) fn post_recv(&self, wr_id: u64, offset: u64, length: u32) {
        let sges = SgeList::new(&[self.mr.sge(offset, length)]).unwrap();
        self.qp.post_recv(&RecvWork { wr_id, sges }).unwrap();
    }

    pub(crate) fn fill(&self, offset: usize, len: usize, seed: u8) {
        self.mr
            .memory()
            .copy_in(offset, &pattern(len, seed))
            .unwrap();
    }

    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mr.memory().copy_out(offset, &mut bytes).unwrap();
        bytes
    }

    /// The next completion.
    pub(crate) fn complete(&self) -> Completion {
        complete(&self.cq)
    }

    /// The next completion, which is a success.
    pub(crate) fn succeed(&self) -> Completion {
        let completion = self.complete();
        assert_eq!(completion.status, Status::Success, "{completion:?}");
        completion
    }
}

pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|n| {
            (n as u8)
                .wrapping_mul(31)
                .wrapping_add(seed)
                .wrapping_add((n >> 8) as u8)
        })
        .collect()
}

pub(crate) fn work(wr_id: u64, operation: Operation, local: Local) -> SendWork {
    SendWork {
        wr_id,
        operation,
        flags: SendFlags::SIGNALED,
        local,
        destination: None,
    }
}

pub(crate) fn complete(cq: &Cq) -> Completion {
    until(|| cq.poll_one().unwrap())
}

/// Asks again and again, and gives up loudly.
pub(crate) fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "nothing happened for 20 seconds"
        );
        std::thread::yield_now();
    }
}

pub(crate) fn init() -> QpAttr {
    QpAttr {
        state: Some(QpState::Init),
        access: Some(ALL),
        pkey: Some(0xFFFF),
        ..QpAttr::default()
    }
}

/// Connects `side` to a peer.
pub(crate) fn connect(
    side: &Side,
    address: std::net::IpAddr,
    qpn: Qpn,
    our_psn: u32,
    peer_psn: u32,
) {
    side.qp.modify(&init()).unwrap();
    side.qp
        .modify(&to_rtr(side, address, qpn, peer_psn))
        .unwrap();
    side.qp.modify(&to_rts(side.qp.qp_type(), our_psn)).unwrap();
}

pub(crate) fn to_rtr(side: &Side, address: std::net::IpAddr, qpn: Qpn, psn: u32) -> QpAttr {
    let rc = side.qp.qp_type() == QpType::Rc;
    QpAttr {
        state: Some(QpState::Rtr),
        path: Some(Path::new(side.device.address(), address)),
        path_mtu: Some(Mtu::B4096),
        dest_qpn: Some(qpn),
        rq_psn: Some(Psn::new(psn)),
        max_dest_rd_atomic: rc.then_some(16),
        min_rnr_timer: rc.then_some(1),
        ..QpAttr::default()
    }
}

pub(crate) fn to_rts(qp_type: QpType, psn: u32) -> QpAttr {
    let rc = qp_type == QpType::Rc;
    QpAttr {
        state: Some(QpState::Rts),
        sq_psn: Some(Psn::new(psn)),
        max_rd_atomic: rc.then_some(16),
        timeout: rc.then_some(Some(Duration::from_millis(134))),
        retry_count: rc.then_some(Retries::Limited(7)),
        rnr_retry: rc.then_some(Retries::Unlimited),
        ..QpAttr::default()
    }
}

/// Two connected sides on devices of their own.
pub(crate) fn pair_with(config: &DeviceConfig, qp_type: QpType, bytes: usize) -> (Side, Side) {
    let config = config.clone().fresh();
    let a = Side::new(&config, qp_type, bytes);
    let b = Side::new(&config, qp_type, bytes);
    connect(&a, b.device.address(), b.qp.qpn(), 0xFF_FFF0, 77);
    connect(&b, a.device.address(), a.qp.qpn(), 77, 0xFF_FFF0);
    (a, b)
}

pub(crate) fn pair(qp_type: QpType) -> (Side, Side) {
    pair_with(&DeviceConfig::default(), qp_type, 1 << 20)
}
