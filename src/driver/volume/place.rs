//! Brings a file to another place: by hard link, else by reflink, else by copy.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{XattrFlags, fsetxattr, getxattr, ioctl_ficlone, statvfs};

use super::VolumeError;
use super::manifest::Way;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// What SELinux goes by.
const LABEL: &str = "security.selinux";
/// Longest label that is taken over.
const MAX_LABEL: usize = 256;

/// Copies leave so much free, or a twentieth of the file system if that is less:
/// the kubelet evicts pods from a node whose disk is nearly full.
const RESERVE: u64 = 500 << 20;

/// Brings `from` to `to`, which is not there, in the way that works. `rest` are
/// the bytes of this file and of those still to come.
pub(super) fn place(from: &Path, to: &Path, rest: u64) -> Result<Way, VolumeError> {
    let source = File::open(from).map_err(VolumeError::source(from))?;
    let before = source.metadata().map_err(VolumeError::source(from))?;
    // A program that runs as another user would outlive its own update.
    let privileged = before.mode() & (SETUID | SETGID) != 0;
    // Across file systems and mounts, on an overlay or an immutable file it is
    // refused, each time with another error: what counts is whether a copy works.
    if !privileged && fs::hard_link(from, to).is_ok() {
        return Ok(Way::Link);
    }
    let mut options = OpenOptions::new();
    let target = options.write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(VolumeError::write(to))?;
    let way = if ioctl_ficlone(&target, &source).is_ok() {
        Way::Reflink
    } else {
        room(to, rest)?;
        io::copy(&mut &source, &mut &target).map_err(VolumeError::write(to))?;
        Way::Copy
    };
    like(&target, &before).map_err(VolumeError::write(to))?;
    label(from, &target);
    target.sync_all().map_err(VolumeError::write(to))?;
    Ok(way)
}

/// Whether there is room for copies of so many bytes.
fn room(to: &Path, needed: u64) -> Result<(), VolumeError> {
    let folder = to.parent().unwrap_or(to);
    let status = statvfs(folder).map_err(io::Error::from);
    let status = status.map_err(VolumeError::write(folder))?;
    let available = status.f_bavail.saturating_mul(status.f_frsize);
    let size = status.f_blocks.saturating_mul(status.f_frsize);
    let reserve = RESERVE.min(size / 20);
    if available.saturating_sub(reserve) >= needed {
        return Ok(());
    }
    Err(VolumeError::NoRoom {
        path: folder.into(),
        needed,
        available,
        reserve,
    })
}

/// The same rights to read and run, and the same time: never those to write or
/// to run as another user.
fn like(target: &File, source: &fs::Metadata) -> io::Result<()> {
    target.set_permissions(Permissions::from_mode(source.mode() & 0o555 | 0o444))?;
    target.set_modified(source.modified()?)
}

/// A container may read what has a library's label, and not what has that of
/// /var/lib. Where SELinux is not, there is no label, and that is well.
fn label(from: &Path, target: &File) {
    let mut label = [0; MAX_LABEL];
    if let Ok(length) = getxattr(from, LABEL, &mut label) {
        let _done = fsetxattr(target, LABEL, &label[..length], XattrFlags::empty());
    }
}

/// Gives a folder the label of the folder that a file came from.
pub(super) fn label_folder(like: &Path, folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        label(like, &folder);
    }
}
