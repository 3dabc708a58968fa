//! The command line, the environment and the configuration file.
//!
//! clap reads the command line; the values are looked up and checked here, so that
//! every fault is told at once and not the first only.

mod arguments;
mod given;
mod options;
pub(crate) mod values;

use std::fmt;

use tracing::level_filters::LevelFilter;

use crate::config::Config;
use crate::config::file::{self, Idle};
use crate::telemetry::LogFormat;

pub use self::given::{ConfigFile, Given, Reader, Said};
pub use self::options::Effective;
use self::options::Values;

/// How `devices` and `driver` print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve the kubelet.
    Serve,
    /// Print the devices.
    Devices {
        /// In which form.
        output: Output,
    },
    /// Print the driver's files.
    Driver {
        /// In which form.
        output: Output,
    },
    /// Print how the GPUs are linked.
    Topology {
        /// In which form.
        output: Output,
        /// Which request to suggest GPUs for.
        suggest: Option<Suggest>,
    },
    /// Take away what was left on the node.
    Uninstall,
}

/// A request for whole GPUs, as the kubelet could make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggest {
    /// How many.
    pub size: usize,
    /// Those that are free, by index or UUID; none named: all.
    pub available: Vec<String>,
    /// Those that must be among them.
    pub must_include: Vec<String>,
}

/// Everything that was said on the command line, in the environment and in the
/// configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// How.
    pub config: Config,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Which log lines are written.
    pub log_level: LevelFilter,
    /// The configuration file, where there is one.
    pub file: Option<ConfigFile>,
    /// Keys of the file that do nothing here.
    pub idle: Vec<Idle>,
    /// What holds for each flag, and where it was said.
    pub effective: Effective,
}

impl Invocation {
    /// On one line, the keys of the configuration file that do nothing here, each
    /// with its reason.
    #[must_use]
    pub fn idle_keys(&self) -> Option<String> {
        let keys = self.idle.iter();
        let keys: Vec<_> = keys
            .map(|idle| format!("{} ({})", idle.key, idle.why))
            .collect();
        (!keys.is_empty()).then(|| keys.join(", "))
    }
}

/// Why there is nothing to do.
#[derive(Debug)]
pub enum Stop {
    /// Help or the version was asked for.
    Help(String),
    /// Something is wrong with the arguments.
    Usage(UsageErrors),
}

/// Every fault of the arguments, of the variables and of the configuration file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UsageErrors(Vec<String>);

impl UsageErrors {
    /// One line for each, with its place and, where there is one, its remedy.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.0
    }
}

impl fmt::Display for UsageErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "error: {error}")?;
        }
        writeln!(f, "\nFor more information, try '--help'.")
    }
}

/// Reads everything that a process was given, and the configuration file that it
/// names.
///
/// # Errors
///
/// [`Stop`]: help was asked for, or any argument or variable, or anything in the
/// file, is wrong.
pub fn parse(given: &Given) -> Result<Invocation, Stop> {
    interpret(given, &file::read)
}

/// The same, with any reader of files.
///
/// # Errors
///
/// The same.
pub fn interpret(given: &Given, reader: &Reader<'_>) -> Result<Invocation, Stop> {
    let mut errors = UsageErrors::default();
    let matches = arguments::read(given.arguments.clone(), &mut errors)?;
    let invocation = matches.and_then(|matches| {
        let values = Values::new(given, &matches, reader, &mut errors)?;
        values.invocation()
    });
    match invocation {
        Some(invocation) if errors.0.is_empty() => Ok(invocation),
        _ => Err(Stop::Usage(errors)),
    }
}

#[cfg(test)]
mod tests;
