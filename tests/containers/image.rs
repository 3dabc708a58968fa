//! Images: the probe with one C library or another, or with a whole distribution,
//! and no NVIDIA software but what a test puts there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::common::probe::{LIBRARY_FOLDER, PROBE, bare_root, compile, root};
use crate::common::system::{on_path, output};
use crate::driver::paths;

/// Where the loaders of Red Hat's kind look.
pub const LIB64: &str = "/usr/lib64";

/// The root file system, below a container's bundle.
const ROOT: &str = "rootfs";

/// Mounts a distribution's files below those of the test, and runs the rest in
/// the same mount namespace, with whose end all of it goes. What is written goes
/// to memory: an overlay takes no other overlay for that.
const OVERLAID: &str = r#"
bundle=$1 image=$2 finish=$3
shift 3
mkdir "$bundle/memory" "$bundle/rootfs"
mount -t tmpfs memory "$bundle/memory"
mkdir "$bundle/memory/upper" "$bundle/memory/work"
mount -t overlay overlay "$bundle/rootfs" -o \
    "lowerdir=$bundle/changes:$image,upperdir=$bundle/memory/upper,workdir=$bundle/memory/work"
chroot "$bundle/rootfs" $finish
exec "$@"
"#;

/// An image's files, to be unpacked as often as needed: a runtime leaves the
/// places of its mounts behind in them.
#[derive(Clone, Debug)]
pub struct Image {
    files: Files,
    layout: Layout,
    environment: Vec<String>,
    /// By place: a copy of a file.
    copies: BTreeMap<String, PathBuf>,
    /// By place: what a link says.
    links: BTreeMap<String, String>,
    /// Whether something of a driver's is among those.
    has_driver: bool,
    /// Where all libraries are loaded from, if not from the loader's folder.
    loads: Option<&'static str>,
    /// The same of single libraries.
    loads_of: BTreeMap<&'static str, &'static str>,
}

#[derive(Clone, Debug)]
enum Files {
    /// The probe and this machine's own C library.
    ThisMachine,
    /// The probe and an unpacked C library.
    Library(PathBuf),
    /// A distribution's whole root file system.
    Whole(PathBuf),
}

/// What /usr/lib64 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A folder that /lib64 leads to.
    Usual,
    /// Not there: /lib64 is a folder, as before distributions merged them.
    NoLib64,
    /// A link to lib, as Arch Linux has it.
    Lib64IsLib,
}

impl Image {
    fn new(files: Files) -> Self {
        Self {
            files,
            layout: Layout::Usual,
            environment: ["HOME=/", "PATH=/usr/local/bin:/usr/bin:/bin"]
                .map(str::to_owned)
                .into(),
            copies: BTreeMap::new(),
            links: BTreeMap::new(),
            has_driver: false,
            loads: None,
            loads_of: BTreeMap::new(),
        }
    }

    /// With this machine's own C library.
    pub fn of_this_machine() -> Self {
        Self::new(Files::ThisMachine)
    }

    /// With each of the unpacked C libraries.
    pub fn with_libraries() -> Vec<Self> {
        let folders = paths("LIBC_ROOTS").into_iter();
        folders
            .map(|path| Self::new(Files::Library(path)))
            .collect()
    }

    /// Whole distributions. None where the probe cannot be built for all of them.
    pub fn whole() -> Vec<Self> {
        if system().is_none() || on_path("unshare").is_none() {
            return Vec::new();
        }
        let folders = paths("IMAGE_ROOTS").into_iter();
        folders.map(|path| Self::new(Files::Whole(path))).collect()
    }

