//! A node's file tree in a temporary folder, of hard links to the driver's files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_device_plugin::driver::DriverRoot;
use tempfile::TempDir;

use crate::common::system::{is_root, on_path, output};
use crate::kit::{Kit, Part, PartFile, entries};
use crate::oracle::Elf;

/// Paths are relative to it. What is built here is never written to again: it
/// may be a driver's own file.
pub struct Tree {
    _dir: Option<TempDir>,
    here: PathBuf,
}

impl Tree {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let here = dir.path().canonicalize().unwrap();
        Self {
            _dir: Some(dir),
            here,
        }
    }

    /// A folder of it. It goes with the whole.
    pub fn below(&self, folder: &str) -> Self {
        self.folder(folder);
        Self {
            _dir: None,
            here: self.here.join(folder),
        }
    }

    pub fn here(&self) -> &Path {
        &self.here
    }

    /// As a plugin in a container has the host's `path`.
    pub fn root(&self, path: &str) -> DriverRoot {
        let relative = path.trim_start_matches('/');
        DriverRoot::new(path, self.here.join(relative))
    }

    /// The place of something new, its folder made.
    fn new_at(&self, at: impl AsRef<Path>) -> PathBuf {
        let at = self.here.join(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        at
    }

    pub fn folder(&self, at: impl AsRef<Path>) -> &Self {
        fs::create_dir_all(self.here.join(at)).unwrap();
        self
    }

    /// A driver's file, by hard link where the file system can.
    pub fn place(&self, real: &Path, at: impl AsRef<Path>) -> &Self {
        let at = self.new_at(at);
        if fs::hard_link(real, &at).is_err() {
            assert!(!at.exists(), "{} twice", at.display());
            fs::copy(real, at).unwrap();
        }
        self
    }

    /// A new file.
    pub fn write(&self, at: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> &Self {
        let at = self.new_at(at);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(at)
            .unwrap();
        file.write_all(bytes.as_ref()).unwrap();
        self
    }

    pub fn link(&self, at: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        let at = self.new_at(at);
        if let Err(error) = symlink(target, &at) {
            panic!("{}: {error}", at.display());
        }
        self
    }

    pub fn remove(&self, at: impl AsRef<Path>) {
        fs::remove_file(self.here.join(at)).unwrap();
    }

    /// All files of one kind, by their own names.
    pub fn parts(&self, kit: &Kit, part: Part, folder: &str) -> &Self {
        for file in kit.parts(part) {
            self.part(file, folder);
        }
        self
    }

    pub fn part(&self, file: &PartFile, folder: &str) -> &Self {
        self.place(&file.real, Path::new(folder).join(&file.name))
    }

    /// Links by SONAME beside the libraries, as ldconfig makes them; as it does,
    /// for the newest where several are of one.
    pub fn sonames(&self, folder: &str) -> &Self {
        for path in entries(&self.here.join(folder)) {
            if !path.symlink_metadata().unwrap().is_file() {
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            if let Some(soname) = Elf::read(&path).soname
                && soname != name
            {
                let link = path.with_file_name(soname);
                if link.is_symlink() {
                    fs::remove_file(&link).unwrap();
                }
                symlink(name, link).unwrap();
            }
        }
        self
    }

    /// Links for linkers, `libcuda.so` to the SONAME, for these libraries.
    pub fn dot_so(&self, folder: &str, stems: &[&str]) -> &Self {
        for stem in stems {
            let link = format!("{folder}/{stem}.so");
            self.link(link, format!("{stem}.so.1"));
        }
        self
    }

    /// The loader's cache of these folders and the usual ones, by the real
    /// ldconfig, where this process may run it. Whether it did.
    pub fn ldconfig(&self, cache: &str, folders: &[&str]) -> bool {
        let ldconfig = ["/sbin/ldconfig", "/usr/sbin/ldconfig"].map(PathBuf::from);
        let ldconfig = ldconfig.into_iter().find(|path| path.exists());
        let Some(ldconfig) = ldconfig.or_else(|| on_path("ldconfig")) else {
            return false;
        };
        if !is_root() {
            return false;
        }
        let configuration = cache.replace(".cache", ".conf");
        self.write(&configuration, folders.join("\n") + "\n");
        let mut command = Command::new(ldconfig);
        command.arg("-r").arg(&self.here);
        command.arg("-f").arg(Path::new("/").join(configuration));
        command.arg("-C").arg(Path::new("/").join(cache));
        output(&mut command);
        assert!(self.here.join(cache).is_file());
        true
    }
}
