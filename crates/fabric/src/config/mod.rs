//! Settings: one row each, read from the environment, a file or the program.

mod setting;
mod value;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

pub use setting::{Setting, SettingKind};
use value::Value;

/// The settings of one program run. Later sources win: defaults, file, environment, program.
///
/// ```
/// use ringmail_fabric::{Config, Setting, SettingKind};
///
/// static BUFFER: Setting = Setting {
///     name: "example.buffer",
///     default: "64kb",
///     kind: SettingKind::Size,
///     help: "bytes kept for the example",
/// };
/// let mut config = Config::new(&[BUFFER]);
/// assert_eq!(config.size(&BUFFER), 65_536);
/// config.set("example.buffer", "2mb")?;
/// assert_eq!(config.size(&BUFFER), 2 << 20);
/// assert!(config.set("example.buffer", "large").is_err());
/// # Ok::<(), ringmail_fabric::ConfigError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Config {
    rows: Vec<Setting>,
    values: BTreeMap<&'static str, (String, Source)>,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A configuration file.
    File,
    /// A `RINGMAIL_…` variable.
    Environment,
    /// The program, or its command line.
    Program,
}

/// A setting that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No row has this name.
    #[error("there is no setting called {0}")]
    Unknown(String),
    /// The value is not of the row's kind.
    #[error("{name}={value} is not {expected}")]
    Value {
        /// The row.
        name: String,
        /// As given.
        value: String,
        /// What the row takes.
        expected: &'static str,
    },
    /// A part of the value is wrong.
    #[error("{name}={value}: {reason}")]
    Part {
        /// The row.
        name: String,
        /// As given.
        value: String,
        /// Which part, and what is wrong with it.
        reason: String,
    },
    /// A line of a file that is no `name = value`.
    #[error("{file}:{line}: expected `name = value`")]
    Line {
        /// The file.
        file: String,
        /// Counted from one.
        line: usize,
    },
    /// The file cannot be read.
    #[error("cannot read {file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
}

impl Config {
    /// All at their defaults.
    #[must_use]
    pub fn new(rows: &[Setting]) -> Self {
        Self {
            rows: rows.to_vec(),
            values: BTreeMap::new(),
        }
    }

    /// Takes `RINGMAIL_…` variables that are set and not empty.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn read_environment(&mut self) -> Result<(), ConfigError> {
        self.read_variables(|name| std::env::var(name).ok())
    }

    /// Variables of the environment that begin with `RINGMAIL_` and set nothing, each with the one that was perhaps meant.
    #[must_use]
    pub fn unknown_variables(&self) -> Vec<(String, Option<String>)> {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        self.unknown_among(names)
    }

    fn unknown_among(&self, names: impl Iterator<Item = String>) -> Vec<(String, Option<String>)> {
        let known: Vec<_> = self.rows.iter().map(Setting::environment).collect();
        let ours = names.filter(|name| name.starts_with("RINGMAIL_") && !known.contains(name));
        let with_nearest = |name: String| {
            let nearest = nearest(&name, &known).map(str::to_owned);
            (name, nearest)
        };
        ours.map(with_nearest).collect()
    }

    fn read_variables(
        &mut self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        for row in self.rows.clone() {
            if let Some(value) = variable(&row.environment()).filter(|value| !value.is_empty()) {
                self.put(row.name, &value, Source::Environment)?;
            }
        }
        Ok(())
    }

    /// Takes the lines `name = value` of a file; `#` begins a comment.
    ///
    /// # Errors
    /// [`ConfigError`] with the line.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let file = path.display().to_string();
        let text = read(path).map_err(|error| ConfigError::File {
            file: file.clone(),
            reason: error.to_string(),
        })?;
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or_else(|| ConfigError::Line {
                file: file.clone(),
                line: index + 1,
            })?;
            self.put(name.trim(), value.trim(), Source::File)?;
        }
        Ok(())
    }

    /// Sets one from the program.
    ///
    /// # Errors
    /// [`ConfigError::Unknown`], [`ConfigError::Value`].
    pub fn set(&mut self, name: &str, value: impl AsRef<str>) -> Result<(), ConfigError> {
        self.put(name, value.as_ref(), Source::Program)
    }

    /// As [`Config::set`], for building in one expression.
    ///
    /// # Errors
    /// As [`Config::set`].
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.set(name, value)?;
        Ok(self)
    }

    fn put(&mut self, name: &str, value: &str, source: Source) -> Result<(), ConfigError> {
        let row = self
            .rows
            .iter()
            .find(|row| row.name == name)
            .ok_or_else(|| ConfigError::Unknown(name.to_owned()))?;
        row.kind.parse(value).ok_or_else(|| ConfigError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected: row.kind.expected(),
        })?;
        let newer = self.values.get(row.name).is_none_or(|(_, before)| {
            // In the order of the enum: a later source wins, whichever is read first.
            *before as u8 <= source as u8
        });
        if newer {
            self.values.insert(row.name, (value.to_owned(), source));
        }
        Ok(())
    }

    /// Every row with its value and where that came from, for `ringmail info`.
    pub fn rows(&self) -> impl Iterator<Item = (&Setting, &str, Source)> {
        self.rows.iter().map(|row| {
            let (value, source) = self.raw(row);
            (row, value, source)
        })
    }

    /// Whether somebody set it.
    #[must_use]
    pub fn is_set(&self, row: &Setting) -> bool {
        self.values.contains_key(row.name)
    }

    /// The value as text.
    #[must_use]
    pub fn text(&self, row: &Setting) -> &str {
        self.raw(row).0
    }

    /// The value of a row of kind [`SettingKind::Size`], in bytes.
    ///
    /// # Panics
    /// If the row is of another kind, or its default is not of its kind.
    #[must_use]
    pub fn size(&self, row: &Setting) -> usize {
        match self.value(row) {
            Value::Size(bytes) => bytes,
            other => panic!("{} is no size but {other:?}", row.name),
        }
    }

    /// The value of a row of kind [`SettingKind::Number`].
    ///
    /// # Panics
    /// If the row is of another kind, or its default is not of its kind.
    #[must_use]
    pub fn number(&self, row: &Setting) -> u64 {
        match self.value(row) {
            Value::Number(number) => number,
            other => panic!("{} is no number but {other:?}", row.name),
        }
    }

    /// The value of a row of kind [`SettingKind::Time`].
    ///
    /// # Panics
    /// If the row is of another kind, or its default is not of its kind.
    #[must_use]
    pub fn time(&self, row: &Setting) -> Duration {
        match self.value(row) {
            Value::Time(time) => time,
            other => panic!("{} is no time but {other:?}", row.name),
        }
    }

    /// The value of a row of kind [`SettingKind::Switch`].
    ///
    /// # Panics
    /// If the row is of another kind, or its default is not of its kind.
    #[must_use]
    pub fn switch(&self, row: &Setting) -> bool {
        match self.value(row) {
            Value::Switch(on) => on,
            other => panic!("{} is no switch but {other:?}", row.name),
        }
    }

    fn raw(&self, row: &Setting) -> (&str, Source) {
        match self.values.get(row.name) {
            Some((value, source)) => (value, *source),
            None => (row.default, Source::Default),
        }
    }

    fn value(&self, row: &Setting) -> Value {
        row.kind
            .parse(self.text(row))
            .expect("values were checked when set, and defaults by a test")
    }
}

