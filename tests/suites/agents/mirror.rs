//! Static pods: the API server has but a mirror, which any kubelet can make with any content.

use std::time::Duration;

use citadel_proto::v1::issue_item::Subject;
use citadel_proto::v1::{EntrySubject, IssueItem};
use citadel_tests::client::Identity;
use citadel_tests::kubernetes::Pod;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{AgentClient, Scene, check_leaf};

const DENIED: Code = Code::PermissionDenied;
const SEEN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_mirror_pod_has_no_account() {
    let scene = Scene::start().await;
    let agent = scene.agent("mirror-1").await;
    let uid = mirror(&scene, &agent, "mirrors").await;
    scene
        .refuses_item(DENIED, "mirror pod", &agent, AgentClient::pod_item(&uid))
        .await;
}

#[tokio::test]
async fn an_entry_that_names_its_node_gives_a_mirror_pod_an_identity() {
    let nodes = json!(["default/mirror-2"]);
    let name = "k8s:pod-name:static-1";
    let scene = Scene::with(|ca| {
        ca.set(
            "entries",
            json!([
                entry("/static/named", &nodes, &["k8s:ns:mirrors-2", name]),
                entry("/static/mixed", &nodes, &[name, "unix:uid:0"]),
                entry("/static/everywhere", &json!("all"), &["k8s:ns:mirrors-2"]),
                entry("/static/label", &nodes, &[name, "k8s:pod-label:app:static"]),
                entry("/static/account", &nodes, &[name, "k8s:sa:default"]),
                entry("/static/other", &nodes, &["k8s:pod-name:static-2"]),
                entry("/static/elsewhere", &json!(["default/mirror-3"]), &[name]),
            ]),
        )
    })
    .await;
    let agent = scene.agent("mirror-2").await;
    let elsewhere = scene.agent("mirror-3").await;
    let uid = mirror(&scene, &agent, "mirrors-2").await;

    for path in ["/static/named", "/static/mixed"] {
        let id = format!("spiffe://example.org{path}");
        let request = csr::plain();
        let mut item = wanted(&agent, path, &uid).await;
        item.csr.clone_from(&request.der);
        let svid = agent.one(item).await.unwrap();
        assert_eq!(svid.pod_uid, uid);
        check_leaf(&Identity::new(&svid, &request), &id, &request.key_pem);
        let record = scene.admin.certificate(&svid.serial).await.unwrap();
        let origin = record.origin();
        assert_eq!((&origin.pod_uid, origin.pod.as_str()), (&uid, "static-1"));
        assert_eq!(origin.node, "mirror-2");
        assert!(origin.service_account.is_empty(), "{origin:?}");
    }

    // The node is not named, or what selects is what any kubelet can make up.
    for (path, reason) in [
        ("/static/everywhere", "does not name its node"),
        ("/static/label", "does not match k8s:pod-label:app:static"),
        ("/static/account", "does not match k8s:sa:default"),
        ("/static/other", "does not match k8s:pod-name:static-2"),
    ] {
        let item = wanted(&agent, path, &uid).await;
        scene.refuses_item(DENIED, reason, &agent, item).await;
    }
    let item = wanted(&elsewhere, "/static/elsewhere", &uid).await;
    scene
        .refuses_item(DENIED, "runs on node mirror-2", &elsewhere, item)
        .await;
}

/// What it has it may renew, as long as the mirror is there.
#[tokio::test]
async fn a_mirror_pod_s_renewals_end_with_it() {
    let nodes = json!(["default/mirror-4"]);
    let selectors = ["k8s:ns:mirrors-4"];
    let scene = Scene::with(|ca| ca.set("entries", json!([entry("/static", &nodes, &selectors)])));
    let scene = scene.await;
    let agent = scene.agent("mirror-4").await;
    let uid = mirror(&scene, &agent, "mirrors-4").await;
    let request = csr::plain();
    let mut item = wanted(&agent, "/static", &uid).await;
    item.csr.clone_from(&request.der);
    let identity = Identity::new(&agent.one(item).await.unwrap(), &request);

    let renewing = scene.client().identity(&identity).build();
    let svid = renewing.issue(&csr::plain()).await.unwrap().svid.unwrap();
    assert_eq!(svid.spiffe_id, "spiffe://example.org/static");
    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    assert_eq!(record.origin().pod_uid, uid);

    scene.api.delete_pod("mirrors-4", "static-1").await;
    wait::until("its end is seen", SEEN, async || {
        renewing.issue(&csr::plain()).await.err()
    })
    .await;
    let call = renewing.issue(&request);
    scene.refuses(Code::Unauthenticated, "is gone", call).await;
}

