//! Hints that something has changed in the kubelet's folder.
//!
//! inotify tells at once, and is not to be relied upon: it is silent about a
//! folder that was made anew, may be out of watches, and may overflow. So what
//! comes from here says *look*, never *what*; it comes on a slow clock too, and
//! on a quick one while there is no watch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use std::os::unix::fs::MetadataExt;

/// Without a word from inotify, look this often.
const TICK: Duration = Duration::from_secs(30);
/// The same while the folder cannot be watched: what bounds the time to
/// registration then.
const TICK_UNWATCHED: Duration = Duration::from_millis(100);

/// The kubelet's folder, as one moment showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FolderId {
    device: u64,
    inode: u64,
    /// 0: it was deleted, and is reached through a mount only.
    links: u64,
}

/// Watches `folder` for ever, and bumps `hints` whenever to look.
pub async fn watch(folder: PathBuf, hints: watch::Sender<u64>) {
    let (woken, mut wakes) = watch::channel(0_u64);
    let mut watched: Option<(FolderId, RecommendedWatcher)> = None;
    let mut told = false;
    loop {
        let now = identify(&folder);
        if now != watched.as_ref().map(|(id, _)| *id) {
            watched = now.and_then(|id| match start(&folder, woken.clone()) {
                Ok(watcher) => {
                    told = false;
                    debug!(folder = %folder.display(), "watching the kubelet's folder");
                    Some((id, watcher))
                }
                Err(error) => {
                    if !told {
                        warn!(%error, folder = %folder.display(), "cannot watch the kubelet's folder; looking every 100 ms");
                        told = true;
                    }
                    None
                }
            });
        }
        // After the watch is in place: what happened before it is looked at now.
        hints.send_modify(|hint| *hint += 1);
        let tick = if watched.is_some() {
            TICK
        } else {
            TICK_UNWATCHED
        };
        if let Ok(Err(_)) = timeout(tick, wakes.changed()).await {
            return;
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

fn start(folder: &Path, woken: watch::Sender<u64>) -> notify::Result<RecommendedWatcher> {
    // Called on notify's thread: it may not block.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.map_or(true, |event| matters(&event)) {
            woken.send_modify(|wake| *wake += 1);
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
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
            name.contains("checkpoint") || name.starts_with(".tmp")
        })
    };
    event.need_rescan()
        || (kind && (event.paths.is_empty() || !event.paths.iter().all(is_checkpoint)))
}
