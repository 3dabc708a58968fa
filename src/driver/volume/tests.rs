use std::collections::BTreeSet;
use std::io::{Read as _, Seek as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use super::build::crash;
use super::collect::Kept;
use super::manifest::Way;
use super::uses::{Use, Uses};
use super::*;
use crate::driver::fixture::Elf;

const VERSION: &str = "550.163.01";

/// A driver's files and a folder for volumes, on one file system.
struct Node {
    dir: TempDir,
    sources: Vec<Source>,
    volumes: Volumes,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = dir.path().join("usr");
        fs::create_dir(&driver).unwrap();
        let files = [
            ("lib64/libcuda.so.1", Elf::library("libcuda.so.1").bytes()),
            (
                "lib64/libnvidia-ml.so.1",
                Elf::library("libnvidia-ml.so.1").bytes(),
            ),
            (
                "lib64/vdpau/libvdpau_nvidia.so.1",
                Elf::library("libvdpau_nvidia.so.1").bytes(),
            ),
            ("bin/nvidia-smi", Elf::program().bytes()),
            (
                "share/etc/OpenCL/vendors/nvidia.icd",
                b"libnvidia-opencl.so.1\n".to_vec(),
            ),
        ];
        let sources = files.iter().map(|(path, bytes)| {
            let path = PathBuf::from(path);
            let here = driver.join(path.file_name().unwrap());
            fs::write(&here, bytes).unwrap();
            Source { path, here }
        });
        let sources = sources.collect();
        let volumes = Volumes::new(HostFolder {
            host: "/state/driver".into(),
            here: dir.path().join("state/driver"),
        });
        Self {
            dir,
            sources,
            volumes,
        }
    }

    fn make(&self) -> Result<Volume, VolumeError> {
        self.volumes.make(VERSION, &self.sources)
    }

    /// What is in the folder of volumes.
    fn folders(&self) -> Vec<String> {
        self.volumes.names()
    }

    fn collect(&self, uses: &Uses) -> Collected {
        self.volumes.collect(|| Ok(uses.clone())).unwrap()
    }
}

use super::collect::Collected;

fn same_file(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.dev(), metadata.ino())
    };
    id(a) == id(b)
}

// === Made ===

#[test]
fn a_volume_on_the_drivers_file_system_is_of_hard_links() {
    let node = Node::new();
    let volume = node.make().unwrap();
    let made = volume.made.as_ref().unwrap();
    assert_eq!((made.links, made.reflinks, made.copies), (5, 0, 0));
    assert_eq!(made.copied, 0);
    assert_eq!(volume.manifest.version, VERSION);
    for source in &node.sources {
        assert!(same_file(
            &source.here,
            &volume.folder.here.join(&source.path)
        ));
    }
    let link = fs::read_link(volume.folder.here.join("lib")).unwrap();
    assert_eq!(link, Path::new("lib64"));
    let name = volume.folder.here.file_name().unwrap().to_str().unwrap();
    assert_eq!(volume.folder.host, Path::new("/state/driver").join(name));
    assert!(name.starts_with("550.163.01-"), "{name}");
    assert_eq!(node.folders(), [name]);
}

#[test]
fn a_file_with_two_names_is_one_file_however_it_came() {
    let mut node = Node::new();
    let mut again = node.sources[0].clone();
    again.path = "lib64/libcuda.so".into();
    node.sources.push(again);
    let volume = node.make().unwrap();
    let place = |name: &str| volume.folder.here.join("lib64").join(name);
    assert!(same_file(&place("libcuda.so"), &place("libcuda.so.1")));
    assert!(check::check(&volume.folder.here).is_ok());
}

#[test]
fn a_program_that_runs_as_another_user_is_copied_without_that() {
    let node = Node::new();
    let program = &node.sources[3];
    let rights = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(&program.here, rights(0o4755)).unwrap();
    let volume = node.make().unwrap();
    let copy = volume.folder.here.join(&program.path);
    assert!(!same_file(&program.here, &copy));
    assert_eq!(fs::metadata(copy).unwrap().mode() & 0o7777, 0o555);
}

