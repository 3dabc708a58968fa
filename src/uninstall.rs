//! The `uninstall` command: takes away what the plugin left on the node.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cluster::reporter;
use crate::config::Config;
use crate::driver::cdi;
use crate::driver::nodes::remove_made;
use crate::driver::sockets::Sockets;
use crate::driver::supply::Supplier;
use crate::driver::volume::collect::Kept;
use crate::driver::volume::uses::Uses;
use crate::eviction;
use crate::files;
use crate::health::kept;
use crate::kubelet::socket::is_live;
use crate::plugin::listener::SOCKET_PREFIX;

/// What became of everything that the plugin may have left.
#[derive(Debug, Default)]
pub struct Uninstalled {
    /// What is gone now, as the host names it.
    removed: Vec<PathBuf>,
    /// What stays because it should, and why.
    kept: Vec<(PathBuf, String)>,
    /// What is left, and why. Another try may help.
    left: Vec<(PathBuf, String)>,
}

/// Takes away what nothing uses, and prints on standard output what became of
/// it. Answers whether nothing is left. May be called again.
#[expect(clippy::print_stdout, reason = "it is what the command is for")]
#[must_use]
pub fn print(config: &Config) -> bool {
    let done = uninstall(config);
    print!("{done}");
    done.left.is_empty()
}

fn uninstall(config: &Config) -> Uninstalled {
    let mut done = Uninstalled::default();
    done.sockets(&config.paths.device_plugin_dir);
    if !done.left.is_empty() {
        // It would only make everything anew.
        return done;
    }
    done.volumes(config);
    done.cdi_spec(config);
    done.dev(config);
    done.kept_files(config);
    done.state_dir(config);
    done
}

impl Uninstalled {
    /// Sockets of plugins that were killed. One that is listened on says that a
    /// plugin runs.
    fn sockets(&mut self, folder: &Path) {
        for path in entries(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !(name.starts_with(SOCKET_PREFIX) && name.ends_with(".sock")) {
                continue;
            }
            if is_live(&path) {
                let why = "a plugin runs; end it first (kubectl delete the DaemonSet)";
                self.left.push((path, why.into()));
            } else {
                let removed = fs::remove_file(&path);
                self.gone(path, removed);
            }
        }
    }

    fn volumes(&mut self, config: &Config) {
        let supplier = Supplier::new(config);
        let volumes = supplier.volumes();
        match volumes.collect(|| Uses::read(&config.paths)) {
            Ok(collected) => {
                self.removed.extend(collected.removed);
                let left = collected.kept.into_iter().map(|(path, why)| {
                    let remedy = match &why {
                        Kept::Used(_) => "; delete the pods that use it, and try again",
                        Kept::Held | Kept::Failed(_) => "",
                    };
                    (path, format!("{why}{remedy}"))
                });
                self.left.extend(left);
            }
            Err(error) => {
                let why = format!("it is not known what uses the volumes: {error:#}");
                self.left.push((volumes.folder().host.clone(), why));
            }
        }
    }

    fn cdi_spec(&mut self, config: &Config) {
        let path = config.paths.cdi_root.join(cdi::FILE);
        match cdi::file::remove(&config.paths.cdi_root.here) {
            Ok(true) => self.removed.push(path.host),
            Ok(false) => {}
            Err(error) => self.left.push((path.host, error.to_string())),
        }
    }

    fn dev(&mut self, config: &Config) {
        let paths = &config.paths;
        let removal = remove_made(&paths.state_dir.here, &paths.dev_root);
        self.removed.extend(removal.removed);
        self.kept.extend(removal.kept);
        self.left.extend(removal.failed);
    }

    /// The files in which health and evictions outlive the process.
    fn kept_files(&mut self, config: &Config) {
        let state_dir = &config.paths.state_dir;
        for name in [
            kept::FILE,
            kept::DAMAGED,
            reporter::STATE_FILE,
            eviction::ledger::file::FILE,
            eviction::ledger::file::LOCK,
            eviction::ledger::file::DAMAGED,
        ] {
            let file = state_dir.join(name);
            for unfinished in files::unfinished(&file.here) {
                drop(fs::remove_file(unfinished));
            }
            self.gone(file.host, fs::remove_file(file.here));
        }
    }

    /// The folders of the volumes and of the state, if nothing is in them.
    fn state_dir(&mut self, config: &Config) {
        let state_dir = &config.paths.state_dir;
        let sockets = state_dir.join("sockets");
        match Sockets::new(&config.paths).remove() {
            Ok(true) => self.removed.push(sockets.host),
            Ok(false) => {}
            Err(error) => self.left.push((sockets.host, error.to_string())),
        }
        for folder in [state_dir.join("driver"), state_dir.clone()] {
            match fs::remove_dir(&folder.here) {
                Ok(()) => self.removed.push(folder.host),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.stays(folder.host, &error),
            }
        }
    }

    /// A folder with something in it stays for that, which has been said.
    fn stays(&mut self, folder: PathBuf, error: &io::Error) {
        let said = self.left.iter().any(|(path, _)| path.starts_with(&folder));
        if !said {
            self.left.push((folder, error.to_string()));
        }
    }

    fn gone(&mut self, path: PathBuf, removed: io::Result<()>) {
        match removed {
            Ok(()) => self.removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.left.push((path, error.to_string())),
        }
    }
}

impl fmt::Display for Uninstalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for path in &self.removed {
            writeln!(f, "removed {}", path.display())?;
        }
        for (path, why) in &self.kept {
            writeln!(f, "kept {}: {why}", path.display())?;
        }
        for (path, why) in &self.left {
            writeln!(f, "left {}: {why}", path.display())?;
        }
        if self.removed.is_empty() && self.left.is_empty() {
            writeln!(f, "nothing of the plugin is on this node")?;
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
