//! Unpacked drivers, and which of their files belongs at a place. Asks nothing
//! of the plugin's own search.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::system::{is_root, on_path, output, skip};
use crate::runtime;

/// The first bytes of an ELF file for 64-bit machines, and where the machine is.
const ELF64: [u8; 5] = [0x7f, b'E', b'L', b'F', 2];
const MACHINE: usize = 18;
const HERE: u8 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};

/// Names that something loads a library by, which are links in what NVIDIA
/// installs, and in none of Debian's packages: GBM, and GLVND.
const LINKS: [(&str, &str); 2] = [
    ("nvidia-drm_gbm.so", "libnvidia-allocator.so.1"),
    ("libGLX_indirect.so.0", "libGLX_nvidia.so.0"),
];

/// Unpacked packages of one driver.
#[derive(Clone, Debug)]
pub struct Driver {
    pub root: PathBuf,
    pub version: String,
    /// Every file, by its name.
    files: BTreeMap<String, Vec<PathBuf>>,
}

impl Driver {
    fn new(root: PathBuf) -> Self {
        let version = root.file_name().expect("a root called by its version");
        let version = version.to_string_lossy().into_owned();
        let mut files = BTreeMap::new();
        collect(&root, &mut files);
        Self {
            root,
            version,
            files,
        }
    }

    /// The same files in a folder of the test's, by links where that is possible.
    pub fn copied(&self, folder: &Path) -> Self {
        let root = folder.join(&self.version);
        let mut copy = Command::new("cp");
        let way = match Way::between(&self.root, folder) {
            Way::Link => "--link",
            Way::Copy => "--reflink=auto",
        };
        output(copy.args(["--archive", way]).arg(&self.root).arg(&root));
        Self::new(root)
    }

    /// The driver's one file for a place of that name. Libraries go by their
    /// names up to `.so`; they and programs, which have no suffix, are of this
    /// machine's kind.
    pub fn file(&self, name: &str) -> &Path {
        let link = LINKS.iter().find(|(link, _)| *link == name);
        let name = link.map_or(name, |(_, library)| library);
        let stem = name.find(".so").map(|end| &name[..end + 3]);
        let wanted = |other: &str| match stem {
            None => other == name,
            Some(stem) => other
                .strip_prefix(stem)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
        };
        let named = self.files.iter().filter(|(other, _)| wanted(other));
        let code = stem.is_some() || !name.contains('.');
        let fits = |path: &&PathBuf| !code || runs_here(path);
        let mut found = named.flat_map(|(_, paths)| paths).filter(fits);
        match (found.next(), found.next()) {
            (Some(file), None) => file,
            other => panic!("not one {name} in {}: {other:?}", self.root.display()),
        }
    }

    /// Panics where the file is not the driver's of its name: the file itself,
    /// or a copy where it is of another file system.
    pub fn assert_owns(&self, file: &Path, way: Way) {
        let name = file.file_name().expect("a file's name");
        let own = self.file(&name.to_string_lossy());
        let same = identity(&look(own)) == identity(&look(file));
        let what = || format!("{} of {}", file.display(), own.display());
        match way {
            Way::Link => assert!(same, "no link: {}", what()),
            Way::Copy => {
                assert!(!same, "no copy: {}", what());
                assert_eq!(look(file).len(), look(own).len(), "{}", what());
                assert!(same_bytes(file, own), "damaged: {}", what());
            }
        }
    }
}

/// How a volume has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is the driver's.
    Link,
    /// Its bytes are.
    Copy,
}

impl Way {
    /// What is possible between two folders.
    pub fn between(one: &Path, other: &Path) -> Self {
        if look(one).dev() == look(other).dev() {
            Self::Link
        } else {
            Self::Copy
        }
    }
}

/// The drivers to test with. None where this machine lacks what it takes, which
/// is said.
pub fn drivers(test: &str) -> Vec<Driver> {
    let lacking = ["runc", "cc", "ldd"]
        .into_iter()
        .find(|program| on_path(program).is_none());
    let why = if !is_root() {
        "not root".to_owned()
    } else if let Some(program) = lacking {
        format!("no {program} on PATH")
    } else if Path::new("/sys/module/nvidia").exists() {
        "a kernel module of NVIDIA's is loaded, which tests/real_gpu is for".to_owned()
    } else if paths("DRIVER_ROOTS").is_empty() {
        "DRIVER_ROOTS names no unpacked driver".to_owned()
    } else if let Some(why) = runtime::unable() {
        format!("runc runs no container here: {why}")
    } else {
        return paths("DRIVER_ROOTS").into_iter().map(Driver::new).collect();
    };
    skip(test, &why);
    Vec::new()
}

/// The newest alone, for what does not differ between drivers.
pub fn newest(test: &str) -> Option<Driver> {
    drivers(test).into_iter().max_by_key(|driver| {
        let numbers = driver.version.split('.').map(|number| number.parse().ok());
        numbers.collect::<Vec<Option<u32>>>()
    })
}

/// The folders that a variable names.
pub fn paths(variable: &str) -> Vec<PathBuf> {
    let paths = env::var_os(variable).unwrap_or_default();
    let paths = env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
    let real = |path: PathBuf| match fs::canonicalize(&path) {
        Ok(real) => real,
        Err(error) => panic!("{variable}: {}: {error}", path.display()),
    };
    paths.map(real).collect()
}

/// Device and inode, as the probe says them.
pub fn identity(file: &Metadata) -> String {
    format!("{}:{}", file.dev(), file.ino())
}

/// Of the file, and not of a link to it.
pub fn look(path: &Path) -> Metadata {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    let read = |path| fs::read(path).expect("read a file of the driver's");
    read(one) == read(other)
}

fn runs_here(path: &Path) -> bool {
    let mut header = [0; MACHINE + 1];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && header.starts_with(&ELF64) && header[MACHINE] == HERE
}

fn collect(folder: &Path, files: &mut BTreeMap<String, Vec<PathBuf>>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("a file's kind");
        if kind.is_dir() {
            collect(&entry.path(), files);
        } else if kind.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.entry(name).or_default().push(entry.path());
        }
    }
}
