//! What the machine that the tests run on has, and running its programs.

use std::env;
use std::fs;
use std::io::{Write, stderr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Says loudly that a test does not run: not through the capture of the output.
pub fn skip(test: &str, why: &str) {
    let line = format!("\n*** SKIPPED {test}: {why}\n");
    // In one piece, or the lines of other tests come between.
    stderr()
        .write_all(line.as_bytes())
        .expect("write to stderr");
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The first program of this name.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut places = env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| place.is_file())
}

/// The command's standard output; its failure is the test's.
pub fn output(command: &mut Command) -> String {
    match try_output(command) {
        Ok(output) => output,
        Err(error) => panic!("{error}"),
    }
}

/// The command's standard output, or all that it said.
pub fn try_output(command: &mut Command) -> Result<String, String> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if done.status.success() {
        return Ok(text(&done.stdout));
    }
    let said = text(&[done.stdout, done.stderr].concat());
    Err(format!("{command:?}: {}: {said}", done.status))
}
