//! Flags, their variables and defaults, and how the command line is read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, Command, CommandFactory, Parser, Subcommand};

use super::{Stop, UsageErrors};
use crate::health::xid::{DISABLE_VARIABLE, ENABLE_VARIABLE};

/// Variables that no flag has, as NVIDIA's plugin has none for them.
pub(super) const WITHOUT_A_FLAG: [&str; 2] = [DISABLE_VARIABLE, ENABLE_VARIABLE];

const VARIABLES: &str = "\
Environment only:
  DP_DISABLE_HEALTHCHECKS  XIDs that leave a GPU healthy, separated by commas; all
                           is every one, and what is polled
  DP_ENABLE_HEALTHCHECKS   XIDs that make it unhealthy, also where all is disabled";

/// Serve the GPUs of this node to its kubelet.
///
/// Each NVIDIA GPU becomes a device of the resource nvidia.com/gpu. A container
/// that is given one gets the device nodes and the driver's libraries, with no
/// NVIDIA software in its image and no NVIDIA container runtime on the node.
///
/// Without a command, serves until SIGTERM or SIGINT (a second one ends it at
/// once). SIGHUP looks at all GPUs, at the driver and at the configuration file
/// again.
///
/// A flag goes before its variable, a variable before the configuration file, the
/// file before the default. To check a file, without a GPU or a kubelet:
/// gpu-device-plugin driver --config-file FILE lists every fault of it and ends
/// with 64.
///
/// Exit codes: 0 asked to end, 1 failure, 64 bad arguments.
#[derive(Debug, Parser)]
#[command(name = "gpu-device-plugin", version, disable_help_subcommand = true)]
#[command(after_help = VARIABLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Commands>,

    #[command(flatten)]
    flags: Flags,
}

// No documentation: clap would take it for the program's.
#[derive(Args, Debug)]
struct Flags {
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

