use std::fs;
use std::os::unix::fs::symlink;

use tokio::time::timeout;

use super::*;
use crate::config::EvictionMode;
use crate::health::class::Class;

const LONG: Duration = Duration::from_secs(20);

fn content(text: &str) -> Result<Vec<u8>, String> {
    Ok(text.as_bytes().to_vec())
}

fn given(path: &str) -> Given {
    let arguments = [
        "gpu-device-plugin",
        "--config-file",
        path,
        "--eviction-rate=7",
    ];
    Given::new(arguments, [("NODE_NAME".to_owned(), "gpu-1".to_owned())])
}

/// As a process that was started with this file.
fn reloader(text: &str) -> Reloader {
    let given = given("F");
    let running = cli::interpret(&given, &|_: &Path| content(text)).unwrap();
    Reloader::new(given, &running).unwrap()
}

fn applied(outcome: ReloadOutcome) -> Invocation {
    match outcome {
        ReloadOutcome::Applied(new) => *new,
        other => panic!("not applied: {other:?}"),
    }
}

fn failed(outcome: ReloadOutcome) -> Vec<String> {
    match outcome {
        ReloadOutcome::Failed(faults) => faults,
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn what_may_change_holds_at_once() {
    let mut reloader = reloader("flags: {stateDir: /x}");
    let text = "\
flags: {stateDir: /x, logLevel: debug}
health: {xids: {48: application}, recovery: {quiet: 5s}}
eviction: {mode: evict, perMinute: 99}
";
    let new = applied(reloader.reload_with(content(text)));
    assert_eq!(new.log_level, tracing::level_filters::LevelFilter::DEBUG);
    assert_eq!(new.config.health.policy.class(48), Class::Application);
    assert_eq!(new.config.health.quiet, Duration::from_secs(5));
    assert_eq!(new.config.eviction.mode, EvictionMode::Evict);
    // The flag goes before the file, then as now.
    assert_eq!(new.config.eviction.per_minute, 7);
    assert_eq!(
        reloader.reload_with(content(text)),
        ReloadOutcome::Unchanged
    );
    let comment = format!("# nothing new\n{text}");
    assert_eq!(
        reloader.reload_with(content(&comment)),
        ReloadOutcome::Unchanged
    );
    let back = applied(reloader.reload_with(content("flags: {stateDir: /x}")));
    assert_eq!(back.config.eviction.mode, EvictionMode::Off);
    assert_eq!(back.config.health, HealthOptions::default());
}

#[test]
fn what_takes_a_restart_is_refused_with_all_else_that_is_new() {
    let mut reloader = reloader("flags: {stateDir: /x, kubeconfig: /k}");
    let text = "\
flags:
  stateDir: /y
  nvmlLibrary: /lib/x.so
  plugin: {deviceListStrategy: [envvar]}
health: {recovery: {quiet: 5s}}
";
    let expected = [
        "F:4: flags.plugin.deviceListStrategy: \"envvar\" needs a restart; until then \"mounts\" holds",
        "F:1: flags.kubeconfig: to take it out needs a restart; until then \"/k\" holds",
        "F:3: flags.nvmlLibrary: \"/lib/x.so\" needs a restart; until then it is not set",
        "F:2: flags.stateDir: \"/y\" needs a restart; until then \"/x\" holds",
    ];
    assert_eq!(failed(reloader.reload_with(content(text))), expected);
    // Nothing of it holds, and it is compared with what does.
    assert_eq!(failed(reloader.reload_with(content(text))), expected);
    let good = "flags: {stateDir: /x, kubeconfig: /k}";
    assert_eq!(
        reloader.reload_with(content(good)),
        ReloadOutcome::Unchanged
    );
}

#[test]
fn a_bad_file_leaves_what_holds() {
    let mut reloader = reloader("health: {recovery: {quiet: 5s}}");
    let bad = "health: {recovery: {quiet: soon}, xids: {48: bad}}";
    assert_eq!(failed(reloader.reload_with(content(bad))).len(), 2);
    assert_eq!(failed(reloader.reload_with(content(""))).len(), 1);
    let gone = reloader.reload_with(Err("cannot be read: gone".into()));
    assert_eq!(failed(gone), ["--config-file: \"F\" cannot be read: gone"]);
    let better = "health: {recovery: {quiet: 6s}}";
    let new = applied(reloader.reload_with(content(better)));
    assert_eq!(new.config.health.quiet, Duration::from_secs(6));
}

#[test]
fn without_a_file_there_is_nothing_to_follow() {
    let given = Given::new(["gpu-device-plugin"], []);
    let running = cli::parse(&given).unwrap();
    assert!(Reloader::new(given, &running).is_none());
}

/// A ConfigMap as the kubelet mounts it: each content in a folder of its own,
/// and a link that is swapped.
struct Volume {
    folder: tempfile::TempDir,
    swaps: u32,
}

impl Volume {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink("..data/config.yaml", folder.path().join("config.yaml")).unwrap();
        let mut volume = Self { folder, swaps: 0 };
        volume.swap(text);
        volume
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    fn swap(&mut self, text: &str) {
        self.swaps += 1;
        let name = format!("..{}", self.swaps);
        let [new, link, data] =
            [&name, "..data_tmp", "..data"].map(|name| self.folder.path().join(name));
        fs::create_dir(&new).unwrap();
        fs::write(new.join("config.yaml"), text).unwrap();
        symlink(&name, &link).unwrap();
        fs::rename(link, data).unwrap();
    }
}

#[tokio::test]
async fn a_volume_that_is_swapped_is_followed_and_a_bad_file_told() {
    let mut volume = Volume::new("version: v1");
    let given = given(volume.file().to_str().unwrap());
    let running = cli::parse(&given).unwrap();
    let reloader = Reloader::new(given, &running).unwrap();
    let (metrics, readiness) = (Arc::new(Metrics::new()), Readiness::default());
    let reloads = Reloads::new(&running.config, metrics.clone(), readiness.clone());
    let (mut health, mut faults) = (reloads.health(), reloads.faults());
    let reloads = Arc::new(reloads);
    let follower = reloads.clone();
    let following = tokio::spawn(async move { follower.follow(reloader).await });

    volume.swap("health: {recovery: {quiet: 5s}}");
    timeout(LONG, health.changed()).await.unwrap().unwrap();
    assert_eq!(health.borrow_and_update().quiet, Duration::from_secs(5));
    volume.swap("health: {recovery: {quiet: soon}}");
    timeout(LONG, faults.changed()).await.unwrap().unwrap();
    assert_eq!(faults.borrow_and_update().len(), 1);
    assert!(!health.has_changed().unwrap());
    assert!(
        readiness.notes()[0].contains("quiet"),
        "{:?}",
        readiness.notes()
    );
    volume.swap("health: {recovery: {quiet: 5s}} # as before");
    timeout(LONG, faults.changed()).await.unwrap().unwrap();
    assert!(faults.borrow_and_update().is_empty());
    assert!(readiness.notes().is_empty());

    let text = metrics.encode().unwrap();
    for sample in [
        "config_reloads_total{result=\"ok\"} 2",
        "config_reloads_total{result=\"failed\"} 1",
        "config_last_reload_successful 1",
    ] {
        assert!(text.contains(sample), "{sample}: {text}");
    }
    following.abort();
}
