//! The figures side by side.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::arguments::Settings;
use super::figures::{Figures, median, microseconds, milliseconds, percentile};
use super::life::{Answer, Life};
use super::process::Memory;

const NAME_WIDTH: usize = 46;
const COLUMN_WIDTH: usize = 18;

type Part<Whole, Number> = fn(Whole) -> Number;

/// One figure of every plugin.
pub(crate) struct Row {
    group: &'static str,
    name: &'static str,
    unit: &'static str,
    values: Vec<Option<f64>>,
    /// Out of how many, where the values are counts of successes.
    of: Option<Vec<usize>>,
}

/// All rows, from all plugins' figures.
pub(crate) fn rows(settings: &Settings, all: &[Figures]) -> Vec<Row> {
    let mut table = Table {
        all,
        group: "",
        rows: Vec::new(),
    };
    table.times("start to registered", |f| f.starts.clone());
    table.calls();
    table.times("kubelet restart to registered", Figures::restarts);
    table.times("XID 79 to Unhealthy at the kubelet", Figures::xids);
    table.memory("memory at rest", |life| life.at_rest);
    table.memory("memory after the load", |life| life.after_load);
    table.group = "at rest";
    table.row("threads", "", |f| {
        f.of_lives(|life| life.at_rest.map(|m| m.threads as f64))
    });
    let tenfold = 10.0 / settings.rest.as_secs_f64();
    table.row("processor time in 10 s", "ms", |f| {
        f.of_lives(|life| {
            life.rest
                .map(|rest| rest.time.as_secs_f64() * 1e3 * tenfold)
        })
    });
    table.row("ticks of 10 ms in the window", "", |f| {
        f.of_lives(|life| life.rest.map(|rest| rest.ticks as f64))
    });
    table.rows
}

struct Table<'a> {
    all: &'a [Figures],
    group: &'static str,
    rows: Vec<Row>,
}

impl Table<'_> {
    fn row(
        &mut self,
        name: &'static str,
        unit: &'static str,
        value: impl Fn(&Figures) -> Option<f64>,
    ) {
        self.rows.push(Row {
            group: self.group,
            name,
            unit,
            values: self.all.iter().map(value).collect(),
            of: None,
        });
    }

    /// Times that may have been missed.
    fn times(&mut self, group: &'static str, times: impl Fn(&Figures) -> Vec<Option<Duration>>) {
        self.group = group;
        let sorted = |figures: &Figures| milliseconds(&times(figures));
        self.row("median", "ms", |f| median(sorted(f)));
        self.row("p99", "ms", |f| percentile(&sorted(f), 99));
        self.row("slowest", "ms", |f| sorted(f).last().copied());
        self.row("succeeded", "", |f| Some(sorted(f).len() as f64));
        let of = self.all.iter().map(|f| times(f).len()).collect();
        if let Some(row) = self.rows.last_mut() {
            row.of = Some(of);
        }
    }

    fn calls(&mut self) {
        let options = |life: &Life, percent| microseconds(&life.options, percent);
        let allocate = |life: &Life, percent| microseconds(&life.allocate, percent);
        self.group = "calls";
        for (name, percent) in [
            ("GetDevicePluginOptions p50", 50),
            ("GetDevicePluginOptions p99", 99),
        ] {
            self.row(name, "us", |f| f.of_lives(|life| options(life, percent)));
        }
        for (name, percent) in [("Allocate p50", 50), ("Allocate p99", 99)] {
            self.row(name, "us", |f| f.of_lives(|life| allocate(life, percent)));
        }
        self.row("Allocate / GetDevicePluginOptions, p50", "", |f| {
            f.of_lives(|life| Some(allocate(life, 50)? / options(life, 50)?))
        });
        let parts: [(_, _, Part<Answer, usize>); 4] = [
            ("Allocate's answer: device nodes", "", |a| a.devices),
            ("Allocate's answer: mounts", "", |a| a.mounts),
            ("Allocate's answer: variables", "", |a| a.variables),
            ("Allocate's answer: size", "B", |a| a.bytes),
        ];
        for (name, unit, part) in parts {
            self.row(name, unit, |f| {
                f.of_lives(|life| life.answer.map(|answer| part(answer) as f64))
            });
        }
    }

    fn memory(&mut self, group: &'static str, when: fn(&Life) -> Option<Memory>) {
        self.group = group;
        let parts: [(_, Part<Memory, u64>); 6] = [
            ("resident (VmRSS)", |m| m.resident),
            ("of it anonymous (RssAnon)", |m| m.anonymous),
            ("of it files (RssFile)", |m| m.file),
            ("of it NVML's library", |m| m.nvml),
            ("resident without NVML's library", |m| {
                m.resident.saturating_sub(m.nvml)
            }),
            ("proportional (Pss)", |m| m.proportional),
        ];
        for (name, part) in parts {
            self.row(name, "MiB", |f| f.mebibytes(when, part));
        }
    }
}

/// The table for people; with two plugins it has their ratio.
pub(crate) fn text(settings: &Settings, rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        let (name, columns) = cells.split_first()?;
        let columns: String = columns
            .iter()
            .map(|cell| format!("{cell:>COLUMN_WIDTH$}"))
            .collect();
        let line = format!("{name:<NAME_WIDTH$}{columns}");
        // Writing to a string cannot fail.
        writeln!(text, "{}", line.trim_end()).ok()
    };
    let names: Vec<_> = settings.subjects.iter().map(|s| s.name.clone()).collect();
    let mut head = vec![format!(
        "{} GPUs, {} rounds",
        settings.gpus, settings.rounds
    )];
    head.extend(names.clone());
    if names.len() == 2 {
        head.push("first / second".to_owned());
    }
    line(&head);
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = row.group;
            line(&[String::new()]);
            line(&[group.to_owned()]);
        }
        let mut cells = vec![format!("  {}", row.name)];
        cells.extend((0..names.len()).map(|column| row.cell(column)));
        cells.extend(row.ratio());
        line(&cells);
    }
    text
}

impl Row {
    fn cell(&self, column: usize) -> String {
        let value = self.values.get(column).copied().flatten();
        let Some(value) = value else {
            return "-".to_owned();
        };
        if let Some(of) = self.of.as_ref().and_then(|of| of.get(column)) {
            return format!("{value} of {of}");
        }
        let number = if value.fract() == 0.0 || value >= 1000.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.2}")
        };
        format!("{number} {}", self.unit).trim_end().to_owned()
    }

    fn ratio(&self) -> Option<String> {
        match self.values[..] {
            [Some(first), Some(second)] if second > 0.0 && self.of.is_none() => {
                Some(format!("{:.2}", first / second))
            }
            _ => None,
        }
    }
}

/// The same for programs: plugin, group, figure.
pub(crate) fn json(settings: &Settings, rows: &[Row]) -> serde_json::Result<String> {
    let mut plugins = Map::new();
    for (column, subject) in settings.subjects.iter().enumerate() {
        let mut groups: Map<String, Value> = Map::new();
        for row in rows {
            let value = row.values.get(column).copied().flatten();
            let of = row.of.as_ref().and_then(|of| of.get(column));
            let figure = json!({ "value": value, "unit": row.unit, "of": of });
            let group = groups
                .entry(row.group)
                .or_insert_with(|| Value::Object(Map::new()));
            group[row.name] = figure;
        }
        plugins.insert(subject.name.clone(), Value::Object(groups));
    }
    let all = json!({
        "gpus": settings.gpus,
        "rounds": settings.rounds,
        "plugins": plugins,
    });
    serde_json::to_string_pretty(&all)
}