/// What is in a file of settings, which is short.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(LONGEST_FILE + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST_FILE {
        let reason = format!("it is longer than {LONGEST_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(text)
}

const LONGEST_FILE: u64 = 1 << 20;

/// The name that was perhaps meant: the one with the fewest letters to change, if those are few.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let distances = known.iter().map(|known| (distance(name, known), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 3).then_some(known)
}

/// Letters to insert, remove or replace to get from one to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<_> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Setting = Setting {
        name: "test.flow-window",
        default: "1mb",
        kind: SettingKind::Size,
        help: "for the test",
    };

    #[test]
    fn the_nearest_source_wins_in_whatever_order_they_are_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# a comment\ntest.flow-window = 2mb # two\n").unwrap();
        let mut config = Config::new(&[WINDOW]);
        assert_eq!(config.size(&WINDOW), 1 << 20);
        config
            .read_variables(|name| (name == "RINGMAIL_TEST_FLOW_WINDOW").then(|| "3mb".to_owned()))
            .unwrap();
        config.read_file(file.path()).unwrap();
        assert_eq!(config.size(&WINDOW), 3 << 20);
        config.set("test.flow-window", "4mb").unwrap();
        assert_eq!(config.size(&WINDOW), 4 << 20);
        assert_eq!(config.rows().next().unwrap().2, Source::Program);
    }

    #[test]
    fn a_variable_that_sets_nothing_is_found_with_the_one_that_was_meant() {
        let config = Config::new(&[WINDOW]);
        let unknown = |name: &str| {
            let names = ["HOME", "RINGMAIL_TEST_FLOW_WINDOW", name].map(str::to_owned);
            config.unknown_among(names.into_iter())
        };
        let meant = Some("RINGMAIL_TEST_FLOW_WINDOW".to_owned());
        for name in ["RINGMAIL_TEST_FLOWWINDOW", "RINGMAIL_TSET_FLOW_WINDOW"] {
            assert_eq!(unknown(name), [(name.to_owned(), meant.clone())]);
        }
        assert_eq!(
            unknown("RINGMAIL_OTHER"),
            [("RINGMAIL_OTHER".to_owned(), None)]
        );
        assert_eq!(unknown("PATH"), []);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_without_an_end_is_an_error() {
        let mut config = Config::new(&[WINDOW]);
        let endless = config.read_file(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.to_string().contains("longer than"), "{endless}");
    }

    #[test]
    fn a_mistake_is_named() {
        let mut config = Config::new(&[WINDOW]);
        let unknown = config.set("test.window", "1").unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "there is no setting called test.window"
        );
        let wrong = config.set("test.flow-window", "-1").unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "test.flow-window=-1 is not a size such as 64kb"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\ntest.flow-window\n").unwrap();
        let line = config.read_file(file.path()).unwrap_err();
        assert!(line.to_string().ends_with(":2: expected `name = value`"));
    }
}
