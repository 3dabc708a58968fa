//! All that was measured of one plugin, and what it comes to.

use std::time::Duration;

use super::groups::Group;

/// The unit of counts, which are not to be compared.
pub(crate) const TIMES: &str = "times";

/// So many times have a fastest and a percentile that say more than the median and
/// the slowest.
const FEW: usize = 10;

/// One figure, measured once a round.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) group: Group,
    /// What it stands under in the table.
    pub(crate) title: String,
    /// There once in its group.
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) rounds: Vec<f64>,
}

/// All figures of one plugin, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) all: Vec<Figure>,
    /// What could not be measured, and what else has to be known.
    pub(crate) notes: Vec<String>,
}

impl Figures {
    pub(crate) fn section(&mut self, group: Group, title: impl Into<String>) -> Section<'_> {
        Section {
            figures: self,
            group,
            title: title.into(),
        }
    }

    /// Says it once, however many rounds it is true in.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// All of it, with the plugin's log, for who looks on; its head for the table.
    pub(crate) fn failed(&mut self, plugin: &str, what: &str, error: &anyhow::Error) {
        let text = format!("{error:#}");
        eprintln!("{plugin}: {what}: {text}");
        let head = text.lines().next().unwrap_or_default();
        self.note(format!("{what}: {head}"));
    }

    pub(crate) fn get(&self, group: Group, name: &str) -> Option<&Figure> {
        let mut all = self.all.iter();
        all.find(|figure| figure.group == group && figure.name == name)
    }
}

/// Where figures are put.
pub(crate) struct Section<'a> {
    figures: &'a mut Figures,
    group: Group,
    title: String,
}

impl Section<'_> {
    /// This round's value.
    pub(crate) fn put(&mut self, name: impl Into<String>, unit: impl Into<String>, value: f64) {
        let (group, name) = (self.group, name.into());
        let mut all = self.figures.all.iter_mut();
        match all.find(|figure| figure.group == group && figure.name == name) {
            Some(figure) => figure.rounds.push(value),
            None => self.figures.all.push(Figure {
                group,
                title: self.title.clone(),
                name,
                unit: unit.into(),
                rounds: vec![value],
            }),
        }
    }

    /// Times of what may have failed. Of a few only the median and the slowest.
    pub(crate) fn times(&mut self, what: &str, times: &[Option<Duration>]) {
        let sorted = sorted(times.iter().flatten().map(|time| time.as_secs_f64() * 1e3));
        let many = times.len() >= FEW;
        let statistics = [
            ("fastest", sorted.first().copied(), many),
            ("median", median(&sorted), true),
            ("p99", permille(&sorted, 990), many),
            ("slowest", sorted.last().copied(), true),
        ];
        for (name, value, wanted) in statistics {
            if let Some(value) = value.filter(|_| wanted) {
                self.put(format!("{what}{name}"), "ms", value);
            }
        }
        let missed = times.len() - sorted.len();
        self.put(format!("{what}missed"), TIMES, missed as f64);
        self.put(format!("{what}all"), TIMES, times.len() as f64);
    }

    /// Percentiles of calls. Sorted times.
    pub(crate) fn calls(&mut self, what: &str, calls: &[Duration]) {
        for (name, part) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            if let Some(time) = permille(calls, part) {
                self.put(format!("{what}, {name}"), "us", microseconds(time));
            }
        }
    }
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0),
        _ => sorted.get(middle).copied(),
    }
}

/// The smallest value that so many in a thousand do not exceed. Sorted values.
pub(crate) fn permille<T: Copy>(sorted: &[T], part: usize) -> Option<T> {
    let rank = (sorted.len() * part).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}
