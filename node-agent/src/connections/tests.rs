#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{BufRead as _, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use citadel_runtime::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;

use super::*;
use crate::{
    attest::{cgroup::CgroupRoot, proc::Proc},
    socket::{self, BoundSocket},
};

const POD: &str = "7f3c1a52-0b4e-4c1d-9a57-1f2e3d4c5b6a";
const OTHER_POD: &str = "00000000-1111-2222-3333-444444444444";

fn in_pod(uid: &str) -> String {
    format!("0::/kubepods/burstable/pod{uid}/{}\n", "ab".repeat(32))
}

struct Socket {
    incoming: ReceiverStream<io::Result<Connection>>,
    path: PathBuf,
    _bound: BoundSocket,
    _dir: tempfile::TempDir,
    _shutdown: Shutdown,
}

fn serve(limits: &Limits) -> Socket {
    serve_on(Path::new("/proc"), limits)
}

fn serve_on(proc: &Path, limits: &Limits) -> Socket {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (listener, bound) = socket::bind(&path, socket::Audience::Workloads).unwrap();
    let attestor = Attestor::new(Proc::new(proc), CgroupRoot::new("/"));
    let shutdown = Shutdown::new();
    let metrics = Metrics::default();
    let incoming = accept(listener, attestor, limits, &metrics, shutdown.signal()).unwrap();
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

/// A process that connects when told to, and stays until its input ends.
struct Elsewhere(Child);

impl Elsewhere {
    fn new() -> Self {
        let script = "import socket, sys\n\
                      path = sys.stdin.readline().strip()\n\
                      s = socket.socket(socket.AF_UNIX); s.connect(path)\n\
                      sys.stdin.read()\n";
        Self(python(script))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn connect(&mut self, path: &Path) {
        self.tell(&path.display().to_string());
    }

    fn tell(&mut self, line: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
    }

    fn end(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.end();
        let _ = self.0.wait();
    }
}

fn python(script: &str) -> Child {
    Command::new("python3")
        .args(["-c", script])
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
    let mut child = Elsewhere::new();
    child.connect(&socket.path);
    let connection = socket.next().await;
    let caller = connection.connect_info();
    let peer = Arc::clone(caller.peer().unwrap());
    assert_eq!(peer.pid, i32::try_from(child.pid()).unwrap());
    assert!(!caller.gone().is_cancelled());
    child.end();
    // Before anyone reaps it: a zombie is no caller.
    tokio::time::timeout(Duration::from_secs(20), caller.gone().cancelled())
        .await
        .unwrap();
    assert!(!peer.is_alive());
}

#[tokio::test]
async fn a_process_that_ended_before_it_was_attested_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (listener, _bound) = socket::bind(&path, socket::Audience::Workloads).unwrap();
    let mut child = Elsewhere::new();
    child.connect(&path);
    let (stream, _) = listener.accept().await.unwrap();
    child.end();
    child.0.wait().unwrap();
    let attestor = Attestor::new(Proc::new(Path::new("/proc")), CgroupRoot::new("/"));
    let refused = attestor.attest(&stream, None).unwrap_err();
    let ended = AttestError::Liveness(crate::attest::liveness::LivenessError::Ended);
    assert_eq!(refused.to_string(), ended.to_string());
    assert!(!refused.is_transient());
}

/// Resolves when the agent has closed the connection.
async fn closed(client: &mut UnixStream) {
    let end = tokio::time::timeout(Duration::from_secs(20), client.read_u8()).await;
    end.expect("the connection stays open").unwrap_err();
}

#[tokio::test]
async fn one_caller_cannot_take_every_connection() {
    let proc = FakeProc::new(&in_pod(POD));
    let limits = Limits {
        connections: 4,
        connections_per_peer: 2,
        refusals: 2,
        ..Limits::default()
    };
    let mut socket = serve_on(proc.dir.path(), &limits);
    let mut clients = Vec::new();
    let mut connections = Vec::new();
    // Far more than there are places.
    for number in 0..12 {
        clients.push(UnixStream::connect(&socket.path).await.unwrap());
        match number {
            0 | 1 => connections.push(socket.next().await),
            // One is told why, and leaves room for those who are refused otherwise.
            2 => {
                let refused = socket.next().await;
                let caller = refused.connect_info();
                assert!(matches!(caller.peer(), Err(AttestError::TooMany(_))));
                connections.push(refused);
            }
            _ => closed(&mut clients[number]).await,
        }
    }
    // Another pod has its place nonetheless …
    let mut child = Elsewhere::new();
    proc.add(child.pid(), &in_pod(OTHER_POD));
    child.connect(&socket.path);
    let other = socket.next().await;
    let caller = other.connect_info();
    let peer = caller.peer().unwrap();
    assert_eq!(peer.pod.as_ref().unwrap().uid.as_str(), OTHER_POD);
    // … and so has the first again, once it lets go of one.
    connections.remove(0);
    clients.push(UnixStream::connect(&socket.path).await.unwrap());
    assert!(socket.next().await.connect_info().peer().is_ok());
}

#[tokio::test]
async fn who_is_refused_is_told_so_for_a_moment_and_holds_no_place() {
    let proc = FakeProc::new("0::/kubepods/podnonsense\n");
    let limits = Limits {
        connections: 1,
        refusals: 2,
        refusal_lasts: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut socket = serve_on(proc.dir.path(), &limits);
    let mut clients = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..2 {
        clients.push(UnixStream::connect(&socket.path).await.unwrap());
        let connection = socket.next().await;
        let caller = connection.connect_info();
        assert!(matches!(caller.peer(), Err(AttestError::Cgroup(_))));
        refused.push(connection);
    }
    // No room to be told in, and the one place is still free.
    let mut dropped = UnixStream::connect(&socket.path).await.unwrap();
    closed(&mut dropped).await;
    let mut child = Elsewhere::new();
    proc.add(child.pid(), &in_pod(POD));
    child.connect(&socket.path);
    assert!(socket.next().await.connect_info().peer().is_ok());
    // A refused client that says nothing does not stay.
    for mut connection in refused {
        let ended = tokio::time::timeout(Duration::from_secs(20), connection.read_u8()).await;
        assert_eq!(ended.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let unwritable = connection.write_u8(0).await.unwrap_err();
        assert_eq!(unwritable.kind(), io::ErrorKind::TimedOut);
    }
}

#[tokio::test]
async fn above_the_limit_connections_are_dropped_and_never_left_in_the_queue() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let mut socket = serve(&limits);
    let _first = UnixStream::connect(&socket.path).await.unwrap();
    let held = socket.next().await;
    let mut second = UnixStream::connect(&socket.path).await.unwrap();
    closed(&mut second).await;
    drop(held);
    let _third = UnixStream::connect(&socket.path).await.unwrap();
    assert!(socket.next().await.connect_info().peer().is_ok());
}

#[test]
fn a_peer_that_closed_its_end_has_hung_up_and_one_that_said_its_last_word_has_not() {
    let (ours, mut theirs) = StdStream::pair().unwrap();
    assert!(!hung_up(&ours));
    theirs.write_all(b"x").unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(!hung_up(&ours));
    drop(theirs);
    assert!(hung_up(&ours));
}

#[tokio::test]
async fn a_connection_ends_soon_after_the_process_that_made_it() {
    let mut socket = serve(&Limits::default());
    // The shell hands its end on and dies: someone else holds it open.
    let script = "import os, socket, sys\n\
                  path = sys.stdin.readline().strip()\n\
                  s = socket.socket(socket.AF_UNIX); s.connect(path)\n\
                  sys.stdin.readline()\n\
                  os.fork() and os._exit(0)\n\
                  sys.stdin.read()\n";
    let mut child = Elsewhere(python(script));
    child.connect(&socket.path);
    let mut connection = socket.next().await;
    let caller = connection.connect_info();
    // Not before it is attested.
    child.tell("die");
    tokio::time::timeout(Duration::from_secs(20), connection.read_u8())
        .await
        .unwrap()
        .unwrap_err();
    assert!(caller.gone().is_cancelled());
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
        let proc = Self { dir, pid };
        proc.add(std::process::id(), cgroup);
        proc
    }

    fn add(&self, pid: u32, cgroup: &str) {
        let process = self.dir.path().join(pid.to_string());
        std::fs::create_dir(&process).unwrap();
        std::fs::write(process.join("cgroup"), cgroup).unwrap();
        std::fs::write(process.join("status"), "Groups:\t5 6\n").unwrap();
    }

    /// Needs a runtime, as pidfds do.
    fn attest(&self) -> Result<Peer, AttestError> {
        let attestor = Attestor::new(Proc::new(self.dir.path()), CgroupRoot::new("/"));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        attestor.attest(&ours, None)
    }
}

#[tokio::test]
async fn a_peer_in_a_pods_cgroup_is_that_pod() {
    let proc = FakeProc::new(&in_pod(POD));
    let peer = Arc::new(proc.attest().unwrap());
    assert_eq!(peer.pid, proc.pid);
    assert_eq!(peer.pod.as_ref().unwrap().uid.as_str(), POD);
    assert_eq!(**peer.principal(), format!("pod {POD}"));
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
    let proc = FakeProc::new(&in_pod(POD));
    let peer = proc.attest().unwrap();
    let stays = tokio::time::timeout(Duration::from_mins(5), peer.left()).await;
    assert!(stays.is_err());
    let cgroup = proc.dir.path().join(proc.pid.to_string()).join("cgroup");
    std::fs::write(cgroup, "0::/\n").unwrap();
    tokio::time::timeout(Duration::from_secs(6), peer.left())
        .await
        .unwrap();
}

/// Who they are is not known yet: that one process opens more than its share leaves the places
/// of others free.
#[tokio::test]
async fn one_process_can_not_fill_the_places_before_it_is_attested() {
    let socket = serve(&Limits {
        connections: NOT_YET_ATTESTED + 1,
        // Nobody is attested as long as this test goes on.
        attestations: 0,
        attestation_deadline: Duration::from_mins(5),
        ..Limits::default()
    });
    let mut clients = Vec::new();
    for _ in 0..NOT_YET_ATTESTED + 20 {
        clients.push(UnixStream::connect(&socket.path).await.unwrap());
    }
    for client in &mut clients[NOT_YET_ATTESTED..] {
        let read = tokio::time::timeout(Duration::from_secs(20), client.read_u8());
        read.await.expect("in time").expect_err("it is dropped");
    }
    // The one place that is left is another's; who comes after it is dropped, and it is not.
    let mut other = Listening::connect(&socket.path);
    let mut late = Listening::connect(&socket.path);
    tokio::task::spawn_blocking(move || assert_eq!(late.line(), "it is closed"))
        .await
        .unwrap();
    assert!(other.0.try_wait().unwrap().is_none(), "it is open");
    other.0.kill().unwrap();
    other.0.wait().unwrap();
}

/// A process that connects, and says when the other end is closed.
struct Listening(Child, BufReader<ChildStdout>);

impl Listening {
    fn connect(path: &Path) -> Self {
        let script = "import socket, sys\n\
                      s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
                      print('it is open', flush=True)\n\
                      s.recv(1)\n\
                      print('it is closed', flush=True)\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed by this test");
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self(child, out);
        assert_eq!(this.line(), "it is open");
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}
