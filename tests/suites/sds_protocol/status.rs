//! Who runs on what, as administrators and the CA see it.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use citadel_proto::agent::GetAgentStatusRequest;
use citadel_proto::agent::agent_admin_service_client::AgentAdminServiceClient;
use citadel_tests::citadel::citadel;
use citadel_tests::dir::TestDir;
use citadel_tests::peer::{Peer, channel_to};
use citadel_tests::wait;
use serde_json::Value;
use tonic::Code;

use super::script::{ID, PROMPT, Script, node};
use crate::node::Node;

/// Nobody on this machine.
const STRANGER: u32 = 64_123;

/// Reports are sent every few seconds, when something changed.
const REPORT: Duration = Duration::from_secs(30);

/// What `citadel agent status` says.
pub(crate) async fn status(node: &Node, dir: &TestDir) -> Value {
    let socket = node.agent.admin_socket().display().to_string();
    let args = ["agent", "status", "--output", "json", "--socket", &socket];
    let output = citadel(dir, args, &[], PROMPT).await.success();
    serde_json::from_str(&output).expect("JSON")
}

/// The resource of this name on a stream of this very process.
fn resource(status: &Value, name: &str) -> Option<Value> {
    let streams = status["streams"].as_array().expect("streams");
    streams
        .iter()
        .filter(|stream| stream["pid"] == std::process::id())
        .flat_map(|stream| stream["resources"].as_array().expect("resources"))
        .find(|resource| resource["name"] == name)
        .cloned()
}

#[tokio::test]
async fn acknowledgements_are_shown_to_administrators_and_reported_to_the_ca() {
    let dir = TestDir::new("agent-status");
    let node = node("status", "1h").await;
    let mut script = Script::open(&node, &["default", "ROOTCA"]).await;
    let pushed = script.next().await;
    let before = status(&node, &dir).await;
    assert_eq!(
        resource(&before, "default").unwrap()["acknowledged"],
        Value::Null
    );
    script.ack(&pushed, &["default", "ROOTCA"]);
    let mut refusing = Script::open(&node, &["ALL"]).await;
    let refused = refusing.next().await;
    refusing.nack(&refused, "", &["ALL"], "the test does not like it");
    let shown = wait::until("the acknowledgement is shown", PROMPT, async || {
        let shown = status(&node, &dir).await;
        let taken = resource(&shown, "default")?["acknowledged"].is_string();
        let refused = resource(&shown, "ALL")?["refused"].is_string();
        (taken && refused).then_some(shown)
    })
    .await;
    let default = resource(&shown, "default").unwrap();
    assert_eq!(default["acknowledged"], pushed.serials[0]);
    assert_eq!(default["spiffe_id"], ID);
    let hash = shown["bundles"][0]["sha256"].clone();
    assert_eq!(resource(&shown, "ROOTCA").unwrap()["acknowledged"], hash);
    let all = resource(&shown, "ALL").unwrap();
    assert_eq!(all["refused"], "the test does not like it");
    assert_eq!(all["acknowledged"], Value::Null);
    assert_eq!(shown["ca"]["connected"], true, "{shown:#}");
    assert_eq!(
        shown["ca"]["agent_id"],
        "spiffe://example.org/citadel/agent/default/status"
    );
    assert_eq!(shown["identities"][0]["spiffe_id"], ID);
    assert_eq!(shown["identities"][0]["serial"], pushed.serials[0]);
    let metrics = node.agent.metrics().await;
    for line in [
        "citadel_agent_sds_ack_seconds_count 2",
        "citadel_agent_next_renewal_timestamp_seconds 1",
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    // As a person reads it.
    let socket = node.agent.admin_socket().display().to_string();
    let text = citadel(&dir, ["agent", "status", "--socket", &socket], &[], PROMPT)
        .await
        .success();
    assert!(text.contains("refused") && text.contains(ID), "{text}");

    // With the refused one, this process has not shown the bundle; without it, it has.
    let listed = |expected: (u64, u64)| {
        let server = format!("unix://{}", node.ca.admin_socket().display());
        let dir = &dir;
        async move {
            wait::until("the CA knows it", REPORT, async || {
                let args = ["agent", "list", "--output", "json", "--server", &server];
                let output = citadel(dir, args, &[], PROMPT).await.success();
                let listed: Value = serde_json::from_str(&output).expect("JSON");
                let node = listed["nodes"].as_array()?.first()?.clone();
                let counts = (node["current_a"].as_u64()?, node["behind"].as_u64()?);
                (counts == expected).then_some((listed, node))
            })
            .await
        }
    };
    let (_, behind) = listed((0, 1)).await;
    assert_eq!(behind["earliest_behind"]["spiffe_id"], ID);
    assert_eq!(behind["earliest_behind"]["serial"], pushed.serials[0]);
    assert_eq!(behind["complete"], true);
    drop(refusing);
    let (all, node_now) = listed((1, 0)).await;
    assert_eq!(all["bundle_sha256"], hash);
    assert_eq!(node_now["node"], "status");
    assert_eq!(node_now["earliest_behind"], Value::Null);
    wait::until("the CA's metrics follow", PROMPT, async || {
        let metrics = node.ca.metrics().await;
        metrics
            .contains("citadel_ca_holders{state=\"current_a\"} 1")
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_socket_is_for_root_and_the_agent_s_own_user() {
    let dir = TestDir::new("agent-admin");
    let node = node("admin-socket", "1h").await;
    let socket = node.agent.admin_socket();
    let folder = socket.parent().expect("a folder");
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").mode() & 0o7777;
    assert_eq!((mode(folder), mode(&socket)), (0o700, 0o600));
    // With both open to all, the peer's uid decides.
    for path in [folder, &socket, dir.path(), node.agent.dir().path()] {
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("a mode");
    }
    let (reuid, regid) = (format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"));
    let user = ["setpriv", &reuid, &regid, "--clear-groups", "--"].map(str::to_owned);
    let stranger = Peer::connect(&dir, &socket, &user).await;
    let ask = async |channel| {
        AgentAdminServiceClient::new(channel)
            .get_agent_status(GetAgentStatusRequest::default())
            .await
    };
    let refused = ask(stranger.channel()).await.expect_err("a stranger");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    ask(channel_to(&socket)).await.expect("root");
    let reasons = node.refusals();
    let told = |line: &Value| line["peer"].to_string().contains(&STRANGER.to_string());
    assert!(reasons.iter().any(told), "{reasons:?}");
}