#[test]
fn the_same_files_are_the_same_volume() {
    let node = Node::new();
    let first = node.make().unwrap();
    let again = node.make().unwrap();
    assert_eq!(again.made, None);
    assert_eq!(again.folder, first.folder);
    assert_eq!(again.manifest, first.manifest);
    assert!(node.volumes.find(VERSION, &node.sources).is_some());
    let old = node.volumes.of_version(VERSION).unwrap();
    assert_eq!(old.folder, first.folder);
    assert!(node.volumes.of_version("535.261.03").is_none());
}

#[test]
fn other_files_are_another_volume() {
    let mut node = Node::new();
    let first = node.make().unwrap();
    node.sources.pop();
    let fewer = node.make().unwrap();
    assert_ne!(first.folder, fewer.folder);
    let newer = fs::File::options()
        .write(true)
        .open(&node.sources[0].here)
        .unwrap();
    newer
        .set_modified(SystemTime::now() + Duration::from_secs(1))
        .unwrap();
    let reinstalled = node.make().unwrap();
    assert_ne!(reinstalled.folder, fewer.folder);
    assert_eq!(node.folders().len(), 3);
    assert_eq!(
        node.volumes.of_version(VERSION).unwrap().folder,
        reinstalled.folder
    );
}

/// Answers that the kubelet keeps have it.
#[test]
fn a_volumes_name_is_the_same_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join("a");
    fs::write(&here, "12345").unwrap();
    let file = fs::File::options().write(true).open(&here).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::new(1_700_000_000, 5))
        .unwrap();
    let source = |path: &str| Source {
        path: path.into(),
        here: here.clone(),
    };
    let sources = [source("lib64/b"), source("bin/a")];
    let expected = "550.163.01-86275262";
    assert_eq!(name(VERSION, &sources).unwrap(), expected);
    let turned = [source("bin/a"), source("lib64/b")];
    assert_eq!(name(VERSION, &turned).unwrap(), expected);
    for bad in ["", "..", ".new-550", "550/1", "550 1"] {
        let refused = name(bad, &sources);
        assert!(matches!(refused, Err(VolumeError::Version(_))), "{bad}");
    }
}

#[test]
fn a_file_that_is_gone_leaves_nothing_behind() {
    let mut node = Node::new();
    fs::remove_file(&node.sources[3].here).unwrap();
    assert!(matches!(node.make(), Err(VolumeError::Source { .. })));
    node.sources[3].here = node.dir.path().to_path_buf();
    assert!(node.make().is_err(), "a folder");
    assert!(node.folders().is_empty());
}

#[test]
fn a_damaged_volume_is_replaced_under_its_name() {
    type Harm = fn(&Path);
    let harms: [Harm; 5] = [
        |volume| fs::remove_file(volume.join("lib64/libcuda.so.1")).unwrap(),
        |volume| fs::remove_file(volume.join("manifest.json")).unwrap(),
        |volume| fs::write(volume.join("manifest.json"), "{}").unwrap(),
        |volume| {
            let file = volume.join("lib64/libcuda.so.1");
            fs::remove_file(&file).unwrap();
            fs::write(file, "short").unwrap();
        },
        |volume| {
            // Of the same size, and another library.
            let file = volume.join("lib64/libcuda.so.1");
            fs::remove_file(&file).unwrap();
            fs::write(file, Elf::library("libcudb.so.1").bytes()).unwrap();
        },
    ];
    for harm in harms {
        let node = Node::new();
        let first = node.make().unwrap();
        let mut open = File::open(first.folder.here.join("bin/nvidia-smi")).unwrap();
        harm(&first.folder.here);
        let mended = node.make().unwrap();
        assert!(mended.made.is_some());
        assert_eq!(mended.folder, first.folder);
        assert!(check::check(&mended.folder.here).is_ok());
        // Whoever has the old one open keeps it.
        let mut bytes = Vec::new();
        open.rewind().unwrap();
        open.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, Elf::program().bytes());
        drop(first);
        assert_eq!(node.collect(&Uses::default()).removed.len(), 1);
        assert_eq!(node.folders().len(), 1);
    }
}

