//! The way through a driver root that stays as it is meanwhile.
//!
//! What lies on several ways is looked at once, a folder is read once, and of one that
//! was read each name is known: most paths that a driver could be at lead nowhere.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use tracing::debug;

use super::root::DriverRoot;

/// Links followed on one way before it counts as a loop; the kernel's own limit.
const MAX_LINKS: u32 = 40;

/// Follows paths through a root, and reads its folders.
pub(super) struct Resolver {
    root: DriverRoot,
    /// The folders that were walked through, the root first.
    folders: RefCell<Vec<Folder>>,
}

/// Why a path leads nowhere.
#[derive(Debug)]
pub(super) struct Nowhere {
    /// What the system says of the first step that cannot be taken.
    pub(super) error: io::Error,
    /// The path itself, with its folder's real name, if it is a link.
    pub(super) link: Option<PathBuf>,
}

/// A folder, and what is known of what is in it.
struct Folder {
    /// As this process sees it, with no link in it below the root.
    here: PathBuf,
    /// Where `..` leads.
    parent: usize,
    /// What each name leads to, or the system's error.
    known: HashMap<OsString, Result<Kind, i32>>,
    /// All names, once they were read.
    names: Option<Rc<Names>>,
}

/// What a step of a path leads to.
#[derive(Clone)]
enum Kind {
    Folder(usize),
    Link(Rc<Path>),
    Other,
}

/// The names in a folder, sorted, so that the same folder always gives the same answer.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<(OsString, FileType)>);

impl Names {
    /// What the system cannot tell of is as if it were not there.
    fn read(folder: &Path) -> io::Result<Self> {
        let named = |entry: fs::DirEntry| {
            let kind = entry.file_type().ok()?;
            Some((entry.file_name(), kind))
        };
        let mut names: Vec<_> = fs::read_dir(folder)?.flatten().filter_map(named).collect();
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(Self(names))
    }

    /// Those that are text: all that NVIDIA gives are.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(name, _)| name.to_str())
    }

    fn find(&self, name: &OsStr) -> Option<FileType> {
        let place = self.0.binary_search_by(|(other, _)| (**other).cmp(name));
        self.0.get(place.ok()?).map(|(_, kind)| *kind)
    }
}

impl Resolver {
    /// One that has seen nothing of `root` yet.
    #[must_use]
    pub(super) fn new(root: DriverRoot) -> Self {
        let folder = Folder::new(root.here().to_path_buf(), 0);
        Self {
            root,
            folders: RefCell::new(vec![folder]),
        }
    }

    /// What paths are below.
    pub(super) fn root(&self) -> &DriverRoot {
        &self.root
    }

    /// [`DriverRoot::resolve`], with what was seen before.
    ///
    /// # Errors
    ///
    /// The same.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.follow(path).map_err(|nowhere| nowhere.error)
    }

    /// The same, and more of what leads nowhere.
    ///
    /// # Errors
    ///
    /// The same.
    pub(super) fn follow(&self, path: &Path) -> Result<PathBuf, Nowhere> {
        let mut folders = self.folders.borrow_mut();
        let (folder, file) = walk(&mut folders, path)?;
        Ok(match file {
            Some(file) => joined(&folders[folder].here, &file),
            None => folders[folder].here.clone(),
        })
    }

    /// The names in the folder at `path`; none where there is no such folder.
    pub(super) fn names(&self, path: &Path) -> Rc<Names> {
        let mut folders = self.folders.borrow_mut();
        let read = match walk(&mut folders, path) {
            Ok((folder, None)) => read(&mut folders[folder]),
            Ok(_) => Err(ErrorKind::NotADirectory.into()),
            Err(nowhere) => Err(nowhere.error),
        };
        read.unwrap_or_else(|error| {
            // Most folders of the list are on no one host: not worth a line.
            if error.kind() != ErrorKind::NotFound {
                debug!(path = %path.display(), %error, "skipped");
            }
            Rc::default()
        })
    }
}

impl Folder {
    fn new(here: PathBuf, parent: usize) -> Self {
        Self {
            here,
            parent,
            known: HashMap::new(),
            names: None,
        }
    }
}

/// Reads a folder, unless that was done.
fn read(folder: &mut Folder) -> io::Result<Rc<Names>> {
    if let Some(names) = &folder.names {
        return Ok(names.clone());
    }
    let names = Rc::new(Names::read(&folder.here)?);
    Ok(folder.names.insert(names).clone())
}

/// The real folder that a path leads to, and the file in it where it is none.
fn walk(folders: &mut Vec<Folder>, path: &Path) -> Result<(usize, Option<OsString>), Nowhere> {
    let mut link = None;
    let walked = walk_by(folders, path, &mut link);
    walked.map_err(|error| Nowhere { error, link })
}

/// The same; says of `path` itself that it is a link.
fn walk_by(
    folders: &mut Vec<Folder>,
    path: &Path,
    link: &mut Option<PathBuf>,
) -> io::Result<(usize, Option<OsString>)> {
    let mut given = steps(path);
    // Of links, the next one last.
    let mut linked: Vec<OsString> = Vec::new();
    let (mut at, mut links) = (0, 0);
    loop {
        let of_link = linked.pop();
        let Some(step) = of_link.as_deref().or_else(|| given.next()) else {
            break;
        };
        if step == ".." {
            at = folders[at].parent;
            continue;
        }
        match look(folders, at, step)? {
            Kind::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many links, or a loop of them"));
                }
                if of_link.is_none() && given.clone().next().is_none() {
                    *link = Some(joined(&folders[at].here, step));
                }
                if target.is_absolute() {
                    at = 0;
                }
                let steps: Vec<_> = steps(&target).map(OsStr::to_owned).collect();
                linked.extend(steps.into_iter().rev());
            }
            Kind::Folder(folder) => at = folder,
            Kind::Other if linked.is_empty() && given.next().is_none() => {
                return Ok((at, Some(step.to_owned())));
            }
            Kind::Other => return Err(ErrorKind::NotADirectory.into()),
        }
    }
    Ok((at, None))
}

