//! The file of limits: a line a path, and comments.

use std::fmt;
use std::fs;

use anyhow::Context;
use clap::ValueEnum;

use super::paths::HotPath;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/limits");
const RENEW: &str = "cargo bench --profile counted --bench instructions -- --renew";
/// How much more than was counted a limit allows, in percent.
const ALLOWANCE: u64 = 5;

/// How many instructions a call may take.
pub(crate) struct Limit {
    pub(crate) path: HotPath,
    most: u64,
}

enum Line {
    Limit(Limit),
    Comment(String),
}

pub(crate) struct Limits(Vec<Line>);

impl Limits {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(FILE).context(FILE)?;
        let lines = text.lines().map(Line::parse);
        Ok(Self(lines.collect::<anyhow::Result<_>>()?))
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Limit> {
        self.0.iter_mut().filter_map(|line| match line {
            Line::Limit(limit) => Some(limit),
            Line::Comment(_) => None,
        })
    }

    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let lines = self.0.iter().map(|line| match line {
            Line::Limit(limit) => format!("{} {}\n", limit.path, limit.most),
            Line::Comment(text) => format!("{text}\n"),
        });
        fs::write(FILE, lines.collect::<String>()).context(FILE)
    }
}

impl Line {
    fn parse(line: &str) -> anyhow::Result<Self> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(Self::Comment(line.to_owned()));
        }
        let (path, most) = line.split_once(' ').with_context(|| line.to_owned())?;
        let path = HotPath::from_str(path, false).map_err(anyhow::Error::msg)?;
        let most = most.trim().parse().with_context(|| line.to_owned())?;
        Ok(Self::Limit(Limit { path, most }))
    }
}

impl Limit {
    pub(crate) fn renew(&mut self, count: u64) {
        self.most = count * (100 + ALLOWANCE) / 100;
    }

    /// What is to be said where more was counted.
    pub(crate) fn fault(&self, count: u64) -> Option<String> {
        let more = count.checked_sub(self.most).filter(|more| *more > 0)?;
        let Self { path, most } = self;
        Some(format!(
            "error: {path} takes {count} instructions a call, {more} more than its limit of \
             {most}. callgrind_annotate shows where, on what `-- --keep .` leaves. Where it is \
             worth its price, have new limits written and commit them: {RENEW}"
        ))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (limit {})", self.path, self.most)
    }
}
