use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use clap::CommandFactory;

use super::arguments::Arguments;
use super::*;
use crate::config::{DeviceListStrategy, EvictionMode};
use crate::health::class::Class;

fn given(arguments: &[&str], variables: &[(&str, &str)]) -> Given {
    let arguments = ["gpu-device-plugin"].iter().chain(arguments);
    let variables = variables.iter();
    let variables = variables.map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Given::new(arguments, variables)
}

/// With a file at the path F.
fn read(given: &Given, file: &str) -> Result<Invocation, Vec<String>> {
    let reader = |path: &Path| {
        assert_eq!(path, Path::new("F"));
        Ok(file.as_bytes().to_vec())
    };
    interpret(given, &reader).map_err(|stop| match stop {
        Stop::Usage(errors) => errors.into_lines(),
        Stop::Help(text) => panic!("help: {text}"),
    })
}

fn invocation(arguments: &[&str], variables: &[(&str, &str)], file: &str) -> Invocation {
    read(&given(arguments, variables), file).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

fn errors(arguments: &[&str], variables: &[(&str, &str)], file: &str) -> Vec<String> {
    read(&given(arguments, variables), file).expect_err("a fault")
}

#[test]
fn every_fault_is_told_at_once() {
    let arguments = [
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
    ];
    let expected = [
        "unexpected argument '--frobnicate' found",
        "unexpected argument '--dev-rot' found; a similar argument exists: '--dev-root'",
        "a value is required for '--nvml-library <FILE>' but none was supplied",
        "--output: \"xml\" is not table or json",
        "--log-level: \"loud\" is not error, warn, info, debug or trace",
        "--resource-name: \"gpu\" has no domain, as nvidia.com/gpu has",
        "--http-listen: \"nowhere\" is not an address and port such as 0.0.0.0:9402",
    ];
    assert_eq!(errors(&arguments, &[], ""), expected);
}

#[test]
fn faults_of_flags_variables_and_file_are_told_together() {
    let file = "\
version: v1
flag: {}
flags:
  logLevel: loud
  httpListen: nowhere
  plugin: {deviceListStrategy: [envvar, magic]}
health:
  xids: {48: bad}
  recovery: {quiet: 2h, longestQuiet: 1h}
eviction: {mode: evict, perMinute: 0}
";
    let arguments = ["--config-file=F", "--resource-name=gpu", "--log-level=info"];
    let variables = [
        ("MAKE_DEVICE_NODES", "maybe"),
        ("DP_DISABLE_HEALTHCHECKS", "13,x"),
    ];
    let expected = [
        "F:2: flag: is not known; did you mean flags?",
        "F:8: health.xids.48: \"bad\" is not application, reset, reboot or replace",
        // A flag goes before it, and it is wrong all the same.
        "F:4: flags.logLevel: \"loud\" is not error, warn, info, debug or trace",
        "--resource-name: \"gpu\" has no domain, as nvidia.com/gpu has",
        "F:5: flags.httpListen: \"nowhere\" is not an address and port such as 0.0.0.0:9402",
        "MAKE_DEVICE_NODES: \"maybe\" is not true or false",
        "F:6: flags.plugin.deviceListStrategy: \"envvar,magic\" is not mounts, envvar, volume-mounts, cdi-annotations or cdi-cri",
        "DP_DISABLE_HEALTHCHECKS: \"x\" is not an XID; write XIDs such as 48,79, or all",
        "F:9: health.recovery.longestQuiet: is shorter than --health-quiet, the time that it is the most of",
        "F:10: eviction.perMinute: \"0\" is not a whole number from 1 to 1000",
    ];
    let found = errors(&arguments, &variables, file);
    assert_eq!(found, expected, "{found:#?}");
}

#[test]
fn a_flag_goes_before_a_variable_before_the_file_before_the_default() {
    let file = "flags: {healthPollInterval: 3s, plugin: {deviceListStrategy: [envvar, mounts]}}";
    let interval = |arguments: &[&str], variables: &[(&str, &str)]| {
        let seconds = invocation(arguments, variables, file).config.poll_interval;
        seconds.as_secs()
    };
    let (flag, variable) = ("--health-poll-interval=1s", ("HEALTH_POLL_INTERVAL", "2s"));
    let named = ("CONFIG_FILE", "F");
    assert_eq!(interval(&[], &[]), 5);
    assert_eq!(interval(&[], &[named]), 3);
    assert_eq!(interval(&["--config-file", "F"], &[]), 3);
    assert_eq!(interval(&["devices", "--config-file", "F"], &[]), 3);
    assert_eq!(interval(&[], &[named, variable]), 2);
    assert_eq!(interval(&[flag], &[named, variable]), 1);
    assert_eq!(interval(&[flag], &[named]), 1);
    // An empty variable is one that is not set.
    assert_eq!(interval(&[], &[named, (variable.0, "")]), 3);
    assert_eq!(interval(&[], &[("NVIDIA_DRIVER_ROOT", "")]), 5);
    let strategies = |arguments: &[&str]| invocation(arguments, &[named], file).config;
    let strategies = |arguments: &[&str]| strategies(arguments).allocation.strategies;
    let both = [DeviceListStrategy::Envvar, DeviceListStrategy::Mounts];
    assert_eq!(strategies(&[]), both.into());
    // Lists are not added up over places, but several flags are.
    let (one, other) = (
        "--device-list-strategy=cdi-cri",
        "--device-list-strategy=envvar",
    );
    assert_eq!(strategies(&[one]), [DeviceListStrategy::CdiCri].into());
    let both = [DeviceListStrategy::CdiCri, DeviceListStrategy::Envvar];
    assert_eq!(strategies(&[one, other]), both.into());
}

#[test]
fn a_variable_of_nvidias_goes_before_the_files_xids() {
    let file = "health: {xids: {48: application, 13: replace, 31: reset}}";
    let policy = |variables: &[(&str, &str)]| {
        let invocation = invocation(&["--config-file=F"], variables, file);
        let policy = invocation.config.health.policy;
        [48, 13, 31, 79].map(|xid| policy.class(xid))
    };
    let built_in = invocation(&[], &[], "").config.health.policy;
    assert_eq!(
        [48, 13].map(|xid| built_in.class(xid)),
        [Class::Reset, Class::Application]
    );
    let by_file = [
        Class::Application,
        Class::Replace,
        Class::Reset,
        built_in.class(79),
    ];
    assert_eq!(policy(&[]), by_file);
    let all = ("DP_DISABLE_HEALTHCHECKS", "all");
    assert_eq!(policy(&[all]), [Class::Application; 4]);
    let but = policy(&[all, ("DP_ENABLE_HEALTHCHECKS", "48")]);
    assert_eq!(but[..2], [Class::Reset, Class::Application]);
}

#[test]
fn to_evict_takes_a_nodes_name() {
    let fault = |arguments: &[&str]| errors(arguments, &[], "eviction: {mode: report}");
    let found = fault(&["--config-file=F"]);
    assert_eq!(found.len(), 1);
    let start = "F:1: eviction.mode: \"report\" needs --node-name; ";
    assert!(found[0].starts_with(start), "{}", found[0]);
    assert!(found[0].contains("spec.nodeName"), "{}", found[0]);
    assert!(fault(&["--eviction", "evict"])[0].starts_with("--eviction: "));
    let name = [("NODE_NAME", "gpu-1")];
    let invocation = invocation(&["--eviction=evict"], &name, "");
    assert_eq!(invocation.config.eviction.mode, EvictionMode::Evict);
    assert_eq!(
        invocation.config.cluster.node_name.as_deref(),
        Some("gpu-1")
    );
}

#[test]
fn a_path_too_long_for_a_socket_is_told_before_the_start() {
    let long = format!("/{}", "a".repeat(90));
    let errors = errors(&["--device-plugin-dir", &long], &[], "");
    assert!(
        errors[0].contains("shorten it or --resource-name by"),
        "{errors:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_the_rest() {
    let given = given(&["--log-level=loud"], &[("CONFIG_FILE", "F")]);
    let stop = interpret(&given, &|_: &Path| Err("cannot be read: no".into()));
    let Err(Stop::Usage(errors)) = stop else {
        panic!("{stop:?}");
    };
    let expected = [
        "CONFIG_FILE: \"F\" cannot be read: no",
        "--log-level: \"loud\" is not error, warn, info, debug or trace",
    ];
    assert_eq!(errors.into_lines(), expected);
}

#[test]
fn the_line_of_the_start_makes_the_same_of_another_process() {
    let file = "\
flags:
  nodeName: gpu-1
  kubeconfig: /etc/kubeconfig
  hostRoot: /
  podResourcesSocket: /x/kubelet.sock
  plugin: {deviceListStrategy: [mounts, cdi-cri], passDeviceSpecs: true}
imex: {channelIDs: [0], required: true}
health: {recovery: {quiet: 1500ms, longestQuiet: 24h, relapseWindow: 0s}}
eviction: {mode: evict, grace: 0s, perMinute: 1000, maxSickPercent: 100, taint: true}
";
    let first = invocation(&["--config-file=F"], &[], file).config;
    let line = first.to_string();
    let flags: Vec<_> = line.split(' ').collect();
    let second = invocation(&flags, &[], "").config;
    assert_eq!(first, second, "{line}");
    assert_eq!(first.health.quiet, Duration::from_millis(1500));
}

#[test]
fn every_flag_has_a_key_in_the_file() {
    let keys: BTreeSet<_> = crate::config::file::flags_with_a_key()
        .into_iter()
        .collect();
    let command = Arguments::command();
    let flags: BTreeSet<_> = command
        .get_arguments()
        .filter(|flag| !flag.is_hide_set() && flag.get_id() != "config_file")
        .map(|flag| flag.get_id().as_str())
        .collect();
    assert_eq!(keys, flags);
}

#[test]
fn every_flag_has_a_variable_and_help_names_it() {
    for flag in Arguments::command().get_arguments() {
        assert!(flag.get_env().is_some(), "{flag}");
    }
    let Err(Stop::Help(help)) = parse(&given(&["--help"], &[])) else {
        panic!("no help");
    };
    for name in [
        "EVICTION_MAX_SICK_PERCENT",
        "DP_ENABLE_HEALTHCHECKS",
        "CONFIG_FILE",
    ] {
        assert!(help.contains(name), "{name}");
    }
}
