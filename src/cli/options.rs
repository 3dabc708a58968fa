//! From the values of flags to the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, FromArgMatches};
use tracing::level_filters::LevelFilter;

use super::arguments::{self, Arguments, Commands, first_sentence, flag};
use super::given::{ConfigFile, Given, Reader, Said, Sources};
use super::values::{
    self, absolute, address, annotation_prefix, any_path, boolean, day, dev_root_paths,
    driver_root_paths, imex_channels, interval, node_name, number, resource_name, with_links, word,
    words,
};
use super::{Command, Invocation, Output, Suggest, UsageErrors};
use crate::choice::shared::Policy;
use crate::config::file::{self, Settings};
use crate::config::{
    AllocationOptions, ClusterOptions, Config, DeviceIdStrategy, DeviceListStrategy, DriverOptions,
    EvictionMode, EvictionOptions, Extra, HealthOptions, HostFolder, HostPaths, ImexChannel,
    MigStrategy, VolumeMode,
};
use crate::health::xid::XidPolicy;
use crate::plugin::listener;
use crate::telemetry::LogFormat;

/// What holds for each flag that something says anything of, by its ID.
pub type Effective = BTreeMap<&'static str, Said>;

/// The values as they were given, and the place for what is wrong with them.
pub(super) struct Values<'a> {
    sources: Sources<'a>,
    config_file: Option<ConfigFile>,
    command: Option<Commands>,
    effective: Effective,
    errors: &'a mut UsageErrors,
}

impl<'a> Values<'a> {
    pub(super) fn new(
        given: &'a Given,
        matches: &'a ArgMatches,
        reader: &Reader<'_>,
        errors: &'a mut UsageErrors,
    ) -> Option<Self> {
        let arguments = Arguments::from_arg_matches(matches);
        let arguments = arguments.map_err(|error| errors.0.push(first_sentence(&error)));
        let sources = Sources {
            given,
            matches,
            file: Settings::default(),
            path: PathBuf::new(),
        };
        let mut values = Self {
            sources,
            config_file: None,
            command: arguments.ok()?.command,
            effective: Effective::new(),
            errors,
        };
        values.read_file(reader);
        Some(values)
    }

    /// Reads the configuration file, if one is named.
    fn read_file(&mut self, reader: &Reader<'_>) {
        let Some(named) = self.sources.find("config_file") else {
            return;
        };
        let path = PathBuf::from(&named.text);
        let content = match reader(&path) {
            Ok(content) => content,
            Err(fault) => {
                let Said { text, place } = named;
                return self.errors.0.push(format!("{place}: {text:?} {fault}"));
            }
        };
        let (settings, faults) = file::survey(&content);
        let faults = faults.iter().map(|fault| fault.within(&path));
        self.errors.0.extend(faults);
        self.sources.file = settings;
        self.sources.path.clone_from(&path);
        self.config_file = Some(ConfigFile { path, content });
    }

    pub(super) fn invocation(mut self) -> Option<Invocation> {
        let command = self.command();
        let log_format = self.checked("log_format", log_format);
        let log_level = self.checked("log_level", log_level);
        let config = self.config();
        Some(Invocation {
            command: command?,
            config: config?,
            log_format: log_format?,
            log_level: log_level?,
            file: self.config_file,
            idle: self.sources.file.idle,
            effective: self.effective,
        })
    }

    fn command(&mut self) -> Option<Command> {
        let command = match self.command.take() {
            None => Command::Serve,
            Some(Commands::Devices { output }) => Command::Devices {
                output: self.output(&output)?,
            },
            Some(Commands::Driver { output }) => Command::Driver {
                output: self.output(&output)?,
            },
            Some(Commands::Topology {
                output,
                suggest,
                available,
                must_include,
            }) => Command::Topology {
                suggest: self.suggest(suggest, available, must_include),
                output: self.output(&output)?,
            },
            Some(Commands::Uninstall) => Command::Uninstall,
        };
        Some(command)
    }

