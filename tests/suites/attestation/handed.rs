//! A connection is the process's that opened it, whoever holds the other end: who hands it on
//! hands out its own identity, as it could hand out its key, and nobody else's.

use std::time::Duration;

use citadel_tests::cgroup::Version;
use citadel_tests::dir::TestDir;
use citadel_tests::parts::part;
use citadel_tests::peer::{Peer, channel_to};
use citadel_tests::process::Launch;
use citadel_tests::wait;
use tonic::Code;

use super::{end_of, fetch, open};
use crate::node::{Node, NodePod};

#[tokio::test]
async fn a_socket_that_is_handed_to_another_pod_stays_its_owner_s_and_ends_with_it() {
    let pods = NodePod::create("handed", &["owner", "taker"]).await;
    let node = Node::start("handed", "1h").await;
    let (dir, socket) = (TestDir::new("handed"), node.agent.socket());
    let (owner, taker) = (pods[0].cgroup(Version::V1), pods[1].cgroup(Version::V1));
    let peer = Peer::connect(&dir, &socket, &owner.wrapper()).await;
    // The process that writes to the connection is the other pod's now.
    taker.enter(peer.holder());
    let (mut stream, ids) = open(peer.channel(), None).await.unwrap();
    assert_eq!(ids, [pods[0].spiffe_id()]);
    peer.end().await;
    let ended = end_of(&mut stream, Duration::from_secs(5)).await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let refused = fetch(peer.channel(), None)
        .await
        .expect_err("its owner is gone");
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unavailable),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_relay_through_socat_hands_out_the_identity_of_the_relay_s_pod_alone() {
    let pods = NodePod::create("socat", &["relay", "other"]).await;
    let node = Node::start("socat", "1h").await;
    let (dir, socket) = (TestDir::new("socat"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    let relay = dir.join("relay.sock");
    let socat = Launch::new("socat", part("SOCAT"))
        .arg(format!("UNIX-LISTEN:{},fork", relay.display()))
        .arg(format!("UNIX-CONNECT:{}", socket.display()))
        .wrapped(cgroup.wrapper())
        .start(&dir);
    wait::until("socat listens", Duration::from_secs(10), async || {
        relay.exists().then_some(())
    })
    .await;
    // Another pod's process, and one in no pod, get what the relay's pod has.
    let other = pods[1].cgroup(Version::V1);
    let peer = Peer::connect(&dir, &relay, &other.wrapper()).await;
    let ids = fetch(peer.channel(), None).await.expect("the relay's");
    assert_eq!(ids, [pods[0].spiffe_id()]);
    let (mut stream, ids) = open(channel_to(&relay), None).await.unwrap();
    assert_eq!(ids, [pods[0].spiffe_id()]);
    socat.kill().await;
    end_of(&mut stream, Duration::from_secs(10)).await;
    // Straight at the socket they are who they are.
    let peer = Peer::connect(&dir, &socket, &other.wrapper()).await;
    let ids = fetch(peer.channel(), None).await.expect("its own");
    assert_eq!(ids, [pods[1].spiffe_id()]);
}
