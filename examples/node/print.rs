//! One line a step, and what belongs to it.

use std::fmt::Display;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

/// The longest title of a step, roughly.
const TITLE_WIDTH: usize = 58;
const TIME_WIDTH: usize = 10;
/// Detail lines are broken before this column.
const LINE_WIDTH: usize = 88;
const INDENT: &str = "          ";

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// A step that held.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) time: Option<Duration>,
    pub(crate) details: Vec<String>,
}

impl Step {
    pub(crate) fn took(time: Duration) -> Self {
        Self {
            time: Some(time),
            details: Vec::new(),
        }
    }

    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }
}

/// A step that did not hold.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) expected: String,
    pub(crate) came: String,
}

impl Failure {
    pub(crate) fn new(expected: impl Into<String>, came: impl Display) -> Self {
        Self {
            expected: expected.into(),
            came: came.to_string(),
        }
    }
}

/// Whether it is so, or else what was expected and what came.
pub(crate) fn ensure(so: bool, expected: &str, came: impl Display) -> Result<(), Failure> {
    if so {
        Ok(())
    } else {
        Err(Failure::new(expected, came))
    }
}

/// Writes steps to standard output, with colours where a person looks on.
pub(crate) struct Printer {
    colours: bool,
}

impl Printer {
    pub(crate) fn new() -> Self {
        // https://no-color.org
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colours: stdout().is_terminal() && !unwanted,
        }
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}\n", self.paint(BOLD, text));
    }

    pub(crate) fn held(&self, title: &str, step: &Step) {
        let time = step.time.map(format_time).unwrap_or_default();
        let line = format!("{title:<TITLE_WIDTH$} {time:>TIME_WIDTH$}");
        println!("{}  {}", self.paint(GREEN, "ok      "), line.trim_end());
        for detail in &step.details {
            print_wrapped(detail);
        }
    }

    pub(crate) fn skipped(&self, title: &str) {
        println!(
            "{}  {title:<TITLE_WIDTH$} (needs simulated GPUs)",
            self.paint(YELLOW, "skipped ")
        );
    }

    pub(crate) fn failed(&self, title: &str, failure: &Failure, log: &str) {
        println!("{}  {title}", self.paint(RED, "FAILED  "));
        println!("{INDENT}expected: {}", failure.expected);
        println!("{INDENT}came:     {}", indented(&failure.came));
        println!("{INDENT}the plugin's log:\n{INDENT}  {}", indented(log));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', &format!("\n{INDENT}  "))
}

/// Three digits, and the unit that fits.
pub(crate) fn format_time(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        10.0..100.0 => format!("{ms:.1} ms"),
        100.0..10_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// Breaks between words; further lines stand two columns to the right.
fn print_wrapped(text: &str) {
    let mut line = INDENT.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.len() + 1 + word.len() > LINE_WIDTH {
            println!("{line}");
            line = format!("{INDENT}  ");
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    println!("{line}");
}
