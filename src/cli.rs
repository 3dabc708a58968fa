//! The command line and the environment.
//!
//! clap reads, and knows which flag or variable a value came from; the values
//! are checked here, so that every fault is told at once and not the first only.

mod arguments;
pub(crate) mod values;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, FromArgMatches};
use tracing::level_filters::LevelFilter;

use crate::config::{
    AllocationOptions, ClusterOptions, Config, DeviceIdStrategy, DeviceListStrategy, DriverOptions,
    EvictionOptions, Extra, HealthOptions, HostFolder, HostPaths, ImexChannel, MigStrategy,
    VolumeMode, sharing::Sharing,
};
use crate::plugin::listener;
use crate::telemetry::LogFormat;

use self::arguments::{Arguments, Commands, default_of, first_sentence, flag, read, variable};
use self::values::{
    absolute, address, annotation_prefix, boolean, dev_root_paths, driver_root_paths,
    imex_channels, interval, resource_name, with_links, word, words,
};

const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
const KMSG: &str = "/dev/kmsg";

/// How `devices` and `driver` print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What the process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve the kubelet.
    Serve,
    /// Print the devices.
    Devices {
        /// In which form.
        output: Output,
    },
    /// Print the driver's files.
    Driver {
        /// In which form.
        output: Output,
    },
    /// Take away what was left on the node.
    Uninstall,
}

/// Everything that was said on the command line and in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// How.
    pub config: Config,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log_level: LevelFilter,
}

/// Why there is nothing to do.
#[derive(Debug)]
pub enum Stop {
    /// Help or the version was asked for.
    Help(String),
    /// Something is wrong with the arguments.
    Usage(UsageErrors),
}

/// Every fault of the arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UsageErrors(Vec<String>);

impl fmt::Display for UsageErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "error: {error}")?;
        }
        writeln!(f, "\nFor more information, try '--help'.")
    }
}

/// Reads `arguments` (the first is the program's name) and the environment.
///
/// # Errors
///
/// [`Stop`]: help was asked for, or any argument or variable is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Stop> {
    let mut errors = UsageErrors::default();
    let matches = read(arguments.into_iter().collect(), &mut errors)?;
    let invocation = matches.and_then(|matches| Values::new(&matches, &mut errors)?.invocation());
    match invocation {
        Some(invocation) if errors.0.is_empty() => Ok(invocation),
        _ => Err(Stop::Usage(errors)),
    }
}

/// The values as they were given, and the place for what is wrong with them.
struct Values<'a> {
    matches: &'a ArgMatches,
    arguments: Arguments,
    errors: &'a mut UsageErrors,
}

impl<'a> Values<'a> {
    fn new(matches: &'a ArgMatches, errors: &'a mut UsageErrors) -> Option<Self> {
        match Arguments::from_arg_matches(matches) {
            Ok(arguments) => Some(Self {
                matches,
                arguments,
                errors,
            }),
            Err(error) => {
                errors.0.push(first_sentence(&error));
                None
            }
        }
    }

