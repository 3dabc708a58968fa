//! Waiting for a folder to change, without polling: inotify.
#![allow(
    unsafe_code,
    reason = "inotify and poll are system calls without a safe wrapper among our dependencies"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A folder that is being watched from the moment of its creation.
#[derive(Debug)]
pub(crate) struct FolderWatch {
    inotify: OwnedFd,
}

impl FolderWatch {
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let path = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
        // SAFETY: the call above has just opened it, for nobody else.
        let inotify = unsafe { OwnedFd::from_raw_fd(fd) };
        let events = libc::IN_MOVED_TO | libc::IN_CLOSE_WRITE | libc::IN_DELETE;
        // SAFETY: `path` is a C string that outlives the call.
        check(unsafe { libc::inotify_add_watch(fd, path.as_ptr(), events) })?;
        Ok(Self { inotify })
    }

    /// Blocks until the folder has changed since the last call (or since the
    /// creation), and answers true; or until the deadline, and answers false.
    pub(crate) fn changed(&self, deadline: Option<Instant>) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.inotify.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        loop {
            // SAFETY: `poll` is one `pollfd`, alive during the call.
            match check(unsafe { libc::poll(&mut poll, 1, timeout_ms(deadline)) }) {
                Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
                Ok(0) => return Ok(false),
                Ok(_) => return self.drain().map(|()| true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the folder has not changed since the last call, of either.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self.changed(Some(Instant::now())), Ok(false))
    }

    /// What the events say does not matter: the file is looked at anyway.
    fn drain(&self) -> io::Result<()> {
        let mut events = [0_u8; 4096];
        loop {
            // SAFETY: the kernel writes at most `events.len()` bytes to `events`.
            let read = unsafe {
                libc::read(
                    self.inotify.as_raw_fd(),
                    events.as_mut_ptr().cast(),
                    events.len(),
                )
            };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                }
            }
        }
    }
}

/// Rounded up: poll must not return before the deadline, again and again.
fn timeout_ms(deadline: Option<Instant>) -> libc::c_int {
    deadline.map_or(-1, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left + Duration::from_nanos(999_999);
        left.as_millis().try_into().unwrap_or(libc::c_int::MAX)
    })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
