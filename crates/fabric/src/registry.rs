//! The providers there are, and which of them to use.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::provider::Provider;
use crate::{
    Atomics, Config, Domain, EndpointKind, Error, Info, Kinds, Operations, Reach, Setting,
    SettingKind,
};
use crate::{hook, rdm};

/// Which provider to use, unless the program says so.
static PROVIDER: Setting = Setting {
    name: "provider",
    default: "",
    kind: SettingKind::Text,
    help: "use this provider instead of choosing one",
};

static CONFIG: Setting = Setting {
    name: "config",
    default: "",
    kind: SettingKind::Text,
    help: "a file of further settings, as lines `name = value`",
};

static FAULTS: Setting = Setting {
    name: "faults",
    default: "",
    kind: SettingKind::Text,
    help: "inject packet faults: loss=1%,dup=1%,reorder=1%,corrupt=1%,delay=1ms,seed=7",
};

static CAPTURE: Setting = Setting {
    name: "capture",
    default: "",
    kind: SettingKind::Text,
    help: "capture packets to this pcapng file",
};

static HOOKS: Setting = Setting {
    name: "hooks",
    default: "",
    kind: SettingKind::Text,
    help: "put these before the provider: trace, fault:SEED",
};

/// The providers that a program knows, in the order they were added.
#[derive(Clone, Default)]
pub struct Registry {
    providers: Vec<Arc<dyn Provider>>,
}

/// What a program needs of a provider.
#[derive(Debug, Clone)]
pub struct Hints {
    /// This one and no other. `RINGMAIL_PROVIDER` (or the setting `provider`) says the same.
    pub provider: Option<String>,
    /// This device and no other.
    pub device: Option<String>,
    /// Kinds of endpoints.
    pub kinds: Kinds,
    /// Operations.
    pub operations: Operations,
    /// How far messages must go.
    pub reach: Reach,
    /// Whether atomics must exclude those of this machine's processors.
    pub processor_atomics: bool,
    /// Whether memory is polled for a peer's flag.
    pub ordered_placement: bool,
    /// Longest message.
    pub max_message: usize,
}

impl Default for Hints {
    /// Connected endpoints with sends, writes and reads, between processes of this machine.
    fn default() -> Self {
        Self {
            provider: None,
            device: None,
            kinds: EndpointKind::Msg.into(),
            operations: Operations::SEND | Operations::WRITE | Operations::READ,
            reach: Reach::Host,
            processor_atomics: false,
            ordered_placement: false,
            max_message: 0,
        }
    }
}

/// The device chosen, and what was said of each.
#[derive(Debug, Clone, Serialize)]
pub struct Selection {
    /// The device to open.
    pub chosen: Info,
    /// Every provider's devices, chosen or not.
    pub reasons: Vec<Verdict>,
}

/// Why a device, or a provider without one, was chosen or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The provider.
    pub provider: &'static str,
    /// Its device, unless it has none here.
    pub device: Option<String>,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why, for humans.
    pub why: String,
}

impl Verdict {
    /// Several in one line.
    #[must_use]
    pub fn list(verdicts: &[Self]) -> String {
        let lines: Vec<_> = verdicts.iter().map(ToString::to_string).collect();
        lines.join("; ")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.device {
            Some(device) => write!(f, "{}/{device}: {}", self.provider, self.why),
            None => write!(f, "{}: {}", self.provider, self.why),
        }
    }
}

impl Registry {
    /// The settings that belong to no provider.
    #[must_use]
    pub fn core_settings() -> [Setting; 6] {
        [
            PROVIDER,
            CONFIG,
            FAULTS,
            CAPTURE,
            HOOKS,
            rdm::MAX_CONNECTIONS,
        ]
    }

    /// No providers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. Of two with one name the first counts.
    #[must_use]
    pub fn with(mut self, provider: impl Provider) -> Self {
        self.providers.push(Arc::new(provider));
        self
    }

    /// The providers.
    #[must_use]
    pub fn providers(&self) -> &[Arc<dyn Provider>] {
        &self.providers
    }

    /// All settings at their defaults, to be set by the program.
    #[must_use]
    pub fn defaults(&self) -> Config {
        let mut rows = Self::core_settings().to_vec();
        for provider in &self.providers {
            for row in provider.settings() {
                if !rows.iter().any(|known| known.name == row.name) {
                    rows.push(*row);
                }
            }
        }
        Config::new(&rows)
    }

