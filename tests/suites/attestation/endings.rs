//! A stream ends with what it rests on.

use std::time::Duration;

use citadel_tests::cgroup::Version;
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use tonic::Code;

use super::{end_of, fetch, open};
use crate::node::{Node, NodePod};

#[tokio::test]
async fn the_stream_closes_when_its_pod_is_deleted() {
    let pods = NodePod::create("deleted", &["web", "stays"]).await;
    let node = Node::start("deleted", "10s").await;
    let (dir, socket) = (TestDir::new("deleted"), node.agent.socket());
    let (cgroup, other) = (pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V1));
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let stays = Peer::connect(&dir, &socket, &other.wrapper()).await;
    let (mut stream, ids) = open(peer.channel(), None).await.unwrap();
    let (mut staying, _) = open(stays.channel(), None).await.unwrap();
    assert_eq!(ids, [pods[0].spiffe_id()]);

    pods[0].delete().await;
    // At the next renewal the CA says so; the process still runs.
    let ended = end_of(&mut stream, Duration::from_secs(15)).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    assert!(peer.process().is_running());
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("the pod is gone");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    // The control: another pod's goes on.
    let next = tokio::time::timeout(Duration::from_secs(15), staying.message()).await;
    super::ids_in(&next.expect("a renewal").unwrap().unwrap());
}

#[tokio::test]
async fn the_stream_closes_when_its_process_ends() {
    let pods = NodePod::create("ended", &["web"]).await;
    let node = Node::start("ended", "1h").await;
    let (dir, socket) = (TestDir::new("ended"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let (mut stream, _) = open(peer.channel(), None).await.unwrap();
    peer.end().await;
    // The connection itself is still open at the other end of the relay.
    let ended = end_of(&mut stream, Duration::from_secs(5)).await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("nobody is there");
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unavailable),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_stream_closes_when_its_process_leaves_the_pod() {
    let pods = NodePod::create("moved", &["web", "other"]).await;
    let node = Node::start("moved", "1h").await;
    let (dir, socket) = (TestDir::new("moved"), node.agent.socket());
    let (cgroup, other) = (pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V1));
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let (mut stream, _) = open(peer.channel(), None).await.unwrap();
    other.enter(peer.pid());
    let ended = end_of(&mut stream, Duration::from_secs(15)).await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
}
