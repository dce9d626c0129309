//! Opens what the registry offers, as the command line and the environment ask.

use fabric::{Config, Registry};

use crate::args::Common;

/// The settings of this run.
///
/// # Errors
/// A setting that does not exist or cannot be read.
pub(crate) fn config(registry: &Registry, common: &Common) -> anyhow::Result<Config> {
    let mut config = registry.config()?;
    let options = [
        ("provider", &common.provider),
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
