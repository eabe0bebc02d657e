//! The server under test: an unmodified `citadel-ca` as a process of its own.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::http_get::http_get;
use super::measure::{self, Usage};
use crate::exit::Failure;
use crate::output;

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// What is shown of its log when it fails to start.
const LOG_LINES: usize = 12;

pub(crate) const TRUST_DOMAIN: &str = "bench.example";

/// A folder for one server, on a disk.
pub(crate) struct Workplace {
    path: PathBuf,
    /// Removed with it; none where the user chose the place.
    _temporary: Option<TempDir>,
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pid: u32,
    pub(crate) grpc: String,
    folder: PathBuf,
}

impl Workplace {
    /// A fresh folder under `chosen` (kept afterwards), or under the first usual place
    /// that is not in memory (removed afterwards).
    pub(crate) fn new(chosen: Option<&Path>, name: &str) -> Result<Self, Failure> {
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix(&format!("citadel-bench-{name}-"))
                .tempdir_in(parent)
        };
        let cannot = |parent: &Path, error: &std::io::Error| {
            Failure::local(format!(
                "can't make a folder in {}: {error}",
                parent.display()
            ))
            .next("Name a folder on a disk with --dir.")
        };
        if let Some(parent) = chosen {
            fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
            if in_memory(parent) {
                output::note(&format!(
                    "citadel: {} is in memory: what is measured there says nothing about a disk",
                    parent.display()
                ));
            }
            let path = make(parent).map_err(|error| cannot(parent, &error))?.keep();
            return Ok(Self {
                path,
                _temporary: None,
            });
        }
        let usual = [
            Some(std::env::temp_dir()),
            Some("/var/tmp".into()),
            std::env::home_dir(),
        ];
        let parent = usual
            .into_iter()
            .flatten()
            .find(|place| place.is_dir() && !in_memory(place));
        let Some(parent) = parent else {
            return Err(
                Failure::local("the usual temporary folders are all in memory")
                    .next("Name a folder on a disk with --dir."),
            );
        };
        let temporary = make(&parent).map_err(|error| cannot(&parent, &error))?;
        Ok(Self {
            path: temporary.path().to_path_buf(),
            _temporary: Some(temporary),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn in_memory(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// The `citadel-ca` to start: the one that was named, else the one beside this program.
pub(crate) fn binary(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(named.to_path_buf());
    }
    let own = std::env::current_exe()
        .map_err(|error| Failure::local(format!("can't tell where this program lies: {error}")))?;
    let beside = own.with_file_name("citadel-ca");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Failure::local(format!(
        "there is no citadel-ca beside this program ({})",
        beside.display()
    ))
    .next(
        "Build it (`cargo build --release -p citadel-ca-server`) or name it with --server-binary.",
    ))
}

impl Server {
    /// Starts it in `folder`, with `settings` (the store among them) beside the bench's own,
    /// and waits until it is ready.
    pub(crate) async fn start(
        binary: &Path,
        folder: &Path,
        kubeconfig: &Path,
        settings: &Value,
    ) -> Result<Self, Failure> {
        let local = |what: &str, error: &dyn std::fmt::Display| {
            Failure::local(format!("can't {what}: {error}"))
        };
        let data = folder.join("data");
        // There already where a server is started again.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data)
            .map_err(|error| local("make the server's folder", &error))?;
        let (grpc, admin) = free_ports().map_err(|error| local("find a free port", &error))?;
        let config = folder.join("ca.yaml");
        // JSON is YAML.
        let mut text = json!({
            "trust_domain": TRUST_DOMAIN,
            "listen": grpc,
            "admin_listen": admin,
            "data_dir": data,
            "clusters": [{ "name": "bench", "kubeconfig": kubeconfig }],
        });
        if let (Some(text), Some(settings)) = (text.as_object_mut(), settings.as_object()) {
            text.extend(settings.clone());
        }
        fs::write(&config, text.to_string())
            .map_err(|error| local("write the server's configuration", &error))?;
        let log = File::create(folder.join("ca.log"))
            .map_err(|error| local("write the server's log", &error))?;
        let child = Command::new(binary)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(
                log.try_clone()
                    .map_err(|error| local("write the server's log", &error))?,
            )
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                Failure::local(format!("can't start {}: {error}", binary.display()))
                    .next("Name a citadel-ca with --server-binary.")
            })?;
        let Some(pid) = child.id() else {
            return Err(Failure::local("the server ended at once"));
        };
        let mut server = Self {
            child,
            pid,
            grpc,
            folder: folder.to_path_buf(),
        };
        server.ready(&admin).await?;
        Ok(server)
    }

    async fn ready(&mut self, admin: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut last = String::from("it does not answer");
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Failure::local(format!(
                    "the server ended while it started ({status})"
                ))
                .next(self.log_tail()));
            }
            match http_get(admin, "/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => last = body,
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Failure::unavailable(format!(
            "the server is not ready after {START_TIMEOUT:?}: {last}"
        ))
        .next(self.log_tail()))
    }

    pub(crate) fn usage(&self) -> std::io::Result<Usage> {
        measure::usage_of(self.pid)
    }

    /// Its roots, PEM.
    pub(crate) fn root_pem(&self) -> Result<Vec<u8>, Failure> {
        let path = self.folder.join("data/root-cert.pem");
        fs::read(&path)
            .map_err(|error| Failure::local(format!("can't read {}: {error}", path.display())))
    }

    /// The end of its log, for an error that needs it.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.folder.join("ca.log")).unwrap_or_default();
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

/// Two ports that are free now. Between here and the server's own bind somebody else may
/// take one; it then fails to start, and says so.
fn free_ports() -> std::io::Result<(String, String)> {
    let (one, two) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    Ok((one.local_addr()?.to_string(), two.local_addr()?.to_string()))
}
