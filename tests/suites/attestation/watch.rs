//! An agent that reads the pods of its node: what it sees of a pod takes effect at once, and
//! an outage of whom it asks takes nothing.

use std::time::Duration;

use citadel_tests::cgroup::{CONTAINER, Version};
use citadel_tests::citadel::{AgentBuilder, CaBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::peer::Peer;
use citadel_tests::wait;
use http::Method;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{end_of, fetch, ids_in, open};
use crate::node::{Node, NodePod};

/// Far less than until the next renewal, where the CA would say the same.
const AT_ONCE: Duration = Duration::from_secs(10);

/// `pods` of the configuration of the agent on `node`.
pub(super) async fn watch(api: &ApiServer, node: &str) -> Value {
    let dir = TestDir::new("watch");
    let access = api.ca_access("citadel-system", &dir).await;
    json!({ "source": "api_server", "node": node, "kubeconfig": access.kubeconfig })
}

pub(super) async fn node(name: &str, entries: Value) -> Node {
    let pods = watch(ApiServer::shared().await, name).await;
    Node::with(
        name,
        |ca| ca.set("entries", entries),
        |agent| agent.set("pods", pods).set("svid_ttl", "1h"),
    )
    .await
}

fn is_gone(ended: &Status) {
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    assert_eq!(ended.message(), "the pod is gone");
}

#[tokio::test]
async fn a_stream_closes_at_once_when_its_pod_is_deleted_or_has_finished() {
    let pods = NodePod::create("at-once", &["deleted", "finished", "stays"]).await;
    let node = node("at-once", json!([])).await;
    let (dir, socket) = (TestDir::new("at-once"), node.agent.socket());
    let cgroups: Vec<_> = pods.iter().map(|pod| pod.cgroup(Version::V1)).collect();
    let mut peers = Vec::new();
    let mut streams = Vec::new();
    for (cgroup, pod) in cgroups.iter().zip(&pods) {
        let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
        let (stream, ids) = open(peer.channel(), None).await.unwrap();
        assert_eq!(ids, [pod.spiffe_id()]);
        peers.push(peer);
        streams.push(stream);
    }
    pods[0].delete().await;
    is_gone(&end_of(&mut streams[0], AT_ONCE).await);
    let api = ApiServer::shared().await;
    api.set_pod_phase("at-once", "finished-1", "Succeeded")
        .await;
    is_gone(&end_of(&mut streams[1], AT_ONCE).await);
    // Their processes still run, and get nothing any more.
    for peer in &peers[..2] {
        assert!(peer.process().is_running());
        is_gone(&fetch(peer.channel(), None).await.expect_err("it is gone"));
    }
    let ids = fetch(peers[2].channel(), None).await.unwrap();
    assert_eq!(ids, [pods[2].spiffe_id()]);
}

#[tokio::test]
async fn a_container_that_the_kubelet_names_later_gets_its_identity_then() {
    let pods = NodePod::create("named", &["web"]).await;
    let entries = json!([
        { "id": "/named/main", "nodes": "all", "selectors": ["k8s:ns:named", "k8s:container-name:main"] },
        { "id": "/named/other", "nodes": "all", "selectors": ["k8s:ns:named", "k8s:container-name:other"] },
    ]);
    let node = node("named", entries).await;
    let (dir, socket) = (TestDir::new("named"), node.agent.socket());
    let cgroup = pods[0].cgroup(Version::V1);
    let peer = Peer::connect(&dir, &socket, &cgroup.wrapper()).await;
    let (mut stream, ids) = open(peer.channel(), None).await.unwrap();
    assert_eq!(ids, [pods[0].spiffe_id()]);
    let api = ApiServer::shared().await;
    let status = json!({ "status": { "containerStatuses": [{
        "name": "main", "image": "example/web:1", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": format!("containerd://{CONTAINER}"),
    }] } });
    let path = "/api/v1/namespaces/named/pods/web-1/status";
    let patched = api.request(Method::PATCH, path, Some(&status)).await;
    patched.expect("the kubelet's status");
    let next = tokio::time::timeout(AT_ONCE, stream.message()).await;
    let ids = ids_in(&next.expect("at once").unwrap().unwrap());
    assert_eq!(
        ids,
        [
            pods[0].spiffe_id(),
            "spiffe://example.org/named/main".into()
        ]
    );
}

#[tokio::test]
async fn without_the_api_server_nothing_is_lost_and_what_was_missed_counts_later() {
    let api = ApiServer::start().await;
    let (web, gone) = (
        api.create_workload("away", "web", "web-1", "away").await,
        api.create_workload("away", "gone", "gone-1", "away").await,
    );
    let pod = api.create_agent("away").await;
    let ca = CaBuilder::new(&api).await.start().await;
    let agent = AgentBuilder::new(&ca, &pod.token)
        .set("pods", watch(&api, "away").await)
        .set("svid_ttl", "1h")
        .start()
        .await;
    let (dir, socket) = (TestDir::new("away"), agent.socket());
    let cgroups = [&web, &gone].map(|uid| citadel_tests::cgroup::Cgroup::of_pod(Version::V1, uid));
    let peer = Peer::connect(&dir, &socket, &cgroups[0].wrapper()).await;
    let other = Peer::connect(&dir, &socket, &cgroups[1].wrapper()).await;
    let (_stream, _) = open(peer.channel(), None).await.unwrap();
    let (mut closes, _) = open(other.channel(), None).await.unwrap();

    api.stop().await;
    wait::until("the agent has noticed", AT_ONCE, async || {
        agent.log().contains("can't be followed").then_some(())
    })
    .await;
    let late = Peer::connect(&dir, &socket, &cgroups[0].wrapper()).await;
    let ids = fetch(late.channel(), None).await.unwrap();
    assert_eq!(ids, ["spiffe://example.org/ns/away/sa/web"]);
    let ids = fetch(other.channel(), None).await.unwrap();
    assert_eq!(ids, ["spiffe://example.org/ns/away/sa/gone"]);

    api.start_again().await;
    api.delete_pod("away", "gone-1").await;
    is_gone(&end_of(&mut closes, Duration::from_secs(30)).await);
    let ids = fetch(peer.channel(), None).await.unwrap();
    assert_eq!(ids, ["spiffe://example.org/ns/away/sa/web"]);
}
