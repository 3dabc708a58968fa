//! Removes volumes that nothing can name any more, and what crashes left.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::uses::{Use, Uses};
use super::{OLD, Volumes, guard, is_left_over, is_same};

/// What became of the volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Folders that are gone, as the host names them.
    pub removed: Vec<PathBuf>,
    /// Folders that are not, with the reason.
    pub kept: Vec<(PathBuf, Kept)>,
}

/// Why a folder is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// A process has it as its own.
    Held,
    /// Something on the node can still name it.
    Used(Use),
    /// It could not be removed.
    Failed(String),
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Held => f.write_str("a plugin that runs answers with it"),
            Self::Used(by) => by.fmt(f),
            Self::Failed(error) => f.write_str(error),
        }
    }
}

/// A folder that is on its way out, and by which name it can come back.
struct Leaving {
    name: String,
    aside: String,
    lock: File,
}

impl Volumes {
    /// Removes every folder that no process holds and nothing on the node can
    /// name. `uses` is asked only if there is such a folder, and twice: before anything is touched, and once the
    /// names are gone, so that whoever came in between is seen.
    ///
    /// # Errors
    ///
    /// Why the uses are not known. Nothing is removed then.
    pub fn collect(&self, uses: impl Fn() -> anyhow::Result<Uses>) -> anyhow::Result<Collected> {
        let mut collected = Collected::default();
        let (held, names): (Vec<_>, Vec<_>) = self
            .names()
            .into_iter()
            .partition(|name| self.is_held(name));
        for name in held {
            collected.keep(self.host(&name), Kept::Held);
        }
        if names.is_empty() {
            return Ok(collected);
        }
        let before = uses()?;
        let mut leaving = Vec::new();
        let guard = guard(&self.folder.here, File::lock)?;
        for name in names {
            let aside = match before.of(&name) {
                Some(by) => Err(Kept::Used(by)),
                None => self.put_aside(&name),
            };
            match aside {
                Ok(Some(aside)) => leaving.push(aside),
                Ok(None) => {}
                Err(why) => collected.keep(self.host(&name), why),
            }
        }
        drop(guard);
        if leaving.is_empty() {
            return Ok(collected);
        }
        let after = uses();
        for leaving in leaving {
            let used = match &after {
                Ok(after) => {
                    let used = after.of(&leaving.name).or_else(|| after.of(&leaving.aside));
                    used.map(Kept::Used)
                }
                Err(error) => Some(Kept::Failed(format!(
                    "it is not known what uses it: {error}"
                ))),
            };
            self.remove_or_restore(&leaving, used, &mut collected);
        }
        Ok(collected)
    }

    /// Whether a process has it: most often this one, the volume of now.
    fn is_held(&self, name: &str) -> bool {
        let folder = File::open(self.folder.here.join(name));
        folder.is_ok_and(|folder| folder.try_lock().is_err())
    }

    /// Takes a folder's name away. None: somebody else did.
    fn put_aside(&self, name: &str) -> Result<Option<Leaving>, Kept> {
        let path = self.folder.here.join(name);
        let failed = |error: &dyn std::fmt::Display| Kept::Failed(error.to_string());
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        if lock.try_lock().is_err() {
            return Err(Kept::Held);
        }
        if !is_same(&lock, &path) {
            return Ok(None);
        }
        let aside = if is_left_over(name) {
            name.to_owned()
        } else {
            format!("{OLD}{name}-{:08x}", fastrand::u32(..))
        };
        if aside != name {
            self.rename(name, &aside).map_err(|error| failed(&error))?;
        }
        let name = name.to_owned();
        Ok(Some(Leaving { name, aside, lock }))
    }

    fn remove_or_restore(&self, leaving: &Leaving, used: Option<Kept>, into: &mut Collected) {
        let Leaving { name, aside, lock } = leaving;
        let host = self.host(name);
        if let Some(why) = used {
            // Should its name be taken again by now, the same volume was made anew.
            let _restored = self.rename(aside, name);
            into.keep(host, why);
            return;
        }
        let removed = fs::remove_dir_all(self.folder.here.join(aside));
        let _unlocked = lock.unlock();
        match removed {
            Ok(()) => into.removed.push(host),
            Err(error) => into.keep(host, Kept::Failed(error.to_string())),
        }
    }

    fn rename(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        let path = |name: &str| self.folder.here.join(Path::new(name));
        renameat_with(CWD, path(from), CWD, path(to), RenameFlags::NOREPLACE)
    }

    fn host(&self, name: &str) -> PathBuf {
        self.folder.host.join(name)
    }
}

impl Collected {
    fn keep(&mut self, path: PathBuf, why: Kept) {
        self.kept.push((path, why));
    }
}
