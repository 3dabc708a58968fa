//! Reading the kernel log as it grows.

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;
use tokio::task::yield_now;

use super::lines::Lines;
use super::{Header, KernelXid};

/// After so many reads and lines the other tasks have their turn.
const STEPS_AT_ONCE: u32 = 64;

/// The kernel log, read without a thread: at rest it costs nothing.
#[derive(Debug)]
pub struct KernelLog {
    /// Tokio's pipe takes any file that epoll can wait on, and needs no unsafe
    /// code as its `AsyncFd` does.
    file: Receiver,
    lines: Lines,
    after_seq: Option<u64>,
    last_seq: Option<u64>,
    /// Reads and lines since the other tasks had their turn.
    steps: u32,
}

impl KernelLog {
    /// Opens `/dev/kmsg`, or a FIFO or terminal with the same lines, from within a
    /// Tokio runtime. Records up to `after_seq` are passed over: it must be of this
    /// boot, as each begins its sequence numbers anew. Without it the first record
    /// is the oldest that the kernel still has.
    ///
    /// `PermissionDenied` where `dmesg_restrict` is set and `CAP_SYSLOG` is lacking,
    /// or the device cgroup is closed; `Unsupported` of a file that is no log.
    pub fn open(path: &Path, after_seq: Option<u64>) -> io::Result<Self> {
        // A FIFO of which we are a writer as well has no end.
        let fifo = fs::metadata(path)?.file_type().is_fifo();
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(fifo)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        Ok(Self {
            file: Receiver::from_file_unchecked(file).map_err(not_to_be_waited_on)?,
            lines: Lines::default(),
            after_seq,
            last_seq: after_seq,
            steps: 0,
        })
    }

    /// The next XID; waits until there is one. Nothing is lost when the future is
    /// dropped. After an error, such as the end of the file, nothing more will
    /// come: the log is to be opened again.
    pub async fn next(&mut self) -> io::Result<KernelXid> {
        loop {
            self.steps += 1;
            if self.steps > STEPS_AT_ONCE {
                self.steps = 0;
                yield_now().await;
            }
            if self.lines.ready() {
                if let Some(xid) = self.take() {
                    return Ok(xid);
                }
            } else {
                self.read().await?;
            }
        }
    }

    /// The sequence number of the last record that was read, whatever it told; of
    /// [`open`](Self::open) at first.
    pub fn last_seq(&self) -> Option<u64> {
        self.last_seq
    }

    fn take(&mut self) -> Option<KernelXid> {
        let (header, text) = Header::split(self.lines.take()?)?;
        if Some(header.seq) <= self.after_seq {
            return None;
        }
        self.last_seq = Some(header.seq);
        header.is_kernel().then(|| header.xid(text)).flatten()
    }

    /// Not by `AsyncRead`, which takes a read that leaves space for the last one.
    async fn read(&mut self) -> io::Result<()> {
        self.file.readable().await?;
        match self.file.try_read(self.lines.space()) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                self.lines.filled(bytes);
                Ok(())
            }
            Err(error) => passed_over(error),
        }
    }
}

/// Errors after which reading goes on: there was nothing after all, or the kernel
/// will give the next record, as this one was overwritten (`EPIPE`) or did not fit
/// (`EINVAL`).
fn passed_over(error: io::Error) -> io::Result<()> {
    match Errno::from_io_error(&error) {
        Some(Errno::PIPE | Errno::INVAL | Errno::INTR) => Ok(()),
        _ if error.kind() == ErrorKind::WouldBlock => Ok(()),
        _ => Err(error),
    }
}

/// What epoll calls no permission is a regular file, or `/dev/null`.
fn not_to_be_waited_on(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::PERM) => io::Error::new(ErrorKind::Unsupported, "is not a kernel log"),
        _ => error,
    }
}
