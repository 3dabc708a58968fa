//! A folder tree of the host, and where this process sees it.

use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::resolver::Resolver;

/// A folder tree of the host, and where this process sees it.
///
/// The two differ in a container, where the host's `/` may be at `/driver-root`:
/// files are read by one name and handed to the kubelet by the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverRoot {
    host: PathBuf,
    here: PathBuf,
}

impl DriverRoot {
    /// The tree that the host has at `host` and this process at `here`.
    pub fn new(host: impl Into<PathBuf>, here: impl Into<PathBuf>) -> Self {
        Self {
            host: host.into(),
            here: here.into(),
        }
    }

    /// The tree as the host names it.
    #[must_use]
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// The tree as this process sees it.
    #[must_use]
    pub fn here(&self) -> &Path {
        &self.here
    }

    /// The host's name of a path that this process sees below [`here`](Self::here).
    ///
    /// Links are not followed. `None` for a path that is not below the root, or
    /// climbs with `..`.
    #[must_use]
    pub fn to_host(&self, here: &Path) -> Option<PathBuf> {
        let relative = here.strip_prefix(&self.here).ok()?;
        let climbs = relative
            .components()
            .any(|step| step == Component::ParentDir);
        (!climbs).then(|| below(&self.host, relative))
    }

    /// Follows `path` to the real file, as if the root were `/`.
    ///
    /// An absolute link (Debian's alternatives are such) starts again at the root
    /// and `..` stops there, so the answer is always below [`here`](Self::here).
    /// `path` may be relative to the root or absolute in it.
    ///
    /// # Errors
    ///
    /// What the system says of the first step that cannot be taken, such as a
    /// dangling link, and an error of its own after 40 links.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        Resolver::new(self.clone()).resolve(path)
    }
}

impl fmt::Display for DriverRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host == self.here {
            write!(f, "{}", self.here.display())
        } else {
            write!(
                f,
                "{} ({} on the host)",
                self.here.display(),
                self.host.display()
            )
        }
    }
}

