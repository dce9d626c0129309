//! Opens what the registry offers, as the command line and the environment ask.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use fabric::{
    Address, Completion, CompletionQueue, Config, Domain, Hints, PostError, Refused, Registry,
    Source,
};

use crate::args::Common;
use crate::protocol::Counter;

/// The settings of this run.
///
/// # Errors
/// A setting that does not exist or cannot be read.
pub(crate) fn config(registry: &Registry, common: &Common) -> anyhow::Result<Config> {
    let mut config = registry.config()?;
    for (name, meant) in unknown_variables(&config) {
        match meant {
            Some(meant) => tracing::warn!("{name} sets nothing: is {meant} meant?"),
            None => tracing::warn!("{name} sets nothing: `ringmail info` lists what can be set"),
        }
    }
    let options = [
        (PROVIDER, &common.provider),
        ("faults", &common.faults),
        ("capture", &common.capture),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            config.set(name, value)?;
        }
    }
    for (name, value) in &common.settings {
        config.set(name, value)?;
    }
    Ok(config)
}

/// Variables that look like settings and are none, each with the one that was perhaps meant.
pub(crate) fn unknown_variables(config: &Config) -> Vec<(String, Option<String>)> {
    let mut unknown = config.unknown_variables();
    unknown.retain(|(name, _)| name != "RINGMAIL_LOG");
    unknown
}

/// Has a device that can be at several addresses be where a listener is asked for, unless the user has said where.
///
/// # Errors
/// A host without an address.
pub(crate) fn place_at(
    config: &mut Config,
    registry: &Registry,
    listen: &Address,
) -> anyhow::Result<Address> {
    if choose_named(config, registry, listen)? {
        return Ok(listen.clone());
    }
    let found = resolve(listen).with_context(|| format!("cannot listen at {listen}"))?;
    place(config, found.ip())?;
    Ok(found.to_string().into())
}

/// Has a device that can be at several addresses be where packets to a peer leave this machine, unless the user has said
/// where. Peers of this machine need no place. An address that is none is left for the provider to judge.
///
/// # Errors
/// A setting that cannot be set.
pub(crate) fn place_towards(
    config: &mut Config,
    registry: &Registry,
    peer: &Address,
) -> anyhow::Result<()> {
    if choose_named(config, registry, peer)? {
        return Ok(());
    }
    let Ok(peer) = resolve(peer) else {
        return Ok(());
    };
    if peer.ip().is_loopback() {
        return Ok(());
    }
    // Connecting a datagram socket sends nothing, but chooses the route.
    let any: IpAddr = if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let routed = UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect(peer).and_then(|()| socket.local_addr()));
    match routed {
        Ok(own) => place(config, own.ip()),
        Err(error) => Err(error).with_context(|| format!("there is no way to {}", peer.ip())),
    }
}

/// Chooses the provider that an address names, as `shm:7471` does, unless the user has chosen. Answers whether it names one.
fn choose_named(
    config: &mut Config,
    registry: &Registry,
    address: &Address,
) -> anyhow::Result<bool> {
    let host = address.as_str().rsplit_once(':').map(|(host, _)| host);
    let mut providers = registry.providers().iter();
    let Some(named) = providers.find(|provider| host == Some(provider.name())) else {
        return Ok(false);
    };
    set_if_open(config, PROVIDER, named.name())?;
    Ok(true)
}

fn place(config: &mut Config, ip: IpAddr) -> anyhow::Result<()> {
    set_if_open(config, ADDRESS, &ip.to_string())
}

/// Sets what nobody has set.
fn set_if_open(config: &mut Config, name: &str, value: &str) -> anyhow::Result<()> {
    let is_open = config
        .rows()
        .any(|(row, _, source)| row.name == name && source == Source::Default);
    if is_open {
        config.set(name, value)?;
    }
    Ok(())
}

fn resolve(address: &Address) -> io::Result<SocketAddr> {
    let mut found = address.as_str().to_socket_addrs()?;
    found
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
}

/// The setting of a provider whose devices can be at several addresses.
const ADDRESS: &str = "address";
/// The setting that chooses the provider.
const PROVIDER: &str = "provider";

/// Opens the best device that meets the hints, or the one that was asked for.
///
/// # Errors
/// Why there is none, device by device.
pub(crate) fn open(registry: &Registry, config: &Config, hints: &Hints) -> anyhow::Result<Domain> {
    let selection = registry.select(hints, config)?;
    for verdict in &selection.reasons {
        tracing::debug!(chosen = verdict.chosen, "{verdict}");
    }
    let chosen = &selection.chosen;
    registry
        .open_selected(&selection, config)
        .with_context(|| format!("cannot open {}/{}", chosen.provider, chosen.device))
}

/// The environment in which another process makes the same choices on the same device's behalf.
///
/// A capture is not among them: two processes cannot write one file, and ours sees both directions. Nor is an address,
/// which is ours: the other has one of its own.
pub(crate) fn environment(config: &Config, domain: &Domain) -> HashMap<String, String> {
    let said = config.rows().filter(|(row, _, source)| {
        *source != Source::Default && !matches!(row.name, "capture" | "config" | PROVIDER | ADDRESS)
    });
    let mut variables: HashMap<_, _> = said
        .map(|(row, value, _)| (row.environment(), value.to_owned()))
        .collect();
    variables.insert(
        "RINGMAIL_PROVIDER".to_owned(),
        domain.info().provider.to_owned(),
    );
    variables
}

/// What the device has counted, for a peer.
pub(crate) fn counters(domain: &Domain) -> Vec<Counter> {
    let counter = |(name, value): (&str, u64)| Counter {
        name: name.to_owned(),
        value,
    };
    domain.counters().into_iter().map(counter).collect()
}

/// A refused post where none should be.
pub(crate) fn refused(domain: &Domain, refused: &Refused) -> fabric::Error {
    match refused.error {
        PostError::NotConnected | PostError::DeviceLost => fabric::Error::Disconnected,
        error => fabric::Error::Unsupported {
            provider: domain.info().provider.to_owned(),
            what: format!("what is needed here: {error}"),
        },
    }
}

/// A connection to where nobody listens.
pub(crate) fn nobody(domain: &Domain, peer: &Address, command: &str) -> anyhow::Error {
    let provider = domain.info().provider;
    anyhow!(
        "nobody answers at {peer} over {provider}: is `{command}` running there, over {provider} too?"
    )
}

/// A connection that was refused, with the peer's reason if that is text.
pub(crate) fn rejected(peer: &Address, private_data: &[u8]) -> anyhow::Error {
    let reason = String::from_utf8_lossy(private_data);
    let reason = reason.trim_end_matches('\0');
    if reason.is_empty() || reason.chars().any(char::is_control) {
        return anyhow!("{peer} refuses the connection");
    }
    anyhow!("{peer} refuses the connection: {reason}")
}

/// A completion that comes soon, without sleeping: for round trips, which are shorter than waking up takes.
pub(crate) fn spin(cq: &CompletionQueue) -> Option<Completion> {
    let start = Instant::now();
    while start.elapsed() < SPIN {
        for _ in 0..64 {
            if let Some(completion) = cq.poll_one() {
                return Some(completion);
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    None
}

const SPIN: Duration = Duration::from_millis(2);
