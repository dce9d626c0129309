//! One row of the table of settings.

use serde::Serialize;

/// A setting: everything that `info`, the documentation and the parser know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Lower case, words joined by hyphens, after the part that reads it: `softroce.receive-buffer`.
    pub name: &'static str,
    /// As people write it: `64kb`, `5ms`, `on`.
    pub default: &'static str,
    /// What values it takes.
    pub kind: SettingKind,
    /// What it does, in one line.
    pub help: &'static str,
}

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingKind {
    /// Any text.
    Text,
    /// Bytes: `4096`, `64kb`, `1mb`, `2gb`.
    Size,
    /// A whole number.
    Number,
    /// A duration: `250us`, `5ms`, `2s`.
    Time,
    /// `on` or `off`.
    Switch,
}

impl Setting {
    /// The variable that sets it: `RINGMAIL_SOFTROCE_RECEIVE_BUFFER`.
    #[must_use]
    pub fn environment(&self) -> String {
        let name = self.name.to_uppercase().replace(['.', '-'], "_");
        format!("RINGMAIL_{name}")
    }
}