    /// The settings of this run: the environment, and the file that it names.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn config(&self) -> Result<Config, Error> {
        let mut config = self.defaults();
        config.read_environment()?;
        if config.is_set(&CONFIG) {
            let file = config.text(&CONFIG).to_owned();
            config.read_file(Path::new(&file))?;
        }
        Ok(config)
    }

    /// Every provider with the devices it found, or with what it lacks.
    #[must_use]
    pub fn discover(&self, config: &Config) -> Vec<(&'static str, Result<Vec<Info>, Error>)> {
        let found = |provider: &Arc<dyn Provider>| (provider.name(), devices(&**provider, config));
        self.providers.iter().map(found).collect()
    }

    /// Chooses the device of the highest rank that meets the hints.
    ///
    /// # Errors
    /// [`Error::UnknownProvider`], or [`Error::NoProvider`] with what each lacks.
    pub fn select(&self, hints: &Hints, config: &Config) -> Result<Selection, Error> {
        let wanted = hints.provider.as_deref().or_else(|| {
            let name = config.text(&PROVIDER);
            (!name.is_empty()).then_some(name)
        });
        if let Some(name) = wanted {
            self.provider(name)?;
        }
        let mut reasons = Vec::new();
        let mut chosen: Option<(Info, usize)> = None;
        for provider in &self.providers {
            let name = provider.name();
            if wanted.is_some_and(|wanted| wanted != name) {
                reasons.push(verdict(name, None, "another one was asked for".to_owned()));
                continue;
            }
            let devices = match devices(&**provider, config) {
                Ok(devices) => devices,
                Err(Error::Absent { reason, .. }) => {
                    reasons.push(verdict(name, None, reason));
                    continue;
                }
                Err(error) => {
                    reasons.push(verdict(name, None, error.to_string()));
                    continue;
                }
            };
            for info in devices {
                let lacks = lacks(&info, hints, config, wanted.is_some());
                let fits = lacks.is_none();
                let why = lacks.unwrap_or_else(|| format!("fits, rank {}", info.rank));
                reasons.push(verdict(name, Some(info.device.clone()), why));
                let better = chosen
                    .as_ref()
                    .is_none_or(|(best, _)| info.rank > best.rank);
                if fits && better {
                    chosen = Some((info, reasons.len() - 1));
                }
            }
        }
        let Some((chosen, index)) = chosen else {
            return Err(Error::NoProvider(reasons));
        };
        reasons[index].chosen = true;
        reasons[index].why = match wanted {
            Some(_) => "asked for".to_owned(),
            None => format!("the best of those that fit, rank {}", chosen.rank),
        };
        Ok(Selection { chosen, reasons })
    }

    /// Opens what was selected.
    ///
    /// # Errors
    /// What the provider answers.
    pub fn open_selected(&self, selection: &Selection, config: &Config) -> Result<Domain, Error> {
        self.open_info(&selection.chosen, config)
    }

    /// Opens a provider's first device.
    ///
    /// # Errors
    /// [`Error::UnknownProvider`], [`Error::Absent`], [`Error::Unsupported`] if faults or a capture are asked of a provider that
    /// cannot, or what the provider answers.
    pub fn open(&self, provider: &str, config: &Config) -> Result<Domain, Error> {
        let devices = devices(&**self.provider(provider)?, config)?;
        let info = devices.first().ok_or_else(|| Error::Absent {
            provider: provider.to_owned(),
            reason: "it found no device".to_owned(),
        })?;
        self.open_info(info, config)
    }

    fn open_info(&self, info: &Info, config: &Config) -> Result<Domain, Error> {
        if let Some(what) = asks_too_much(info, config) {
            return Err(Error::Unsupported {
                provider: info.provider.to_owned(),
                what: what.to_owned(),
            });
        }
        let hooks = hook::named(config.text(&HOOKS))?;
        let provider = self.provider(info.provider)?;
        // As the provider found it, without what is layered on it.
        let found = provider.discover(config)?.into_iter();
        let own = found.into_iter().find(|found| found.device == info.device);
        let own = own.ok_or_else(|| Error::Absent {
            provider: info.provider.to_owned(),
            reason: format!("its device {} is gone", info.device),
        })?;
        let mut domain = rdm::layer(provider.open(&own, config)?, config);
        for hook in hooks {
            domain = hook::decorate(domain, hook);
        }
        Ok(Domain::new(domain))
    }

    fn provider(&self, name: &str) -> Result<&Arc<dyn Provider>, Error> {
        self.providers
            .iter()
            .find(|provider| provider.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = self.providers.iter().map(|known| known.name()).collect();
                Error::UnknownProvider {
                    name: name.to_owned(),
                    known: names.join(", "),
                }
            })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.providers.iter().map(|provider| provider.name());
        f.debug_list().entries(names).finish()
    }
}

