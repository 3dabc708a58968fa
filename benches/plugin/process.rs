//! What the system knows of a process, and of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

/// Memory in MB, which are 1,000,000 bytes, and threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    pub(crate) anonymous: f64,
    /// Pages shared with others count in part.
    pub(crate) proportional: f64,
    pub(crate) threads: f64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let megabytes = |kibibytes: f64| kibibytes * 1024.0 / 1e6;
        Ok(Self {
            resident: megabytes(field(&status, "VmRSS:")),
            anonymous: megabytes(field(&status, "RssAnon:")),
            proportional: megabytes(field(&rollup, "Pss:")),
            threads: field(&status, "Threads:"),
        })
    }

    /// What came since `before`.
    pub(crate) fn beyond(self, before: Self) -> Self {
        Self {
            resident: self.resident - before.resident,
            anonymous: self.anonymous - before.anonymous,
            proportional: self.proportional - before.proportional,
            threads: self.threads - before.threads,
        }
    }
}

/// The number after a name, or 0.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// How often the threads of a process fell asleep, each by its number: as often
/// as they were woken. Being put aside for another program is not counted.
fn falls_asleep(pid: u32) -> io::Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?;
        // One that has ended since counts as it was last seen.
        if let Ok(status) = fs::read_to_string(thread.path().join("status")) {
            let name = thread.file_name().to_string_lossy().into_owned();
            counts.insert(name, field(&status, "voluntary_ctxt_switches:"));
        }
    }
    Ok(counts)
}

/// How often a process is woken in this time. It is looked at every second, not to
/// miss threads that come and go.
pub(crate) async fn wake_ups(pid: u32, time: Duration) -> io::Result<f64> {
    let end = tokio::time::Instant::now() + time;
    let before = falls_asleep(pid)?;
    let mut after = before.clone();
    while tokio::time::Instant::now() < end {
        let next = tokio::time::Instant::now() + Duration::from_secs(1);
        tokio::time::sleep_until(next.min(end)).await;
        after.extend(falls_asleep(pid)?);
    }
    let of_threads = after
        .iter()
        .map(|(thread, after)| after - before.get(thread).copied().unwrap_or(0.0));
    Ok(of_threads.sum())
}

/// Processor time of all the threads that a process has or had, by the clock
/// behind the ticks of `/proc/PID/stat`, which are 10 ms.
#[allow(unsafe_code)]
pub(crate) fn processor_time(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock = 0;
    // SAFETY: a place for one clock's number.
    let error = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a place for one time.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// The size of a process's program without symbols, in bytes.
pub(crate) fn stripped_size(pid: u32) -> anyhow::Result<u64> {
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    let folder = tempfile::tempdir()?;
    let stripped = folder.path().join("stripped");
    let strip = Command::new("strip")
        .arg("-o")
        .args([&stripped, &program])
        .status();
    anyhow::ensure!(
        strip.context("strip, of binutils")?.success(),
        "strip refuses {}",
        program.display()
    );
    Ok(fs::metadata(stripped)?.len())
}

/// The three load averages.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<_> = text.split(' ').take(3).collect();
    averages.join(" ")
}

/// Processors and kernel.
pub(crate) fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':']));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{processors} x {model}, Linux {}", kernel.trim())
}
