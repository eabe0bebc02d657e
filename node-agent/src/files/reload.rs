//! Tells a program that its files are new.

use std::{fs, io::Read as _, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use http::Uri;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nix::{
    errno::Errno,
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{net::TcpStream, process::Command};

/// How long a command or a hook may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pid file holds one number.
const MAX_PID_FILE: u64 = 64;

/// What is done after each write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reload {
    /// A signal to the process in a pid file.
    pub signal: Option<(PathBuf, Signal)>,
    /// A program and its arguments; no shell.
    pub command: Vec<String>,
    /// A POST to a hook of this host.
    pub http: Option<Hook>,
}

/// An `http://` URL on the loopback interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    address: SocketAddr,
    uri: Uri,
}

/// Why a program was not told.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The pid file.
    #[error("pid file {path}: {reason}", path = .path.display())]
    PidFile {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The signal.
    #[error("process {pid} can't be signalled: {error}")]
    Signal {
        /// Whose.
        pid: Pid,
        /// Why.
        error: Errno,
    },
    /// The command.
    #[error("the command {0:?} {1}")]
    Command(String, String),
    /// The hook.
    #[error("the hook {0}: {1}")]
    Http(Uri, String),
}

/// Why a text is no hook.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HookError {
    /// No URL.
    #[error("is not an http:// URL")]
    Url,
    /// Certificates' news stay on the host.
    #[error("names no address of the loopback interface")]
    NotLoopback,
}

impl std::str::FromStr for Hook {
    type Err = HookError;

    fn from_str(text: &str) -> Result<Self, HookError> {
        let uri: Uri = text.parse().map_err(|_| HookError::Url)?;
        let authority = uri.authority().ok_or(HookError::Url)?;
        if uri.scheme_str() != Some("http") || authority.as_str().contains('@') {
            return Err(HookError::Url);
        }
        let host = authority.host().trim_matches(['[', ']']);
        let ip = if host == "localhost" {
            "127.0.0.1"
        } else {
            host
        };
        let ip: std::net::IpAddr = ip.parse().map_err(|_| HookError::NotLoopback)?;
        if !ip.is_loopback() {
            return Err(HookError::NotLoopback);
        }
        let address = SocketAddr::new(ip, authority.port_u16().unwrap_or(80));
        Ok(Self { address, uri })
    }
}

impl Reload {
    /// Does all of it; a failure of one does not keep the others from being done.
    pub async fn run(&self) -> Vec<ReloadError> {
        let mut failed = Vec::new();
        if let Some((path, signal)) = &self.signal {
            failed.extend(send(path, *signal).err());
        }
        if let Some((program, arguments)) = self.command.split_first() {
            failed.extend(command(program, arguments).await.err());
        }
        if let Some(hook) = &self.http {
            let told = tokio::time::timeout(PATIENCE, post(hook)).await;
            let told = told.unwrap_or_else(|_| Err("no answer in time".into()));
            failed.extend(told.err().map(|e| ReloadError::Http(hook.uri.clone(), e)));
        }
        failed
    }
}

fn send(path: &PathBuf, signal: Signal) -> Result<(), ReloadError> {
    let broken = |reason: String| ReloadError::PidFile {
        path: path.clone(),
        reason,
    };
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PID_FILE).read_to_string(&mut text))
        .map_err(|error| broken(error.to_string()))?;
    // PostgreSQL's has more lines.
    let pid = text.lines().next().unwrap_or_default().trim();
    // 1 and below would reach init, or whole groups of processes.
    let pid = pid.parse::<i32>().ok().filter(|pid| *pid > 1);
    let pid = Pid::from_raw(pid.ok_or_else(|| broken("does not begin with a pid".into()))?);
    signal::kill(pid, signal).map_err(|error| ReloadError::Signal { pid, error })
}

async fn command(program: &str, arguments: &[String]) -> Result<(), ReloadError> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_to_end(command)
        .await
        .map_err(|reason| ReloadError::Command(program.to_owned(), reason))
}

/// Runs a command without input for [`PATIENCE`] at most.
///
/// # Errors
/// What went wrong, as the end of a sentence that begins with the command.
pub async fn run_to_end(mut command: Command) -> Result<(), String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.status()).await {
        Err(_) => Err(format!("did not end within {PATIENCE:?}")),
        Ok(Err(error)) => Err(format!("can't be started: {error}")),
        Ok(Ok(status)) if !status.success() => Err(format!("failed: {status}")),
        Ok(Ok(_)) => Ok(()),
    }
}

async fn post(hook: &Hook) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(hook.address)
        .await
        .map_err(|e| text(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| text(&e))?;
    let host = hook.uri.authority().map_or("localhost", |it| it.as_str());
    let path = hook.uri.path_and_query().map_or("/", |it| it.as_str());
    let request = http::Request::post(path)
        .header(http::header::HOST, host)
        .body(Empty::<&[u8]>::new())
        .map_err(|e| text(&e))?;
    // It ends with the sender, or with the other side.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("answered {}", answer.status()))
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