/// A provider's devices, with the kinds of endpoints that can be layered on what they have.
fn devices(provider: &dyn Provider, config: &Config) -> Result<Vec<Info>, Error> {
    let found = provider.discover(config)?;
    Ok(found.into_iter().map(rdm::layered).collect())
}

fn verdict(provider: &'static str, device: Option<String>, why: String) -> Verdict {
    Verdict {
        provider,
        device,
        chosen: false,
        why,
    }
}

/// What is asked of the device by a setting that it cannot honour.
fn asks_too_much(info: &Info, config: &Config) -> Option<&'static str> {
    if config.is_set(&FAULTS) && !info.capabilities.faults {
        return Some("injected faults");
    }
    if config.is_set(&CAPTURE) && !info.capabilities.capture {
        return Some("packet capture");
    }
    None
}

/// The first hint that a device does not meet. One asked for by name need not reach as far as hinted.
fn lacks(info: &Info, hints: &Hints, config: &Config, by_name: bool) -> Option<String> {
    let has = &info.capabilities;
    if hints
        .device
        .as_ref()
        .is_some_and(|wanted| *wanted != info.device)
    {
        return Some("another device was asked for".to_owned());
    }
    if has.reach < hints.reach && !by_name {
        return Some(format!("reaches {} only", has.reach));
    }
    if let Some(what) = asks_too_much(info, config) {
        return Some(format!("cannot do {what}"));
    }
    let kinds = hints.kinds.difference(has.kinds);
    if !kinds.is_empty() {
        return Some(format!(
            "lacks endpoint kinds {}",
            names(kinds.iter_names())
        ));
    }
    let operations = hints.operations.difference(has.operations);
    if !operations.is_empty() {
        return Some(format!(
            "lacks operations {}",
            names(operations.iter_names())
        ));
    }
    if hints.processor_atomics && has.atomics != Atomics::Processor {
        return Some("its atomics do not exclude the processors'".to_owned());
    }
    if hints.ordered_placement && !has.ordered_placement {
        return Some("does not place data in order".to_owned());
    }
    if has.max_message < hints.max_message {
        return Some(format!("messages are at most {} bytes", has.max_message));
    }
    None
}

fn names<T>(names: impl Iterator<Item = (&'static str, T)>) -> String {
    let names: Vec<_> = names.map(|(name, _)| name.to_lowercase()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopback::Loopback;

    #[test]
    fn a_provider_that_does_not_reach_far_enough_says_so() {
        let registry = Registry::new().with(Loopback::new());
        let error = registry
            .select(&Hints::default(), &registry.defaults())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no provider fits: loopback/process: reaches this process only"
        );
    }

    #[test]
    fn a_provider_asked_for_by_name_is_chosen_with_that_reason() {
        let registry = Registry::new().with(Loopback::new());
        let config = registry.defaults().with("provider", "loopback").unwrap();
        let selection = registry.select(&Hints::default(), &config).unwrap();
        assert_eq!(selection.chosen.provider, "loopback");
        assert_eq!(selection.reasons[0].why, "asked for");
        let unknown = registry
            .defaults()
            .with("provider", "carrier-pigeon")
            .unwrap();
        assert!(matches!(
            registry.select(&Hints::default(), &unknown),
            Err(Error::UnknownProvider { name, known })
                if name == "carrier-pigeon" && known == "loopback"
        ));
    }

    #[test]
    fn faults_asked_of_a_provider_that_cannot_are_an_error() {
        let registry = Registry::new().with(Loopback::new());
        let config = registry.defaults().with("faults", "loss=1%").unwrap();
        assert!(matches!(
            registry.open("loopback", &config),
            Err(Error::Unsupported { what, .. }) if what == "injected faults"
        ));
    }
}
