//! The version of the driver that the kernel runs.

use std::fs;
use std::path::Path;

use super::layout::is_driver_version;

/// The loaded kernel module's version, such as `550.163.01`.
///
/// Read from `driver/nvidia/version` below `proc_root`, else from
/// `module/nvidia/version` below `sys_root`; `None` where no module is loaded.
/// The user-space files must be of exactly this version.
#[must_use]
pub fn kernel_module_version(proc_root: &Path, sys_root: &Path) -> Option<String> {
    let read = |path| fs::read_to_string(path).ok();
    read(proc_root.join("driver/nvidia/version"))
        .and_then(|text| {
            version_in(
                text.lines()
                    .find(|line| line.starts_with("NVRM version:"))?,
            )
        })
        .or_else(|| version_in(&read(sys_root.join("module/nvidia/version"))?))
}

/// The first word that is a version: the words around it differ between the
/// proprietary and the open module.
fn version_in(text: &str) -> Option<String> {
    text.split_whitespace()
        .find(|word| is_driver_version(word))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GCC: &str = "GCC version:  gcc version 112.2.0 (Debian 12.2.0-14)\n";

    fn version(proc: Option<&str>, sys: Option<&str>) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [("driver/nvidia", proc), ("module/nvidia", sys)] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
            if let Some(text) = text {
                fs::write(dir.path().join(path).join("version"), text).unwrap();
            }
        }
        kernel_module_version(dir.path(), dir.path())
    }

    #[test]
    fn of_the_proprietary_and_the_open_module() {
        let proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jul  1 18:01:43 UTC 2025\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.159.04  Release Build  (root@host)\n";
        for (line, expected) in [(proprietary, "535.261.03"), (open, "580.159.04")] {
            assert_eq!(
                version(Some(&format!("{line}{GCC}")), None).as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn from_sysfs_where_proc_says_nothing() {
        assert_eq!(version(None, Some("390.157\n")).as_deref(), Some("390.157"));
        assert_eq!(
            version(Some(GCC), Some("390.157\n")).as_deref(),
            Some("390.157")
        );
    }

    #[test]
    fn none_without_a_module() {
        assert_eq!(version(None, None), None);
        assert_eq!(version(Some(""), Some("\n")), None);
    }
}
