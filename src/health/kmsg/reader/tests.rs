use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{ErrorKind, Read, Write, stderr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::io::{Errno, ioctl_fionread};
use tempfile::TempDir;
use tokio::task::yield_now;

use super::*;

/// A FIFO in the kernel log's place.
struct Fifo {
    _folder: TempDir,
    path: PathBuf,
}

impl Fifo {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kmsg");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }

    fn open(&self, after_seq: Option<u64>) -> KernelLog {
        KernelLog::open(&self.path, after_seq).unwrap()
    }

    /// There must be a reader, or this waits for one.
    fn write(&self, text: &str) {
        let mut file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

fn numbered(seq: u64) -> String {
    format!("3,{seq},6,-;NVRM: Xid (PCI:0000:18:00): 79, GPU has fallen off the bus.\n")
}

/// Whether there is nothing to read now.
fn waits(log: &mut KernelLog) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(log.next()).poll(&mut context).is_pending()
}

#[tokio::test]
async fn xids_come_as_they_are_written_and_the_end_of_a_writer_is_no_end() {
    let fifo = Fifo::new();
    let mut log = fifo.open(None);
    assert_eq!(log.last_seq(), None);
    for seq in 3..6 {
        assert!(waits(&mut log));
        fifo.write(&format!(
            "6,{},6,-;eth0: link up\n SUBSYSTEM=net\n{}",
            seq * 2,
            numbered(seq * 2 + 1)
        ));
        assert_eq!(log.next().await.unwrap().seq, seq * 2 + 1);
        assert_eq!(log.last_seq(), Some(seq * 2 + 1));
    }
}

#[tokio::test]
async fn a_line_may_come_in_pieces() {
    let fifo = Fifo::new();
    let mut log = fifo.open(None);
    let line = numbered(7);
    let (first, second) = line.split_at(20);
    fifo.write(first);
    let file = File::open(&fifo.path).unwrap();
    while ioctl_fionread(&file).unwrap() > 0 {
        yield_now().await;
        assert!(waits(&mut log));
    }
    fifo.write(second);
    assert_eq!(log.next().await.unwrap().seq, 7);
}

#[tokio::test]
async fn records_that_were_read_before_are_passed_over() {
    let fifo = Fifo::new();
    let mut log = fifo.open(Some(5));
    assert_eq!(log.last_seq(), Some(5));
    let lines: String = (0..8).map(numbered).collect();
    fifo.write(&lines);
    assert_eq!(log.next().await.unwrap().seq, 6);
    assert_eq!(log.next().await.unwrap().seq, 7);
    assert!(waits(&mut log));
    assert_eq!(log.last_seq(), Some(7));
}

/// One task at a time runs here: another's turns are those that reading gave it.
#[tokio::test]
async fn a_storm_leaves_other_tasks_their_turns() {
    let fifo = Fifo::new();
    let mut log = fifo.open(None);
    let turns = Arc::new(AtomicU32::new(0));
    let counted = turns.clone();
    tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
        }
    });
    for other in ["6,1,6,-;x\n".repeat(1000), numbered(1).repeat(500)] {
        fifo.write(&(other + &numbered(2)));
        let before = turns.load(Ordering::Relaxed);
        while log.next().await.unwrap().seq != 2 {}
        let turns = turns.load(Ordering::Relaxed) - before;
        assert!(turns >= 500 / 64, "{turns} turns");
    }
}

#[test]
fn a_record_that_is_gone_or_too_large_is_passed_over() {
    for errno in [Errno::PIPE, Errno::INVAL, Errno::INTR, Errno::AGAIN] {
        assert!(passed_over(errno.into()).is_ok());
    }
    let error = passed_over(Errno::IO.into()).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
}

#[tokio::test]
async fn what_is_no_log_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kmsg");
    let kind = |path: &Path| KernelLog::open(path, None).unwrap_err().kind();
    assert_eq!(kind(&path), ErrorKind::NotFound);
    File::create(&path).unwrap();
    assert_eq!(kind(&path), ErrorKind::Unsupported);
    assert_eq!(kind(Path::new("/dev/null")), ErrorKind::Unsupported);
}

/// The number of the last record that this machine's kernel has now.
fn last_of_the_machine() -> std::io::Result<Option<u64>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/kmsg")?;
    let (mut last, mut record) = (None, [0; 8192]);
    loop {
        match file.read(&mut record) {
            Ok(bytes) => {
                let line = record[..bytes].split(|byte| *byte == b'\n').next();
                last = Header::split(line.unwrap()).map(|(header, _)| header.seq);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(last),
            Err(_passed_over) => {}
        }
    }
}

#[tokio::test]
async fn the_log_of_this_machine_is_read_to_its_end() {
    let name = "the_log_of_this_machine_is_read_to_its_end";
    let last = match last_of_the_machine() {
        Ok(last) => last,
        Err(error) => return skip(name, &format!("/dev/kmsg: {error}")),
    };
    let mut log = KernelLog::open(Path::new("/dev/kmsg"), None).unwrap();
    while log.last_seq() < last {
        tokio::select! {
            biased;
            xid = log.next() => drop(xid.unwrap()),
            () = yield_now() => {}
        }
    }
}

fn skip(test: &str, why: &str) {
    let line = format!("\n*** SKIPPED {test}: {why}\n");
    stderr().write_all(line.as_bytes()).unwrap();
}
