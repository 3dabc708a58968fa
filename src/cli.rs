//! The command line and the environment.
//!
//! clap reads, and knows which flag or variable a value came from; the values
//! are checked here, so that every fault is told at once and not the first only.

mod values;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::config::{
    AllocationOptions, ClusterOptions, Config, DeviceIdStrategy, DeviceListStrategy, DriverOptions,
    EvictionOptions, Extra, HealthOptions, HostFolder, HostPaths, ImexChannel, VolumeMode,
};
use crate::plugin::listener;
use crate::telemetry::LogFormat;

use self::values::{
    absolute, address, annotation_prefix, boolean, dev_root_paths, driver_root_paths,
    imex_channels, interval, resource_name, with_links, word, words,
};

const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
const KMSG: &str = "/dev/kmsg";

/// Serve the GPUs of this node to its kubelet.
///
/// Each NVIDIA GPU becomes a device of the resource nvidia.com/gpu. A container
/// that is given one gets the device nodes and the driver's libraries, with no
/// NVIDIA software in its image and no NVIDIA container runtime on the node.
///
/// Without a command, serves until SIGTERM or SIGINT (a second one ends it at
/// once). SIGHUP looks at all GPUs and at the driver again.
///
/// Exit codes: 0 asked to end, 1 failure, 64 bad arguments.
#[derive(Debug, Parser)]
#[command(name = "gpu-device-plugin", version, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Commands>,

    /// Folder of the kubelet's socket and of the plugins' sockets
    #[arg(long, global = true, env = "DEVICE_PLUGIN_DIR", value_name = "DIR")]
    #[arg(default_value = "/var/lib/kubelet/device-plugins")]
    device_plugin_dir: PathBuf,

    /// NVML's library; else the driver root's, else what the loader finds
    #[arg(long, global = true, env = "NVML_LIBRARY", value_name = "FILE")]
    nvml_library: Option<PathBuf>,

    /// Root that the driver is installed in, as the host names it
    #[arg(long, global = true, env = "NVIDIA_DRIVER_ROOT", value_name = "DIR")]
    #[arg(alias = "nvidia-driver-root", default_value = "/")]
    driver_root: PathBuf,

    /// Where this process sees the driver root: /driver-root where that exists,
    /// else the driver root itself
    #[arg(long, global = true, env = "DRIVER_ROOT_CTR_PATH", value_name = "DIR")]
    #[arg(alias = "container-driver-root")]
    driver_root_ctr_path: Option<PathBuf>,

    /// Folder that holds dev with the device nodes, as the host names it: the
    /// driver root where it has dev/nvidiactl, else /
    #[arg(long, global = true, env = "NVIDIA_DEV_ROOT", value_name = "DIR")]
    #[arg(alias = "nvidia-dev-root")]
    dev_root: Option<PathBuf>,

    /// Where this process sees the host's /: the driver root, where that is the
    /// host's /, else /
    #[arg(long, global = true, env = "HOST_ROOT", value_name = "DIR")]
    host_root: Option<PathBuf>,

    /// Folder of the driver volumes, as the host names it
    #[arg(long, global = true, env = "STATE_DIR", value_name = "DIR")]
    #[arg(default_value = "/var/lib/gpu-device-plugin")]
    state_dir: PathBuf,

    /// What containers get of the driver: compute, utility, video, graphics,
    /// display, ngx or all, one or several
    #[arg(long, global = true, env = "DRIVER_CAPABILITIES", value_name = "LIST")]
    #[arg(default_value = "compute,utility")]
    driver_capabilities: String,

    /// Whether containers get the driver from a volume of its files: auto makes
    /// one unless they cannot change where they are, and does without while it
    /// cannot; always has no GPU served without; never uses them where they are
    #[arg(long, global = true, env = "DRIVER_VOLUME", value_name = "MODE")]
    #[arg(default_value = "auto")]
    driver_volume: String,

    /// How long a driver volume that is no longer answered with is kept at least,
    /// before it is removed once nothing on the node can name it; 100ms to 10m
    #[arg(long, global = true, env = "DRIVER_VOLUME_GRACE", value_name = "TIME")]
    #[arg(default_value = "10m")]
    driver_volume_grace: String,

    /// Whether device nodes that are missing are made, as nvidia-modprobe would,
    /// and the links in /dev/char that systemd and runc go by
    #[arg(long, global = true, env = "MAKE_DEVICE_NODES", value_name = "BOOL")]
    #[arg(default_value = "true", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    make_device_nodes: String,

    /// How containers are given their devices: mounts, envvar, volume-mounts,
    /// cdi-annotations or cdi-cri, one or several
    #[arg(long, global = true, env = "DEVICE_LIST_STRATEGY", value_name = "LIST")]
    #[arg(default_value = "mounts", value_delimiter = None, action = clap::ArgAction::Append)]
    device_list_strategy: Vec<String>,

    /// What envvar, volume-mounts and CDI name a GPU by: uuid or index
    #[arg(long, global = true, env = "DEVICE_ID_STRATEGY", value_name = "KIND")]
    #[arg(default_value = "uuid")]
    device_id_strategy: String,

    /// Device nodes also with envvar and volume-mounts
    #[arg(long, global = true, env = "PASS_DEVICE_SPECS", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    pass_device_specs: String,

    /// What the key of a CDI annotation begins with
    #[arg(
        long,
        global = true,
        env = "CDI_ANNOTATION_PREFIX",
        value_name = "PREFIX"
    )]
    #[arg(default_value = "cdi.k8s.io/")]
    cdi_annotation_prefix: String,

    /// Folder of CDI specs, as the host names it
    #[arg(long, global = true, env = "CDI_ROOT", value_name = "DIR")]
    #[arg(default_value = "/var/run/cdi")]
    cdi_root: PathBuf,

    /// GPUDirect Storage with the GPUs
    #[arg(long, global = true, env = "GDS_ENABLED", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    gds_enabled: String,

    /// GDRCopy with the GPUs
    #[arg(long, global = true, env = "GDRCOPY_ENABLED", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    gdrcopy_enabled: String,

    /// InfiniBand's device nodes with the GPUs
    #[arg(long, global = true, env = "MOFED_ENABLED", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    mofed_enabled: String,

    /// IMEX channel with the GPUs, where the node has it: 0 is the only one
    #[arg(long, global = true, env = "IMEX_CHANNEL_IDS", value_name = "LIST")]
    imex_channel_ids: Option<String>,

    /// No GPU without the IMEX channel
    #[arg(long, global = true, env = "IMEX_REQUIRED", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    imex_required: String,

    /// Name of the resource that whole GPUs are advertised as
    #[arg(long, global = true, env = "RESOURCE_NAME", value_name = "NAME")]
    #[arg(default_value = "nvidia.com/gpu")]
    resource_name: String,

    /// Address of /livez, /readyz and /metrics
    #[arg(long, global = true, env = "HTTP_LISTEN", value_name = "ADDRESS:PORT")]
    #[arg(default_value = "0.0.0.0:9402")]
    http_listen: String,

    /// Time between two polls of the GPUs' health, 100ms to 10m
    #[arg(long, global = true, env = "HEALTH_POLL_INTERVAL", value_name = "TIME")]
    #[arg(default_value = "5s")]
    health_poll_interval: String,

    /// Form of the log lines on standard error: text or json
    #[arg(long, global = true, env = "LOG_FORMAT", value_name = "FORMAT")]
    #[arg(default_value = "text")]
    log_format: String,

    /// What is logged: error, warn, info, debug or trace
    #[arg(long, global = true, env = "LOG_LEVEL", value_name = "LEVEL")]
    #[arg(default_value = "info")]
    log_level: String,

    /// Where sysfs is mounted
    #[arg(
        long,
        global = true,
        env = "SYSFS_ROOT",
        value_name = "DIR",
        hide = true
    )]
    #[arg(default_value = "/sys")]
    sysfs_root: PathBuf,

    /// Where procfs is mounted
    #[arg(
        long,
        global = true,
        env = "PROCFS_ROOT",
        value_name = "DIR",
        hide = true
    )]
    #[arg(default_value = "/proc")]
    procfs_root: PathBuf,

    /// Folder of the links to device nodes by their numbers: the host's /dev/char
    #[arg(
        long,
        global = true,
        env = "DEV_CHAR_ROOT",
        value_name = "DIR",
        hide = true
    )]
    dev_char_root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// Print what would be advertised, and what Allocate would answer for each
    /// device, without a kubelet
    ///
    /// Exit codes: 0 printed, 1 no driver to ask, 64 bad arguments.
    Devices {
        /// Form of the output: table or json
        #[arg(
            long,
            short,
            env = "DEVICES_OUTPUT",
            value_name = "FORM",
            default_value = "table"
        )]
        output: String,
    },
    /// Print where the driver's files were found, what was left out and why,
    /// and what is missing and what it costs
    ///
    /// Exit codes: 0 a container would compute, 1 it would not, 64 bad arguments.
    Driver {
        /// Form of the output: table or json
        #[arg(
            long,
            short,
            env = "DRIVER_OUTPUT",
            value_name = "FORM",
            default_value = "table"
        )]
        output: String,
    },
    /// Take away what the plugin left on this node: driver volumes that nothing
    /// uses, CDI specs, links in /dev/char, sockets and state
    ///
    /// To be run after the plugin has ended. May be run again.
    ///
    /// Exit codes: 0 nothing is left, 1 something is, and why, 64 bad arguments.
    Uninstall,
}

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

