//! What the system knows of a process, and of the machine.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Resident memory, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) anonymous: u64,
    pub(crate) file: u64,
    /// Pages shared with others count in part.
    pub(crate) proportional: u64,
    /// What the mappings of NVML's library take of `resident`.
    pub(crate) nvml: u64,
    pub(crate) threads: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32, nvml: &Path) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        Ok(Self {
            resident: field(&status, "VmRSS:"),
            anonymous: field(&status, "RssAnon:"),
            file: field(&status, "RssFile:"),
            proportional: field(&rollup, "Pss:"),
            nvml: resident_of(&smaps, &nvml.to_string_lossy()),
            threads: field(&status, "Threads:"),
        })
    }
}

/// The number after a name, or 0.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Sums up Rss over the mappings of a file.
fn resident_of(smaps: &str, file: &str) -> u64 {
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        // `7f...-7f... r-xp ...` begins a mapping, `Rss: ...` is in one.
        if first.contains('-') && !first.ends_with(':') {
            inside = line.ends_with(file);
        } else if inside {
            sum += field(line, "Rss:");
        }
    }
    sum
}

/// Processor time of all the threads that a process has or had.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessorTime {
    pub(crate) time: Duration,
    /// As `/proc/PID/stat` counts it.
    pub(crate) ticks: u64,
}

impl ProcessorTime {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may have blanks; after it, utime and stime are 12th and 13th.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let times = fields.split(' ').skip(11).take(2);
        Ok(Self {
            time: processor_clock(pid)?,
            ticks: times.filter_map(|time| time.parse::<u64>().ok()).sum(),
        })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            time: self.time.saturating_sub(earlier.time),
            ticks: self.ticks.saturating_sub(earlier.ticks),
        }
    }
}

/// The clock behind the ticks, which are 10 ms.
#[allow(unsafe_code)]
fn processor_clock(pid: u32) -> io::Result<Duration> {
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
