//! The settings, one row each.

use fabric::{Config, ConfigError, Error, Setting, SettingKind};

use crate::ring::Geometry;

static CELLS: Setting = Setting {
    name: "shm.cells",
    default: "64",
    kind: SettingKind::Number,
    help: "messages under way in each direction of a connection, of 64 bytes each: a power of two, 16 to 4096",
};

static BUFFER: Setting = Setting {
    name: "shm.buffer",
    default: "256kb",
    kind: SettingKind::Size,
    help: "bytes of longer messages under way in each direction of a connection: a power of two, 4kb to 16mb",
};

/// All rows.
pub(crate) static SETTINGS: [Setting; 2] = [CELLS, BUFFER];

/// Reads the sizes of rings.
///
/// # Errors
/// [`Error::Config`] with the row.
pub(crate) fn geometry(config: &Config) -> Result<Geometry, Error> {
    let wrong = |row: &Setting, expected| {
        Error::Config(ConfigError::Value {
            name: row.name.to_owned(),
            value: config.text(row).to_owned(),
            expected,
        })
    };
    let geometry = Geometry {
        cells: u32::try_from(config.number(&CELLS)).unwrap_or(0),
        ..Geometry::DEFAULT
    };
    if !geometry.is_valid() {
        return Err(wrong(&CELLS, "a power of two, 16 to 4096"));
    }
    let geometry = Geometry {
        data: u32::try_from(config.size(&BUFFER)).unwrap_or(0),
        ..geometry
    };
    if !geometry.is_valid() {
        return Err(wrong(&BUFFER, "a power of two, 4kb to 16mb"));
    }
    Ok(geometry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_read() {
        let config = Config::new(&SETTINGS);
        assert_eq!(geometry(&config).unwrap(), Geometry::DEFAULT);
    }

    #[test]
    fn a_mistake_names_its_row() {
        for (name, value) in [("shm.cells", "63"), ("shm.buffer", "100mb")] {
            let config = Config::new(&SETTINGS).with(name, value).unwrap();
            let error = geometry(&config).expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name}={value} ")), "{error}");
        }
    }
}
