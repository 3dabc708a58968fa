//! Logs: one line a change of state, on standard error.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{Registry, fmt};

/// What is logged, of the process' only subscriber.
static LEVEL: OnceLock<Handle<Targets, Registry>> = OnceLock::new();

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Called once, at the start.
pub fn init(format: LogFormat, level: LevelFilter) {
    let (targets, handle) = reload::Layer::new(targets(level));
    let registry = tracing_subscriber::registry().with(targets);
    LEVEL.get_or_init(|| handle);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).init(),
        LogFormat::Json => {
            registry
                .with(
                    lines
                        .json()
                        .flatten_event(true)
                        .with_current_span(false)
                        .with_span_list(false),
                )
                .init();
        }
    }
}

/// Changes what is logged, once logging has started.
pub fn set_level(level: LevelFilter) {
    let Some(handle) = LEVEL.get() else {
        return;
    };
    if let Err(error) = handle.reload(targets(level)) {
        tracing::error!(%error, "cannot change what is logged");
    }
}

/// Libraries speak only when something is wrong.
fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level)
}
