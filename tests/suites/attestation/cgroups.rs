//! What a cgroup's name says, and what it does not.

use std::process::Command;
use std::time::Duration;

use citadel_tests::cgroup::{CONTAINER, Cgroup, Version};
use citadel_tests::dir::TestDir;
use citadel_tests::parts::part;
use citadel_tests::peer::Peer;
use citadel_tests::process::Launch;
use tonic::Code;

use super::fetch;
use crate::node::{Node, NodePod};

#[tokio::test]
async fn a_program_in_a_pod_s_cgroup_gets_the_pod_s_identity_v1_and_v2() {
    let pods = NodePod::create("versions", &["web", "db"]).await;
    let node = Node::start("versions", "1h").await;
    let dir = TestDir::new("versions");
    for version in [Version::V1, Version::V2] {
        for pod in &pods {
            let cgroup = pod.cgroup(version);
            // A program that knows nothing of us, from its first instruction in there.
            let program = Launch::new("source", part("FOREIGN"))
                .args(["source", "--updates", "1", "--timeout", "10s"])
                .env("SPIFFE_ENDPOINT_SOCKET", node.agent.endpoint())
                .wrapped(cgroup.wrapper())
                .in_new_files()
                .start(&dir);
            let ended = program.wait(Duration::from_secs(20)).await;
            assert!(
                ended.success(),
                "{version:?}: {}{}",
                program.output(),
                program.log()
            );
            let line: serde_json::Value = serde_json::from_str(program.output().trim()).unwrap();
            assert_eq!(line["id"], pod.spiffe_id(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_program_outside_of_any_pod_is_denied() {
    let pods = NodePod::create("outside", &["web"]).await;
    let node = Node::start("outside", "1h").await;
    let (dir, socket) = (TestDir::new("outside"), node.agent.socket());
    let uid = &pods[0].uid;
    // The right name at the wrong place: not below the kubelet's root.
    let elsewhere = format!("user.slice/kubepods/burstable/pod{uid}/{CONTAINER}");
    let elsewhere = Cgroup::new(Version::V1, &elsewhere);
    // A pod's place with a name that no pod has.
    let strange = Cgroup::new(Version::V1, "kubepods/burstable/podgarbage/c");
    let unknown = Cgroup::of_pod(Version::V1, "00000000-1111-4222-8333-444444444444");
    for (what, wrapper) in [
        ("no cgroup of a pod", Vec::new()),
        ("a pod's name elsewhere", elsewhere.wrapper()),
        ("a name that is none", strange.wrapper()),
    ] {
        let peer = Peer::connect(&dir, &socket, &wrapper).await;
        let refused = fetch(peer.channel(), None).await.expect_err(what);
        assert_eq!(
            refused.code(),
            Code::PermissionDenied,
            "{what}: {refused:?}"
        );
    }
    // A well-formed UID that no pod of this node has: it may be of a pod that the CA's
    // watch has yet to show.
    let peer = Peer::connect(&dir, &socket, &unknown.wrapper()).await;
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("an unknown pod");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
}

#[tokio::test]
async fn a_cgroup_below_a_container_that_is_called_like_another_pod_changes_nothing() {
    let pods = NodePod::create("below", &["web", "victim"]).await;
    let node = Node::start("below", "1h").await;
    let (dir, socket) = (TestDir::new("below"), node.agent.socket());
    let victim = &pods[1].uid;
    for version in [Version::V1, Version::V2] {
        let container = pods[0].cgroup(version);
        let names = match version {
            Version::V1 => vec![
                format!("kubepods/burstable/pod{victim}/{CONTAINER}"),
                format!("pod{victim}/{CONTAINER}"),
            ],
            Version::V2 => vec![format!(
                "kubepods.slice/kubepods-pod{}.slice/cri-containerd-{CONTAINER}.scope",
                victim.replace('-', "_")
            )],
        };
        for name in names {
            let below = container.below(&name);
            let peer = Peer::connect(&dir, &socket, &below.wrapper()).await;
            let ids = fetch(peer.channel(), None)
                .await
                .expect("the container's own");
            assert_eq!(ids, [pods[0].spiffe_id()], "{version:?} {name}");
            drop(peer);
        }
    }
    // Two hierarchies that name different pods: neither is believed.
    let (first, second) = (pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V2));
    let both = [first.wrapper(), second.wrapper()].concat();
    let peer = Peer::connect(&dir, &socket, &both).await;
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("two pods at once");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
}

/// An agent in a pod of its own with a private cgroup namespace sees its peers'
/// cgroups as `/../../…`.
#[tokio::test]
async fn an_agent_in_a_private_cgroup_namespace_tells_pods_apart() {
    for version in [Version::V1, Version::V2] {
        let name = format!("private-{version:?}").to_lowercase();
        let pods = NodePod::create(&name, &["web", "db", "itself"]).await;
        let own = pods[2].cgroup(version);
        // Into its own pod's cgroup first, so that the namespace's root is there.
        let wrapper = [own.wrapper(), vec!["unshare".into(), "--cgroup".into()]].concat();
        let node = Node::with(
            &name,
            |ca| ca,
            |agent| agent.set("svid_ttl", "1h").wrapped(wrapper),
        )
        .await;
        let (dir, socket) = (TestDir::new("private"), node.agent.socket());
        for pod in &pods[..2] {
            let cgroup = pod.cgroup(version);
            let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
            let seen = seen_by(node.agent.process().pid(), peer.pid());
            let relative = seen
                .lines()
                .any(|line| line.contains(":/../") && line.contains("pod"));
            assert!(relative, "the test is of paths like /../: {seen}");
            let ids = fetch(peer.channel(), None)
                .await
                .expect("the pod's identity");
            assert_eq!(ids, [pod.spiffe_id()], "{version:?}: {seen}");
        }
        let stranger = Peer::connect(&dir, &socket, &[]).await;
        let refused = fetch(stranger.channel(), None)
            .await
            .expect_err("outside of any pod");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        // Its own cgroup must outlive it.
        drop(node);
        drop(own);
    }
}

/// `/proc/PEER/cgroup` as a process in the agent's cgroup namespace reads it.
fn seen_by(agent: i32, peer: i32) -> String {
    let output = Command::new("nsenter")
        .args(["--target", &agent.to_string(), "--cgroup", "cat"])
        .arg(format!("/proc/{peer}/cgroup"))
        .output()
        .expect("nsenter");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
