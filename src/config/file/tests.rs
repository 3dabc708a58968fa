use proptest::prelude::*;

use super::*;
use crate::config::sharing::{DeviceName, SharedDevices};

fn settings(text: &str) -> Settings {
    parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{text}: {faults:?}"))
}

fn faults(text: &str) -> Vec<String> {
    let Err(faults) = parse(text.as_bytes()) else {
        panic!("no fault in {text}");
    };
    let lines = faults.iter().map(|fault| fault.within(Path::new("F")));
    lines.collect()
}

fn flag(text: &str, id: &str) -> Option<String> {
    settings(text)
        .flags
        .get(id)
        .map(|setting| setting.text.clone())
}

/// All that NVIDIA's documentation shows, with other values.
const NVIDIAS: &str = r#"
version: v1
flags:
  migStrategy: "none"
  failOnInitError: true
  nvidiaDriverRoot: "/run/nvidia/driver"
  nvidiaDevRoot: /
  gdsEnabled: false
  gdrcopyEnabled: true
  mofedEnabled: false
  deviceDiscoveryStrategy: auto
  plugin:
    passDeviceSpecs: true
    deviceListStrategy:
      - "envvar"
      - cdi-cri
    deviceIDStrategy: index
    cdiAnnotationPrefix: "x/"
    nvidiaCTKPath: /usr/bin/nvidia-ctk
    containerDriverRoot: /driver-root
  gfd:
    oneshot: false
    noTimestamp: false
    outputFile: /etc/features
    sleepInterval: 60s
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - {name: nvidia.com/gpu, replicas: 4}
    - name: mig-1g.10gb
      rename: slices
      devices: [0, "1:2", MIG-a]
      replicas: 2
imex:
  channelIDs: [0]
  required: true
"#;

#[test]
fn nvidias_keys_mean_what_they_mean_there() {
    let settings = settings(NVIDIAS);
    let flags = settings.flags.iter();
    let flags = flags.map(|(id, setting)| (*id, setting.text.as_str()));
    let expected = [
        ("cdi_annotation_prefix", "x/"),
        ("dev_root", "/"),
        ("device_id_strategy", "index"),
        ("device_list_strategy", "envvar,cdi-cri"),
        ("driver_root", "/run/nvidia/driver"),
        ("driver_root_ctr_path", "/driver-root"),
        ("gdrcopy_enabled", "true"),
        ("gds_enabled", "false"),
        ("imex_channel_ids", "0"),
        ("imex_required", "true"),
        ("mig_strategy", "none"),
        ("mofed_enabled", "false"),
        ("pass_device_specs", "true"),
    ];
    assert_eq!(flags.collect::<Vec<_>>(), expected);
    let idle: Vec<_> = settings.idle.iter().map(|idle| idle.key.as_str()).collect();
    let expected = [
        "flags.failOnInitError",
        "flags.deviceDiscoveryStrategy",
        "flags.plugin.nvidiaCTKPath",
        "flags.gfd",
    ];
    assert_eq!(idle, expected);
}

#[test]
fn what_is_shared_by_turns() {
    let sharing = settings(NVIDIAS).sharing;
    assert!(sharing.fail_requests_greater_than_one);
    let gpu = sharing.of("nvidia.com/gpu").unwrap();
    assert_eq!(gpu.shared_as(), "nvidia.com/gpu.shared");
    assert_eq!((gpu.replicas(), gpu.devices()), (4, &SharedDevices::All));
    let mig = sharing.of("nvidia.com/mig-1g.10gb").unwrap();
    assert_eq!(mig.shared_as(), "nvidia.com/slices");
    let names = ["0", "1:2", "MIG-a"].map(|name| DeviceName::parse(name).unwrap());
    assert_eq!(mig.devices(), &SharedDevices::List(names.into()));
}

#[test]
fn what_cannot_be_shared_is_told_with_its_place() {
    let text = "\
sharing:
  timeSlicing:
    renameByDefault: perhaps
    resources:
    - name: gpu
      replicas: 1
    - name: kubernetes.io/gpu
      replicas: 2
    - replicas: 2
    - name: mig
      replicas: many
      devices: [x]
      copies: 2
";
    let expected = [
        "F:3: sharing.timeSlicing.renameByDefault: is not true or false",
        "F:5: sharing.timeSlicing.resources[0]: 1 replicas are not between 2 and 1024",
        "F:7: sharing.timeSlicing.resources[1]: \"kubernetes.io/gpu\" is in the domain kubernetes.io, which the kubelet refuses",
        "F:9: sharing.timeSlicing.resources[2]: has no name, or no number of replicas",
        "F:11: sharing.timeSlicing.resources[3].replicas: is not a number from 1",
        "F:12: sharing.timeSlicing.resources[3].devices: \"x\" is no index such as 0 or 0:1, and no UUID of a GPU or MIG device",
        "F:13: sharing.timeSlicing.resources[3].copies: is not known",
    ];
    let found = faults(text);
    assert_eq!(found, expected, "{found:#?}");
}

