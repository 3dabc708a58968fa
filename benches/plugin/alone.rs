//! What the NVML library takes by itself: a program that loads and initialises it,
//! and does nothing else.
//!
//! The program is this benchmark, started with a library's path: what it takes
//! before and after is the library's.

#![allow(
    unsafe_code,
    reason = "a library is loaded and called by its C interface"
)]

use std::ffi::{CStr, CString, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::{ExitCode, Stdio};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::common::nvml::SimulatedNode;
use super::process::Memory;

const FLAG: &str = "--load-nvml-alone";

/// The library's path, where this process is that program.
pub(crate) fn asked() -> Option<OsString> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == FLAG).then(|| arguments.next())?
}

/// The program: after each step it waits for a byte.
pub(crate) fn run(library: &OsString) -> ExitCode {
    let steps = || -> io::Result<()> {
        wait_for_byte()?;
        initialise(library)?;
        // Until whoever looks on is gone.
        drop(wait_for_byte());
        Ok(())
    };
    match steps() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", library.display());
            ExitCode::FAILURE
        }
    }
}

fn wait_for_byte() -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(b".").and_then(|()| out.flush())?;
    io::stdin().read_exact(&mut [0])
}

fn initialise(library: &OsString) -> io::Result<()> {
    let path = CString::new(library.as_bytes())?;
    // SAFETY: a C string, and a library whose constructors expect nothing.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
    if library.is_null() {
        return Err(loader_error());
    }
    // SAFETY: the library stays loaded.
    let function = unsafe { libc::dlsym(library, c"nvmlInit_v2".as_ptr()) };
    if function.is_null() {
        return Err(loader_error());
    }
    // SAFETY: its type by nvml.h.
    let init: extern "C" fn() -> libc::c_int = unsafe { std::mem::transmute(function) };
    match init() {
        0 => Ok(()),
        code => Err(io::Error::other(format!("nvmlInit_v2 answers {code}"))),
    }
}

fn loader_error() -> io::Error {
    // SAFETY: after an error it is a C string until the next call of the loader.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    io::Error::other(text.unwrap_or_default())
}

/// What the node's library takes.
pub(crate) async fn nvml_alone(node: &SimulatedNode) -> anyhow::Result<Memory> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(FLAG).arg(node.nvml_library());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let pid = child.id().context("it has ended")?;
    let mut input = child.stdin.take().context("its input")?;
    let mut output = child.stdout.take().context("its output")?;
    let failed = "the program that loads NVML alone has ended";
    output.read_u8().await.context(failed)?;
    let before = Memory::of(pid)?;
    input.write_u8(b'.').await.context(failed)?;
    output.read_u8().await.context(failed)?;
    Ok(Memory::of(pid)?.beyond(before))
}
