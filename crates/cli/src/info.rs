//! `ringmail info`: the providers, their devices, what each can do, and every setting with its origin.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use fabric::{
    Capabilities, Config, Error, Hints, Info, Kinds, Operations, Registry, Selection, Source,
};
use serde::Serialize;

use crate::args::Common;
use crate::device;

/// Show providers, devices, what each can do, and the settings
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, common: &Common) -> anyhow::Result<ExitCode> {
    let registry = ringmail::registry();
    let config = device::config(&registry, common)?;
    let report = Report::new(&registry, &config);
    let mut out = io::stdout().lock();
    let written = if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)
    } else {
        report.print(&mut out)
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// All that there is to say.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    providers: Vec<Provider>,
    /// The device that commands would use, as `provider/device`.
    chosen: Option<String>,
    /// Why there is none, where no device's verdict says it.
    problem: Option<String>,
    settings: Vec<SettingRow>,
}

#[derive(Debug, Serialize)]
struct Provider {
    name: &'static str,
    devices: Vec<Device>,
    /// Why it has no devices.
    absent: Option<String>,
}

#[derive(Debug, Serialize)]
struct Device {
    #[serde(flatten)]
    info: Info,
    /// Why commands would use it, or not.
    verdict: Option<String>,
}

#[derive(Debug, Serialize)]
struct SettingRow {
    name: &'static str,
    value: String,
    origin: Source,
    environment: String,
    default: &'static str,
    help: &'static str,
}

impl Report {
    fn new(registry: &Registry, config: &Config) -> Self {
        let (selection, reasons, problem) = match registry.select(&Hints::default(), config) {
            Ok(selection) => (Some(selection.clone()), selection.reasons, None),
            Err(Error::NoProvider(reasons)) => (None, reasons, None),
            Err(error) => (None, Vec::new(), Some(error.to_string())),
        };
        let verdict = |info: &Info| {
            let of = |verdict: &&fabric::Verdict| {
                verdict.provider == info.provider && verdict.device.as_deref() == Some(&info.device)
            };
            reasons.iter().find(of).map(|verdict| verdict.why.clone())
        };
        let provider = |(name, found): (&'static str, Result<Vec<Info>, Error>)| match found {
            Ok(devices) => Provider {
                name,
                absent: devices.is_empty().then(|| "no device was found".to_owned()),
                devices: devices
                    .into_iter()
                    .map(|info| Device {
                        verdict: verdict(&info),
                        info,
                    })
                    .collect(),
            },
            Err(error) => Provider {
                name,
                devices: Vec::new(),
                absent: Some(match error {
                    Error::Absent { reason, .. } => reason,
                    other => other.to_string(),
                }),
            },
        };
        let settings = config.rows().map(|(row, value, origin)| SettingRow {
            name: row.name,
            value: value.to_owned(),
            origin,
            environment: row.environment(),
            default: row.default,
            help: row.help,
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            providers: registry
                .discover(config)
                .into_iter()
                .map(provider)
                .collect(),
            chosen: selection
                .map(|Selection { chosen, .. }| format!("{}/{}", chosen.provider, chosen.device)),
            problem,
            settings: settings.collect(),
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "ringmail {}", self.version)?;
        for provider in &self.providers {
            writeln!(out)?;
            if let Some(reason) = &provider.absent {
                writeln!(out, "{}: not available: {reason}", provider.name)?;
            }
            for device in &provider.devices {
                print_device(out, device)?;
            }
        }
        writeln!(out)?;
        match (&self.chosen, &self.problem) {
            (Some(chosen), _) => writeln!(out, "commands use {chosen}")?,
            (None, Some(problem)) => writeln!(out, "commands find no device to use: {problem}")?,
            (None, None) => writeln!(out, "commands find no device to use")?,
        }
        writeln!(
            out,
            "\nsettings (RINGMAIL_… in the environment, --set NAME=VALUE, or a file named by RINGMAIL_CONFIG)"
        )?;
        let width = self
            .settings
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0);
        for row in &self.settings {
            let value = if row.value.is_empty() {
                "-"
            } else {
                &row.value
            };
            let origin = match row.origin {
                Source::Default => "default",
                Source::File => "file",
                Source::Environment => "environment",
                Source::Program => "command line",
            };
            writeln!(
                out,
                "  {:width$}  {value:10} ({origin})  {}",
                row.name, row.help
            )?;
        }
        Ok(())
    }
}

fn print_device(out: &mut impl Write, device: &Device) -> io::Result<()> {
    let Device { info, verdict } = device;
    writeln!(
        out,
        "{}/{}: {}",
        info.provider, info.device, info.description
    )?;
    if let Some(address) = &info.address {
        writeln!(out, "  address     {address}")?;
    }
    for (name, value) in abilities(&info.capabilities) {
        writeln!(out, "  {name:11} {value}")?;
    }
    if let Some(verdict) = verdict {
        writeln!(out, "  choice      {verdict}")?;
    }
    Ok(())
}

/// What it can do, by name, for humans.
fn abilities(can: &Capabilities) -> Vec<(&'static str, String)> {
    let list = |names: Vec<&str>| names.join(", ").to_lowercase().replace('_', " ");
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    vec![
        ("reaches", can.reach.to_string()),
        (
            "endpoints",
            list(
                Kinds::iter_names(&can.kinds)
                    .map(|(name, _)| name)
                    .collect(),
            ),
        ),
        (
            "operations",
            list(
                Operations::iter_names(&can.operations)
                    .map(|(name, _)| name)
                    .collect(),
            ),
        ),
        ("atomics", format!("{:?}", can.atomics).to_lowercase()),
        ("ordered", yes(can.ordered_placement)),
        (
            "limits",
            format!(
                "message {}, datagram {}, inline {}, {} segments, depth {}",
                bytes(can.max_message),
                bytes(can.max_datagram),
                bytes(can.max_inline),
                can.max_segments,
                can.max_depth
            ),
        ),
        ("faults", yes(can.faults)),
        ("capture", yes(can.capture)),
    ]
}

fn bytes(count: usize) -> String {
    indicatif::BinaryBytes(count as u64).to_string()
}
