//! Which socket it is that lies at a path.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use socket2::{Domain, SockAddr, Socket, Type};

/// One socket file, told from every other that lay or will lie at its path.
///
/// The inode number alone does not tell: ext4 and tmpfs give the number of a
/// file that was just removed to the next one. So the time of birth belongs to
/// it, or, where the file system keeps none, the time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    born: i128,
    inode: u64,
    device: u64,
}

impl SocketId {
    /// The socket at `path`; none where there is nothing, or something else.
    pub fn at(path: &Path) -> Option<Self> {
        let metadata = path.symlink_metadata().ok()?;
        metadata
            .file_type()
            .is_socket()
            .then(|| Self::of(&metadata))
    }

    fn of(metadata: &Metadata) -> Self {
        let birth = metadata
            .created()
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let born = match birth {
            Some(birth) => i128::try_from(birth.as_nanos()).unwrap_or(i128::MAX),
            None => {
                i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
            }
        };
        Self {
            born,
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }

    /// Made up, for tests.
    #[cfg(test)]
    pub(crate) fn numbered(inode: u64) -> Self {
        Self {
            born: i128::from(inode),
            inode,
            device: 0,
        }
    }
}

/// Whether somebody listens on the socket at `path`. Connecting and hanging up
/// says nothing to a gRPC server. Never waits: one that is stopped and accepts
/// no more has a backlog that fills, and a connect that waits would wait with it.
pub fn is_live(path: &Path) -> bool {
    match try_connect(path) {
        Ok(()) => true,
        // A full backlog is a sign of life.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

fn try_connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_bound_anew_is_another_though_it_may_get_the_same_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubelet.sock");
        let mut last = None;
        for _ in 0..20 {
            let listener = UnixListener::bind(&path).unwrap();
            let id = SocketId::at(&path);
            assert!(id.is_some());
            assert_ne!(id, last);
            last = id;
            drop(listener);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_plain_file_is_no_socket_and_a_stale_socket_is_not_live() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        std::fs::write(&path, "").unwrap();
        assert_eq!(SocketId::at(&path), None);
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_live(&path));
        drop(listener);
        assert!(!is_live(&path));
        assert!(SocketId::at(&path).is_some());
    }

    #[test]
    fn a_socket_whose_backlog_is_full_is_live_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stopped.sock");
        let stopped = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        stopped.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        stopped.listen(0).unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        // More looks than the backlog takes; a look that waits never tells.
        std::thread::spawn(move || sender.send((0..10).all(|_| is_live(&path))));
        assert_eq!(
            told.recv_timeout(std::time::Duration::from_secs(10)),
            Ok(true)
        );
    }
}
