//! The folders with the sockets of the driver's daemons.
//!
//! A daemon that restarts makes a new socket, so containers get the folder. That
//! is in `/run`, which is empty after a boot: a container that the kubelet starts
//! again before the daemon runs would have its runtime make the folder in its
//! place, with the wrong owner. So what is answered is a link of ours that leads
//! there. Where it leads to nothing, no container starts until the daemon is
//! there, or until this process has put an empty folder in the link's place.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::DriverMount;
use crate::config::{HostFolder, HostPaths};

/// Of nvidia-persistenced and nvidia-fabricmanager, as they name them.
const FOLDERS: [&str; 2] = ["nvidia-persistenced", "nvidia-fabricmanager"];

/// Where they are, and where containers expect them.
const RUN: &str = "/run";

/// The links, and what they lead to.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    links: HostFolder,
    run: PathBuf,
}

impl Sockets {
    pub(crate) fn new(paths: &HostPaths) -> Self {
        Self {
            links: paths.state_dir.join("sockets"),
            run: HostFolder::below(&paths.host_root, RUN).here,
        }
    }

    /// The folders that are there now.
    pub(crate) fn there(&self) -> Vec<&'static str> {
        let there = |name: &&str| self.run.join(name).is_dir();
        FOLDERS.into_iter().filter(there).collect()
    }

    /// Makes a link for each folder that is there, and takes it away from those
    /// that are not. What a container is given, where the state folder can be
    /// written.
    pub(crate) fn mounts(&self) -> Vec<DriverMount> {
        let there = self.there();
        for name in FOLDERS {
            if !there.contains(&name)
                && let Err(error) = self.empty(name)
            {
                tracing::warn!(name, %error, "a link to a folder that is gone cannot be replaced");
            }
        }
        let linked = there.into_iter().filter(|name| self.link(name).is_ok());
        let mounts = linked.map(|name| DriverMount {
            host: self.links.host.join(name),
            // The link leads to a place of the host's.
            here: self.run.join(name),
            container: Path::new(RUN).join(name),
        });
        mounts.collect()
    }

    /// Removes the links, and the empty folders in the place of some. Whether there
    /// were any.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        let mut removed = false;
        for name in FOLDERS {
            let link = self.links.here.join(name);
            removed |= gone(if link.is_symlink() {
                fs::remove_file(&link)
            } else {
                fs::remove_dir(&link)
            })?;
        }
        gone(fs::remove_dir(&self.links.here))?;
        Ok(removed)
    }

    fn link(&self, name: &str) -> io::Result<()> {
        let (link, target) = (self.links.here.join(name), Path::new(RUN).join(name));
        if fs::read_link(&link).is_ok_and(|to| to == target) {
            return Ok(());
        }
        fs::create_dir_all(&self.links.here)?;
        let new = self.aside(name);
        symlink(target, &new)?;
        replace(&new, &link)
    }

    /// An empty folder in place of a link, which answers still have.
    fn empty(&self, name: &str) -> io::Result<()> {
        let link = self.links.here.join(name);
        if !link.is_symlink() {
            return Ok(());
        }
        let new = self.aside(name);
        fs::create_dir(&new)?;
        replace(&new, &link)
    }

    fn aside(&self, name: &str) -> PathBuf {
        self.links
            .here
            .join(format!(".{name}-{:08x}", fastrand::u32(..)))
    }
}

/// Whether it was there to be removed.
fn gone(removed: io::Result<()>) -> io::Result<bool> {
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts `new` in the place of `old`, if there is one, in one step.
fn replace(new: &Path, old: &Path) -> io::Result<()> {
    let rename = |flags| renameat_with(CWD, new, CWD, old, flags);
    if rename(RenameFlags::NOREPLACE).is_ok() {
        return Ok(());
    }
    let replaced = rename(RenameFlags::EXCHANGE).map_err(io::Error::from);
    // What is left aside is the old one, or the new one where that failed.
    let _removed = if new.is_symlink() {
        fs::remove_file(new)
    } else {
        fs::remove_dir(new)
    };
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_linked_while_it_is_there_and_empty_after() {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("run");
        let links = HostFolder {
            host: "/state/sockets".into(),
            here: root.path().join("state/sockets"),
        };
        let sockets = Sockets {
            links: links.clone(),
            run: run.clone(),
        };
        let link = links.here.join(FOLDERS[0]);
        assert_eq!(sockets.mounts(), []);
        assert!(!links.here.exists(), "nothing is made for nothing");
        for _ in 0..2 {
            fs::create_dir_all(run.join(FOLDERS[0])).unwrap();
            for _ in 0..2 {
                let mounts = sockets.mounts();
                assert_eq!(mounts.len(), 1);
                assert_eq!(
                    mounts[0].host,
                    Path::new("/state/sockets/nvidia-persistenced")
                );
                assert_eq!(mounts[0].container, Path::new("/run/nvidia-persistenced"));
                assert!(mounts[0].here.is_dir());
            }
            assert_eq!(
                fs::read_link(&link).unwrap(),
                Path::new("/run/nvidia-persistenced")
            );
            fs::remove_dir(run.join(FOLDERS[0])).unwrap();
            assert_eq!(sockets.mounts(), []);
            assert!(!link.is_symlink() && link.is_dir());
        }
        assert_eq!(
            fs::read_dir(&links.here).unwrap().count(),
            1,
            "nothing aside"
        );
        fs::write(links.here.join("notes"), "somebody's").unwrap();
        assert!(sockets.remove().is_err());
        assert!(!link.exists());
        fs::remove_file(links.here.join("notes")).unwrap();
        sockets.remove().unwrap();
        assert!(!links.here.exists());
        assert!(!sockets.remove().unwrap());
    }
}
