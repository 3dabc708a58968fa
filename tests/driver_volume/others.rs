//! Several plugins on one folder, and plugins that are killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gpu_device_plugin::api::v1beta1::AllocateResponse;
use gpu_device_plugin::driver::volume::Source;
use gpu_device_plugin::driver::volume::uses::Uses;

use crate::common::kubelet::KubeletPeer;
use crate::common::nvml::{DRIVER_LIBRARIES, SimulatedNode};
use crate::common::plugin::PluginProcess;
use crate::common::running::{LONG, RESOURCE, Running, allocate, options, spawn};
use crate::rig::{
    EAGER, VERSION, assert_all_below, kept, mounts, names, node_of_size, only, start_again, text,
    volume_made, volumes, ways,
};

/// A plugin with a kubelet of its own on a node that it shares.
struct Neighbour {
    kubelet: KubeletPeer,
    plugin: PluginProcess,
}

impl Neighbour {
    async fn kubelet(node: &SimulatedNode, name: &str) -> KubeletPeer {
        let kubelet = KubeletPeer::new(node.root().join(name), options());
        kubelet.start().await.unwrap();
        kubelet
    }

    fn start(node: &SimulatedNode, kubelet: KubeletPeer, extra: &[&str]) -> Self {
        let folder = text(kubelet.folder()).to_owned();
        let flags = [&["--device-plugin-dir", &folder], extra].concat();
        let plugin = spawn(node, &flags);
        Self { kubelet, plugin }
    }

    /// Waits until it serves, and asks for a GPU.
    async fn answer(&self, node: &SimulatedNode) -> AllocateResponse {
        let served = self.kubelet.wait_counts(RESOURCE, (2, 2), LONG).await;
        if let Err(error) = served {
            panic!("{error}\n{}", self.plugin.log());
        }
        let mut client = self.kubelet.client(RESOURCE).await.unwrap();
        let answer = allocate(&mut client, vec![vec![node.uuid(0)]]).await;
        answer.unwrap()
    }

    async fn end(mut self) {
        self.plugin.terminate().unwrap();
        self.plugin.wait(LONG).await.unwrap();
        self.kubelet.assert_no_violations();
    }
}

/// Two at the same moment, again and again: by link, and by copy where there is
/// another file system.
#[tokio::test]
async fn two_plugins_that_start_at_once_make_one_volume_and_both_serve() {
    let node = node_of_size(1 << 20);
    let other = tempfile::tempdir_in("/dev/shm").ok();
    for round in 0..12 {
        let state = match &other {
            Some(other) if round % 2 == 1 => other.path().join(round.to_string()),
            _ => node.root().join(format!("state-{round}")),
        };
        let flags = ["--state-dir", text(&state)];
        let kubelets = [
            Neighbour::kubelet(&node, &format!("a-{round}")).await,
            Neighbour::kubelet(&node, &format!("b-{round}")).await,
        ];
        let both = kubelets.map(|kubelet| Neighbour::start(&node, kubelet, &flags));
        let [first, second] = &both;
        let answers = [first.answer(&node).await, second.answer(&node).await];
        assert_eq!(mounts(&answers[0]), mounts(&answers[1]));
        assert_all_below(mounts(&answers[0]), &only(&state));
        ways(&node, &state);
        for one in both {
            one.end().await;
        }
        fs::remove_dir_all(state).unwrap();
    }
}

#[tokio::test]
async fn what_another_plugin_answers_with_is_kept_until_it_ends() {
    let running = Running::on(SimulatedNode::new(2), options(), &EAGER).await;
    volume_made(&running).await;
    let node = &running.node;
    let ours = only(&node.state_dir());
    let kubelet = Neighbour::kubelet(node, "other").await;
    let flags = [&["--driver-capabilities", "all"], &EAGER[..]].concat();
    let mut other = Neighbour::start(node, kubelet, &flags);
    let answer = other.answer(node).await;
    let folder = mounts(&answer).last().unwrap().host_path.clone();
    let theirs = PathBuf::from(folder);
    assert_ne!(ours, theirs);

    // Each leaves the other's alone, and its own.
    for (plugin, volume) in [(&running.plugin, &theirs), (&other.plugin, &ours)] {
        kept(plugin, volume, "a plugin that runs answers with it").await;
    }
    assert_eq!(names(&node.state_dir()).len(), 2);

    other.plugin.kill().unwrap();
    other.plugin.wait(LONG).await.unwrap();
    running
        .eventually("the other's volume to go", || async {
            (names(&node.state_dir()).len() == 1).then_some(())
        })
        .await;
    assert_eq!(only(&node.state_dir()), ours);
    let answer = running.allocate(&[0]).await.unwrap();
    assert_all_below(mounts(&answer), &ours);
    running.kubelet.assert_no_violations();
}

