//! What looks like a file of the driver and is not one that a container can use.

use std::fmt;
use std::path::PathBuf;

use super::names::LibraryName;

/// A file that was looked at and left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The file or the link to it, as the host names it.
    pub host: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a file was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is of the driver of this version.
    OtherVersion(String),
    /// Neither its name nor its place says of which driver it is.
    NoVersion,
    /// It is for linking programs, and does nothing.
    Stub,
    /// It is a link that leads nowhere.
    Dangling,
    /// It is a text that tells a linker where the library is.
    LinkerScript,
    /// It is a script that stands in a program's place.
    Script,
    /// It is for 32-bit programs.
    Bits32,
    /// It is for another processor, as ELF numbers them.
    Architecture(u16),
    /// It is no library or program of ELF's, or a damaged one.
    NotElf(String),
    /// It is a library that goes by this other name, or by none.
    OtherName(Option<String>),
    /// It belongs to every vendor's OpenGL, or to another's.
    OtherVendor,
    /// It wants this loader, which only the host has.
    Interpreter(String),
    /// It names a library by this path, where no container has it.
    HostPath(String),
    /// A better place has the same file.
    Copy(PathBuf),
    /// It could not be read.
    Unreadable(String),
}

impl LeftOut {
    /// The version that it is of instead, if it is the library of this name.
    pub(super) fn version_of(&self, stem: &str) -> Option<String> {
        let name = self.host.file_name()?.to_str()?;
        let is_it = LibraryName::parse(name)?.stem == stem;
        match &self.reason {
            Reason::OtherVersion(version) if is_it => Some(version.clone()),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherVersion(version) => write!(f, "of driver {version}"),
            Self::NoVersion => f.write_str("does not say of which driver it is"),
            Self::Stub => f.write_str("a stub for linking programs, not the driver's library"),
            Self::Dangling => f.write_str("a link that leads nowhere"),
            Self::LinkerScript => f.write_str("a linker script, not a library"),
            Self::Script => f.write_str("a script, not the program itself"),
            Self::Bits32 => f.write_str("for 32-bit programs"),
            Self::Architecture(machine) => match machine {
                62 => f.write_str("for x86_64"),
                183 => f.write_str("for aarch64"),
                machine => write!(f, "for another architecture (ELF machine {machine})"),
            },
            Self::NotElf(error) => write!(f, "{error}"),
            Self::OtherName(Some(name)) => write!(f, "calls itself {name}"),
            Self::OtherName(None) => f.write_str("has no SONAME, so nothing can load it by name"),
            Self::OtherVendor => f.write_str("not NVIDIA's alone: images bring their own"),
            Self::Interpreter(path) => write!(f, "wants the loader {path}, which images lack"),
            Self::HostPath(path) => write!(f, "names {path}, which images lack"),
            Self::Copy(taken) => write!(f, "another copy: {} is taken", taken.display()),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}