    fn invocation(mut self) -> Option<Invocation> {
        let command = self.command();
        let log_format = self.checked("log_format", |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("is not text or json".into()),
        });
        let log_level = self.checked("log_level", |text| {
            match text.to_ascii_lowercase().as_str() {
                "error" => Ok(LevelFilter::ERROR),
                "warn" => Ok(LevelFilter::WARN),
                "info" => Ok(LevelFilter::INFO),
                "debug" => Ok(LevelFilter::DEBUG),
                "trace" => Ok(LevelFilter::TRACE),
                _ => Err("is not error, warn, info, debug or trace".into()),
            }
        });
        let config = self.config();
        Some(Invocation {
            command: command?,
            config: config?,
            log_format: log_format?,
            log_level: log_level?,
        })
    }

    fn command(&mut self) -> Option<Command> {
        let command = match self.arguments.command.take() {
            None => Command::Serve,
            Some(Commands::Devices { output }) => Command::Devices {
                output: self.output(&output)?,
            },
            Some(Commands::Driver { output }) => Command::Driver {
                output: self.output(&output)?,
            },
            Some(Commands::Uninstall) => Command::Uninstall,
        };
        Some(command)
    }

    fn output(&mut self, text: &str) -> Option<Output> {
        match text {
            "table" => Some(Output::Table),
            "json" => Some(Output::Json),
            _ => {
                let fault = format!("--output: {text:?} is not table or json");
                self.errors.0.push(fault);
                None
            }
        }
    }

    fn config(&mut self) -> Option<Config> {
        let resource_name = self.checked("resource_name", resource_name);
        let mig_strategy = self.checked("mig_strategy", |text| {
            word(text, &MigStrategy::ALL, MigStrategy::name)
        });
        let http_listen = self.checked("http_listen", address);
        let poll_interval = self.checked("health_poll_interval", interval);
        let driver = self.driver();
        let allocation = self.allocation();
        let paths = self.paths();
        let (resource_name, paths) = (resource_name?, paths?);
        self.check_socket_path(&paths.device_plugin_dir, &resource_name);
        Some(Config {
            paths,
            resource_name,
            mig_strategy: mig_strategy?,
            sharing: Sharing::default(),
            http_listen: http_listen?,
            poll_interval: poll_interval?,
            driver: driver?,
            allocation: allocation?,
            health: HealthOptions::default(),
            eviction: EvictionOptions::default(),
            cluster: ClusterOptions::default(),
        })
    }

    fn paths(&mut self) -> Option<HostPaths> {
        let device_plugin_dir = self.checked("device_plugin_dir", absolute);
        let driver_root = self.checked("driver_root", absolute);
        let container = self.optional("driver_root_ctr_path", absolute);
        let dev_root = self.optional("dev_root", absolute);
        let nvml_library = self.optional("nvml_library", absolute);
        let host_root = self.optional("host_root", absolute);
        let state_dir = self.checked("state_dir", absolute);
        let cdi_root = self.checked("cdi_root", absolute);
        let links = self.optional("dev_char_root", absolute);
        let sysfs = self.checked("sysfs_root", absolute);
        let procfs = self.checked("procfs_root", absolute);
        let host_root = host_root?;
        let driver_root = driver_root_paths(driver_root?, container?, host_root.as_deref());
        let host_root = host_root.unwrap_or_else(|| values::host_root(&driver_root));
        let dev_root = dev_root_paths(dev_root?, &driver_root, &host_root);
        let dev_root = with_links(dev_root, links?.as_deref(), &host_root);
        Some(HostPaths {
            device_plugin_dir: device_plugin_dir?,
            nvml_library: nvml_library?,
            driver_root,
            dev_root,
            state_dir: HostFolder::below(&host_root, state_dir?),
            cdi_root: HostFolder::below(&host_root, cdi_root?),
            pod_resources: HostFolder::below(&host_root, POD_RESOURCES),
            kmsg: KMSG.into(),
            host_root,
            sysfs: sysfs?,
            procfs: procfs?,
        })
    }

    fn driver(&mut self) -> Option<DriverOptions> {
        let capabilities = self.checked("driver_capabilities", str::parse);
        let volume = self.checked("driver_volume", |text| {
            word(text, &VolumeMode::ALL, VolumeMode::name)
        });
        let volume_grace = self.checked("driver_volume_grace", interval);
        let make_device_nodes = self.checked("make_device_nodes", boolean);
        Some(DriverOptions {
            capabilities: capabilities?,
            volume: volume?,
            volume_grace: volume_grace?,
            make_device_nodes: make_device_nodes?,
        })
    }

    fn allocation(&mut self) -> Option<AllocationOptions> {
        let strategies = self.strategies();
        let device_ids = self.checked("device_id_strategy", |text| {
            word(text, &DeviceIdStrategy::ALL, DeviceIdStrategy::name)
        });
        let pass_device_specs = self.checked("pass_device_specs", boolean);
        let prefix = self.checked("cdi_annotation_prefix", annotation_prefix);
        let extras = [
            ("gds_enabled", Extra::Gds),
            ("gdrcopy_enabled", Extra::Gdrcopy),
            ("mofed_enabled", Extra::Mofed),
        ]
        .map(|(flag, extra)| Some(self.checked(flag, boolean)?.then_some(extra)));
        let extras: Option<Vec<_>> = extras.into_iter().collect();
        let channels = self.optional("imex_channel_ids", imex_channels);
        let required = self.checked("imex_required", boolean);
        let imex = match (channels?.unwrap_or_default(), required?) {
            (false, true) => {
                let fault = "--imex-required: needs --imex-channel-ids=0";
                self.errors.0.push(fault.into());
                return None;
            }
            (false, false) => ImexChannel::Off,
            (true, false) => ImexChannel::Optional,
            (true, true) => ImexChannel::Required,
        };
        Some(AllocationOptions {
            strategies: strategies?,
            device_ids: device_ids?,
            pass_device_specs: pass_device_specs?,
            cdi_annotation_prefix: prefix?,
            extras: extras?.into_iter().flatten().collect(),
            imex,
        })
    }

    /// One flag with several words, or several flags.
    fn strategies(&mut self) -> Option<BTreeSet<DeviceListStrategy>> {
        const ID: &str = "device_list_strategy";
        let raw = self.matches.get_raw(ID);
        let texts: Vec<_> = raw
            .into_iter()
            .flatten()
            .map(|raw| raw.to_string_lossy().into_owned())
            .collect();
        let joined = texts.join(",");
        // The first only is what is checked; an empty variable's is the default.
        let check = |first: &str| {
            let all = if texts.len() > 1 { &joined } else { first };
            words(all, &DeviceListStrategy::ALL, DeviceListStrategy::name)
        };
        self.checked(ID, check)
    }

    /// The value of the flag `id`, if it is right; else its fault is noted.
    fn checked<T>(&mut self, id: &str, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.optional(id, check)?
    }

    /// The same for a flag without a default: `Some(None)` is a flag not given.
    fn optional<T>(
        &mut self,
        id: &str,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some(raw) = self
            .matches
            .get_raw(id)
            .and_then(|mut values| values.next())
        else {
            return Some(None);
        };
        let text = raw.to_string_lossy();
        let from_environment = self.matches.value_source(id) == Some(ValueSource::EnvVariable);
        // An empty variable is one that a template left empty: not set.
        if text.is_empty() && from_environment {
            let default = default_of(id)?;
            return Some(default.and_then(|default| check(&default).ok()));
        }
        match check(&text) {
            Ok(value) => Some(Some(value)),
            Err(fault) => {
                let place = if from_environment {
                    variable(id)
                } else {
                    flag(id)
                };
                self.errors.0.push(format!("{place}: {text:?} {fault}"));
                None
            }
        }
    }

    fn check_socket_path(&mut self, folder: &Path, resource: &str) {
        let path = folder.join(listener::socket_name(resource));
        let length = path.as_os_str().len();
        if length > listener::LONGEST_PATH {
            let (longest, over) = (listener::LONGEST_PATH, length - listener::LONGEST_PATH);
            self.errors.0.push(format!(
                "{}: the socket's path would have {length} bytes, and {longest} is the longest that a Unix socket takes; shorten it or {} by {over}",
                flag("device_plugin_dir"),
                flag("resource_name"),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(arguments: &[&str]) -> Vec<String> {
        let arguments = ["gpu-device-plugin"]
            .iter()
            .chain(arguments)
            .map(OsString::from);
        match parse(arguments) {
            Err(Stop::Usage(errors)) => errors.0,
            other => panic!("no usage error: {other:?}"),
        }
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let errors = errors(&[
            "--http-listen",
            "nowhere",
            "--frobnicate",
            "7",
            "--log-level=loud",
            "--dev-rot=/",
            "devices",
            "--output",
            "xml",
            "--resource-name",
            "gpu",
            "--nvml-library",
        ]);
        let expected = [
            "unexpected argument '--frobnicate' found",
            "unexpected argument '--dev-rot' found; a similar argument exists: '--dev-root'",
            "a value is required for '--nvml-library <FILE>' but none was supplied",
            "--output: \"xml\" is not table or json",
            "--log-level: \"loud\" is not error, warn, info, debug or trace",
            "--resource-name: \"gpu\" has no domain, as nvidia.com/gpu has",
            "--http-listen: \"nowhere\" is not an address and port such as 0.0.0.0:9402",
        ];
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_told_before_the_start() {
        let long = format!("/{}", "a".repeat(90));
        let errors = errors(&["--device-plugin-dir", &long]);
        assert!(
            errors[0].contains("shorten it or --resource-name by"),
            "{errors:?}"
        );
    }
}
