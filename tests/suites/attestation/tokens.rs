//! A workload's own token in metadata.

use citadel_tests::cgroup::Version;
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::peer::Peer;
use tonic::Code;

use super::fetch;
use crate::node::{Node, NodePod};

#[tokio::test]
async fn a_relayed_token_of_another_pod_than_the_peer_s_is_refused() {
    let pods = NodePod::create("relayed", &["web", "other"]).await;
    let elsewhere = NodePod::create("relayed-2", &["far"]).await;
    let node = Node::start("relayed", "1h").await;
    let (dir, socket) = (TestDir::new("relayed"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    let (own, other) = (pods[0].token().await, pods[1].token().await);

    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let ids = fetch(peer.channel(), Some(&own))
        .await
        .expect("its own token");
    assert_eq!(ids, [pods[0].spiffe_id()]);
    let admin = Admin::of(&node.ca);
    let size = admin.size().await;
    let refused = fetch(peer.channel(), Some(&other))
        .await
        .expect_err("another pod's token");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(admin.size().await, size, "something was issued");
    let lines = node.refusals();
    let line = lines.last().expect("a line for it");
    assert!(
        line["reason"].as_str().unwrap().contains("another pod"),
        "{line}"
    );

    // A peer outside of any pod: the CA's word alone counts, and it is for this node.
    let outside = Peer::connect(&dir, &socket, &[]).await;
    let ids = fetch(outside.channel(), Some(&other))
        .await
        .expect("a pod of this node");
    assert_eq!(ids, [pods[1].spiffe_id()]);
    let size = admin.size().await;
    let far = elsewhere[0].token().await;
    let refused = fetch(outside.channel(), Some(&far))
        .await
        .expect_err("another node's pod");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    // And without a token it is nobody.
    let refused = fetch(outside.channel(), None)
        .await
        .expect_err("no pod, no token");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(admin.size().await, size, "something was issued");
    assert!(
        admin.list(&elsewhere[0].spiffe_id(), 1, 0).await.is_empty(),
        "the other node's pod has no certificate"
    );
}