/// Looks at a name in a folder, unless that was done.
fn look(folders: &mut Vec<Folder>, at: usize, name: &OsStr) -> io::Result<Kind> {
    let known = folders[at].known.get(name).cloned();
    let looked = known.unwrap_or_else(|| {
        let looked = look_anew(folders, at, name);
        // An error of the system's has a number.
        let looked = looked.map_err(|error| error.raw_os_error().unwrap_or_default());
        folders[at].known.insert(name.into(), looked.clone());
        looked
    });
    looked.map_err(io::Error::from_raw_os_error)
}

fn look_anew(folders: &mut Vec<Folder>, at: usize, name: &OsStr) -> io::Result<Kind> {
    let here = joined(&folders[at].here, name);
    let kind = match &folders[at].names {
        Some(names) => names.find(name).ok_or_else(no_such_file)?,
        None => fs::symlink_metadata(&here)?.file_type(),
    };
    if kind.is_symlink() {
        return Ok(Kind::Link(fs::read_link(&here)?.into()));
    }
    if !kind.is_dir() {
        return Ok(Kind::Other);
    }
    folders.push(Folder::new(here, at));
    Ok(Kind::Folder(folders.len() - 1))
}

fn no_such_file() -> io::Error {
    rustix::io::Errno::NOENT.into()
}

/// The steps of a path.
fn steps(path: &Path) -> impl Iterator<Item = &OsStr> + Clone {
    path.components()
        .filter(|step| matches!(step, Component::Normal(_) | Component::ParentDir))
        .map(|step| step.as_os_str())
}

/// `join`, with room for both from the start.
pub(super) fn joined(folder: &Path, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::with_capacity(folder.as_os_str().len() + 1 + name.len());
    path.push(folder);
    path.push(name);
    path
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn resolver(root: &TempDir) -> Resolver {
        Resolver::new(DriverRoot::new("/", root.path()))
    }

    fn folder() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        root
    }

    #[test]
    fn what_was_seen_is_not_looked_at_again() {
        let root = folder();
        let seen = resolver(&root);
        let missing = seen.resolve(Path::new("usr/lib/a")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        fs::write(root.path().join("usr/lib/a"), "").unwrap();
        let still = seen.resolve(Path::new("usr/lib/a")).unwrap_err();
        assert_eq!(still.to_string(), missing.to_string());
        assert!(seen.resolve(Path::new("usr/lib")).is_ok());
        assert!(resolver(&root).resolve(Path::new("usr/lib/a")).is_ok());
    }

    #[test]
    fn a_folder_that_was_read_says_the_same_of_a_path_as_the_system() {
        let root = folder();
        fs::write(root.path().join("usr/lib/file"), "").unwrap();
        symlink("file", root.path().join("usr/lib/link")).unwrap();
        symlink("lib", root.path().join("usr/lib64")).unwrap();
        let (read, unread) = (resolver(&root), resolver(&root));
        for folder in ["", "usr", "usr/lib64"] {
            read.names(Path::new(folder));
        }
        for path in [
            "usr/lib/file",
            "usr/lib64/link",
            "usr/lib/gone",
            "usr/lib/file/below",
            "usr/lib/../lib64",
            "gone/file",
        ] {
            let answers = [&read, &unread].map(|resolver| {
                let answer = resolver.resolve(Path::new(path));
                answer.map_err(|error| error.to_string())
            });
            assert_eq!(answers[0], answers[1], "{path}");
        }
    }

    #[test]
    fn names_are_sorted_and_read_once() {
        let root = folder();
        for name in ["b", "a"] {
            fs::write(root.path().join("usr/lib").join(name), "").unwrap();
        }
        let seen = resolver(&root);
        let names = || {
            let names = seen.names(Path::new("usr/lib"));
            names.iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names(), ["a", "b"]);
        fs::write(root.path().join("usr/lib/c"), "").unwrap();
        assert_eq!(names(), ["a", "b"]);
        assert_eq!(seen.names(Path::new("usr/gone")).iter().count(), 0);
        assert_eq!(seen.names(Path::new("usr/lib/a")).iter().count(), 0);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named_by_its_real_folder() {
        let root = folder();
        symlink("lib", root.path().join("usr/lib64")).unwrap();
        symlink("gone", root.path().join("usr/lib/dangling")).unwrap();
        symlink("dangling", root.path().join("usr/lib/to_it")).unwrap();
        let link = |path: &str| {
            let nowhere = resolver(&root).follow(Path::new(path)).unwrap_err();
            assert_eq!(nowhere.error.kind(), ErrorKind::NotFound, "{path}");
            nowhere.link
        };
        let real = |name: &str| Some(root.path().join("usr/lib").join(name));
        assert_eq!(link("usr/lib64/dangling"), real("dangling"));
        assert_eq!(link("usr/lib64/to_it"), real("to_it"));
        assert_eq!(link("usr/lib64/gone"), None);
        assert_eq!(link("usr/lib64/dangling/below"), None);
    }
}
