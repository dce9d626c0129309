//! What datagram endpoints have beside a queue pair: the way to each peer, and the addressing in front of each datagram.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use fabric::provider::EndpointAttributes;
use fabric::{Address, AddressVector, Error, Peer, PostError};
use mem::Memory;
use rnic::{Mr, Pd, Qp};
use roce::verbs::{Access, Path, QpAttr, QpState, Sge, UdDestination};
use roce::wire::{DEFAULT_PKEY, Grh, Psn, Qpn};

use crate::address::DatagramAddress;
use crate::cq::lock;
use crate::error::lost;

pub(crate) struct Datagrams {
    own: DatagramAddress,
    addresses: AddressVector,
    /// The way to a peer, by the peer's place in the vector.
    ways: Mutex<Vec<Option<(Peer, UdDestination)>>>,
    /// Who has sent, by address and queue pair.
    senders: Mutex<HashMap<(IpAddr, Qpn), Peer>>,
    /// Room for one addressing a receive.
    headers: Mr,
    vacant: Mutex<Vec<u32>>,
}

impl Datagrams {
    /// Bytes of addressing in front of a datagram.
    pub(crate) const HEADER: usize = Grh::LEN;

    /// Makes a queue pair ready for datagrams.
    pub(crate) fn open(pd: &Pd, qp: &Qp, attributes: &EndpointAttributes) -> Result<Self, Error> {
        if !attributes.address.is_any() {
            return Err(Error::BadAddress {
                address: attributes.address.clone(),
                reason: "numbers of queue pairs are drawn, not chosen".to_owned(),
            });
        }
        let own = DatagramAddress {
            ip: qp.device().address(),
            qpn: qp.qpn(),
            qkey: QKEY,
        };
        let refused = |error| lost("preparing a datagram queue pair", error);
        qp.modify(&QpAttr {
            state: Some(QpState::Init),
            pkey: Some(DEFAULT_PKEY),
            qkey: Some(own.qkey),
            ..QpAttr::default()
        })
        .map_err(refused)?;
        qp.modify(&go(QpState::Rtr)).map_err(refused)?;
        qp.modify(&QpAttr {
            sq_psn: Some(Psn::new(random()?)),
            ..go(QpState::Rts)
        })
        .map_err(refused)?;
        let room = Memory::allocate(attributes.recv_depth * Self::HEADER);
        let headers = pd
            .register(room, None, Access::LOCAL_WRITE)
            .map_err(|error| lost("registering memory", error))?;
        Ok(Self {
            own,
            addresses: attributes.addresses.clone(),
            ways: Mutex::default(),
            senders: Mutex::default(),
            headers,
            vacant: Mutex::new((0..attributes.recv_depth as u32).collect()),
        })
    }

    /// Where peers reach it.
    pub(crate) fn address(&self) -> Address {
        self.own.to_string().into()
    }

    /// The way to a peer.
    ///
    /// # Errors
    /// [`PostError::NoPeer`], also where its address cannot be read or reached.
    pub(crate) fn destination(&self, peer: Option<Peer>) -> Result<UdDestination, PostError> {
        let peer = peer.ok_or(PostError::NoPeer)?;
        let mut ways = lock(&self.ways);
        if let Some(Some((known, way))) = ways.get(peer.index())
            && *known == peer
        {
            return Ok(*way);
        }
        let address = self.addresses.lookup(peer).ok_or(PostError::NoPeer)?;
        let address = DatagramAddress::parse(&address).ok_or(PostError::NoPeer)?;
        let way = UdDestination {
            path: Path::new(self.own.ip, address.ip),
            qpn: address.qpn,
            qkey: address.qkey,
        };
        if ways.len() <= peer.index() {
            ways.resize(peer.index() + 1, None);
        }
        ways[peer.index()] = Some((peer, way));
        Ok(way)
    }

    /// Room for the addressing of one receive, and that as a piece of its list.
    pub(crate) fn reserve_header(&self) -> (u32, Sge) {
        let header = lock(&self.vacant)
            .pop()
            .expect("as many as receives, and a receive has been counted");
        let offset = header as usize * Self::HEADER;
        (header, self.headers.sge(offset as u64, Self::HEADER as u32))
    }

    pub(crate) fn release_header(&self, header: u32) {
        lock(&self.vacant).push(header);
    }

    /// Who sent the datagram whose addressing was placed in `header`. A stranger gets a handle; `None` if there is no more
    /// room for strangers.
    pub(crate) fn sender(&self, header: u32, qpn: Qpn) -> Option<Peer> {
        let mut bytes = [0; Self::HEADER];
        let memory = self.headers.memory();
        memory
            .copy_out(header as usize * Self::HEADER, &mut bytes)
            .ok()?;
        let ip: IpAddr = match Grh::parse(&bytes).ok()?.0 {
            Grh::V4(header) => header.source.into(),
            Grh::V6(header) => header.source.into(),
        };
        let mut senders = lock(&self.senders);
        if let Some(&known) = senders.get(&(ip, qpn))
            && self.addresses.contains(known)
        {
            return Some(known);
        }
        // The sender's key does not travel: those who talk to each other share one.
        let qkey = self.own.qkey;
        let address = DatagramAddress { ip, qpn, qkey }.to_string();
        let peer = self.addresses.insert(&address.into()).ok()?;
        if senders.len() >= REMEMBERED {
            senders.clear();
        }
        senders.insert((ip, qpn), peer);
        Some(peer)
    }

    /// Lets sends go on after one has failed.
    pub(crate) fn recover(&self, qp: &Qp) {
        if qp.state() == QpState::Sqe {
            // In another state there is nothing to recover from.
            let _ = qp.modify(&go(QpState::Rts));
        }
    }
}

fn go(state: QpState) -> QpAttr {
    QpAttr {
        state: Some(state),
        ..QpAttr::default()
    }
}

/// A random number.
pub(crate) fn random() -> Result<u32, Error> {
    getrandom::u32()
        .map_err(|error| Error::io("drawing a random number", std::io::Error::other(error)))
}

/// The key that `rdma_cm` gives datagram queue pairs.
const QKEY: u32 = 0x0123_4567;
/// Senders whose handle is found without the vector.
const REMEMBERED: usize = 4096;
