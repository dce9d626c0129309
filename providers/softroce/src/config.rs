//! The settings, one row each, and what they make of a device.

use std::path::PathBuf;
use std::time::Duration;

use fabric::{Config, ConfigError, Error, Registry, Setting, SettingKind};
use rnic::{AddressChoice, DeviceConfig, Faults, UdpKind};
use roce::verbs::{Mtu, ack_timeout};

/// Where the device is.
static ADDRESS: Setting = Setting {
    name: "address",
    default: "",
    kind: SettingKind::Text,
    help: "IP address of the software RNIC; empty: a loopback address of the process's own; `fresh`: one for each domain",
};

static UDP: Setting = Setting {
    name: "udp",
    default: "best",
    kind: SettingKind::Text,
    help: "how packets are sent: best, or portable (one datagram a call)",
};

static EXTENSIONS: Setting = Setting {
    name: "extensions",
    default: "on",
    kind: SettingKind::Switch,
    help: "selective repeat and congestion control towards software peers",
};

static MTU: Setting = Setting {
    name: "softroce.mtu",
    default: "4096",
    kind: SettingKind::Size,
    help: "largest payload of a packet: 256, 512, 1024, 2048 or 4096; less where the link carries less",
};

// With seven retries a software peer that is silent is given up after 4.3 s (four timeouts a try), a stranger after 1.1 s.
static ACK_TIMEOUT: Setting = Setting {
    name: "softroce.ack-timeout",
    default: "134ms",
    kind: SettingKind::Time,
    help: "longest wait for an acknowledgement before a retry, rounded up to 4.096 us * 2^n",
};

static READ_DEPTH: Setting = Setting {
    name: "softroce.read-depth",
    default: "32",
    kind: SettingKind::Number,
    help: "reads and atomics that an endpoint may have outstanding, 1 to 255",
};

static RECEIVE_BUFFER: Setting = Setting {
    name: "softroce.receive-buffer",
    default: "4mb",
    kind: SettingKind::Size,
    help: "buffer to ask of the system for the sockets, which accounts twice that; 0: its default",
};

/// All rows.
pub(crate) static SETTINGS: [Setting; 7] = [
    ADDRESS,
    UDP,
    EXTENSIONS,
    MTU,
    ACK_TIMEOUT,
    READ_DEPTH,
    RECEIVE_BUFFER,
];

/// What endpoints are tuned by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Largest payload of a packet.
    pub(crate) mtu: Mtu,
    /// Code of the local ACK timeout.
    pub(crate) ack_timeout: u8,
    /// READs and atomics outstanding in each direction.
    pub(crate) read_depth: u8,
}

impl Tuning {
    /// How long a peer asks again that gets no answer, if it is tuned alike.
    pub(crate) fn patience(&self) -> Duration {
        ack_timeout(self.ack_timeout).unwrap_or_default() * (7 + 1)
    }
}

/// Reads what a device is opened with.
///
/// # Errors
/// [`Error::Config`] with the row.
pub(crate) fn device(config: &Config) -> Result<DeviceConfig, Error> {
    let faults: Faults =
        core_text(config, "faults")
            .parse()
            .map_err(|error: rnic::FaultsError| ConfigError::Part {
                name: "faults".to_owned(),
                value: core_text(config, "faults").to_owned(),
                reason: error.to_string(),
            })?;
    let capture = core_text(config, "capture");
    Ok(DeviceConfig {
        address: address(config)?,
        udp: match config.text(&UDP) {
            "best" | "" => UdpKind::Best,
            "portable" => UdpKind::Portable,
            other => return Err(wrong(UDP.name, other, "best or portable")),
        },
        buffer: Some(config.size(&RECEIVE_BUFFER)),
        faults,
        capture: (!capture.is_empty()).then(|| PathBuf::from(capture)),
        plain: !config.switch(&EXTENSIONS),
    })
}

/// Reads where the device is.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn address(config: &Config) -> Result<AddressChoice, Error> {
    match config.text(&ADDRESS).trim() {
        "" => Ok(AddressChoice::Loopback),
        "fresh" => Ok(AddressChoice::Fresh),
        text => match text.parse() {
            Ok(ip) => Ok(AddressChoice::Ip(ip)),
            Err(_) => Err(wrong(ADDRESS.name, text, "an IP address")),
        },
    }
}

