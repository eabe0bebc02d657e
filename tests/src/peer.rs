//! A client of the agent's socket whose connection belongs to a process of its
//! own: in the cgroup, the user or the pid namespace that a test wants, and
//! ended when the test wants. What is sent over the connection is the test's.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::dir::TestDir;
use crate::parts::program;
use crate::process::{Launch, Process};

/// How long the process may take to connect.
const CONNECT: Duration = Duration::from_secs(20);

/// A process that opened a connection, and the connection.
pub struct Peer {
    process: Process,
    channel: Channel,
    pid: i32,
}

impl Peer {
    /// Starts a process through `wrapper` (see [`Launch::wrapped`]) that connects
    /// to `socket`.
    pub async fn connect(dir: &TestDir, socket: &Path, wrapper: &[String]) -> Self {
        let relay = dir.join(format!("relay-{}.sock", number()));
        let listener = UnixListener::bind(&relay).expect("a socket for the relay");
        // The wrapper may make it another user's process.
        std::fs::set_permissions(&relay, Permissions::from_mode(0o666)).expect("a mode");
        let process = Launch::new("peer", program("citadel-test-peer"))
            .arg("connect")
            .arg(socket)
            .arg(&relay)
            .wrapped(wrapper)
            .in_new_files()
            .start(dir);
        let line = process
            .output_line("it is connected", CONNECT, |_| true)
            .await;
        let pid = line.parse().expect("its pid, in its own namespace");
        let accepted = tokio::time::timeout(CONNECT, listener.accept()).await;
        let (stream, _) = accepted.expect("the relay connects").expect("it connects");
        Self {
            process,
            channel: channel_over(stream),
            pid,
        }
    }

    /// gRPC over its only connection. When that breaks there is no other.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The process that opened the connection.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its pid in its own pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Ends the process; the connection stays open. Its pid is free afterwards: where
    /// a wrapper waits for it, the wrapper reaps it and ends too.
    pub async fn end(&self) {
        let pid = self.connector();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        self.process.wait(CONNECT).await;
    }

    /// The process that holds the connection for the test, by its pid outside.
    pub fn holder(&self) -> i32 {
        let pid = self.connector();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("a live process");
        children.trim().parse().expect("its only child")
    }

    /// The process that connected, by its pid outside: the one that was started, or the
    /// child of a wrapper that had to fork (`nsenter --pid`).
    fn connector(&self) -> i32 {
        let started = self.process.pid();
        let read = |path: String| std::fs::read_to_string(path).expect("a live process");
        if read(format!("/proc/{started}/comm")).starts_with("citadel-test") {
            return started;
        }
        let children = read(format!("/proc/{started}/task/{started}/children"));
        children.trim().parse().expect("the wrapper's only child")
    }
}

/// gRPC over a connection of the test program's own, made again when it breaks.
pub fn channel_to(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    channel(move || {
        let socket: PathBuf = socket.clone();
        async move { UnixStream::connect(socket).await }
    })
}

fn channel_over(stream: UnixStream) -> Channel {
    let only = Arc::new(Mutex::new(Some(stream)));
    channel(move || {
        let stream = only.lock().expect("no panic while it is held").take();
        async move { stream.ok_or_else(|| std::io::Error::other("the connection is gone")) }
    })
}

fn channel<F>(connect: impl Fn() -> F + Send + 'static) -> Channel
where
    F: Future<Output = std::io::Result<UnixStream>> + Send + 'static,
{
    let connector = tower::service_fn(move |_: Uri| {
        let stream = connect();
        async move { stream.await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://agent.invalid").connect_with_connector_lazy(connector)
}

fn number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