/// `/dev/shm` is a file system of its own on nearly every Linux.
#[test]
fn a_volume_on_another_file_system_is_of_copies() {
    let mut node = Node::new();
    let Ok(shm) = tempfile::tempdir_in("/dev/shm") else {
        return println!("SKIPPED a_volume_on_another_file_system_is_of_copies: no /dev/shm");
    };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(shm.path()) == device(node.dir.path()) {
        return println!(
            "SKIPPED a_volume_on_another_file_system_is_of_copies: /dev/shm is on the same"
        );
    }
    node.volumes = Volumes::new(HostFolder {
        host: shm.path().into(),
        here: shm.path().into(),
    });
    let volume = node.make().unwrap();
    let made = volume.made.as_ref().unwrap();
    assert_eq!((made.links, made.copies), (0, 5));
    assert_eq!(made.copied, made.size);
    for (source, file) in node.sources.iter().zip(&volume.manifest.files) {
        let copy = volume.folder.here.join(&source.path);
        assert_eq!(fs::read(&source.here).unwrap(), fs::read(&copy).unwrap());
        let (old, new) = (
            fs::metadata(&source.here).unwrap(),
            fs::metadata(&copy).unwrap(),
        );
        assert_eq!(old.modified().unwrap(), new.modified().unwrap());
        assert_eq!(
            new.mode() & 0o7222,
            0,
            "nobody writes it, or runs it as another"
        );
        assert_eq!(file.by, Way::Copy);
    }
}

// === Crashes and others ===

/// At whatever step it ends, the name is a whole volume or nothing, the next
/// one makes it, and the rest goes.
#[test]
fn a_crash_at_any_step_leaves_a_whole_volume_or_none() {
    let mut steps = 0;
    loop {
        let node = Node::new();
        crash::after(Some(steps));
        let crashed = catch_unwind(AssertUnwindSafe(|| node.make().map(|_| ()))).is_err();
        crash::after(None);
        if let Some(volume) = node.volumes.find(VERSION, &node.sources) {
            assert!(check::check(&volume.folder.here).is_ok());
        }
        let left = node.folders();
        let volume = node.make().unwrap();
        node.collect(&Uses::default());
        let name = volume.folder.here.file_name().unwrap().to_str().unwrap();
        assert_eq!(
            node.folders(),
            [name],
            "after {steps} steps, with {left:?} left"
        );
        if !crashed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 8, "{steps} steps");
}

