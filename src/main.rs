//! `gpu-device-plugin`: arguments, logs, runtime, exit code.

use std::process::ExitCode;
use std::time::Duration;

use gpu_device_plugin::app::App;
use gpu_device_plugin::cli::{self, Command, Given, Invocation};
use gpu_device_plugin::config::reload::Reloader;
use gpu_device_plugin::monitor::nvml_opener;
use gpu_device_plugin::shutdown::{Terminations, hangups};
use gpu_device_plugin::{memory, report, telemetry, uninstall};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
const FAILURE: u8 = 1;

/// From the signal to the end of the process, 2 s may pass.
const LONGEST_END: Duration = Duration::from_millis(1500);

fn main() -> ExitCode {
    let given = Given::of_process();
    let invocation = match cli::parse(&given) {
        Ok(invocation) => invocation,
        Err(cli::Stop::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(cli::Stop::Usage(errors)) => {
            eprint!("{errors}");
            return ExitCode::from(USAGE);
        }
    };
    let config = &invocation.config;
    if invocation.command != Command::Serve
        && let Some(idle) = invocation.idle_keys()
    {
        eprintln!("warning: without effect in the configuration file: {idle}");
    }
    match invocation.command.clone() {
        Command::Devices { output } => {
            let print = || report::print(config, output);
            finish(print().map(|()| ExitCode::SUCCESS), |error| {
                eprintln!("error: {error:#}");
            })
        }
        Command::Driver { output } => {
            let works = report::driver::print(config, output);
            finish(works.map(code), |error| eprintln!("error: {error:#}"))
        }
        Command::Topology { output, suggest } => {
            let print = || report::topology::print(config, output, suggest.as_ref());
            finish(print().map(|()| ExitCode::SUCCESS), |error| {
                eprintln!("error: {error:#}");
            })
        }
        Command::Uninstall => code(uninstall::print(config)),
        Command::Serve => {
            memory::share_one_arena();
            telemetry::init(invocation.log_format, invocation.log_level);
            finish(serve(given, invocation), |error| {
                error!(error = format!("{error:#}"), "stopped");
            })
        }
    }
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    }
}

fn finish(result: anyhow::Result<ExitCode>, tell: impl Fn(&anyhow::Error)) -> ExitCode {
    result.unwrap_or_else(|error| {
        tell(&error);
        ExitCode::from(FAILURE)
    })
}

fn serve(given: Given, invocation: Invocation) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let code = runtime.block_on(run(given, invocation));
    // A call that hangs in the driver must not hold up the end.
    runtime.shutdown_background();
    code
}

/// One thread for all that waits: what blocks (calls into the driver, volumes,
/// files that are written) has threads of its own, and a second one here would only
/// have the two wake each other.
fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread()
        .thread_name("blocking")
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
}

async fn run(given: Given, invocation: Invocation) -> anyhow::Result<ExitCode> {
    // First of all, so that no signal ends the process before it could clean up.
    let mut terminations = Terminations::listen()?;
    let mut hangups = hangups()?;
    let reloader = Reloader::new(given, &invocation);
    let idle = invocation.idle_keys();
    let config = invocation.config;
    info!(version = env!("CARGO_PKG_VERSION"), %config, "starting");
    if let Some(idle) = idle {
        warn!(keys = idle, "without effect in the configuration file");
    }
    let open = nvml_opener(&config);
    let mut app = App::start(config, open, reloader).await?;
    info!(address = %app.http_address, "serving /livez, /readyz and /metrics");
    let signal = loop {
        tokio::select! {
            signal = terminations.next() => break signal,
            Some(()) = hangups.recv() => app.rescan(),
            failed = app.failed() => failed?,
        }
    };
    info!(signal, "stopping");
    tokio::select! {
        ended = timeout(LONGEST_END, app.stop()) => if ended.is_err() {
            error!("some connections did not end in time");
        },
        signal = terminations.next() => {
            error!(signal, "stopping at once");
            return Ok(ExitCode::from(FAILURE));
        }
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}
