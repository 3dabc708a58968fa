//! What on the node can still name a driver volume.
//!
//! Two things can: the kubelet, by the answers in its checkpoint, with which it
//! starts containers again after its own restart and the node's; and containers
//! that run, whose mount namespaces hold folders of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::config::{HostFolder, HostPaths};
use crate::kubelet::checkpoint;

/// The link of a process in the first PID namespace of the machine
/// (`PROC_PID_INIT_INO` of Linux' include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Everything on the node that may name a volume, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Paths of the host that the kubelet's checkpoint has.
    pub answers: BTreeSet<PathBuf>,
    /// What mount namespaces have bound, each with a process that sees it.
    pub mounts: BTreeMap<PathBuf, u32>,
}

/// Something that can still name a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// The kubelet would start a container with it again.
    Checkpoint,
    /// The mount namespace of this process has it.
    Mounted(u32),
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint => f.write_str("the kubelet's checkpoint has it for a pod"),
            Self::Mounted(pid) => write!(f, "mounted in the container of process {pid}"),
        }
    }
}

impl Uses {
    /// Looks at the whole node.
    ///
    /// # Errors
    ///
    /// Why a part of it could not be seen: then nothing is known to be unused.
    pub fn read(paths: &HostPaths) -> anyhow::Result<Self> {
        let on_the_host = paths.host_root == Path::new("/");
        let procfs = if on_the_host {
            paths.procfs.clone()
        } else {
            paths.host_root.join("proc")
        };
        if on_the_host && procfs == Path::new("/proc") && !shows_the_machine(&procfs) {
            anyhow::bail!(
                "{} shows the processes of this container only; mount the host's / and name it \
                 with --host-root",
                procfs.display()
            );
        }
        Ok(Self {
            answers: checkpoint::host_paths(&paths.device_plugin_dir, &pods(paths))?,
            mounts: mounts(&procfs)?,
        })
    }

    /// What can still name the folder `name`. Its name counts wherever it
    /// stands in a path: a file system is mounted anywhere.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<Use> {
        if self.answers.iter().any(|path| has_part(path, name)) {
            return Some(Use::Checkpoint);
        }
        let mut mounts = self.mounts.iter();
        let mounted = mounts.find(|(path, _)| has_part(path, name));
        mounted.map(|(_, pid)| Use::Mounted(*pid))
    }
}

/// The kubelet's folder of pods, beside that of its device plugins. That one is
/// seen under the host's own name, and this one below the host's root only.
fn pods(paths: &HostPaths) -> PathBuf {
    let kubelet = paths.device_plugin_dir.parent();
    let pods = kubelet.unwrap_or(Path::new("/")).join("pods");
    HostFolder::below(&paths.host_root, pods).here
}

fn has_part(path: &Path, name: &str) -> bool {
    let mut parts = path.components();
    parts.any(|part| matches!(part, Component::Normal(part) if part == name))
}

/// Whether every process of the machine is seen, and not only a container's:
/// that of process 1 is the first namespace, or this process is in that one and
/// known by its own number (what is of process 1 may be denied even to root, if
/// that has the greater rights).
fn shows_the_machine(procfs: &Path) -> bool {
    let is_first = |process: &str| {
        let link = fs::read_link(procfs.join(process).join("ns/pid"));
        link.is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE))
    };
    let own = fs::read_link(procfs.join("self"));
    let own_number = std::process::id().to_string();
    is_first("1") || is_first("self") && own.is_ok_and(|own| own == Path::new(&own_number))
}

/// The roots of all mounts of all mount namespaces that a process is in.
fn mounts(procfs: &Path) -> anyhow::Result<BTreeMap<PathBuf, u32>> {
    let mut seen = BTreeSet::new();
    let mut mounts = BTreeMap::new();
    for entry in fs::read_dir(procfs)? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = procfs.join(&name);
        // Spares reading the same mounts again, where it may be known. A process
        // that changed its root sees a part of its namespace's only.
        let link = |name: &str| fs::read_link(process.join(name));
        if let (Ok(namespace), Ok(root)) = (link("ns/mnt"), link("root"))
            && !seen.insert((namespace, root))
        {
            continue;
        }
        let text = still_there(fs::read_to_string(process.join("mountinfo")))?;
        for root in text.iter().flat_map(|text| roots(text)) {
            mounts.insert(root, pid);
        }
    }
    Ok(mounts)
}

/// A process may end while it is looked at.
fn still_there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    const ESRCH: i32 = 3;
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(None),
        // A zombie has no mounts any more (Linux' fs/proc_namespace.c).
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error),
    }
}

/// The fourth field of each line of a mountinfo: what of its file system is
/// bound there (proc_pid_mountinfo(5)).
fn roots(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let fields = mountinfo.lines().map(|line| line.split(' ').nth(3));
    fields.flatten().map(|root| PathBuf::from(unescaped(root)))
}

/// Spaces and their like stand as backslash and three octal digits.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        (rest, _) = match (first, code) {
            (b'\\', Some(code)) => (&tail[3..], bytes.push(code)),
            _ => (tail, bytes.push(*first)),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_used_where_its_name_is_a_part_of_a_path() {
        let uses = Uses {
            answers: [PathBuf::from("/state/driver/550.1-aa/lib64/libcuda.so.1")].into(),
            mounts: [(PathBuf::from("/lib/x/driver/550.1-bb"), 7)].into(),
        };
        assert_eq!(uses.of("550.1-aa"), Some(Use::Checkpoint));
        assert_eq!(uses.of("550.1-bb"), Some(Use::Mounted(7)));
        for other in ["550.1-a", "550.1-cc", "", "lib64/libcuda.so.1"] {
            assert_eq!(uses.of(other), None, "{other}");
        }
    }

    #[test]
    fn mountinfo_is_read_as_the_kernel_writes_it() {
        let text = "36 35 98:0 /mnt1/a\\040b /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                    37 35 0:5 / /proc rw shared:12 - proc proc rw\nshort line\n";
        let roots: Vec<_> = roots(text).collect();
        assert_eq!(roots[..2], [Path::new("/mnt1/a b"), Path::new("/")]);
        assert_eq!(unescaped("\\\\134\\9"), "\\\\\\9");
    }

    #[test]
    fn this_processs_own_mounts_are_seen() {
        let mounts = mounts(Path::new("/proc")).unwrap_or_default();
        // Another user's processes cannot be looked at without being root.
        if !mounts.is_empty() {
            assert!(mounts.contains_key(Path::new("/")));
        }
    }

    proptest::proptest! {
        #[test]
        fn noise_does_no_harm(text in ".{0,200}") {
            let _roots: Vec<_> = roots(&text).collect();
        }
    }
}