    /// Which devices that share GPUs (replicas, MIG devices) the kubelet is told to
    /// take: distributed, packed or different-gpus
    #[arg(
        long,
        global = true,
        env = "SHARED_DEVICES_ALLOCATION_POLICY",
        value_name = "POLICY"
    )]
    #[arg(default_value = "distributed")]
    shared_devices_allocation_policy: String,

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

    /// How long a GPU must have been without a cause before it is healthy again,
    /// 0s to 24h
    #[arg(long, global = true, env = "HEALTH_QUIET", value_name = "TIME")]
    #[arg(default_value = "60s")]
    health_quiet: String,

    /// Each relapse doubles that time, up to this, 0s to 24h
    #[arg(long, global = true, env = "HEALTH_LONGEST_QUIET", value_name = "TIME")]
    #[arg(default_value = "1h")]
    health_longest_quiet: String,

    /// A GPU that falls sick again within this time has had a relapse, 0s to 24h
    #[arg(
        long,
        global = true,
        env = "HEALTH_RELAPSE_WINDOW",
        value_name = "TIME"
    )]
    #[arg(default_value = "24h")]
    health_relapse_window: String,

    /// Whether pods on a sick GPU are evicted: off, report (the API server is told
    /// of the GPUs' health, and of what would be evicted) or evict
    #[arg(long, global = true, env = "EVICTION", value_name = "MODE")]
    #[arg(default_value = "off")]
    eviction: String,

    /// From the moment that a GPU turns sick to the eviction of its pods, 0s to
    /// 24h; one that is well again by then keeps them
    #[arg(long, global = true, env = "EVICTION_GRACE", value_name = "TIME")]
    #[arg(default_value = "60s")]
    eviction_grace: String,

    /// At most so many evictions a minute on this node, 1 to 1000
    #[arg(long, global = true, env = "EVICTION_RATE", value_name = "NUMBER")]
    #[arg(default_value = "10")]
    eviction_rate: String,

    /// While a larger share of the node's GPUs is sick, in percent, no pod is
    /// evicted, 0 to 100
    #[arg(
        long,
        global = true,
        env = "EVICTION_MAX_SICK_PERCENT",
        value_name = "NUMBER"
    )]
    #[arg(default_value = "50")]
    eviction_max_sick_percent: String,

    /// Whether the node has a taint while every one of its GPUs is sick; where
    /// eviction is not off
    #[arg(long, global = true, env = "NODE_TAINT", value_name = "BOOL")]
    #[arg(default_value = "false", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    node_taint: String,

    /// This node's name at the API server; needed where eviction is not off
    #[arg(long, global = true, env = "NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    /// How the API server is reached; else by the pod's service account
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The kubelet's socket that tells which pod has which device, as the host
    /// names it
    #[arg(long, global = true, env = "POD_RESOURCES_SOCKET", value_name = "FILE")]
    #[arg(default_value = "/var/lib/kubelet/pod-resources/kubelet.sock")]
    pod_resources_socket: PathBuf,

    /// Configuration file, as of NVIDIA's plugin (version: v1), for what neither a
    /// flag nor a variable says
    #[arg(long, global = true, env = "CONFIG_FILE", value_name = "FILE")]
    config_file: Option<PathBuf>,

    /// Form of the log lines on standard error: text or json
    #[arg(long, global = true, env = "LOG_FORMAT", value_name = "FORMAT")]
    #[arg(default_value = "text")]
    log_format: String,

    /// What is logged: error, warn, info, debug or trace (a release build has no lines
    /// of trace)
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

    /// The kernel log
    #[arg(long, global = true, env = "KMSG", value_name = "FILE", hide = true)]
    #[arg(default_value = "/dev/kmsg")]
    kmsg: PathBuf,

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
    /// Print how the GPUs are linked, and which of them a pod had better get
    ///
    /// The matrix is that of nvidia-smi topo -m. What is suggested is what
    /// GetPreferredAllocation prefers, with its score and that of the next best.
    ///
    /// Exit codes: 0 printed, 1 no driver to ask or no such GPUs, 64 bad arguments.
    Topology {
        /// Form of the output: table or json
        #[arg(
            long,
            short,
            env = "TOPOLOGY_OUTPUT",
            value_name = "FORM",
            default_value = "table"
        )]
        output: String,
        /// Suggest so many GPUs for a pod
        #[arg(long, value_name = "N")]
        suggest: Option<String>,
        /// Of these, by index or UUID, separated by commas: those that are free
        /// [default: all]
        #[arg(long, value_name = "LIST")]
        available: Option<String>,
        /// With these among them
        #[arg(long, value_name = "LIST")]
        must_include: Option<String>,
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
///
/// The flags' variables are not read here: they are looked up beside the
/// configuration file. Help tells of them.
pub(super) fn read(
    mut arguments: Vec<OsString>,
    errors: &mut UsageErrors,
) -> Result<Option<ArgMatches>, Stop> {
    if let Some(matches) = flags_alone(&arguments) {
        return Ok(Some(matches));
    }
    loop {
        let command = Arguments::command().mut_args(|flag| flag.env(Resettable::Reset));
        let error = match command.try_get_matches_from(&arguments) {
            Ok(matches) => return Ok(Some(matches)),
            Err(error) => error,
        };
        if is_help(&error) {
            return Err(Stop::Help(help(&arguments, &error)));
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

/// The same where there is no command and nothing wrong, as with every start: clap gives
/// each command a copy of each flag, and that takes longer than all else.
fn flags_alone(arguments: &[OsString]) -> Option<ArgMatches> {
    let command = Flags::augment_args(Command::new("gpu-device-plugin"));
    VARIABLES_OF_FLAGS.get_or_init(|| variables_of(&command));
    let command = command.mut_args(|flag| flag.env(Resettable::Reset).global(false));
    command.try_get_matches_from(arguments).ok()
}

fn is_help(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    )
}

/// The help that was asked for, with the variables.
fn help(arguments: &[OsString], without: &clap::Error) -> String {
    match Arguments::command().try_get_matches_from(arguments) {
        Err(error) if is_help(&error) => error.to_string(),
        _ => without.to_string(),
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
        let mut commands = ["devices", "driver", "topology", "uninstall"].iter();
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

/// The variable of each flag, by the flag's ID.
pub(super) fn variables() -> &'static BTreeMap<String, String> {
    VARIABLES_OF_FLAGS.get_or_init(|| variables_of(&Arguments::command()))
}

static VARIABLES_OF_FLAGS: OnceLock<BTreeMap<String, String>> = OnceLock::new();

fn variables_of(command: &Command) -> BTreeMap<String, String> {
    let named = command.get_arguments().filter_map(|flag| {
        let name = flag.get_env()?.to_string_lossy().into_owned();
        Some((flag.get_id().to_string(), name))
    });
    named.collect()
}
