//! What a device is opened with.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::{Faults, UdpKind};

/// Where a device listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum AddressChoice {
    /// The loopback address of this process: chosen at random when first asked for, the same ever after.
    #[default]
    Loopback,
    /// A loopback address of its own, for another device in the same process.
    Fresh,
    /// This address of the host.
    Ip(IpAddr),
}

/// What a device is opened with. The default is a device on loopback without faults or capture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceConfig {
    /// Where it listens.
    pub address: AddressChoice,
    /// How it sends and receives.
    pub udp: UdpKind,
    /// Bytes of socket buffer to ask of the kernel in each direction: 0 for its default, none for as much as serves. It accounts
    /// twice that, and gives less than asked beyond `rmem_max` and `wmem_max` unless privileged.
    pub buffer: Option<usize>,
    /// What happens to packets on arrival.
    pub faults: Faults,
    /// Where its packets are captured.
    pub capture: Option<PathBuf>,
    /// No extensions to RoCEv2, even towards software peers.
    pub plain: bool,
}

impl DeviceConfig {
    /// Reads the environment: `RINGMAIL_ADDRESS` (an IP address), `RINGMAIL_UDP`, `RINGMAIL_FAULTS`,
    /// `RINGMAIL_CAPTURE` (a file name), `RINGMAIL_EXTENSIONS` (`on` or `off`).
    ///
    /// # Errors
    /// A sentence that names the variable, its value and what was expected.
    pub fn from_env() -> Result<Self, String> {
        let text = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|text| !text.trim().is_empty())
        };
        let address = match text("RINGMAIL_ADDRESS") {
            None => AddressChoice::Loopback,
            Some(text) => match text.trim().parse() {
                Ok(ip) => AddressChoice::Ip(ip),
                Err(_) => {
                    return Err(format!(
                        "RINGMAIL_ADDRESS is `{text}`: expected an IP address"
                    ));
                }
            },
        };
        let plain = match text("RINGMAIL_EXTENSIONS").as_deref() {
            None | Some("on" | "1" | "yes") => false,
            Some("off" | "0" | "no") => true,
            Some(other) => {
                return Err(format!(
                    "RINGMAIL_EXTENSIONS is `{other}`: expected `on` or `off`"
                ));
            }
        };
        let faults = Faults::from_env().map_err(|error| format!("RINGMAIL_FAULTS: {error}"))?;
        Ok(Self {
            address,
            udp: UdpKind::from_env()?,
            buffer: None,
            faults: faults.unwrap_or_default(),
            capture: text("RINGMAIL_CAPTURE").map(PathBuf::from),
            plain,
        })
    }

    /// The same on a loopback address of its own.
    #[must_use]
    pub fn fresh(mut self) -> Self {
        self.address = AddressChoice::Fresh;
        self
    }
}
