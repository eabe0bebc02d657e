//! Who may take over, and what a handover leaves that fails.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use citadel_tests::cgroup::Version;
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use nix::sys::signal::Signal;

use super::{RENEWAL, Scene};
use crate::node::{Node, NodePod};

/// Long enough for everything that a test does.
const LONG: Duration = Duration::from_mins(1);

/// Nobody on this machine.
const STRANGER: &str = "64123";

/// A successor that can't take over ends, and the one that serves serves on.
#[tokio::test]
async fn a_handover_that_fails_leaves_everything_as_it_was() {
    let mut scene = Scene::start("failing", LONG, |ca| ca, |agent| agent).await;
    let agent = &scene.mesh.node.agent;
    let pid = agent.process().pid();
    let successor = agent.start_beside(&[]);
    successor.signal(Signal::SIGKILL);
    successor.wait(RENEWAL).await;
    // Of another trust domain; and with a port that somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").to_string();
    for flags in [
        ["--trust-domain", "other.org"],
        ["--admin-listen", port.as_str()],
    ] {
        let ended = agent.start_beside(&flags).wait(RENEWAL).await;
        assert!(!ended.success(), "{flags:?}");
    }
    assert!(agent.process().is_running() && agent.is_ready().await);
    assert_eq!(agent.process().pid(), pid);
    let log = agent.log();
    assert!(log.contains("it is of another trust domain"));
    // And it renews as before, and can still hand over.
    scene.renewed_within(LONG).await;
    scene.mesh.node.agent.upgrade().await;
    scene.stop().await;
}

/// Neither another user nor root in a pod is a successor, though both reach the socket.
#[tokio::test]
async fn another_user_and_a_process_in_a_pod_get_nothing() {
    let pods = NodePod::create("intruder", &["web"]).await;
    let node = Node::start("intruder", "1h").await;
    let socket = node.agent.admin_socket().with_file_name("handover.sock");
    let mode = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    let folder = socket.parent().expect("a folder");
    assert_eq!((mode(folder), mode(&socket)), (0o700, 0o600));
    // As if somebody had opened it by mistake.
    set_permissions(folder, Permissions::from_mode(0o755)).expect("a mode");
    set_permissions(&socket, Permissions::from_mode(0o666)).expect("a mode");
    let dir = TestDir::new("intruder");
    let stranger = ["setpriv", "--reuid", STRANGER, "--clear-groups"].map(str::to_owned);
    let cgroup = pods[0].cgroup(Version::V1);
    let agent = node.agent.process();
    for (wrapper, reason) in [
        (
            stranger.to_vec(),
            format!("the other agent's user is {STRANGER}"),
        ),
        (
            cgroup.wrapper(),
            format!("runs elsewhere: pod {}", pods[0].uid),
        ),
    ] {
        let _peer = Peer::connect(&dir, &socket, &wrapper).await;
        agent
            .log_line("it is refused", RENEWAL, |line| {
                line.contains("nothing was handed over") && line.contains(&reason)
            })
            .await;
    }
    assert!(node.agent.is_ready().await);
}
