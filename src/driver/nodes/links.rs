//! The links in `/dev/char`, by which systemd and runc know a device.
//!
//! runc has systemd allow a device by its name there. A reload of systemd applies
//! the list again, and takes away what is not in it
//! (NVIDIA/nvidia-container-toolkit#48). runc 1.1.3 to 1.1.6 leave out a name that
//! leads nowhere (opencontainers/runc#3671), and systemd before 240 looks it up.
//! udev makes such links for the devices of sysfs, which NVIDIA's are not; so does
//! nvidia-modprobe since branch 535, but in its own `/dev`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::DevRoot;
use super::majors::DeviceNumber;
use super::make::{beside, number, put};

/// What became of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Whoever made it, it leads to the device.
    Right,
    /// It was made, and leads to this.
    Made(PathBuf),
    /// Something that is not ours to touch, in words.
    Left(String),
}

/// Has a link lead to the node of this name, which has these numbers.
pub(super) fn link(dev: &DevRoot, name: &str, device: DeviceNumber) -> io::Result<Link> {
    let place = dev.links().here.join(device.to_string());
    let replace = match fs::read_link(&place) {
        Ok(target) => {
            let found = fs::metadata(dev.seen_from_links(&target));
            if found.is_ok_and(|file| number(&file) == Some(device)) {
                return Ok(Link::Right);
            }
            if !is_nvidias(&target) {
                let target = target.display();
                return Ok(Link::Left(format!("leads to {target}, not to {name}")));
            }
            true
        }
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Ok(Link::Left(format!("is no link, and none to {name}")));
        }
        Err(error) => return Err(error),
    };
    make(dev, &place, name, replace)
}

/// A major number of the driver's is nobody else's, so a link to a node of the
/// driver's is one of an earlier load: ours, or nvidia-ctk's.
fn is_nvidias(target: &Path) -> bool {
    let name = target.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("nvidia")
}

fn make(dev: &DevRoot, place: &Path, name: &str, replace: bool) -> io::Result<Link> {
    if !dev.links().here.is_dir() {
        fs::create_dir(&dev.links().here)?;
    }
    let target = dev.link_target(name);
    let beside = beside(place);
    symlink(&target, &beside)?;
    match put(&beside, place, replace) {
        Ok(true) => Ok(Link::Made(target)),
        // Somebody else just made it; the next look shows whether it is right.
        Ok(false) => fs::remove_file(&beside).map(|()| Link::Right),
        Err(error) => {
            fs::remove_file(&beside).unwrap_or_default();
            Err(error)
        }
    }
}
