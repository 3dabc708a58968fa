//! The command line and the environment.
//!
//! clap reads, and knows which flag or variable a value came from; the values
//! are checked here, so that every fault is told at once and not the first only.

mod values;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::config::{Config, HostPaths};
use crate::plugin::listener;
use crate::telemetry::LogFormat;

use self::values::{absolute, address, dev_root_paths, driver_root_paths, interval, resource_name};

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
}

/// How `devices` prints.
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
    let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-') && next != "devices";
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
        let command = match self.arguments.command.take() {
            None => Some(Command::Serve),
            Some(Commands::Devices { output }) => {
                let form = match output.as_str() {
                    "table" => Some(Output::Table),
                    "json" => Some(Output::Json),
                    _ => {
                        self.errors
                            .0
                            .push(format!("--output: {output:?} is not table or json"));
                        None
                    }
                };
                form.map(|output| Command::Devices { output })
            }
        };
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

    fn config(&mut self) -> Option<Config> {
        let resource_name = self.checked("resource_name", resource_name);
        let http_listen = self.checked("http_listen", address);
        let poll_interval = self.checked("health_poll_interval", interval);
        let device_plugin_dir = self.checked("device_plugin_dir", absolute);
        let driver_root = self.checked("driver_root", absolute);
        let container = self.optional("driver_root_ctr_path", absolute);
        let dev_root = self.optional("dev_root", absolute);
        let nvml_library = self.optional("nvml_library", absolute);
        let (resource_name, device_plugin_dir) = (resource_name?, device_plugin_dir?);
        self.check_socket_path(&device_plugin_dir, &resource_name);
        let driver_root = driver_root_paths(driver_root?, container?);
        let dev_root = dev_root_paths(dev_root?, &driver_root);
        Some(Config {
            paths: HostPaths {
                device_plugin_dir,
                nvml_library: nvml_library?,
                driver_root,
                dev_root,
                sysfs: self.arguments.sysfs_root.clone(),
                procfs: self.arguments.procfs_root.clone(),
            },
            resource_name,
            http_listen: http_listen?,
            poll_interval: poll_interval?,
        })
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
