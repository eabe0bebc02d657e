//! The agent under pressure, at its end, and while its CA's certificate changes.

use std::time::Duration;

use citadel_proto::workload::X509svidRequest;
use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_tests::cgroup::Version;
use citadel_tests::client::{Certificate, ClientBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::peer::{Peer, channel_to};
use citadel_tests::wait;
use tonic::Code;

use super::requirements::{PROMPT, client, next, node, svids, with_header};
use crate::node::{Node, NodePod, user_entry};

#[tokio::test]
async fn one_caller_s_flood_of_connections_takes_nothing_from_a_pod() {
    const LIMIT: u32 = 8;
    let pods = NodePod::create("flood", &["web"]).await;
    let entry = user_entry("/unix/root", "flood", 0);
    let node = Node::with(
        "flood",
        |ca| ca.set("entries", vec![entry]),
        |agent| agent.set("limits.connections_per_peer", LIMIT),
    )
    .await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..4 * LIMIT {
        let mut client = SpiffeWorkloadApiClient::new(channel_to(&node.agent.socket()));
        let answer = client.fetch_x509svid(with_header(X509svidRequest {})).await;
        match answer {
            Ok(answer) => held.push((client, answer.into_inner())),
            Err(status) => {
                assert_eq!(
                    status.code(),
                    Code::Unavailable,
                    "it may well work later: {status:?}"
                );
                refused += 1;
            }
        }
    }
    assert_eq!(held.len(), usize::try_from(LIMIT).unwrap());
    assert_eq!(refused, 3 * LIMIT);

    let cgroup = pods[0].cgroup(Version::V1);
    let dir = TestDir::new("flood");
    let peer = Peer::connect(&dir, &node.agent.socket(), &cgroup.wrapper()).await;
    let mut from_pod = SpiffeWorkloadApiClient::new(peer.channel());
    let mut stream = from_pod
        .fetch_x509svid(with_header(X509svidRequest {}))
        .await
        .unwrap();
    let message = next(stream.get_mut(), PROMPT).await;
    assert_eq!(message.svids[0].spiffe_id, pods[0].spiffe_id());

    // Whoever lets go may come back.
    drop(held);
    wait::until("a connection after the flood", PROMPT, async || {
        let mut again = client(&node);
        again
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await
            .ok()
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_told_to_end_says_so_to_its_streams() {
    let node = node("terminated", &[("/unix/root", "")], "1h").await;
    let mut stream = svids(&node).await;
    next(&mut stream, PROMPT).await;
    let ended = node
        .agent
        .process()
        .terminate(Duration::from_secs(15))
        .await;
    assert_eq!(ended.code(), Some(0), "{}", node.agent.log());
    let status = stream.message().await.expect_err("the agent has ended");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(!node.agent.socket().exists(), "its socket is still there");
}

/// The CA's own certificate is replaced under the agent's open connection, and
/// whatever the agent wants meanwhile it gets.
#[tokio::test]
async fn a_server_certificate_of_15_s_rotates_under_the_agent_s_connection() {
    let entry = user_entry("/unix/root", "rotating", 0);
    let node = Node::with(
        "rotating",
        |ca| ca.set("entries", vec![entry]).set("ca.serving_ttl", "15s"),
        |agent| agent.set("svid_ttl", "10s"),
    )
    .await;
    let serving = async || {
        let client = ClientBuilder::new(&node.ca).build();
        // Refused for want of a credential; the handshake is what counts.
        let _ = client.issue(&citadel_tests::pki::csr::plain()).await;
        Certificate::of_der(&client.seen().only().chain[0]).serial()
    };
    let mut serials = vec![serving().await];
    let mut stream = svids(&node).await;
    let mut renewals = 0;
    while serials.len() < 4 {
        next(&mut stream, Duration::from_secs(15)).await;
        renewals += 1;
        let now = serving().await;
        if !serials.contains(&now) {
            serials.push(now);
        }
    }
    assert!(renewals >= 3, "{renewals}");
    let log = node.agent.log();
    assert!(!log.contains("no certificate from the CA"), "{log}");
    assert!(!log.contains("could not prove itself"), "{log}");
}