#[test]
fn many_at_once_make_one_volume() {
    let node = Node::new();
    let start = Barrier::new(8);
    let volumes: Vec<_> = thread::scope(|scope| {
        let make = || {
            start.wait();
            node.make().unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let folders: BTreeSet<_> = volumes.iter().map(|volume| &volume.folder.here).collect();
    assert_eq!(folders.len(), 1);
    assert_eq!(node.folders().len(), 1);
    let kept = node.collect(&Uses::default()).kept;
    assert_eq!(kept, [(volumes[0].folder.host.clone(), Kept::Held)]);
}

/// What is being made has no use that anybody could see, and is left alone.
#[test]
fn what_is_being_made_is_not_collected() {
    let node = Node::new();
    fs::create_dir_all(&node.volumes.folder.here).unwrap();
    let building = Building::begin(&node.volumes.folder, "550.1-00000000").unwrap();
    let collected = node.collect(&Uses::default());
    assert_eq!(collected.removed.len(), 0);
    assert_eq!(collected.kept[0].1, Kept::Held);
    drop(building);
    assert!(node.folders().is_empty());
}

// === Collected ===

fn used(path: &str) -> [Uses; 2] {
    [
        Uses {
            answers: [PathBuf::from(path)].into(),
            ..Uses::default()
        },
        Uses {
            mounts: [(PathBuf::from(path), 1)].into(),
            ..Uses::default()
        },
    ]
}

#[test]
fn a_volume_goes_when_nothing_can_name_it() {
    let node = Node::new();
    let volume = node.make().unwrap();
    let host = volume.folder.host.clone();
    assert_eq!(
        node.collect(&Uses::default()).kept,
        [(host.clone(), Kept::Held)]
    );
    drop(volume);
    let path = host.join("lib64/libcuda.so.1").display().to_string();
    let kept: Vec<_> = used(&path)
        .iter()
        .map(|uses| node.collect(uses).kept)
        .collect();
    let expected =
        [Use::Checkpoint, Use::Mounted(1)].map(|by| vec![(host.clone(), Kept::Used(by))]);
    assert_eq!(kept, expected);
    assert_eq!(node.folders().len(), 1);
    let [elsewhere, _] = used("/state/driver/550.163.01-00000000/lib64/libcuda.so.1");
    assert_eq!(node.collect(&elsewhere).removed, [host]);
    assert!(node.folders().is_empty());
}

/// An operator may choose a folder in which there is something already.
#[test]
fn what_is_not_ours_is_never_touched() {
    let node = Node::new();
    drop(node.make().unwrap());
    let others = [
        "550.163.01",
        "550.163.01-0000000",
        "550.163.01-0000000g",
        "drivers-deadbeef",
        ".new-550.163.01-deadbeef",
        ".old-",
        ".snapshot",
    ];
    let folder = &node.volumes.folder.here;
    for other in others {
        fs::create_dir(folder.join(other)).unwrap();
    }
    fs::write(folder.join("550.163.01-00000000"), "a file").unwrap();
    let collected = node.collect(&Uses::default());
    assert_eq!((collected.removed.len(), collected.kept.len()), (1, 0));
    let left = fs::read_dir(folder).unwrap().count();
    assert_eq!(left, others.len() + 1);
}

#[test]
fn whoever_comes_in_between_keeps_his_volume() {
    let node = Node::new();
    let host = node.make().unwrap().folder.host;
    let asked = std::cell::Cell::new(0);
    let uses = || {
        asked.set(asked.get() + 1);
        let [answer, _] = used(&host.join("bin/nvidia-smi").display().to_string());
        Ok(if asked.get() == 1 {
            Uses::default()
        } else {
            answer
        })
    };
    let collected = node.volumes.collect(uses).unwrap();
    assert_eq!(asked.get(), 2);
    assert_eq!(collected.removed.len(), 0);
    assert!(node.volumes.find(VERSION, &node.sources).is_some());
}

/// At rest there is the volume of now alone, and nobody has to look at every
/// process of the node for that.
#[test]
fn nobody_asks_what_uses_a_volume_that_is_held() {
    let node = Node::new();
    let volume = node.make().unwrap();
    let asked = || -> anyhow::Result<Uses> { panic!("asked") };
    let kept = node.volumes.collect(asked).unwrap().kept;
    assert_eq!(kept, [(volume.folder.host.clone(), Kept::Held)]);
}

#[test]
fn nothing_goes_where_it_is_not_known_what_is_used() {
    let node = Node::new();
    drop(node.make().unwrap());
    let unknown = || anyhow::bail!("no /proc");
    assert!(node.volumes.collect(unknown).is_err());
    let asked = std::cell::Cell::new(0);
    let not_any_more = || {
        asked.set(asked.get() + 1);
        if asked.get() == 1 {
            Ok(Uses::default())
        } else {
            anyhow::bail!("no /proc")
        }
    };
    let collected = node.volumes.collect(not_any_more).unwrap();
    assert!(matches!(collected.kept[0].1, Kept::Failed(_)));
    assert!(node.volumes.find(VERSION, &node.sources).is_some());
}