#[test]
fn json_is_yaml_also_with_tabs() {
    let text = "{\n\t\"version\": \"v1\",\n\t\"flags\": {\n\t\t\"plugin\": {\n\t\t\t\"deviceListStrategy\": \"envvar\"\n\t\t}\n\t}\n}\n";
    let setting = &settings(text).flags["device_list_strategy"];
    assert_eq!(setting.text, "envvar");
    assert_eq!(
        setting.place.within(Path::new("F")),
        "F:5: flags.plugin.deviceListStrategy"
    );
}

#[test]
fn our_sections() {
    let settings = settings(
        "health:\n  xids: {48: replace, 190: reset, 13: application}\n  recovery: {quiet: 2m}\n\
         eviction: {mode: off, perMinute: 5, taint: true}\n",
    );
    let xids = [
        (13, Class::Application),
        (48, Class::Replace),
        (190, Class::Reset),
    ];
    assert_eq!(settings.xids, xids.into());
    let flags = settings.flags.iter();
    let flags: Vec<_> = flags
        .map(|(id, setting)| (*id, setting.text.as_str()))
        .collect();
    let expected = [
        ("eviction", "off"),
        ("eviction_rate", "5"),
        ("health_quiet", "2m"),
        ("node_taint", "true"),
    ];
    assert_eq!(flags, expected);
}

#[test]
fn a_value_keeps_its_spelling() {
    for written in [
        "1e5",
        "0x1f",
        "0o17",
        "5.",
        ".5",
        "007",
        "1_000",
        "yes",
        "off",
        "on",
        ".inf",
        "+1",
        "12345678901234567890123456789012345678901234",
        "2026-01-01",
        "1:30",
        "true",
        "v1",
    ] {
        for text in [
            format!("flags: {{nodeName: {written}}}"),
            format!("flags:\n  # é\n  nodeName:   {written} # {written}\r\n"),
            format!("flags: {{nodeName: '{written}'}}"),
            format!("flags: {{kubeconfig: &one {written}, nodeName: *one}}"),
            format!("flags: {{<<: {{nodeName: {written}}}}}"),
        ] {
            assert_eq!(flag(&text, "node_name").as_deref(), Some(written), "{text}");
        }
    }
    for nothing in ["", "~", "null"] {
        assert_eq!(
            flag(&format!("flags: {{nodeName: {nothing}}}"), "node_name"),
            None
        );
    }
    assert_eq!(
        flag("flags: {nodeName: ''}", "node_name").as_deref(),
        Some("")
    );
}

#[test]
fn every_fault_is_told_at_once_with_its_line() {
    let text = "\
version: v2
version: v1
flag: {}
flags:
  migStrategy: single
  logLevel: [info]
  loglevel: debug
  deviceListStrategy: envvar
  deviceDiscoveryStrategy: tegra
  plugin:
    deviceListStrategy: [[envvar]]
sharing:
  mps:
    resources:
    - name: nvidia.com/gpu
      replicas: 4
resources: {gpus: [{pattern: '*', name: nvidia.com/gpu}]}
health:
  xids:
    0: reset
    48: bad
    79: [reset]
    31: reset
    031: reset
  recovery: 5m
eviction:
- mode: off
? [a]
: b
";
    let expected = [
        "F:1: version: \"v2\" is not v1: there is no other version",
        "F:2: version: is there twice",
        "F:3: flag: is not known; did you mean flags?",
        "F:6: flags.logLevel: is a list, not one value",
        "F:7: flags.loglevel: is not known; did you mean flags.logLevel?",
        "F:8: flags.deviceListStrategy: is not known; did you mean flags.plugin.deviceListStrategy?",
        "F:9: flags.deviceDiscoveryStrategy: \"tegra\" is not auto or nvml: GPUs are found by NVML",
        "F:11: flags.plugin.deviceListStrategy: has more than one value in an item",
        "F:13: sharing.mps: sharing by MPS is not built; take it out",
        "F:17: resources: naming resources by pattern is not built; take it out",
        "F:20: health.xids.0: is not an XID, which is a number from 1",
        "F:21: health.xids.48: \"bad\" is not application, reset, reboot or replace",
        "F:22: health.xids.79: a list is not application, reset, reboot or replace",
        "F:24: health.xids.031: is there twice",
        "F:25: health.recovery: is one value, not a section",
        "F:26: eviction: is a list, not a section",
        "F:28: has a list for a key",
    ];
    let found = faults(text);
    assert_eq!(found, expected, "{found:#?}");
}