// === Killed ===

/// How many files are in a volume that is being made; none: it is done.
fn progress(state: &Path) -> Option<usize> {
    let names = names(state);
    if names.iter().any(|name| !name.starts_with('.')) {
        return None;
    }
    let unfinished = names.iter().map(|name| {
        let libraries = state.join("driver").join(name).join("lib64");
        fs::read_dir(libraries).into_iter().flatten().count()
    });
    Some(unfinished.sum())
}

/// Kills a plugin when so many files are in place. Whether it was in the middle
/// of it.
async fn kill_at(running: &mut Running, state: &Path, files: usize) -> bool {
    running.plugin = spawn(&running.node, &["--state-dir", text(state)]);
    running
        .eventually("some files", || async {
            progress(state)
                .is_none_or(|so_far| so_far >= files && state.join("driver").exists())
                .then_some(())
        })
        .await;
    running.kill_plugin().await;
    let names = names(state);
    assert!(names.len() <= 1, "{names:?}");
    let whole = names.iter().any(|name| !name.starts_with('.'));
    if whole {
        ways(&running.node, state);
    } else {
        assert!(volumes(state).of_version(VERSION).is_none());
    }
    !whole && !names.is_empty()
}

#[tokio::test]
async fn a_plugin_that_is_killed_leaves_a_whole_volume_or_none_and_the_next_one_tidies_up() {
    let node = node_of_size(8 << 20);
    // Copies take their time.
    let other = tempfile::tempdir_in("/dev/shm").ok();
    let mut running = Running::on(node, options(), &[]).await;
    let mut half_made = 0;
    for round in 0..16 {
        running.kill_plugin().await;
        let folder = other
            .as_ref()
            .map_or(running.node.root(), |other| other.path());
        let state = folder.join(format!("killed-{round}"));
        let files = fastrand::usize(0..12);
        half_made += usize::from(kill_at(&mut running, &state, files).await);

        let flags = [&["--state-dir", text(&state)], &EAGER[..]].concat();
        start_again(&mut running, &flags).await;
        volume_made(&running).await;
        running
            .eventually("only a volume to be left", || async {
                matches!(&names(&state)[..], [name] if !name.starts_with('.')).then_some(())
            })
            .await;
        ways(&running.node, &state);
        if other.is_some() {
            // Memory, there.
            running.kill_plugin().await;
            fs::remove_dir_all(&state).unwrap();
            start_again(&mut running, &[]).await;
        }
    }
    println!("{half_made} of 16 were killed while they made a volume");
    assert!(half_made > 0 || other.is_none());
}

// === Within a process, which is faster ===

/// What somebody has just been given is there, whatever a collector thinks.
#[test]
fn a_volume_that_was_given_out_is_there_while_others_collect() {
    let node = SimulatedNode::new(1);
    let sources: Vec<_> = DRIVER_LIBRARIES
        .iter()
        .take(3)
        .map(|library| Source {
            path: Path::new("lib64").join(library.soname(VERSION)),
            here: node.driver_library_dir().join(library.file_name(VERSION)),
        })
        .collect();
    let state = node.state_dir();
    let done = AtomicBool::new(false);
    // A volume of one's own is removed as soon as it is given up.
    let make = &|version: &str, own: bool| {
        let volumes = volumes(&state);
        for _ in 0..300 {
            let volume = volumes.make(version, &sources).unwrap();
            for file in &volume.manifest.files {
                let path = volume.folder.here.join(&file.path);
                assert!(path.exists(), "{} is not there", path.display());
            }
            let folder = volume.folder.here.clone();
            drop(volume);
            while own && folder.exists() {
                thread::yield_now();
            }
        }
    };
    let collect = || {
        let mut removed = 0;
        while !done.load(Ordering::Relaxed) {
            let collected = volumes(&state).collect(|| Ok(Uses::default()));
            removed += collected.unwrap().removed.len();
        }
        println!("{removed} volumes removed");
    };
    thread::scope(|scope| {
        scope.spawn(collect);
        scope.spawn(collect);
        let versions = [("1.1", false), ("1.1", false), ("2.2", true), ("3.3", true)];
        let makers = versions.map(|(version, own)| scope.spawn(move || make(version, own)));
        let made = makers.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        assert!(made.iter().all(Result::is_ok));
    });
    drop(volumes(&state).make(VERSION, &sources).unwrap());
    let last = volumes(&state).collect(|| Ok(Uses::default())).unwrap();
    assert_eq!(last.removed.len(), 1, "{last:?}");
    assert!(names(&state).is_empty(), "{:?}", names(&state));
}
