//! The provider on the software RNIC: RoCEv2 between processes and machines, without hardware.
//!
//! Connected endpoints are RC queue pairs, connected through IB-CM to a port of the TCP port space; datagram endpoints are UD queue
//! pairs. Private memory is registered when it is allocated, and both sides gather and scatter in place: nothing is copied here.
//! All work is signalled to the device, whatever the program asked, because its memory comes back with the completion.
//!
//! What depends only on verbs is apart from what is the software RNIC's: `convert`, `flight` and `dgram` know the vocabulary of
//! [`roce::verbs`]; `adapter`, `connect` and `listener` know the device's events and its connection manager.

#![forbid(unsafe_code)]

mod adapter;
mod address;
mod config;
mod connect;
mod convert;
mod cq;
mod dgram;
mod domain;
mod ep;
mod error;
mod flight;
mod listener;
mod mr;
mod shared;

use std::sync::Arc;

use fabric::provider::{self, Provider};
use fabric::{Atomics, Capabilities, Config, Error, Info, Kinds, Operations, Reach, Setting};
use rnic::{AddressChoice, Device};
use roce::verbs::{MAX_INLINE, MAX_SGE, Mtu};

/// The provider; see the crate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Softroce;

impl Softroce {
    /// The provider.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl Provider for Softroce {
    fn name(&self) -> &'static str {
        NAME
    }

    fn settings(&self) -> &'static [Setting] {
        &config::SETTINGS
    }

    fn discover(&self, config: &Config) -> Result<Vec<Info>, Error> {
        let chosen = config::address(config)?;
        let mut devices = vec![info(chosen, None)];
        if chosen == AddressChoice::Loopback {
            let others = rnic::host_addresses()
                .into_iter()
                .filter(|(_, ip)| !ip.is_loopback())
                .map(|(interface, ip)| info(AddressChoice::Ip(ip), Some(&interface)));
            devices.extend(others);
        }
        Ok(devices)
    }

    fn open(&self, info: &Info, config: &Config) -> Result<Arc<dyn provider::Domain>, Error> {
        let tuning = config::tuning(config)?;
        let mut device = config::device(config)?;
        // A device other than the default is named by its address.
        if let Ok(ip) = info.device.parse() {
            device.address = AddressChoice::Ip(ip);
        }
        let device = Device::open(&device).map_err(error::open)?;
        let mut info = info.clone();
        // A datagram is one packet, and the link may carry less than the setting permits.
        info.capabilities.max_datagram = device.attributes().active_mtu.bytes() as usize;
        info.address = Some(device.address().to_string().into());
        Ok(Arc::new(domain::Domain::new(&device, info, tuning)?))
    }
}

/// A device at an address. Those that a program did not ask for come after the default, which nobody else can reach.
fn info(choice: AddressChoice, interface: Option<&str>) -> Info {
    let (device, address, reach) = match choice {
        AddressChoice::Ip(ip) => {
            let address = ip.to_string();
            let reach = if ip.is_loopback() {
                Reach::Host
            } else {
                Reach::Network
            };
            (address.clone(), Some(address.into()), reach)
        }
        AddressChoice::Loopback | AddressChoice::Fresh => {
            ("loopback".to_owned(), None, Reach::Host)
        }
    };
    let description = match interface {
        Some(interface) => format!("RoCEv2 in software, over UDP at {interface}"),
        None => "RoCEv2 in software, over UDP".to_owned(),
    };
    Info {
        provider: NAME,
        device,
        address,
        description,
        rank: if interface.is_some() { 190 } else { 200 },
        capabilities: Capabilities {
            kinds: Kinds::MSG | Kinds::DGRAM,
            operations: Operations::all(),
            reach,
            atomics: Atomics::Processor,
            ordered_placement: true,
            max_message: 1 << 31,
            max_datagram: Mtu::B4096.bytes() as usize,
            max_inline: MAX_INLINE,
            // One piece is for the addressing in front of a datagram.
            max_segments: MAX_SGE - 1,
            max_depth: 32_768,
            // What a request has room for behind the IP addresses.
            max_private_data: 56,
            faults: true,
            capture: true,
            registers_private_memory: true,
        },
    }
}

pub(crate) const NAME: &str = "softroce";