#[test]
fn sections_that_ask_for_nothing_are_no_fault() {
    for text in [
        "sharing: {}",
        "sharing: {timeSlicing: {resources: []}}",
        "resources: {gpus: [], mig:}",
        "flags:",
        "flags: {plugin: {}}",
        "imex: {channelIDs: []}",
        "version: v1",
    ] {
        settings(text);
    }
}

#[test]
fn what_is_no_configuration_is_refused_in_words() {
    for (text, fault) in [
        (
            "",
            "F:1: is empty; a file that sets nothing says version: v1",
        ),
        (
            "# nothing\n",
            "F:2: is empty; a file that sets nothing says version: v1",
        ),
        ("word", "F:1: is one value, not a section"),
        (
            "version: v1\n---\nversion: v1\n",
            "F:3: has more than one document",
        ),
        ("flags: &a\n  <<: *a\n", "F:2: has an alias within itself"),
        ("version: [", "F:1: unclosed bracket '['"),
        (
            "flags: {logLevel: *none}",
            "F:1: alias references unknown anchor",
        ),
    ] {
        assert_eq!(faults(text), [fault]);
    }
    assert_eq!(parse(b"\xff").unwrap_err()[0].what, "is not UTF-8");
}

#[test]
fn no_file_is_larger_than_the_reader_can_take() {
    let size = usize::try_from(LARGEST).unwrap();
    let too_large = vec![b'#'; size + 1];
    assert_eq!(
        parse(&too_large).unwrap_err()[0].what,
        "is larger than 1 MiB"
    );
    let ten = "[*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]";
    for text in [
        "[".repeat(size),
        "{a: ".repeat(size / 4),
        "- ".repeat(size / 2),
        "a: ".repeat(size / 3),
        (0..size / 8)
            .map(|n| format!("k{n}: 1\n"))
            .take(100_000)
            .collect(),
        format!(
            "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &a {ten}\nc: &a {ten}\nd: &a {ten}\ne: &a {ten}\n"
        ),
        "&a ".repeat(size / 3),
        "? ".repeat(size / 2),
        "\"".repeat(size),
        format!("{}: 1", "k".repeat(size - 3)),
        format!("version: {}", "k".repeat(size - 9)),
        "x:\n".repeat(40_000),
    ] {
        let faults = faults(&text[..text.len().min(size)]);
        let longest = faults.iter().map(String::len).max();
        assert!(faults.len() <= 101 && longest < Some(1000), "{faults:?}");
    }
}

#[test]
fn a_file_is_read_only_where_that_ends() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| read(path).unwrap_err();
    assert!(refused(&folder.path().join("none")).starts_with("cannot be read: "));
    assert_eq!(refused(folder.path()), "is not a regular file");
    assert_eq!(refused(Path::new("/dev/zero")), "is not a regular file");
    let file = folder.path().join("large");
    std::fs::write(&file, vec![b'#'; 2 << 20]).unwrap();
    assert_eq!(read(&file).unwrap().len() as u64, LARGEST + 1);
}

/// Text that a reader of YAML has more to do with than with any bytes.
fn like_yaml() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "version",
        "v1",
        "flags",
        "plugin",
        "health",
        "xids",
        "eviction",
        "48",
        "reset",
        "null",
        "~",
        "true",
        "1e5",
        "0x1f",
        "deviceListStrategy",
        "sharing",
        ": ",
        ":",
        ":\n  ",
        "\n",
        "- ",
        "\n- ",
        "\n  ",
        "\n    ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "|\n",
        ">\n",
        "!!int ",
        "!!binary ",
        "!x ",
        "'",
        "\"",
        "\\",
        "#",
        " # ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "\t",
        "\r\n",
        "é",
        "\u{feff}",
        "\u{85}",
        "__serde_saphyr_private_spanned",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let (_, faults) = survey(&bytes);
        prop_assert!(faults.len() <= 101);
    }

    #[test]
    fn no_yaml_panics_and_each_fault_is_a_line(text in like_yaml()) {
        let (_, faults) = survey(text.as_bytes());
        for fault in faults {
            let line = fault.within(Path::new("F"));
            prop_assert!(!line.contains(char::is_control), "{line:?}");
            prop_assert!(line.len() < 4000, "{line:?}");
        }
    }

    #[test]
    fn a_text_that_is_quoted_comes_through_as_it_is(text in "[ -~]{0,40}") {
        let written = serde_json::to_string(&text).unwrap();
        let found = flag(&format!("{{\"flags\": {{\"nodeName\": {written}}}}}"), "node_name");
        prop_assert_eq!(found, Some(text));
    }
}
