//! Values as people write them.

use std::time::Duration;

use super::SettingKind;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text,
    Size(usize),
    Number(u64),
    Time(Duration),
    Switch(bool),
}

impl SettingKind {
    /// Reads a value of this kind.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        let text = text.trim();
        Some(match self {
            Self::Text => Value::Text,
            Self::Number => Value::Number(text.parse().ok()?),
            Self::Size => Value::Size(size(text)?),
            Self::Time => Value::Time(time(text)?),
            Self::Switch => Value::Switch(switch(text)?),
        })
    }

    /// What a value of this kind looks like.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Size => "a size such as 64kb",
            Self::Number => "a number",
            Self::Time => "a time such as 5ms",
            Self::Switch => "on or off",
        }
    }
}

fn size(text: &str) -> Option<usize> {
    let text = text.to_ascii_lowercase();
    let (number, unit) = split(&text);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

fn time(text: &str) -> Option<Duration> {
    let (number, unit) = split(text);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ns" => Some(Duration::from_nanos(number)),
        "us" | "µs" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn split(text: &str) -> (&str, &str) {
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        assert_eq!(size("64kb"), Some(65_536));
        assert_eq!(size("1 GiB"), Some(1 << 30));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("kb"), None);
        assert_eq!(size("99999999999999gb"), None);
        assert_eq!(time("250us"), Some(Duration::from_micros(250)));
        assert_eq!(time("5"), None, "a time needs its unit");
        assert_eq!(switch("On"), Some(true));
        assert_eq!(switch("maybe"), None);
    }
}
