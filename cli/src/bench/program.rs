//! A program under test: an unmodified binary of ours as a process of its own, with its log
//! in a file.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::http_get::http_get;
use super::measure::{self, Usage};
use crate::exit::Failure;

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// What is shown of its log when it fails to start.
const LOG_LINES: usize = 12;

/// A running program; it is killed when this is dropped.
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    pid: u32,
    log: PathBuf,
}

/// Where a program of ours lies: the one that was named, else the one beside this program.
pub(crate) fn beside(
    name: &'static str,
    named: Option<&Path>,
    flag: &str,
) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(named.to_path_buf());
    }
    let own = std::env::current_exe()
        .map_err(|error| Failure::local(format!("can't tell where this program lies: {error}")))?;
    let beside = own.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Failure::local(format!(
        "there is no {name} beside this program ({})",
        beside.display()
    ))
    .next(format!(
        "Build all programs (`cargo build --release`) or name it with {flag}."
    )))
}

/// Ports of loopback that are free now. Between here and the program's own bind somebody
/// else may take one; it then fails to start, and says so.
pub(crate) fn free_ports<const N: usize>() -> Result<[String; N], Failure> {
    let cannot = |error| Failure::local(format!("can't find a free port: {error}"));
    // All at once, so that no two are the same.
    let mut held = Vec::with_capacity(N);
    for _ in 0..N {
        held.push(TcpListener::bind("127.0.0.1:0").map_err(cannot)?);
    }
    let mut ports = [const { String::new() }; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr().map_err(cannot)?.to_string();
    }
    Ok(ports)
}

impl Program {
    /// Starts `binary --config CONFIG` with its log in `log`.
    pub(crate) fn start(
        name: &'static str,
        binary: &Path,
        config: &Path,
        log: PathBuf,
    ) -> Result<Self, Failure> {
        let cannot = |what: &str, error: &dyn std::fmt::Display| {
            Failure::local(format!("can't {what} {name}: {error}"))
        };
        let file = File::create(&log).map_err(|error| cannot("write the log of", &error))?;
        let both = file
            .try_clone()
            .map_err(|error| cannot("write the log of", &error))?;
        let child = Command::new(binary)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(both)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot("start", &format!("{}: {error}", binary.display())))?;
        let Some(pid) = child.id() else {
            return Err(Failure::local(format!("{name} ended at once")));
        };
        Ok(Self {
            name,
            child,
            pid,
            log,
        })
    }

    /// Waits until `/readyz` of its admin address says so.
    pub(crate) async fn ready(&mut self, admin: &str) -> Result<(), Failure> {
        let name = self.name;
        let deadline = Instant::now() + START_TIMEOUT;
        let mut last = String::from("it does not answer");
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(
                    Failure::local(format!("{name} ended while it started ({status})"))
                        .next(self.log_tail()),
                );
            }
            match http_get(admin, "/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => last = body,
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Failure::unavailable(format!(
            "{name} is not ready after {START_TIMEOUT:?}: {last}"
        ))
        .next(self.log_tail()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn usage(&self) -> std::io::Result<Usage> {
        measure::usage_of(self.pid)
    }

    /// All of its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of its log, for an error that needs it.
    pub(crate) fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("The end of its log:\n    {}", tail.join("\n    "))
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Ends it gracefully, and harder when that takes too long.
    pub(crate) async fn stop(mut self) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // It may have ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
    }
}
