//! go-spiffe's `X509Source` on our socket.

use std::collections::BTreeSet;
use std::time::Duration;

use citadel_tests::cgroup::Version;
use citadel_tests::deploy::{self, Mtls};
use citadel_tests::dir::TestDir;
use citadel_tests::envoy::Envoy;
use citadel_tests::foreign::Foreign;
use citadel_tests::ports;
use citadel_tests::wait;

use crate::node::{Node, NodePod, user_entry};

/// Three rotations of certificates of 15 s take about 24 s.
const ROTATIONS: Duration = Duration::from_secs(60);

#[tokio::test]
async fn x509_source_gets_its_identity_speaks_mtls_with_envoy_and_sees_three_rotations() {
    let id = "spiffe://example.org/unix/root";
    let pods = NodePod::create("gospiffe", &["server"]).await;
    let entry = user_entry("/unix/root", "gospiffe", 0);
    let node = Node::with(
        "gospiffe",
        |ca| ca.set("entries", vec![entry]),
        |agent| agent.set("svid_ttl", "15s"),
    )
    .await;
    let dir = TestDir::new("gospiffe");
    let endpoint = node.agent.endpoint();
    let updates = ["source", "--updates", "4", "--timeout", "60s"];
    let source = Foreign::start("source", &dir, &endpoint, &updates);

    let cgroup = pods[0].cgroup(Version::V1);
    let (admin, mtls) = (ports::address(), ports::address());
    let socket = node.agent.socket();
    let file = deploy::envoy_server(&Mtls {
        socket: &socket,
        admin,
        server: mtls,
        expected: id,
    });
    let envoy = Envoy::start_wrapped("server", &dir, &file, admin, &cgroup.wrapper()).await;
    // With 0 as its initial_fetch_timeout, the listener is there once its secrets are.
    wait::until("the listener", Duration::from_secs(30), async || {
        (envoy.stat("listener_manager.total_listeners_active").await == 1).then_some(())
    })
    .await;

    // A connection that fails for want of a server's certificate would be tried again
    // by a real client too; from the first answer on none may fail.
    let address = mtls.to_string();
    let server_id = pods[0].spiffe_id();
    let args = [
        "client",
        "--addr",
        &address,
        "--expect-id",
        &server_id,
        "--forever",
    ];
    let client = Foreign::start("client", &dir, &endpoint, &args);
    client.event("ok", Duration::from_secs(30)).await;
    let failures_before = client.events("failed").len();

    let ended = source.process().wait(ROTATIONS).await;
    assert!(
        ended.success(),
        "{:?} {}",
        source.lines(),
        source.process().log()
    );
    let lines = source.events("update");
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let serials: BTreeSet<_> = lines
        .iter()
        .map(|line| line["serial"].to_string())
        .collect();
    assert_eq!(serials.len(), 4, "{lines:#?}");
    let root = node.ca.root_sha256();
    for line in &lines {
        assert_eq!(line["id"], id);
        assert_eq!(line["chain"], 2, "leaf and intermediate");
        assert_eq!(line["roots"], serde_json::json!([root]));
    }
    assert!(source.events("error").is_empty() && source.events("warning").is_empty());

    // And with it through Envoy, under each of them.
    let answers = client.events("ok");
    assert_eq!(
        client.events("failed").len(),
        failures_before,
        "{:#?}",
        client.events("failed")
    );
    let own: BTreeSet<_> = answers
        .iter()
        .map(|line| line["serial"].to_string())
        .collect();
    assert!(own.len() >= 3, "the client's own: {own:?}");
    let peers: BTreeSet<_> = answers
        .iter()
        .map(|line| line["peer_serial"].to_string())
        .collect();
    assert!(peers.len() >= 3, "Envoy's: {peers:?}");
    assert!(
        answers
            .iter()
            .all(|line| line["status"] == 200 && line["peer_id"] == server_id)
    );
}
