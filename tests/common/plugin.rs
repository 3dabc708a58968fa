//! A plugin in a process of its own, and its HTTP endpoints.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test, example and bench uses a part"
)]

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long an HTTP answer may take.
const HTTP_LIMIT: Duration = Duration::from_secs(10);
/// How long the pipes of a process that ended may take to run dry.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// What did not happen in time, and what the plugin said meanwhile.
pub struct Timeout {
    what: String,
    log: String,
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waited in vain for {}; the plugin's log:\n{}",
            self.what, self.log
        )
    }
}

// `unwrap` prints Debug, and the log is what a failed test needs to show.
impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Timeout {}

/// A line that the plugin wrote, to stdout or stderr.
#[derive(Debug, Clone)]
pub struct Line {
    pub at: Instant,
    pub text: String,
}

/// A running plugin. Dropped, it is killed; if the test is failing then, its
/// log is printed.
pub struct PluginProcess {
    child: Child,
    lines: Arc<watch::Sender<Vec<Line>>>,
    readers: JoinSet<()>,
}

impl PluginProcess {
    /// Starts the program with these arguments; `environment` comes on top of
    /// the caller's own.
    pub fn spawn<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().copied());
        Self::start(command)
    }

    /// Starts any command; its input and outputs are set here.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn()?;
        let lines = Arc::new(watch::Sender::new(Vec::new()));
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(collect(stdout, Arc::clone(&lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(collect(stderr, Arc::clone(&lines)));
        }
        Ok(Self {
            child,
            lines,
            readers,
        })
    }

    /// None once its end has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub fn lines(&self) -> Vec<Line> {
        self.lines.borrow().clone()
    }

    /// The lines that were written since the last call, which are forgotten here:
    /// nobody who runs for hours can keep them all.
    pub fn take_lines(&self) -> Vec<Line> {
        let mut taken = Vec::new();
        self.lines
            .send_modify(|lines| taken = std::mem::take(lines));
        taken
    }

    /// All that was written so far.
    pub fn log(&self) -> String {
        self.lines
            .borrow()
            .iter()
            .map(|line| format!("{}\n", line.text))
            .collect()
    }

    /// Waits for the first line that contains the text, written before or now.
    pub async fn wait_for_line(&self, text: &str, within: Duration) -> Result<Line, Timeout> {
        self.wait_for_line_after(0, text, within).await
    }

    /// The same among the lines after the first `skip`.
    pub async fn wait_for_line_after(
        &self,
        skip: usize,
        text: &str,
        within: Duration,
    ) -> Result<Line, Timeout> {
        let mut seen = self.lines.subscribe();
        let search = async {
            loop {
                let line = seen
                    .borrow_and_update()
                    .iter()
                    .skip(skip)
                    .find_map(|line| line.text.contains(text).then(|| line.clone()));
                if let Some(line) = line {
                    return line;
                }
                // The sender lives in self, so that waiting cannot fail.
                let _closed = seen.changed().await;
            }
        };
        let found = tokio::time::timeout(within, search).await;
        found.map_err(|_| self.timeout(format!("a line with {text:?}")))
    }

    /// Asks the plugin to end (SIGTERM).
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Ends the plugin without asking (SIGKILL).
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Sends any signal; to a plugin that was waited for, it is an error.
    pub fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let pid = self
            .child
            .id()
            .and_then(|pid| libc::pid_t::try_from(pid).ok());
        send_signal(pid.ok_or_else(gone)?, signal)
    }

    /// Waits for the plugin's end, and for its last line.
    pub async fn wait(&mut self, within: Duration) -> io::Result<ExitStatus> {
        let Ok(status) = tokio::time::timeout(within, self.child.wait()).await else {
            let timeout = self.timeout("the process's end".to_owned());
            return Err(io::Error::new(io::ErrorKind::TimedOut, timeout));
        };
        let drained = async { while self.readers.join_next().await.is_some() {} };
        // A process that it started may keep the pipes open.
        let _complete = tokio::time::timeout(DRAIN_LIMIT, drained).await;
        status
    }

    fn timeout(&self, what: String) -> Timeout {
        Timeout {
            what,
            log: self.log(),
        }
    }
}

impl Drop for PluginProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the plugin's log:\n{}", self.log());
        }
    }
}

/// The pid is that of an own child that has not been reaped, or the signal
/// could reach a stranger.
#[allow(unsafe_code)]
fn send_signal(pid: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

async fn collect(output: impl AsyncRead + Unpin, lines: Arc<watch::Sender<Vec<Line>>>) {
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    // An error ends the log as the end of the file does.
    while reader
        .read_until(b'\n', &mut bytes)
        .await
        .is_ok_and(|read| read > 0)
    {
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let line = Line {
            at: Instant::now(),
            text,
        };
        lines.send_modify(|lines| lines.push(line));
        bytes.clear();
    }
}

/// GET, by HTTP/1.0, whose answers end with the connection: status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(HTTP_LIMIT, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(malformed)?, body.to_owned()))
}
