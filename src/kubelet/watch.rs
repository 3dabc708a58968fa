//! Hints that something has changed in the kubelet's folder, or another.
//!
//! inotify tells at once, and is not to be relied upon: it is silent about a
//! folder that was made anew, may be out of watches, and may overflow. So what
//! comes from here says *look*, never *what*; it comes on a slow clock too, and
//! on a quick one while there is no watch.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::ticker::Ticker;

/// Without a word from inotify, look this often.
const TICK: Duration = Duration::from_secs(30);

/// What is watched.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// For the log.
    pub name: &'static str,
    /// Whether this may be a change that somebody waits for.
    pub matters: fn(&Event) -> bool,
    /// How often to look while it cannot be watched.
    pub unwatched: Duration,
}

const KUBELET: Subject = Subject {
    name: "the kubelet's folder",
    matters,
    // What bounds the time to registration then.
    unwatched: Duration::from_millis(100),
};

/// The kubelet's folder, as one moment showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FolderId {
    device: u64,
    inode: u64,
    /// 0: it was deleted, and is reached through a mount only.
    links: u64,
}

/// Watches the kubelet's `folder` for ever, and bumps `hints` whenever to look.
pub async fn watch(folder: PathBuf, hints: watch::Sender<u64>) {
    watch_for(KUBELET, folder, hints).await;
}

/// The same with any folder.
pub async fn watch_for(subject: Subject, folder: PathBuf, hints: watch::Sender<u64>) {
    let Subject {
        name,
        matters,
        unwatched,
    } = subject;
    let (woken, mut wakes) = watch::channel(0_u64);
    let mut watched: Option<Watched> = None;
    let mut told = false;
    let ticker = Ticker::every(TICK);
    loop {
        watched = watched.filter(|watched| !watched.gone.load(Ordering::Acquire));
        let now = identify(&folder);
        if now != watched.as_ref().map(|watched| watched.id) {
            watched = now.and_then(|id| match Watched::start(&folder, id, matters, woken.clone()) {
                Ok(watched) => {
                    told = false;
                    debug!(folder = %folder.display(), "watching {name}");
                    Some(watched)
                }
                Err(error) => {
                    if !told {
                        let folder = folder.display();
                        warn!(%error, %folder, "cannot watch {name}; looking every {unwatched:?}");
                        told = true;
                    }
                    None
                }
            });
        }
        // After the watch is in place: what happened before it is looked at now.
        hints.send_modify(|hint| *hint += 1);
        tokio::select! {
            woken = wakes.changed() => if woken.is_err() {
                return;
            },
            () = ticker.tick() => {}
            () = sleep(unwatched), if watched.is_none() => {}
        }
    }
}

/// Whether the folder was deleted while it is mounted here: what is made in its
/// place will never be seen through this mount.
pub fn is_deleted_under_mount(folder: &Path) -> bool {
    identify(folder).is_some_and(|id| id.links == 0)
}

fn identify(folder: &Path) -> Option<FolderId> {
    let metadata = folder.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    // Only zero is of interest: the count changes with every subfolder.
    metadata.is_dir().then(|| FolderId {
        device,
        inode,
        links: metadata.nlink().min(1),
    })
}

/// A folder with a watch on it.
struct Watched {
    id: FolderId,
    /// The folder itself was removed or renamed: the watch went with it, though
    /// a folder that is made at once has the same inode number.
    gone: Arc<AtomicBool>,
    _watcher: RecommendedWatcher,
}

impl Watched {
    fn start(
        folder: &Path,
        id: FolderId,
        matters: fn(&Event) -> bool,
        woken: watch::Sender<u64>,
    ) -> notify::Result<Self> {
        let gone = Arc::new(AtomicBool::new(false));
        let (path, ended) = (folder.to_owned(), gone.clone());
        // Called on notify's thread: it may not block.
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().is_ok_and(|event| is_end_of(&path, event)) {
                ended.store(true, Ordering::Release);
            }
            if event.map_or(true, |event| matters(&event)) {
                woken.send_modify(|wake| *wake += 1);
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self {
            id,
            gone,
            _watcher: watcher,
        })
    }
}

fn is_end_of(folder: &Path, event: &Event) -> bool {
    let kind = matches!(
        event.kind,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    );
    kind && event.paths.iter().any(|path| path == folder)
}

/// Sockets that come and go matter, and the folder itself. The kubelet's
/// checkpoint, which is written for every list and every pod, does not.
fn matters(event: &Event) -> bool {
    let kind = matches!(
        event.kind,
        EventKind::Any
            | EventKind::Other
            | EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_))
    );
    let is_checkpoint = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.contains("checkpoint") || name.starts_with('.')
        })
    };
    event.need_rescan()
        || (kind && (event.paths.is_empty() || !event.paths.iter().all(is_checkpoint)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_took_the_place_and_the_inode_number_of_another_is_watched() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("device-plugins");
        fs::create_dir(&folder).unwrap();
        let (sender, mut hints) = watch::channel(0);
        let watching = tokio::spawn(super::watch(folder.clone(), sender));
        hints.changed().await.unwrap();
        // On one thread, the watch looks after both.
        fs::remove_dir(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        hints.changed().await.unwrap();
        fs::write(folder.join("kubelet.sock"), "").unwrap();
        let told = timeout(TICK / 2, hints.changed()).await;
        assert!(told.is_ok(), "deaf until the next tick");
        watching.abort();
    }
}
