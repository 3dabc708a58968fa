//! The only program of the tests' containers, an image's files for it, and what
//! it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::system::output;

/// The probe in the image.
pub const PROBE: &str = "/probe";

/// What libraries of the driver take from the system beside the C library.
const COMPANIONS: [&str; 6] = [
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libgcc_s.so.1",
];

/// Where a container's loader looks first, on Debian; see the driver's mounts.
pub const LIBRARY_FOLDER: &str = if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu"
} else {
    "/usr/lib/x86_64-linux-gnu"
};

/// Compiles the probe, against the C library of a whole other system if one is
/// given.
pub fn compile(program: &Path, system: Option<&Path>) {
    let source = program.with_extension("c");
    fs::write(&source, include_str!("probe.c")).expect("write the probe's source");
    let mut compile = Command::new("cc");
    if let Some(system) = system {
        let libraries = system.join(LIBRARY_FOLDER.trim_start_matches('/'));
        compile.arg(format!("--sysroot={}", system.display()));
        // Or this machine's come first, which are beside the compiler's own.
        compile.arg("-B").arg(&libraries).arg("-L").arg(&libraries);
    }
    compile.args(["-O1", "-Wall", "-Werror", "-o"]);
    output(compile.arg(program).arg(&source).arg("-ldl"));
}

/// An image's files without a C library: the probe, and /lib and /lib64 lead to
/// /usr, as in distributions today.
pub fn bare_root(root: &Path, program: &Path) {
    for library_folder in ["usr/lib", "usr/lib64"] {
        fs::create_dir_all(root.join(library_folder)).expect("create a library folder");
    }
    symlink("usr/lib", root.join("lib")).expect("link /lib");
    symlink("usr/lib64", root.join("lib64")).expect("link /lib64");
    fs::copy(program, root.join(PROBE.trim_start_matches('/'))).expect("copy the probe");
}

/// An image's files, made from this machine's own: the probe, its C library and
/// the loader.
pub fn root(root: &Path, program: &Path) {
    bare_root(root, program);
    add_libraries(root, program);
}

/// Adds what a program of this machine's needs of the C library.
pub fn add_libraries(root: &Path, program: &Path) {
    for needed in needed(program) {
        let place = needed.strip_prefix("/").expect("an absolute path");
        let place = match place.strip_prefix("usr") {
            Ok(_) => root.join(place),
            Err(_) => root.join("usr").join(place),
        };
        fs::create_dir_all(place.parent().expect("a folder")).expect("create its folder");
        fs::copy(&needed, place).expect("copy a library");
    }
}

/// The loader and the libraries that the image takes from this machine.
fn needed(probe: &Path) -> Vec<PathBuf> {
    let listed = output(Command::new("ldd").arg(probe));
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let mut needed: Vec<_> = paths.map(PathBuf::from).collect();
    let libc = needed.iter().find(|path| path.ends_with("libc.so.6"));
    let libc = libc.unwrap_or_else(|| panic!("no C library of GNU's: {listed}"));
    let folder = libc.parent().expect("a folder").to_path_buf();
    let companions = COMPANIONS.iter().map(|name| folder.join(name));
    needed.extend(companions.filter(|path| path.exists()));
    needed
}

/// What a probe found; see probe.c for its lines.
#[derive(Debug)]
pub struct Findings(Vec<(String, String, String)>);

impl Findings {
    /// Nothing before the probe has said that it is done.
    pub fn parse<'l>(lines: impl IntoIterator<Item = &'l str>) -> Option<Self> {
        let lines: Vec<_> = lines.into_iter().collect();
        let done = lines.contains(&"done");
        done.then(|| Self(lines.into_iter().map(fact).collect()))
    }

    /// All facts of one kind, by what they are about.
    pub fn all(&self, kind: &str) -> BTreeMap<&str, &str> {
        let facts = self.0.iter().filter(|(of, ..)| of == kind);
        facts
            .map(|(_, about, what)| (about.as_str(), what.as_str()))
            .collect()
    }

    /// Everything but the variables, some of which are the runtime's.
    pub fn but_environment(&self) -> BTreeSet<(&str, &str, &str)> {
        let facts = self.0.iter().filter(|(of, ..)| of != "env");
        facts
            .map(|(of, about, what)| (of.as_str(), about.as_str(), what.as_str()))
            .collect()
    }

    /// Takes out the facts of one kind about what begins so.
    pub fn take(&mut self, kind: &str, begins: &str) -> BTreeMap<String, String> {
        let of =
            |(of, about, _): &(String, String, String)| of == kind && about.starts_with(begins);
        let taken = self.0.extract_if(.., |fact| of(fact));
        taken.map(|(_, about, what)| (about, what)).collect()
    }
}

fn fact(line: &str) -> (String, String, String) {
    let mut words = line.splitn(3, ' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    (word(), word(), word())
}
