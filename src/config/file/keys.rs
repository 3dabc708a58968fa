//! Every key of the file, and what it means. A key that is to mean more one day
//! changes its line here.

use self::Means::{Flag, Idle, List, Only, Section, TimeSlicing, Unbuilt, Xids};

/// One key of a section.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) means: Means,
}

#[derive(Debug)]
pub(super) enum Means {
    /// Keys of its own.
    Section(&'static [Key]),
    /// What the flag of this ID means.
    Flag(&'static str),
    /// The same, of a flag that takes several words: a list of them, or one text.
    List(&'static str),
    /// Nothing yet but for these values, which ask for nothing, and why.
    Only(&'static [&'static str], &'static str),
    /// Nothing yet, and it may ask for nothing: what it is that is not built.
    Unbuilt(&'static str),
    /// It does nothing here, and why. Where there are values, no others are taken.
    Idle(&'static [&'static str], &'static str),
    /// The classes of XIDs.
    Xids,
    /// What is shared by turns.
    TimeSlicing,
}

const fn key(name: &'static str, means: Means) -> Key {
    Key { name, means }
}

pub(super) const ROOT: &[Key] = &[
    key("version", Only(&["v1"], "there is no other version")),
    key("flags", Section(FLAGS)),
    key("imex", Section(IMEX)),
    key("health", Section(HEALTH)),
    key("eviction", Section(EVICTION)),
    key("sharing", Section(SHARING)),
    key("resources", Unbuilt("naming resources by pattern")),
];

const FLAGS: &[Key] = &[
    key("migStrategy", Flag("mig_strategy")),
    key("failOnInitError", Idle(&[], STAYS_UP)),
    key("mpsRoot", Idle(&[], "MPS is not built")),
    key("nvidiaDriverRoot", Flag("driver_root")),
    key("nvidiaDevRoot", Flag("dev_root")),
    key("gdsEnabled", Flag("gds_enabled")),
    key("gdrcopyEnabled", Flag("gdrcopy_enabled")),
    key("mofedEnabled", Flag("mofed_enabled")),
    key("useNodeFeatureAPI", Idle(&[], NO_LABELS)),
    key("deviceDiscoveryStrategy", Idle(&["auto", "nvml"], BY_NVML)),
    key("plugin", Section(PLUGIN)),
    key("gfd", Idle(&[], NO_LABELS)),
    // Ours.
    key("cdiRoot", Flag("cdi_root")),
    key("devicePluginDir", Flag("device_plugin_dir")),
    key("driverCapabilities", List("driver_capabilities")),
    key("driverVolume", Flag("driver_volume")),
    key("driverVolumeGrace", Flag("driver_volume_grace")),
    key("healthPollInterval", Flag("health_poll_interval")),
    key("hostRoot", Flag("host_root")),
    key("httpListen", Flag("http_listen")),
    key("kubeconfig", Flag("kubeconfig")),
    key("logFormat", Flag("log_format")),
    key("logLevel", Flag("log_level")),
    key("makeDeviceNodes", Flag("make_device_nodes")),
    key("nodeName", Flag("node_name")),
    key("nvmlLibrary", Flag("nvml_library")),
    key("podResourcesSocket", Flag("pod_resources_socket")),
    key("resourceName", Flag("resource_name")),
    key("stateDir", Flag("state_dir")),
];

const PLUGIN: &[Key] = &[
    key("passDeviceSpecs", Flag("pass_device_specs")),
    key("deviceListStrategy", List("device_list_strategy")),
    key("deviceIDStrategy", Flag("device_id_strategy")),
    key("cdiAnnotationPrefix", Flag("cdi_annotation_prefix")),
    key("nvidiaCTKPath", Idle(&[], "no hook of NVIDIA's is run")),
    key("containerDriverRoot", Flag("driver_root_ctr_path")),
    key(
        "sharedDevicesAllocationPolicy",
        Flag("shared_devices_allocation_policy"),
    ),
];

const IMEX: &[Key] = &[
    key("channelIDs", List("imex_channel_ids")),
    key("required", Flag("imex_required")),
];

const SHARING: &[Key] = &[
    key("timeSlicing", TimeSlicing),
    key("mps", Unbuilt("sharing by MPS")),
];

const HEALTH: &[Key] = &[key("xids", Xids), key("recovery", Section(RECOVERY))];

const RECOVERY: &[Key] = &[
    key("quiet", Flag("health_quiet")),
    key("longestQuiet", Flag("health_longest_quiet")),
    key("relapseWindow", Flag("health_relapse_window")),
];

const EVICTION: &[Key] = &[
    key("mode", Flag("eviction")),
    key("grace", Flag("eviction_grace")),
    key("perMinute", Flag("eviction_rate")),
    key("maxSickPercent", Flag("eviction_max_sick_percent")),
    key("taint", Flag("node_taint")),
];

const STAYS_UP: &str = "without a driver the plugin stays up and tries again";
const NO_LABELS: &str = "no labels are made here";
const BY_NVML: &str = "GPUs are found by NVML";

/// The ID of each flag that has a key.
pub fn flags_with_a_key() -> Vec<&'static str> {
    let mut ids = Vec::new();
    each(ROOT, "", &mut |_, key| match key.means {
        Flag(id) | List(id) => ids.push(id),
        _ => {}
    });
    ids
}

/// The path of every key that is no section.
pub fn keys() -> Vec<String> {
    let mut paths = Vec::new();
    each(ROOT, "", &mut |section, key| {
        if !matches!(key.means, Section(_)) {
            paths.push(join(section, key.name));
        }
    });
    paths
}

/// The path of the key that was meant by an unknown one of the section at `path`,
/// if it is like one: best of the same section, then of another.
pub(super) fn meant(path: &str, unknown: &str) -> Option<String> {
    // Of a very long one none is meant, and to compare it would take its time.
    if unknown.len() > 64 {
        return None;
    }
    let wanted = unknown.to_ascii_lowercase();
    let mut best: Option<(usize, String)> = None;
    each(ROOT, "", &mut |section, key| {
        let Some(apart) = likeness(&wanted, key) else {
            return;
        };
        let elsewhere = usize::from(section != path);
        let rank = 2 * apart + elsewhere;
        if best.as_ref().is_none_or(|(found, _)| rank < *found) {
            best = Some((rank, join(section, key.name)));
        }
    });
    best.map(|(_, path)| path)
}

/// How many letters apart an unknown key and a known one are, if few enough. Who
/// knows the flag may have written its name.
fn likeness(wanted: &str, key: &Key) -> Option<usize> {
    let by_flag = match key.means {
        Flag(id) | List(id) => Some(id.replace('_', "")),
        _ => None,
    };
    let names = [Some(key.name.to_ascii_lowercase()), by_flag];
    let apart = names.into_iter().flatten();
    let apart = apart.map(|name| (distance(wanted, &name), name.len()));
    let near = apart.filter(|(apart, length)| *apart <= length / 3);
    near.map(|(apart, _)| apart).min()
}

/// A key's path.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}

/// Every key, with the path of its section.
fn each(keys: &'static [Key], section: &str, visit: &mut dyn FnMut(&str, &'static Key)) {
    for key in keys {
        visit(section, key);
        if let Section(below) = key.means {
            each(below, &join(section, key.name), visit);
        }
    }
}

/// Letters to change, add or take away between two words (Levenshtein's).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut corner = line;
        row[0] = line + 1;
        for (column, against) in other.iter().enumerate() {
            let changed = corner + usize::from(letter != *against);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_known_by_its_likeness() {
        let meant = |path, unknown| super::meant(path, unknown);
        assert_eq!(meant("", "flag").as_deref(), Some("flags"));
        let list = "flags.plugin.deviceListStrategy";
        for (path, unknown) in [
            ("flags.plugin", "deviceListStrategie"),
            ("flags.plugin", "devicelistStrategy"),
            ("flags", "deviceListStrategy"),
            ("", "device-list-strategy"),
        ] {
            assert_eq!(meant(path, unknown).as_deref(), Some(list), "{unknown}");
        }
        let root = "flags.nvidiaDriverRoot";
        assert_eq!(meant("flags", "driverRoot").as_deref(), Some(root));
        assert_eq!(
            meant("eviction", "evictionGrace").as_deref(),
            Some("eviction.grace")
        );
        for unknown in ["", "x", "frobnicate", &"flags".repeat(1000)] {
            assert_eq!(meant("", unknown), None, "{unknown}");
        }
    }

    #[test]
    fn no_flag_has_two_keys() {
        let mut ids = flags_with_a_key();
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