/// Reads what endpoints are tuned by.
///
/// # Errors
/// [`Error::Config`] with the row.
pub(crate) fn tuning(config: &Config) -> Result<Tuning, Error> {
    let bytes = config.size(&MTU);
    let mtu = Mtu::ALL
        .into_iter()
        .find(|mtu| mtu.bytes() as usize == bytes)
        .ok_or_else(|| wrong(MTU.name, config.text(&MTU), "256, 512, 1024, 2048 or 4096"))?;
    let patience = config.time(&ACK_TIMEOUT);
    let ack_timeout = (1..=31)
        .find(|&code| ack_timeout(code).is_some_and(|time| time >= patience))
        .ok_or_else(|| {
            wrong(
                ACK_TIMEOUT.name,
                config.text(&ACK_TIMEOUT),
                "at most 2 hours",
            )
        })?;
    let depth = config.number(&READ_DEPTH);
    let read_depth = u8::try_from(depth)
        .ok()
        .filter(|&depth| depth > 0)
        .ok_or_else(|| wrong(READ_DEPTH.name, config.text(&READ_DEPTH), "1 to 255"))?;
    Ok(Tuning {
        mtu,
        ack_timeout,
        read_depth,
    })
}

/// The value of a row that belongs to no provider.
fn core_text<'a>(config: &'a Config, name: &str) -> &'a str {
    let rows = Registry::core_settings();
    let row = rows
        .iter()
        .find(|row| row.name == name)
        .expect("a row of the registry");
    match config.is_set(row) {
        true => config.text(row),
        false => row.default,
    }
}

fn wrong(name: &str, value: &str, expected: &'static str) -> Error {
    let (name, value) = (name.to_owned(), value.to_owned());
    Error::Config(ConfigError::Value {
        name,
        value,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut rows = Registry::core_settings().to_vec();
        rows.extend(SETTINGS);
        Config::new(&rows)
    }

    #[test]
    fn the_defaults_are_read() {
        let tuning = tuning(&config()).unwrap();
        assert_eq!(
            (tuning.mtu, tuning.ack_timeout, tuning.read_depth),
            (Mtu::B4096, 15, 32)
        );
        let large = DeviceConfig {
            buffer: Some(4 << 20),
            ..DeviceConfig::default()
        };
        assert_eq!(device(&config()).unwrap(), large);
    }

    #[test]
    fn settings_reach_the_device() {
        let config = config()
            .with("address", "127.0.0.9")
            .and_then(|config| config.with("faults", "loss=2%,seed=3"))
            .and_then(|config| config.with("capture", "/tmp/c.pcapng"))
            .and_then(|config| config.with("extensions", "off"))
            .and_then(|config| config.with("udp", "portable"))
            .and_then(|config| config.with("softroce.receive-buffer", "0"))
            .unwrap();
        let device = device(&config).unwrap();
        assert_eq!(
            device.address,
            AddressChoice::Ip("127.0.0.9".parse().unwrap())
        );
        assert_eq!((device.faults.loss, device.faults.seed), (0.02, 3));
        assert_eq!(device.capture, Some(PathBuf::from("/tmp/c.pcapng")));
        assert_eq!((device.udp, device.plain), (UdpKind::Portable, true));
        assert_eq!(device.buffer, Some(0));
    }

    #[test]
    fn a_mistake_names_its_row() {
        for (name, value) in [
            ("address", "here"),
            ("udp", "fast"),
            ("faults", "loss=2"),
            ("softroce.mtu", "1500"),
            ("softroce.read-depth", "0"),
        ] {
            let config = config().with(name, value).unwrap();
            let read = device(&config).and_then(|_| tuning(&config).map(drop));
            let error = read.expect_err(name).to_string();
            let start = error.strip_prefix(&format!("{name}={value}"));
            let start = start.unwrap_or_else(|| panic!("{error}"));
            assert!(start.starts_with([' ', ':']), "{error}");
        }
    }

    #[test]
    fn the_wrong_one_of_several_faults_is_named() {
        for (faults, part) in [
            ("loss=1%,lose=2%,seed=1", "unknown fault `lose`"),
            ("loss=1%,dup=200%", "fault dup=200%"),
            ("loss=1%,delay=5", "fault delay=5"),
            ("loss=1%,seed", "fault `seed`"),
        ] {
            let config = config().with("faults", faults).unwrap();
            let error = device(&config).expect_err(faults).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
