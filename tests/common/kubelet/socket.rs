//! kubelet.sock, from nothing to serving, one step at a time.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixSocket};
use tokio::task::JoinHandle;

use super::events::Event;
use super::life::Life;
use super::{checkpoint, registration};

const NAME: &str = "kubelet.sock";
/// Go listens with the system's limit; no plugin queues more than this.
const BACKLOG: u32 = 4096;
/// server.go, Start.
const FOLDER_MODE: u32 = 0o750;

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// How far a start goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Bind,
    Listen,
    Serve,
}

/// How far kubelet.sock has come.
#[derive(Default)]
pub(super) enum Socket {
    #[default]
    Down,
    Bound(UnixSocket),
    Listening(UnixListener),
    Serving(JoinHandle<()>),
}

impl Socket {
    pub(super) fn is_down(&self) -> bool {
        matches!(self, Self::Down)
    }

    /// server.go, Start, as far as the step; never back.
    pub(super) fn advance(&mut self, step: Step, life: &Arc<Life>) -> io::Result<()> {
        let folder = &life.shared.folder;
        if self.is_down() {
            *self = Self::Bound(bind(folder)?);
            life.emit(Event::SocketBound {
                inode: inode(folder)?,
            });
        }
        *self = match std::mem::take(self) {
            Self::Bound(socket) if step >= Step::Listen => {
                let listener = socket.listen(BACKLOG)?;
                life.emit(Event::SocketListening {
                    inode: inode(folder)?,
                });
                Self::Listening(listener)
            }
            unchanged => unchanged,
        };
        *self = match std::mem::take(self) {
            Self::Listening(listener) if step >= Step::Serve => {
                let inode = inode(folder)?;
                let task = registration::serve(Arc::clone(life), listener);
                life.emit(Event::SocketAccepting { inode });
                Self::Serving(task)
            }
            unchanged => unchanged,
        };
        Ok(())
    }

    /// Closes the socket and leaves its file. The life is over already, which
    /// is what ends the server's task.
    pub(super) async fn abandon(&mut self) {
        if let Self::Serving(task) = std::mem::take(self) {
            // A server that panicked is as dead as one that was stopped.
            let _ended = task.await;
        }
    }
}

/// The folder, its cleaning, and a socket that does not listen yet.
fn bind(folder: &Path) -> io::Result<UnixSocket> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(folder)?;
    wipe(folder)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path(folder))?;
    Ok(socket)
}

/// A socket file with nobody behind it.
pub(super) fn leave_stale(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(folder)?;
    match fs::remove_file(path(folder)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::net::UnixListener::bind(path(folder)).map(drop)
}

/// manager.go, CleanupPluginDirectory: sockets directly in the folder go, and
/// what a link names counts as what it is.
fn wipe(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.ends_with(checkpoint::FILE) {
            continue;
        }
        // The kubelet logs what it cannot stat, and leaves it.
        if fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn inode(folder: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path(folder))?.ino())
}