#[tokio::test]
async fn a_static_pod_is_known_by_the_configuration_hash_that_its_processes_show() {
    let scene = Scene::with(|ca| {
        ca.set(
            "entries",
            json!([
                { "id": "/static/own", "nodes": ["default/mirror-5"], "selectors": ["k8s:ns:mirrors-5"] },
                { "id": "/static/all", "nodes": "all", "selectors": ["k8s:ns:mirrors-5"] },
                { "id": "/static/label", "nodes": ["default/mirror-5"],
                  "selectors": ["k8s:ns:mirrors-5", "k8s:pod-label:app:static"] },
            ]),
        )
    })
    .await;
    let agent = scene.agent("mirror-5").await;
    scene.api.ensure_namespace("mirrors-5").await;
    let hash = "0123456789abcdef0123456789abcdef";
    let mirror = Pod::mirror("mirrors-5", "static-mirror-5", "mirror-5", hash);
    let uid = scene.api.create_pod(&mirror.label("app", "static")).await;
    wait::until("the pod is seen", SEEN, async || {
        let error = agent.one(AgentClient::pod_item(&uid)).await.unwrap_err();
        (error.retry_after_ms == 0).then_some(())
    })
    .await;
    let mut entries = agent.client.entries().await.unwrap();
    let entries = entries.message().await.unwrap().unwrap().entries;
    let item = |path: &str| {
        let id = format!("spiffe://example.org/static/{path}");
        let entry = entries.iter().find(|entry| entry.spiffe_id == id).unwrap();
        // A process of a static pod shows its configuration hash, never the mirror's UID.
        AgentClient::item(Subject::Entry(EntrySubject {
            entry_id: entry.entry_id.clone(),
            pod_uid: hash.into(),
        }))
    };
    for uid in [uid.as_str(), hash] {
        scene
            .refuses_item(DENIED, "mirror pod", &agent, AgentClient::pod_item(uid))
            .await;
    }
    let svid = agent.one(item("own")).await.unwrap();
    assert_eq!(svid.spiffe_id, "spiffe://example.org/static/own");
    assert_eq!(svid.pod_uid, uid);
    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    let origin = record.origin();
    assert_eq!((&origin.pod_uid, &*origin.service_account), (&uid, ""));
    scene
        .refuses_item(DENIED, "does not name its node", &agent, item("all"))
        .await;
    scene
        .refuses_item(
            DENIED,
            "does not match k8s:pod-label",
            &agent,
            item("label"),
        )
        .await;
}

fn entry(id: &str, nodes: &Value, selectors: &[&str]) -> Value {
    json!({ "id": id, "nodes": nodes, "selectors": selectors })
}

/// Makes the mirror `static-1` on the agent's node and waits until the CA's watch shows it.
async fn mirror(scene: &Scene<'_>, agent: &AgentClient, namespace: &str) -> String {
    scene.api.ensure_namespace(namespace).await;
    let pod = Pod::mirror(namespace, "static-1", &agent.node, "0123456789abcdef");
    let uid = scene.api.create_pod(&pod.label("app", "static")).await;
    wait::until("the pod is seen", SEEN, async || {
        let error = agent.one(AgentClient::pod_item(&uid)).await.unwrap_err();
        (error.retry_after_ms == 0).then_some(())
    })
    .await;
    uid
}

/// An item for the entry of this path, which the agent's node must have.
async fn wanted(agent: &AgentClient, path: &str, pod_uid: &str) -> IssueItem {
    let mut stream = agent.client.entries().await.unwrap();
    let update = stream.message().await.unwrap().unwrap();
    let id = format!("spiffe://example.org{path}");
    let mut entries = update.entries.iter();
    let entry = entries.find(|entry| entry.spiffe_id == id).expect(path);
    AgentClient::item(Subject::Entry(EntrySubject {
        entry_id: entry.entry_id.clone(),
        pod_uid: pod_uid.into(),
    }))
}