/// clap stops at the first argument that it cannot take: note it, take it out,
/// and read again. None: what is wrong leaves nothing to check.
fn read(
    mut arguments: Vec<OsString>,
    errors: &mut UsageErrors,
) -> Result<Option<ArgMatches>, Stop> {
    loop {
        let error = match Arguments::command().try_get_matches_from(&arguments) {
            Ok(matches) => return Ok(Some(matches)),
            Err(error) => error,
        };
        if matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        ) {
            return Err(Stop::Help(error.to_string()));
        }
        errors.0.push(first_sentence(&error));
        let wrong = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand]
            .into_iter()
            .find_map(|kind| match error.get(kind) {
                Some(ContextValue::String(text)) => text.split_whitespace().next(),
                _ => None,
            });
        if !wrong.is_some_and(|wrong| take_out(&mut arguments, wrong)) {
            return Ok(None);
        }
    }
}

/// Takes out an argument with the value that belongs to it, as far as can be
/// told of a flag that is not known.
fn take_out(arguments: &mut Vec<OsString>, wrong: &str) -> bool {
    let with_value = format!("{wrong}=");
    let found = arguments.iter().skip(1).position(|argument| {
        let argument = argument.to_string_lossy();
        argument == wrong || argument.starts_with(&with_value)
    });
    let Some(place) = found.map(|place| place + 1) else {
        return false;
    };
    let removed = arguments.remove(place);
    let takes_next = wrong.starts_with('-') && !removed.to_string_lossy().contains('=');
    let is_command = |next: &OsString| {
        let mut commands = ["devices", "driver", "uninstall"].iter();
        commands.any(|command| next == command)
    };
    let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-') && !is_command(next);
    if takes_next && arguments.get(place).is_some_and(is_value) {
        arguments.remove(place);
    }
    true
}

