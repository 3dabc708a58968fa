//! Making one device node.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, major, makedev, minor, mknodat, renameat_with};

use super::majors::DeviceNumber;
use super::plan::{Seen, Wanted};

/// The numbers of what `file` is about, if that is a character device.
pub(super) fn number(file: &fs::Metadata) -> Option<DeviceNumber> {
    let device = file.rdev();
    file.file_type().is_char_device().then(|| DeviceNumber {
        major: major(device),
        minor: minor(device),
    })
}

/// What is at `path`.
pub(super) fn see(path: &Path) -> Seen {
    let itself = match fs::symlink_metadata(path) {
        Ok(itself) => itself,
        Err(error) if error.kind() == ErrorKind::NotFound => return Seen::Nothing,
        Err(error) => return Seen::Other(format!("cannot be looked at ({error})")),
    };
    let linked = itself.is_symlink();
    let file = if linked {
        fs::metadata(path)
    } else {
        Ok(itself)
    };
    match file.map(|file| number(&file)) {
        Ok(Some(number)) => Seen::Node { number, linked },
        Ok(None) => Seen::Other("is no device node".into()),
        Err(error) => Seen::Other(format!("is a link that leads nowhere ({error})")),
    }
}

/// Makes the node at `path`, whole from its first moment on: it is made beside
/// and renamed. Whether it was made: not where something stands there now, which
/// is nvidia-modprobe's node most likely, unless it is to be replaced.
pub(super) fn make(path: &Path, wanted: &Wanted, replace: bool) -> io::Result<bool> {
    if let Some(folder) = path.parent().filter(|_| wanted.name.contains('/')) {
        make_folder(folder)?;
    }
    let beside = beside(path);
    let made = make_beside(&beside, wanted).and_then(|()| put(&beside, path, replace));
    if !matches!(made, Ok(true)) {
        // What failed is told; a node of that name disturbs nobody.
        fs::remove_file(&beside).unwrap_or_default();
    }
    made
}

/// Renames. Whether it did: not where `path` is taken and not to be replaced.
pub(super) fn put(beside: &Path, path: &Path, replace: bool) -> io::Result<bool> {
    let flags = if replace {
        RenameFlags::empty()
    } else {
        RenameFlags::NOREPLACE
    };
    match renameat_with(CWD, beside, CWD, path, flags) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A name in the same folder that no other process chooses.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = fastrand::u64(..);
    path.with_file_name(format!(".{name}.{number:016x}"))
}

fn make_beside(path: &Path, wanted: &Wanted) -> io::Result<()> {
    let DeviceNumber { major, minor } = wanted.number;
    let device = makedev(major, minor);
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), device)?;
    let access = wanted.access;
    lchown(path, Some(access.uid), Some(access.gid))?;
    // Not by mknod, which takes the umask off.
    fs::set_permissions(path, Permissions::from_mode(access.mode))
}

/// `/dev/nvidia-caps`, as nvidia-modprobe makes it.
fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755)),
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
