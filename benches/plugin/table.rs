//! The figures side by side.

use serde_json::{Value, json};

use super::arguments::Settings;
use super::figures::{Figure, Figures, TIMES, median, sorted};
use super::groups::Group;
use super::targets::{self, Bound, Judged, TARGETS, Target};

const NAME_WIDTH: usize = 52;
const UNIT_WIDTH: usize = 8;
const COLUMN_WIDTH: usize = 28;
const RATIO_WIDTH: usize = 10;

/// A figure over its rounds.
#[derive(Debug, Clone, Copy)]
struct Spread {
    least: f64,
    middle: f64,
    most: f64,
}

impl Spread {
    fn of(figure: &Figure) -> Option<Self> {
        let rounds = sorted(figure.rounds.iter().copied());
        Some(Self {
            least: *rounds.first()?,
            middle: median(&rounds)?,
            most: *rounds.last()?,
        })
    }

    fn judged(self, by: Judged) -> f64 {
        match by {
            Judged::Median => self.middle,
            Judged::Worst => self.most,
        }
    }
}

/// One figure of every plugin.
struct Row {
    group: Group,
    title: String,
    name: String,
    unit: String,
    values: Vec<Option<Spread>>,
    rounds: Vec<Vec<f64>>,
    verdict: Option<Verdict>,
}

/// What a target says of our figure.
struct Verdict {
    bound: String,
    /// Nothing where there is nothing to compare with.
    met: Option<bool>,
}

/// All that was measured, as a table and as JSON.
pub(crate) struct Table<'a> {
    settings: &'a Settings,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(settings: &'a Settings, all: &[Figures]) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for figure in all.iter().flat_map(|figures| &figures.all) {
            let is_there = |row: &Row| row.group == figure.group && row.name == figure.name;
            if !rows.iter().any(is_there) {
                rows.push(row(figure, settings, all));
            }
        }
        // What only a later plugin has goes to its kind; all else stays as it was
        // measured.
        let mut titles: Vec<_> = rows.iter().map(|row| row.title.clone()).collect();
        titles.dedup();
        let place = |row: &Row| titles.iter().position(|title| *title == row.title);
        rows.sort_by_key(|row| (row.group, place(row)));
        let notes = all
            .iter()
            .zip(&settings.subjects)
            .flat_map(|(of, subject)| {
                let notes = of.notes.iter();
                notes.map(|note| format!("{}: {note}", subject.name))
            });
        let notes = notes.chain(without_figure(settings, &rows)).collect();
        Self {
            settings,
            rows,
            notes,
        }
    }

    /// For people; with other plugins it has our ratio to the first of them.
    pub(crate) fn text(&self) -> String {
        let subjects = &self.settings.subjects;
        let mut head = vec![
            format!("{} rounds", self.settings.rounds),
            "unit".to_owned(),
        ];
        head.extend(subjects.iter().map(|subject| subject.name.clone()));
        let ratio = subjects.len() > 1;
        head.extend(ratio.then(|| "1st / 2nd".to_owned()));
        head.push("target".to_owned());
        let mut text = line(&head, ratio);
        let mut title = "";
        for row in &self.rows {
            if row.title != title {
                title = &row.title;
                text += &format!("\n{title}\n");
            }
            text += &line(&row.cells(ratio), ratio);
        }
        if !self.notes.is_empty() {
            text += "\nnotes\n";
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text
    }

    /// For programs.
    pub(crate) fn json(&self, machine: &str) -> serde_json::Result<String> {
        let subjects = &self.settings.subjects;
        let names: Vec<_> = subjects.iter().map(|subject| &subject.name).collect();
        let rows: Vec<_> = self.rows.iter().map(|row| row.json(&names)).collect();
        serde_json::to_string_pretty(&json!({
            "machine": machine,
            "gpus": self.settings.gpus,
            "rounds": self.settings.rounds,
            "plugins": names,
            "figures": rows,
            "notes": self.notes,
        }))
    }
}

fn row(figure: &Figure, settings: &Settings, all: &[Figures]) -> Row {
    let of_all: Vec<_> = all
        .iter()
        .map(|figures| figures.get(figure.group, &figure.name))
        .collect();
    let values: Vec<_> = of_all.iter().map(|of| of.and_then(Spread::of)).collect();
    let verdict = target_of(settings, figure.group, &figure.name)
        .map(|target| verdict(target, &values, settings));
    Row {
        group: figure.group,
        title: figure.title.clone(),
        name: figure.name.clone(),
        unit: figure.unit.clone(),
        rounds: of_all
            .iter()
            .map(|of| of.map_or_else(Vec::new, |of| of.rounds.clone()))
            .collect(),
        values,
        verdict,
    }
}

