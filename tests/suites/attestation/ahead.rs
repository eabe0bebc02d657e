//! An identity is ready before its pod's first process asks for it.

use std::time::Duration;

use citadel_tests::cgroup::{Cgroup, Version};
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{ApiServer, Pod};
use citadel_tests::peer::Peer;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use super::{fetch, watch};
use crate::support::series;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_was_made_ready_is_handed_out_without_the_ca_and_freed_with_its_pod() {
    let node = watch::node("ahead", json!([])).await;
    let api = ApiServer::shared().await;
    api.ensure_namespace("ahead").await;
    for account in ["web", "gone", "apart"] {
        api.ensure_account("ahead", account).await;
    }
    // Bound to the node, and nothing of them runs yet.
    let pod = |account: &str| Pod::new("ahead", &format!("{account}-1"), account).on("ahead");
    let folder = node.agent.dir().path();
    let web = api.create_pod(&pod("web").host_path(folder)).await;
    api.create_pod(&pod("gone").host_path(folder)).await;
    let apart = api.create_pod(&pod("apart")).await;
    let admin = Admin::of(&node.ca);
    let id = |account: &str| format!("spiffe://example.org/ns/ahead/sa/{account}");
    for account in ["web", "gone"] {
        wait::until("it is made ready", SOON, async || {
            (!admin.list(&id(account), 1, 0).await.is_empty()).then_some(())
        })
        .await;
    }
    // Not for a pod that does not reach the socket.
    assert!(admin.list(&id("apart"), 1, 0).await.is_empty());
    let shows = async |name: &str, value: f64| {
        wait::until(name, SOON, async || {
            let metrics = node.agent.metrics().await;
            (series(&metrics, name) == Some(value)).then_some(())
        })
        .await;
    };
    shows("citadel_agent_prepared_waiting", 2.0).await;
    api.delete_pod("ahead", "gone-1").await;
    shows("citadel_agent_prepared_total{outcome=\"dropped\"}", 1.0).await;

    node.ca.process().kill().await;
    let (dir, socket) = (TestDir::new("ahead"), node.agent.socket());
    let cgroup = Cgroup::of_pod(Version::V1, &web);
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    assert_eq!(fetch(peer.channel(), None).await.unwrap(), [id("web")]);
    shows("citadel_agent_prepared_total{outcome=\"used\"}", 1.0).await;
    shows("citadel_agent_prepared_waiting", 0.0).await;
    // The control: without that nobody could be told who it is.
    let cgroup = Cgroup::of_pod(Version::V1, &apart);
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let waits = fetch(peer.channel(), None)
        .await
        .expect_err("the CA is gone");
    assert_eq!(waits.code(), Code::Unavailable, "{waits:?}");
}
