//! systemd's side: it opens the socket, is told when the agent serves and which process
//! does, and its units are as it wants them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use citadel_tests::citadel::{AgentBuilder, CaBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::parts::{part, program};
use citadel_tests::wait;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::time::timeout;

use super::RENEWAL;
use super::workloads::one;
use crate::node::user_entry;

/// What `systemd-analyze security` may find, of 100.
const EXPOSURE: &str = "--threshold=35";

#[tokio::test]
async fn a_socket_that_systemd_opened_outlives_the_agent_and_systemd_is_told_who_serves() {
    let api = ApiServer::shared().await;
    let pod = api.create_agent("systemd").await;
    let entry = user_entry("/unix/root", "systemd", 0);
    let ca = CaBuilder::new(api)
        .await
        .set("entries", vec![entry])
        .start()
        .await;
    let dir = TestDir::new("systemd");
    let (socket, notify) = (dir.join("agent.sock"), dir.join("notify"));
    let told = UnixDatagram::bind(&notify).expect("a socket to be told on");
    let listen = format!("--listen={}", socket.display());
    let activate = part("SYSTEMD_SOCKET_ACTIVATE");
    let agent = AgentBuilder::new(&ca, &pod.token)
        .set("socket", socket.to_str().expect("a plain path"))
        .env("NOTIFY_SOCKET", notify.to_str().expect("a plain path"))
        .wrapped([
            activate.to_str().expect("a plain path"),
            &listen,
            "--fdname=workloads",
            "--setenv=NOTIFY_SOCKET",
        ])
        .start_unready();
    // It is the first connect that starts the agent, and it waits for it.
    let first = wait::until("the socket", RENEWAL, async || {
        UnixStream::connect(&socket).await.ok()
    });
    let first = first.await;
    assert_eq!(next(&told).await, "READY=1");
    agent.wait_ready().await;
    let before = one(&socket).await.expect("a certificate");
    drop(first);

    // A successor is the main process before it is ready.
    let pid = Pid::from_raw(agent.process().pid());
    let _group = Group(pid);
    kill(pid, Signal::SIGHUP).expect("it lives");
    let main = next(&told).await;
    let successor: i32 = main
        .strip_prefix("MAINPID=")
        .expect(&main)
        .parse()
        .expect("a pid");
    assert_ne!(successor, pid.as_raw());
    assert!(agent.process().wait(RENEWAL).await.success());
    wait::until("READY=1", RENEWAL, async || {
        // What the first one says of its own end counts no more.
        (next(&told).await == "READY=1").then_some(())
    })
    .await;
    let after = one(&socket).await.expect("a certificate");
    assert_eq!(after, before);
    kill(Pid::from_raw(successor), Signal::SIGTERM).expect("it lives");
    assert_eq!(next(&told).await, "STOPPING=1");
    wait::until("the successor has ended", RENEWAL, async || {
        kill(Pid::from_raw(successor), None).is_err().then_some(())
    })
    .await;
    assert!(socket.exists(), "the file is systemd's");
}

#[tokio::test]
async fn systemd_is_told_when_the_ca_serves_and_when_it_ends() {
    let dir = TestDir::new("systemd-ca");
    let notify = dir.join("notify");
    let told = UnixDatagram::bind(&notify).expect("a socket to be told on");
    let ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .env("NOTIFY_SOCKET", notify.to_str().expect("a plain path"))
        .start_unready();
    assert_eq!(next(&told).await, "READY=1");
    // Not before it can be asked.
    let asked = std::net::TcpStream::connect(ca.grpc());
    asked.expect("the port is open");
    ca.wait_ready().await;
    assert!(ca.terminate().await.success());
    assert_eq!(next(&told).await, "STOPPING=1");
}

#[test]
fn the_units_are_as_systemd_wants_them() {
    let dir = TestDir::new("units");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let mut units = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the units") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a unit");
        // The programs are where they were built, and there is no such user here.
        let mut text = text
            .replace("User=citadel-ca", "User=root")
            .replace("Group=citadel-ca", "");
        for name in ["citadel-agent", "citadel-ca"] {
            let built = program(name);
            text = text.replace(
                &format!("/usr/local/bin/{name}"),
                built.to_str().expect("a path"),
            );
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        units.push(dir.write(name, text));
    }
    assert_eq!(units.len(), 3, "{units:?}");
    let mut verify = Command::new(part("SYSTEMD_ANALYZE"));
    let said = verify.arg("verify").args(&units).output().expect("it runs");
    let problems = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && problems.is_empty(), "{problems}");
    for unit in units
        .iter()
        .filter(|unit| unit.extension().is_some_and(|e| e == "service"))
    {
        let mut judge = Command::new(part("SYSTEMD_ANALYZE"));
        judge
            .args(["security", "--no-pager", "--offline=true", EXPOSURE])
            .arg(unit);
        let said = judge.output().expect("it runs");
        let shown = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success(), "{}: {shown}", unit.display());
        assert!(shown.contains("Overall exposure level"), "{shown}");
    }
}

/// Killed at the end: the successor is nobody's child.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

async fn next(told: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let received = timeout(Duration::from_secs(20), told.recv(&mut buffer)).await;
    let length = received.expect("a word in time").expect("a word");
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}