/// `join` without the trailing slash that an empty path would leave.
fn below(base: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() {
        base.to_path_buf()
    } else {
        base.join(relative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn tree() -> (TempDir, DriverRoot) {
        let outer = tempfile::tempdir().unwrap();
        let here = outer.path().canonicalize().unwrap().join("root");
        fs::create_dir(&here).unwrap();
        fs::write(outer.path().join("secret"), "outside").unwrap();
        (outer, DriverRoot::new("/", here))
    }

    fn resolved(root: &DriverRoot, path: &str) -> io::Result<PathBuf> {
        root.resolve(Path::new(path))
            .map(|real| root.to_host(&real).unwrap())
    }

    #[test]
    fn alternatives_lead_through_absolute_links_to_the_real_file() {
        let (_outer, root) = tree();
        for folder in [
            "etc/alternatives",
            "usr/lib/x86_64-linux-gnu/nvidia/current",
        ] {
            fs::create_dir_all(root.here().join(folder)).unwrap();
        }
        let lib = root.here().join("usr/lib/x86_64-linux-gnu");
        fs::write(lib.join("nvidia/current/libcuda.so.550.163.01"), "").unwrap();
        symlink(
            "libcuda.so.550.163.01",
            lib.join("nvidia/current/libcuda.so.1"),
        )
        .unwrap();
        let alternative = "etc/alternatives/glx--libcuda.so.1-x86_64-linux-gnu";
        symlink(Path::new("/").join(alternative), lib.join("libcuda.so.1")).unwrap();
        symlink(
            "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1",
            root.here().join(alternative),
        )
        .unwrap();

        let real = resolved(&root, "usr/lib/x86_64-linux-gnu/libcuda.so.1").unwrap();
        let expected = "/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.550.163.01";
        assert_eq!(real, Path::new(expected));
    }

    #[test]
    fn climbing_stops_at_the_root() {
        let (_outer, root) = tree();
        fs::write(root.here().join("secret"), "inside").unwrap();
        symlink("../../../secret", root.here().join("link")).unwrap();
        for path in ["link", "/../secret", "../../secret", "/secret", "./secret"] {
            assert_eq!(
                resolved(&root, path).unwrap(),
                Path::new("/secret"),
                "{path}"
            );
        }
        assert_eq!(resolved(&root, "..").unwrap(), Path::new("/"));
    }

    #[test]
    fn what_leads_nowhere_is_an_error() {
        let (_outer, root) = tree();
        fs::write(root.here().join("file"), "").unwrap();
        symlink("loop", root.here().join("loop")).unwrap();
        symlink("gone", root.here().join("dangling")).unwrap();
        symlink("/dangling/..", root.here().join("through")).unwrap();
        for path in [
            "loop", "dangling", "through", "missing", "file/..", "file/x",
        ] {
            assert!(resolved(&root, path).is_err(), "{path}");
        }
    }

    #[test]
    fn as_many_links_as_the_kernel_follows() {
        let (_outer, root) = tree();
        fs::write(root.here().join("0"), "").unwrap();
        for n in 1..=41 {
            symlink((n - 1).to_string(), root.here().join(n.to_string())).unwrap();
        }
        assert!(resolved(&root, "40").is_ok());
        assert!(resolved(&root, "41").is_err());
        assert!(fs::metadata(root.here().join("40")).is_ok());
        assert!(fs::metadata(root.here().join("41")).is_err());
    }

    #[test]
    fn host_names_are_given_only_below_the_root() {
        let root = DriverRoot::new("/opt/driver", "/driver-root");
        let host = |path: &str| root.to_host(Path::new(path));
        assert_eq!(host("/driver-root/lib/a"), Some("/opt/driver/lib/a".into()));
        assert_eq!(host("/driver-root").unwrap().as_os_str(), "/opt/driver");
        assert_eq!(host("/driver-root2/lib"), None);
        assert_eq!(host("/driver-root/../etc"), None);
        assert_eq!(root.to_string(), "/driver-root (/opt/driver on the host)");
    }

    fn path() -> impl Strategy<Value = String> {
        let step = prop_oneof![4 => "[abc]", 1 => Just("..".to_owned()), 1 => Just(".".to_owned())];
        ("/?", vec(step, 1..6)).prop_map(|(start, steps)| start + &steps.join("/"))
    }

    /// Folders, files and links at random places; what does not fit is left out.
    fn plant(root: &DriverRoot, nodes: &[(String, u8, String)]) {
        for (place, kind, target) in nodes {
            let place = root.here().join(place);
            // Planting is not under test: it must only stay inside.
            if place
                .parent()
                .and_then(|p| p.canonicalize().ok())
                .is_none_or(|p| !p.starts_with(root.here()))
            {
                continue;
            }
            let _planted = match kind {
                0 => fs::create_dir(&place),
                1 if place.symlink_metadata().is_err() => fs::write(&place, ""),
                _ => symlink(target, &place),
            };
        }
    }

    proptest! {
        #[test]
        fn never_leaves_the_root(
            nodes in vec(("[abc](/[abc]){0,2}", 0..4u8, path()), 0..24),
            asked in vec(path(), 1..12),
        ) {
            let (_outer, root) = tree();
            plant(&root, &nodes);
            for path in asked {
                if let Ok(real) = root.resolve(Path::new(&path)) {
                    prop_assert!(real.starts_with(root.here()));
                    // No link is left in it.
                    prop_assert_eq!(real.canonicalize().unwrap(), real);
                }
            }
        }

        /// Without a way out, it is what the kernel does.
        #[test]
        fn follows_as_the_kernel_does(
            nodes in vec(("[abc](/[abc]){0,2}", 0..4u8, "[abc](/[abc]){0,2}"), 0..24),
            asked in vec("[abc](/[abc]){0,4}", 1..12),
        ) {
            let (_outer, root) = tree();
            plant(&root, &nodes);
            for path in asked {
                let ours = root.resolve(Path::new(&path)).ok();
                let kernels = root.here().join(&path).canonicalize().ok();
                prop_assert_eq!(ours, kernels);
            }
        }
    }
}
