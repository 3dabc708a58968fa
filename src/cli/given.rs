//! What a process is started with, and where the value of a flag comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::arguments;
use crate::config::file::Settings;

/// The command line and the environment. They stay as they are for as long as
/// the process lives; the configuration file does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The first is the program's name.
    pub(super) arguments: Vec<OsString>,
    environment: Environment,
}

/// Variables by name. One that is empty counts as not set: it is what a template left
/// empty.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Environment {
    OfProcess,
    These(BTreeMap<String, String>),
}

impl Default for Environment {
    fn default() -> Self {
        Self::These(BTreeMap::new())
    }
}

impl Given {
    /// This process' own.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            arguments: std::env::args_os().collect(),
            environment: Environment::OfProcess,
        }
    }

    /// Any.
    #[must_use]
    pub fn new(
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Environment::These(variables.into_iter().collect()),
        }
    }

    /// A variable that is set.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let text = match &self.environment {
            Environment::OfProcess => std::env::var_os(name)?.to_string_lossy().into_owned(),
            Environment::These(variables) => variables.get(name)?.clone(),
        };
        Some(text).filter(|text| !text.is_empty())
    }
}

/// The value of a flag as text, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// As the flag takes it.
    pub text: String,
    /// As people look for it: the flag, its variable, or the place in the file. A
    /// default has the flag's.
    pub place: String,
}

/// All places that a value may be said at. Of one flag, the command line goes
/// before the environment, that before the file, and that before the default.
pub(super) struct Sources<'a> {
    pub(super) given: &'a Given,
    pub(super) matches: &'a ArgMatches,
    pub(super) file: Settings,
    pub(super) path: PathBuf,
}

impl Sources<'_> {
    /// What holds for the flag `id`, if anything says it.
    pub(super) fn find(&self, id: &str) -> Option<Said> {
        self.argument(id, ValueSource::CommandLine)
            .or_else(|| self.variable(id))
            .or_else(|| self.in_file(id))
            .or_else(|| self.argument(id, ValueSource::DefaultValue))
    }

    /// What the file says, whether it holds or not.
    pub(super) fn in_file(&self, id: &str) -> Option<Said> {
        let setting = self.file.flags.get(id)?;
        Some(Said {
            text: setting.text.clone(),
            place: setting.place.within(&self.path),
        })
    }

    fn variable(&self, id: &str) -> Option<Said> {
        let name = arguments::variables().get(id)?;
        Some(Said {
            text: self.given.variable(name)?,
            place: name.clone(),
        })
    }

    /// Several flags of one name are as one with several words.
    fn argument(&self, id: &str, source: ValueSource) -> Option<Said> {
        if self.matches.value_source(id) != Some(source) {
            return None;
        }
        let texts = self.matches.get_raw(id)?;
        let texts: Vec<_> = texts.map(|text| text.to_string_lossy()).collect();
        Some(Said {
            text: texts.join(","),
            place: arguments::flag(id),
        })
    }
}

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// As it was named.
    pub path: PathBuf,
    /// What it held.
    pub content: Vec<u8>,
}

/// Reads a configuration file; an error is in words.
pub type Reader<'a> = dyn Fn(&Path) -> Result<Vec<u8>, String> + 'a;
