//! Signals that end the process.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Terminations {
    term: Signal,
    interrupt: Signal,
}

impl Terminations {
    /// From now on these signals end nothing by themselves.
    ///
    /// # Errors
    ///
    /// The handlers could not be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one. Cancel safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.term.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            else => pending().await,
        }
    }
}

/// SIGHUP: look at everything again.
///
/// # Errors
///
/// The handler could not be installed.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}
