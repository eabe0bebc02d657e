#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use citadel_runtime::Shutdown;
use tokio_stream::StreamExt;

use super::*;
use crate::{
    attest::{cgroup::CgroupRoot, proc::Proc},
    socket::{self, BoundSocket},
};

struct Socket {
    incoming: ReceiverStream<io::Result<Connection>>,
    path: PathBuf,
    _bound: BoundSocket,
    _dir: tempfile::TempDir,
    _shutdown: Shutdown,
}

fn serve(limits: &Limits) -> Socket {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (listener, bound) = socket::bind(&path).unwrap();
    let attestor = Attestor {
        proc: Proc::new(Path::new("/proc")),
        cgroup_root: CgroupRoot::new("/"),
    };
    let shutdown = Shutdown::new();
    let incoming = accept(
        listener,
        attestor,
        limits,
        &Metrics::default(),
        shutdown.signal(),
    );
    Socket {
        incoming,
        path,
        _bound: bound,
        _dir: dir,
        _shutdown: shutdown,
    }
}

impl Socket {
    async fn next(&mut self) -> Connection {
        let next = tokio::time::timeout(Duration::from_secs(20), self.incoming.next());
        next.await.unwrap().unwrap().unwrap()
    }
}

/// A process that connects, says so, and stays until its input ends.
fn connect_elsewhere(path: &Path) -> Child {
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
                  sys.stdin.read()\n";
    Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3 is needed by this test")
}

#[tokio::test]
async fn the_caller_is_this_very_process() {
    let mut socket = serve(&Limits::default());
    let _client = UnixStream::connect(&socket.path).await.unwrap();
    let connection = socket.next().await;
    let caller = connection.connect_info();
    let peer = caller.peer().unwrap();
    assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
    assert!(peer.is_alive());
    let facts = peer.unix_facts(true).await;
    assert_eq!(facts.uid, nix::unistd::getuid().as_raw());
    assert_eq!(facts.gid, nix::unistd::getgid().as_raw());
    assert_eq!(
        Path::new(&facts.path.unwrap()),
        std::env::current_exe().unwrap()
    );
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(
        facts.sha256.unwrap(),
        hex::encode(citadel_identity::crypto::sha256(&bytes))
    );
    assert!(!caller.gone().is_cancelled());
}

#[tokio::test]
async fn a_callers_end_is_noticed() {
    let mut socket = serve(&Limits::default());
    let mut child = connect_elsewhere(&socket.path);
    let connection = socket.next().await;
    let caller = connection.connect_info();
    let peer = Arc::clone(caller.peer().unwrap());
    assert_eq!(peer.pid, i32::try_from(child.id()).unwrap());
    assert!(!caller.gone().is_cancelled());
    drop(child.stdin.take());
    // Before anyone reaps it: a zombie is no caller.
    tokio::time::timeout(Duration::from_secs(20), caller.gone().cancelled())
        .await
        .unwrap();
    assert!(!peer.is_alive());
    child.wait().unwrap();
}

#[tokio::test]
async fn a_process_that_ended_before_it_was_attested_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (listener, _bound) = socket::bind(&path).unwrap();
    let mut child = connect_elsewhere(&path);
    let (stream, _) = listener.accept().await.unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    let attestor = Attestor {
        proc: Proc::new(Path::new("/proc")),
        cgroup_root: CgroupRoot::new("/"),
    };
    let accepted = attestor.proc.now_ticks().unwrap();
    let refused = attestor.attest(&stream, accepted).unwrap_err();
    let ended = AttestError::Liveness(crate::attest::liveness::LivenessError::Ended);
    assert_eq!(refused.to_string(), ended.to_string());
    assert!(!refused.is_transient());
}

#[tokio::test]
async fn one_caller_cannot_take_every_connection() {
    let limits = Limits {
        connections_per_peer: 2,
        ..Limits::default()
    };
    let mut socket = serve(&limits);
    let mut clients = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..3 {
        clients.push(UnixStream::connect(&socket.path).await.unwrap());
        connections.push(socket.next().await);
    }
    let refused = connections[2].connect_info();
    assert!(matches!(refused.peer(), Err(AttestError::TooMany)));
    connections.remove(0);
    clients.push(UnixStream::connect(&socket.path).await.unwrap());
    assert!(socket.next().await.connect_info().peer().is_ok());
}

/// A proc file system in which this process looks like something else.
struct FakeProc {
    dir: tempfile::TempDir,
    pid: i32,
}

impl FakeProc {
    fn new(cgroup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = dir.path().join(pid.to_string());
        std::fs::create_dir(&process).unwrap();
        std::fs::write(dir.path().join("uptime"), "100.00 1.00\n").unwrap();
        std::fs::write(process.join("cgroup"), cgroup).unwrap();
        std::fs::write(process.join("status"), "Groups:\t5 6\n").unwrap();
        Self { dir, pid }
    }

    /// Needs a runtime, as pidfds do.
    fn attest(&self) -> Result<Peer, AttestError> {
        let attestor = Attestor {
            proc: Proc::new(self.dir.path()),
            cgroup_root: CgroupRoot::new("/"),
        };
        let (ours, _theirs) = UnixStream::pair().unwrap();
        attestor.attest(&ours, 10_000)
    }
}

#[tokio::test]
async fn a_peer_in_a_pods_cgroup_is_that_pod() {
    let uid = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";
    let proc = FakeProc::new(&format!(
        "0::/kubepods/burstable/pod{uid}/{}\n",
        "ab".repeat(32)
    ));
    let peer = Arc::new(proc.attest().unwrap());
    assert_eq!(peer.pid, proc.pid);
    assert_eq!(peer.pod.as_ref().unwrap().uid.as_str(), uid);
    assert_eq!(peer.principal(), format!("pod {uid}"));
    let facts = peer.unix_facts(false).await;
    assert_eq!(
        (facts.groups, facts.path, facts.sha256),
        (vec![5, 6], None, None)
    );
}

#[tokio::test]
async fn what_proc_does_not_tell_is_not_guessed() {
    let proc = FakeProc::new("0::/kubepods/podnonsense\n");
    assert!(matches!(proc.attest(), Err(AttestError::Cgroup(_))));
    let proc = FakeProc::new("0::/\n");
    let process = proc.dir.path().join(proc.pid.to_string());
    std::fs::remove_file(process.join("status")).unwrap();
    assert!(matches!(proc.attest(), Err(AttestError::Proc(_))));
    std::fs::remove_file(process.join("cgroup")).unwrap();
    assert!(matches!(proc.attest(), Err(AttestError::Proc(_))));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_leaves_its_pod_is_noticed() {
    let uid = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";
    let proc = FakeProc::new(&format!("0::/kubepods/pod{uid}/{}\n", "ab".repeat(32)));
    let peer = proc.attest().unwrap();
    let stays = tokio::time::timeout(Duration::from_mins(5), peer.left()).await;
    assert!(stays.is_err());
    let cgroup = proc.dir.path().join(proc.pid.to_string()).join("cgroup");
    std::fs::write(cgroup, "0::/\n").unwrap();
    tokio::time::timeout(Duration::from_secs(6), peer.left())
        .await
        .unwrap();
}