fn target_of(settings: &Settings, group: Group, name: &str) -> Option<&'static Target> {
    let mut targets = TARGETS.iter().filter(|_| settings.gpus == targets::GPUS);
    targets.find(|target| target.group == group && target.name == name)
}

fn verdict(target: &Target, values: &[Option<Spread>], settings: &Settings) -> Verdict {
    let value = |column: usize| values.get(column).copied().flatten();
    let ours = value(0).map(|spread| spread.judged(target.judged));
    match target.bound {
        Bound::AtMost(most) => Verdict {
            bound: format!("<= {}", number(most)),
            met: ours.map(|ours| ours <= most),
        },
        Bound::OfOther(part) => {
            let other = value(1).map(|spread| spread.judged(target.judged));
            let other = ours.zip(other);
            let name = settings.subjects.get(1).map_or("another", |s| &s.name);
            Verdict {
                bound: format!("<= {part} x {name}"),
                met: other.map(|(ours, other)| ours <= part * other),
            }
        }
    }
}

/// Targets that were to be judged, and nothing was measured of.
fn without_figure(settings: &Settings, rows: &[Row]) -> Vec<String> {
    let judged = |target: &Target| {
        let mut rows = rows.iter().filter(|row| row.group == target.group);
        rows.any(|row| row.name == target.name && row.values.first().is_some_and(Option::is_some))
    };
    let mut missing = Vec::new();
    for target in &TARGETS {
        let wanted = settings.groups.contains(&target.group) && settings.gpus == targets::GPUS;
        if wanted && !judged(target) {
            missing.push(format!("no figure for the target of {:?}", target.name));
        }
    }
    missing
}

impl Row {
    fn cells(&self, ratio: bool) -> Vec<String> {
        let mut cells = vec![format!("  {}", self.name), self.unit.clone()];
        cells.extend(self.values.iter().map(|value| cell(*value)));
        if ratio {
            cells.push(self.ratio().unwrap_or_default());
        }
        let verdict = self.verdict.as_ref();
        cells.push(
            verdict.map_or_else(String::new, |verdict| match verdict.met {
                Some(true) => format!("{}  met", verdict.bound),
                Some(false) => format!("{}  MISSED", verdict.bound),
                None => verdict.bound.clone(),
            }),
        );
        cells
    }

    fn ratio(&self) -> Option<String> {
        let (first, second) = (self.values.first()?, self.values.get(1)?);
        let (first, second) = ((*first)?.middle, (*second)?.middle);
        let compares = second > 0.0 && self.unit != TIMES;
        compares.then(|| number(first / second))
    }

    fn json(&self, names: &[&String]) -> Value {
        let values = names.iter().enumerate().map(|(column, name)| {
            let spread = self.values.get(column).copied().flatten();
            let value = spread.map(|spread| {
                json!({
                    "median": spread.middle,
                    "least": spread.least,
                    "most": spread.most,
                    "rounds": self.rounds.get(column),
                })
            });
            ((*name).clone(), value.unwrap_or_default())
        });
        let target = self.verdict.as_ref();
        json!({
            "group": self.group.name(),
            "title": self.title,
            "figure": self.name,
            "unit": self.unit,
            "values": values.collect::<serde_json::Map<_, _>>(),
            "target": target.map(|target| json!({ "bound": target.bound, "met": target.met })),
        })
    }
}

/// Name, unit, the plugins' columns, the ratio where there is one, the target.
fn line(cells: &[String], ratio: bool) -> String {
    let target = cells.len() - 1;
    let cell = |(column, cell): (usize, &String)| match column {
        0 => format!("{cell:<NAME_WIDTH$}"),
        1 => format!("{cell:<UNIT_WIDTH$}"),
        _ if column == target => format!("  {cell}"),
        _ if ratio && column + 1 == target => format!("{cell:>RATIO_WIDTH$}"),
        _ => format!("{cell:>COLUMN_WIDTH$}"),
    };
    let line: String = cells.iter().enumerate().map(cell).collect();
    format!("{}\n", line.trim_end())
}

/// The median over the rounds, and the least and the most where they differ.
fn cell(value: Option<Spread>) -> String {
    let Some(Spread {
        least,
        middle,
        most,
    }) = value
    else {
        return "-".to_owned();
    };
    if least == most {
        return number(middle);
    }
    format!("{} [{}..{}]", number(middle), number(least), number(most))
}

/// With three digits that mean something.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.001 {
        return format!("{value:.1e}");
    }
    let digits = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}