    fn suggest(
        &mut self,
        size: Option<String>,
        available: Option<String>,
        must_include: Option<String>,
    ) -> Option<Suggest> {
        let Some(size) = size else {
            for (flag, list) in [("available", available), ("must-include", must_include)] {
                if list.is_some() {
                    let fault = format!("--{flag}: needs --suggest N");
                    self.errors.0.push(fault);
                }
            }
            return None;
        };
        let Some(number) = size.parse().ok().filter(|number| *number > 0) else {
            let fault = format!("--suggest: {size:?} is no number of GPUs");
            self.errors.0.push(fault);
            return None;
        };
        let names = |list: Option<String>| -> Vec<_> {
            let list = list.unwrap_or_default();
            let names = list
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        Some(Suggest {
            size: number,
            available: names(available),
            must_include: names(must_include),
        })
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
        let health = self.health();
        let eviction = self.eviction();
        let cluster = self.cluster(eviction.as_ref());
        let paths = self.paths();
        let (resource_name, paths) = (resource_name?, paths?);
        self.check_socket_path(&paths.device_plugin_dir, &resource_name);
        Some(Config {
            paths,
            resource_name,
            mig_strategy: mig_strategy?,
            sharing: self.sources.file.sharing.clone(),
            http_listen: http_listen?,
            poll_interval: poll_interval?,
            driver: driver?,
            allocation: allocation?,
            health: health?,
            eviction: eviction?,
            cluster: cluster?,
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
        let pod_resources = self.checked("pod_resources_socket", absolute);
        let kmsg = self.checked("kmsg", absolute);
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
            pod_resources: HostFolder::below(&host_root, pod_resources?),
            kmsg: kmsg?,
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
        let strategies = self.checked("device_list_strategy", |text| {
            words(text, &DeviceListStrategy::ALL, DeviceListStrategy::name)
        });
        let device_ids = self.checked("device_id_strategy", |text| {
            word(text, &DeviceIdStrategy::ALL, DeviceIdStrategy::name)
        });
        let pass_device_specs = self.checked("pass_device_specs", boolean);
        let prefix = self.checked("cdi_annotation_prefix", annotation_prefix);
        let shared_devices = self.checked("shared_devices_allocation_policy", |text| {
            word(text, &Policy::ALL, Policy::name)
        });
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
                self.fault("imex_required", "needs --imex-channel-ids=0");
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
            shared_devices: shared_devices?,
        })
    }

    fn health(&mut self) -> Option<HealthOptions> {
        let quiet = self.checked("health_quiet", day);
        let longest_quiet = self.checked("health_longest_quiet", day);
        let relapse_window = self.checked("health_relapse_window", day);
        let policy = self.policy();
        let (quiet, longest_quiet) = (quiet?, longest_quiet?);
        if longest_quiet < quiet {
            let fault = "is shorter than --health-quiet, the time that it is the most of";
            self.fault("health_longest_quiet", fault);
            return None;
        }
        Some(HealthOptions {
            policy: policy?,
            quiet,
            longest_quiet,
            relapse_window: relapse_window?,
        })
    }

    fn policy(&mut self) -> Option<XidPolicy> {
        let given = self.sources.given;
        let [disable, enable] = arguments::WITHOUT_A_FLAG;
        let list = |name| given.variable(name).unwrap_or_default();
        match XidPolicy::from_lists(&list(disable), &list(enable)) {
            Ok(policy) => Some(policy.with_overrides(self.sources.file.xids.clone())),
            Err(faults) => {
                self.errors.0.extend(faults);
                None
            }
        }
    }

    fn eviction(&mut self) -> Option<EvictionOptions> {
        let mode = self.checked("eviction", |text| {
            word(text, &EvictionMode::ALL, EvictionMode::name)
        });
        let grace = self.checked("eviction_grace", day);
        let per_minute = self.checked("eviction_rate", |text| number(text, 1..=1000));
        let percent = self.checked("eviction_max_sick_percent", |text| number(text, 0..=100));
        let taint = self.checked("node_taint", boolean);
        Some(EvictionOptions {
            mode: mode?,
            grace: grace?,
            per_minute: per_minute?,
            max_sick_percent: percent?,
            taint: taint?,
        })
    }

    fn cluster(&mut self, eviction: Option<&EvictionOptions>) -> Option<ClusterOptions> {
        let node_name = self.optional("node_name", node_name);
        let kubeconfig = self.optional("kubeconfig", any_path);
        let node_name = node_name?;
        let mode = eviction.map_or(EvictionMode::Off, |eviction| eviction.mode);
        if mode != EvictionMode::Off && node_name.is_none() {
            let mode = mode.name();
            self.fault("eviction", &format!("{mode:?} needs --node-name; in a pod, set NODE_NAME by the downward API: valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}"));
        }
        Some(ClusterOptions {
            node_name,
            kubeconfig: kubeconfig?,
        })
    }

    /// The value of the flag `id`, if it is right; else its fault is noted.
    fn checked<T>(
        &mut self,
        id: &'static str,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.optional(id, check)?
    }

    /// The same for a flag without a default: `Some(None)` is a flag not given.
    fn optional<T>(
        &mut self,
        id: &'static str,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some(said) = self.sources.find(id) else {
            return Some(None);
        };
        // A file is right or wrong whatever goes before it on this node.
        let hidden = self.sources.in_file(id).filter(|hidden| *hidden != said);
        if let Some(hidden) = hidden {
            self.check(&hidden, &check);
        }
        let value = self.check(&said, &check);
        self.effective.insert(id, said);
        value.map(Some)
    }

    fn check<T>(&mut self, said: &Said, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let Said { text, place } = said;
        match check(text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.errors.0.push(format!("{place}: {text:?} {fault}"));
                None
            }
        }
    }

    /// Notes what is wrong with the flag `id` beside others.
    fn fault(&mut self, id: &str, fault: &str) {
        let said = self.effective.get(id);
        let place = said.map_or_else(|| flag(id), |said| said.place.clone());
        self.errors.0.push(format!("{place}: {fault}"));
    }

    fn check_socket_path(&mut self, folder: &Path, resource: &str) {
        let path = folder.join(listener::socket_name(resource));
        let length = path.as_os_str().len();
        if length > listener::LONGEST_PATH {
            let (longest, over) = (listener::LONGEST_PATH, length - listener::LONGEST_PATH);
            let other = flag("resource_name");
            self.fault("device_plugin_dir", &format!(
                "the socket's path would have {length} bytes, and {longest} is the longest that a Unix socket takes; shorten it or {other} by {over}",
            ));
        }
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is not text or json".into()),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("is not error, warn, info, debug or trace".into()),
    }
}
