//! The layouts that nodes have: where each distribution and installer puts a
//! driver's files, and what lies about beside them. Where it is known from says
//! each layout's comment.

pub mod decoys;
pub mod distributions;
pub mod images;
pub mod installers;

use crate::kit::Kit;
use crate::tree::Tree;

/// One of them.
pub struct Layout {
    /// What its golden lists are called.
    pub name: &'static str,
    /// Puts the driver into an empty tree.
    pub build: fn(&Kit, &Tree),
    /// The driver root as the host names it.
    pub root: &'static str,
    pub lists: Lists,
}

/// Of which drivers and capabilities a layout has golden lists. All drivers are
/// held to the oracle in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// Of every driver, also for all capabilities.
    Every,
    /// Of the drivers since 535, also for all capabilities.
    All,
    /// Of the drivers since 535; for all capabilities since 550 only.
    Newest,
    /// Of the drivers since 535; for compute and utility only.
    Default,
}

impl Layout {
    pub const fn new(name: &'static str, build: fn(&Kit, &Tree), lists: Lists) -> Self {
        Self {
            name,
            build,
            root: "/",
            lists,
        }
    }
}

impl Lists {
    /// Whether there is a list of this branch for compute and utility, and one
    /// for all capabilities.
    pub fn of(self, branch: &str) -> [bool; 2] {
        let branch: u32 = branch.parse().unwrap();
        match self {
            Self::Every => [true, true],
            Self::All => [branch >= 535; 2],
            Self::Newest => [branch >= 535, branch >= 550],
            Self::Default => [branch >= 535, false],
        }
    }
}
