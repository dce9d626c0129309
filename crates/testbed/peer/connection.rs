//! Connections by CM, one at a time.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rnic::{Agreement, CmChannel, CmListener};
use roce::cm::{AcceptParams, CmEvent, ConnectParams, Route};
use roce::verbs::{Access, QpType};
use roce::wire::cm::{CommId, ServiceId};

use crate::nic::{Nic, QueuePair};

/// Emulated machines are slow.
const LIMIT: Duration = Duration::from_secs(60);

/// READs and atomics at once, each way: what rping asks for.
const OUTSTANDING: u8 = 1;

/// A service on a port.
#[derive(Debug)]
pub(crate) struct Listener {
    channel: CmChannel,
    _listener: CmListener,
}

/// A queue pair's connection to a peer.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: CmChannel,
    id: CommId,
}

impl Listener {
    /// Takes requests for `port`.
    pub(crate) fn new(nic: &Nic, port: u16) -> Result<Self> {
        let channel = CmChannel::new(nic.device())?;
        let listener = channel.listen(ServiceId::tcp(port))?;
        Ok(Self {
            channel,
            _listener: listener,
        })
    }

    /// Waits for a request and accepts it with `qp`; `prepare` posts receives before the peer can send.
    pub(crate) fn accept(
        self,
        qp: &QueuePair,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<Connection> {
        let (id, request) = match next(&self.channel)? {
            CmEvent::ConnectRequest { id, request } => (id, request),
            other => bail!("{other:?} instead of a request"),
        };
        let ours = qp.inner().end(OUTSTANDING, false);
        qp.inner().initialise(Access::all())?;
        prepare()?;
        qp.inner()
            .make_ready(&Agreement::of_request(&request, ours))?;
        self.channel.accept(
            id,
            &AcceptParams {
                end: ours,
                private_data: Vec::new(),
            },
        )?;
        Connection {
            channel: self.channel,
            id,
        }
        .established()
    }
}

impl Connection {
    /// Connects `qp` to `port` of `server`; `prepare` posts receives before the peer can send.
    pub(crate) fn new(
        nic: &Nic,
        qp: &QueuePair,
        server: IpAddr,
        port: u16,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let channel = CmChannel::new(nic.device())?;
        qp.inner().initialise(Access::all())?;
        prepare()?;
        let params = ConnectParams {
            route: Route {
                local: nic.address(),
                remote: server,
            },
            service: ServiceId::tcp(port),
            source_port: 40_000,
            end: qp.inner().end(OUTSTANDING, false),
            transport: QpType::Rc,
            path_mtu: nic.device().attributes().active_mtu,
            retry_count: 7,
            ack_timeout: 16,
            private_data: Vec::new(),
        };
        let asked = channel.connect(&params)?;
        let peer = match next(&channel)? {
            CmEvent::ConnectReply { id, peer, .. } if id == asked => peer,
            other => bail!("{other:?} instead of a reply"),
        };
        qp.inner()
            .make_ready(&Agreement::of_reply(&params, &peer))?;
        channel.establish(asked)?;
        Self { channel, id: asked }.established()
    }

    fn established(self) -> Result<Self> {
        let event = next(&self.channel)?;
        ensure!(
            matches!(event, CmEvent::Established { id, .. } if id == self.id),
            "{event:?} instead of a connection"
        );
        Ok(self)
    }

    /// Ends the connection, and waits until the peer agrees.
    pub(crate) fn disconnect(self) -> Result<()> {
        self.channel.disconnect(self.id)?;
        self.wait_for_disconnect()
    }

    /// Waits until the connection has ended.
    pub(crate) fn wait_for_disconnect(self) -> Result<()> {
        let event = next(&self.channel)?;
        ensure!(
            matches!(event, CmEvent::Disconnected { id } if id == self.id),
            "{event:?} instead of the end"
        );
        Ok(())
    }
}

fn next(channel: &CmChannel) -> Result<CmEvent> {
    channel
        .wait(Some(LIMIT))?
        .context("nothing happens to the connection")
}
