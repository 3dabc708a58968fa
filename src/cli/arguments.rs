//! Flags, their variables and defaults, and how the command line is read.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, Parser, Subcommand};

use super::{Stop, UsageErrors};

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
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Commands>,

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

    /// What GPUs in MIG mode are advertised as: none, whole GPUs; single, their
    /// MIG devices in place of GPUs, where all are of one profile; mixed, MIG
    /// devices under a name for each profile
    #[arg(long, global = true, env = "MIG_STRATEGY", value_name = "STRATEGY")]
    #[arg(default_value = "none")]
    mig_strategy: String,

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
pub(super) enum Commands {
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

/// clap stops at the first argument that it cannot take: note it, take it out,
/// and read again. None: what is wrong leaves nothing to check.
pub(super) fn read(
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

pub(super) fn first_sentence(error: &clap::Error) -> String {
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

pub(super) fn flag(id: &str) -> String {
    format!("--{}", id.replace('_', "-"))
}

fn argument_of<T>(id: &str, read: impl Fn(&clap::Arg) -> T) -> Option<T> {
    Arguments::command()
        .get_arguments()
        .find(|argument| argument.get_id() == id)
        .map(read)
}

pub(super) fn variable(id: &str) -> String {
    let name = argument_of(id, |argument| argument.get_env().map(|env| env.to_owned()));
    name.flatten()
        .map_or_else(|| flag(id), |name| name.to_string_lossy().into_owned())
}

pub(super) fn default_of(id: &str) -> Option<Option<String>> {
    argument_of(id, |argument| {
        argument
            .get_default_values()
            .first()
            .map(|value| value.to_string_lossy().into_owned())
    })
}