    pub fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// That sets a variable itself.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        let begins = format!("{name}=");
        self.environment.retain(|other| !other.starts_with(&begins));
        self.environment.push(format!("{name}={value}"));
        self
    }

    /// That has a driver's library of its own: the file and a link to it by its
    /// SONAME, in this folder.
    pub fn with_own(mut self, soname: &str, file: &Path, folder: &str) -> Self {
        let name = file.file_name().expect("a file's name").to_string_lossy();
        let place = format!("{folder}/{name}");
        self.copies.insert(place, file.to_owned());
        self.links
            .insert(format!("{folder}/{soname}"), name.into_owned());
        self.has_driver = true;
        self
    }

    /// With a file that holds a line.
    pub fn with_line(mut self, place: &str, line: &str) -> Self {
        let folder = scratch().join(place.trim_start_matches('/').replace('/', "-"));
        fs::write(&folder, format!("{line}\n")).expect("write a file of the image's");
        self.copies.insert(place.to_owned(), folder);
        self
    }

    /// Whose loader takes all libraries from this folder.
    pub fn loading(self, folder: &'static str) -> Self {
        Self {
            loads: Some(folder),
            ..self
        }
    }

    /// Whose loader takes this library from another folder.
    pub fn loading_one(mut self, name: &'static str, folder: &'static str) -> Self {
        self.loads_of.insert(name, folder);
        self
    }

    /// What tests call it.
    pub fn name(&self) -> String {
        let files = match &self.files {
            Files::ThisMachine => "of this machine".into(),
            Files::Library(folder) => format!("C library of {}", last(folder)),
            Files::Whole(folder) => last(folder),
        };
        match self.layout {
            Layout::Usual => files,
            other => format!("{files}, {other:?}"),
        }
    }

    pub fn environment(&self) -> &[String] {
        &self.environment
    }

    pub fn has_driver(&self) -> bool {
        self.has_driver
    }

    /// Where its loader looks, of the folders that a mount is in.
    pub fn library_folder(&self) -> &'static str {
        let here = match &self.files {
            Files::ThisMachine => Path::new("/"),
            Files::Library(folder) | Files::Whole(folder) => folder,
        };
        let debian = here.join(LIBRARY_FOLDER.trim_start_matches('/'));
        if debian.join("libc.so.6").exists() {
            LIBRARY_FOLDER
        } else {
            LIB64
        }
    }

    /// Where a library is loaded from.
    pub fn loads_from(&self, name: &str) -> &'static str {
        let one = self.loads_of.get(name).copied();
        one.or(self.loads).unwrap_or_else(|| self.library_folder())
    }

    /// Makes its files in a bundle, and what runs a program that needs them there.
    pub fn unpack(&self, bundle: &Path) -> Vec<OsString> {
        let place = bundle.join(ROOT);
        match &self.files {
            Files::ThisMachine => root(&place, &probe(None)),
            Files::Library(library) => {
                bare_root(&place, &probe(system().as_deref()));
                let folder = self.library_folder().trim_start_matches('/');
                copy_libraries(&library.join(folder), &place.join(folder));
                link_loader(&place, folder);
            }
            Files::Whole(image) => return self.overlay(bundle, image),
        }
        self.add(&place);
        lay_out(&place, self.layout);
        write_cache(&place);
        vec!["env".into()]
    }

    fn overlay(&self, bundle: &Path, image: &Path) -> Vec<OsString> {
        let changes = bundle.join("changes");
        fs::create_dir(&changes).expect("create the changes' folder");
        let program = probe(system().as_deref());
        let copied = fs::copy(program, changes.join(PROBE.trim_start_matches('/')));
        copied.expect("copy the probe");
        self.add(&changes);
        let finish = if self.has_driver { "ldconfig" } else { "true" };
        let unshare = ["unshare", "--mount", "sh", "-ec", OVERLAID, "sh"];
        let mut command: Vec<OsString> = unshare.map(OsString::from).into();
        command.extend([bundle.into(), image.into(), finish.into()]);
        command
    }

    /// Adds what it has beyond its files.
    fn add(&self, place: &Path) {
        let inside = |path: &String| {
            let path = place.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a folder")).expect("create a folder");
            path
        };
        for (path, file) in &self.copies {
            fs::copy(file, inside(path)).expect("copy a file into the image");
        }
        for (path, target) in &self.links {
            symlink(target, inside(path)).expect("link in the image");
        }
    }
}

fn last(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The system that the probe is built against for others than this machine's:
/// what is built against the oldest runs with all of them, so there is one that
/// has what building takes.
fn system() -> Option<PathBuf> {
    let mut folders = paths("LIBC_ROOTS").into_iter();
    folders.find(|folder| folder.join("usr/include/stdio.h").exists())
}

/// Files that images are made of.
fn scratch() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("create a folder for files"));
    folder.path()
}

fn lay_out(place: &Path, layout: Layout) {
    let (lib64, merged) = (place.join("lib64"), place.join("usr/lib64"));
    match layout {
        Layout::Usual => {}
        Layout::NoLib64 => {
            fs::remove_file(&lib64).expect("remove the link /lib64");
            fs::rename(merged, lib64).expect("move /usr/lib64 away");
        }
        Layout::Lib64IsLib => {
            for entry in fs::read_dir(&merged).expect("/usr/lib64").flatten() {
                let to = place.join("usr/lib").join(entry.file_name());
                fs::rename(entry.path(), to).expect("move a library");
            }
            fs::remove_dir(&merged).expect("remove /usr/lib64");
            symlink("lib", merged).expect("link /usr/lib64");
        }
    }
}

/// The loader is named by one path in every program of an architecture, and in
/// Debian's folder it is a link.
fn link_loader(place: &Path, folder: &str) {
    const LOADERS: [(&str, &str); 2] = [
        ("ld-linux-x86-64.so.2", "usr/lib64"),
        ("ld-linux-aarch64.so.1", "usr/lib"),
    ];
    for (loader, named) in LOADERS {
        let link = place.join(named).join(loader);
        if place.join(folder).join(loader).exists() && !link.exists() {
            symlink(Path::new("/").join(folder).join(loader), link).expect("link the loader");
        }
    }
}

/// The libraries and the loader, by the names that programs know.
fn copy_libraries(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create a library folder");
    for entry in fs::read_dir(from).expect("an unpacked C library").flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().contains(".so.") {
            fs::copy(entry.path(), to.join(name)).expect("copy a library");
        }
    }
}

/// Images come with the loader's cache, made when no driver was there: what is
/// not in it must still be found.
fn write_cache(place: &Path) {
    if on_path("ldconfig").is_none() {
        return;
    }
    fs::create_dir_all(place.join("etc")).expect("create /etc");
    let folders = format!("{LIBRARY_FOLDER}\n{LIB64}\n");
    fs::write(place.join("etc/ld.so.conf"), folders).expect("write the loader's folders");
    let mut ldconfig = Command::new("ldconfig");
    output(ldconfig.arg("-r").arg(place));
    fs::remove_file(place.join("etc/ld.so.conf")).expect("remove the loader's folders");
}

/// The probe, built once for each system.
fn probe(system: Option<&Path>) -> PathBuf {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    static OTHER: OnceLock<PathBuf> = OnceLock::new();
    let (built, name) = match system {
        None => (&OWN, "probe"),
        Some(_) => (&OTHER, "probe-of-another-system"),
    };
    let built = built.get_or_init(|| {
        let program = scratch().join(name);
        compile(&program, system);
        program
    });
    built.clone()
}