fn first_sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let first = lines
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .to_owned();
    let tip = lines.find_map(|line| line.strip_prefix("tip: ").map(str::to_owned));
    tip.map_or_else(|| first.clone(), |tip| format!("{first}; {tip}"))
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
        let host_root = host_root?;
        let driver_root = driver_root_paths(driver_root?, container?, host_root.as_deref());
        let host_root = host_root.unwrap_or_else(|| values::host_root(&driver_root));
        let dev_root = dev_root_paths(dev_root?, &driver_root, &host_root);
        let links = self.arguments.dev_char_root.as_deref();
        let dev_root = with_links(dev_root, links, &host_root);
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
            sysfs: self.arguments.sysfs_root.clone(),
            procfs: self.arguments.procfs_root.clone(),
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

fn flag(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

fn argument_of<T>(id: &str, read: impl Fn(&clap::Arg) -> T) -> Option<T> {
    Arguments::command()
        .get_arguments()
        .find(|argument| argument.get_id() == id)
        .map(read)
}

fn variable(id: &str) -> String {
    let name = argument_of(id, |argument| argument.get_env().map(|env| env.to_owned()));
    name.flatten()
        .map_or_else(|| flag(id), |name| name.to_string_lossy().into_owned())
}

fn default_of(id: &str) -> Option<Option<String>> {
    argument_of(id, |argument| {
        argument
            .get_default_values()
            .first()
            .map(|value| value.to_string_lossy().into_owned())
    })
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
