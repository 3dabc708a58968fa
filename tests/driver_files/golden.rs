//! The lists of what is chosen from each layout, and what is not.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use gpu_device_plugin::driver::DriverFiles;

use crate::kit::Kit;

/// Holds the files that were found to the list of this name. `UPDATE_GOLDEN=1`
/// writes the list anew.
pub fn check(name: &str, kit: &Kit, files: &DriverFiles) {
    let found = text(files).replace(&kit.version, "*");
    let path = path(&format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, found).unwrap();
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}; make it with UPDATE_GOLDEN=1, and read it:\n{found}",
            path.display()
        )
    });
    if golden != found {
        panic!(
            "{} with {}: - is what should be found, + what is; where it is right, \
             UPDATE_GOLDEN=1 takes it over\n{}",
            path.display(),
            kit.version,
            difference(&golden, &found)
        );
    }
}

fn path(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/driver_files/golden");
    Path::new(folder).join(name)
}

/// A list: files, what was left out, what is missing, what images bring.
pub fn text(files: &DriverFiles) -> String {
    let mut text = format!("layout: {}\n", files.layout());
    for file in &files.files {
        let (capability, name, host) = (file.capability, &file.name, file.host.display());
        writeln!(text, "{capability} {name} {host}").unwrap();
    }
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            writeln!(text, "\n{title}\n{}", lines.join("\n")).unwrap();
        }
    };
    let left_out = files.left_out.iter();
    section(
        "left out",
        left_out
            .map(|left| format!("{}: {}", left.host.display(), left.reason))
            .collect(),
    );
    let missing = files.missing.iter();
    section(
        "missing",
        missing
            .map(|it| format!("{}: {}", it.name, it.cost))
            .collect(),
    );
    let from_image = files.from_image.iter();
    section(
        "images bring",
        from_image
            .map(|it| format!("{}: {}", it.name, it.needed_by.join(", ")))
            .collect(),
    );
    text
}

/// Lines that only one of them has, as `diff` has them.
fn difference(golden: &str, found: &str) -> String {
    let only_in = |one: &str, other: &str, sign: char| {
        let lines = one
            .lines()
            .filter(|line| !other.lines().any(|it| it == *line));
        lines
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    let difference = only_in(golden, found, '-') + &only_in(found, golden, '+');
    if difference.is_empty() {
        return format!("the order differs:\n{found}");
    }
    difference
}
