//! Pods get their identities, whatever kind of container asks.

use std::time::Duration;

use citadel_tests::kubernetes::POD;
use citadel_tests::wait;
use http::Method;
use serde_json::{Value, json};

use super::deployed::{Deployed, WORKLOAD};
use super::pods::{
    account, answer_in_log, container, fetched, ids, namespace, pod, script, socket_mount,
};
use crate::support::series;

/// Prints the answer as one line, as soon as there is one, and stays.
const FETCH: &str = "citadel --output json fetch --watch --socket unix:///run/citadel/agent.sock";

#[tokio::test]
async fn a_pod_with_no_change_but_the_mount_gets_its_account_s_svid() {
    let cluster = Deployed::shared().await.cluster;
    namespace(cluster, "plain").await;
    let made = pod("plain", "web-1", &[script("main", FETCH)]);
    cluster.apply(&made.to_string()).await;
    let got = answer_in_log(cluster, "plain", "web-1", "main").await;
    assert_eq!(ids(&got), [account("plain")]);
    // Who is in no pod of the node gets nothing from the same socket.
    let socket = cluster.node_path("/run/citadel/agent.sock");
    assert!(socket.exists());
}

#[tokio::test]
async fn two_containers_of_one_pod_get_what_is_theirs() {
    let cluster = Deployed::shared().await.cluster;
    namespace(cluster, "duo").await;
    let mut made = pod("duo", "web-1", &[container("app"), container("other")]);
    // An init container that ends, and a sidecar that stays.
    let mut setup = script("setup", &FETCH.replace(" --watch", ""));
    setup["restartPolicy"] = Value::Null;
    let mut side = container("side");
    side["restartPolicy"] = json!("Always");
    made["spec"]["initContainers"] = json!([setup, side]);
    cluster.apply(&made.to_string()).await;
    cluster.ready_pod("duo", "web-1").await;

    let own = account("duo");
    let of = async |container| fetched(cluster, "duo", "web-1", container).await.unwrap();
    let app = of("app").await;
    assert_eq!(ids(&app), ["spiffe://example.org/duo/app", &own]);
    let side = of("side").await;
    assert_eq!(ids(&side), ["spiffe://example.org/duo/side", &own]);
    let other = of("other").await;
    assert_eq!(ids(&other), [own.as_str()]);
    // The account's is one and the same.
    assert_eq!(app[&own], side[&own]);
    let log = cluster.pod_log("duo", "web-1", "setup").await;
    let setup: Vec<_> = ["spiffe://example.org/duo/setup", &own].into();
    for id in setup {
        assert!(log.contains(id), "{id} is not in {log}");
    }
    assert!(
        !log.contains("duo/app") && !log.contains("duo/side"),
        "{log}"
    );
}

#[tokio::test]
async fn a_pod_made_again_under_its_name_gets_a_new_svid_and_the_old_stream_closes() {
    let cluster = Deployed::shared().await.cluster;
    namespace(cluster, "again").await;
    // What it prints stays on the node when the pod has gone; SIGTERM does not end it.
    let mut made = pod(
        "again",
        "web-1",
        &[script(
            "main",
            &format!("trap '' TERM; {FETCH} >/kept/out 2>/kept/err"),
        )],
    );
    let folder = cluster.node_path("/run/kept-again");
    std::fs::create_dir(&folder).expect("a folder of the node");
    made["spec"]["volumes"]
        .as_array_mut()
        .expect("volumes")
        .push(json!({ "name": "kept", "hostPath": { "path": "/run/kept-again" } }));
    made["spec"]["containers"][0]["volumeMounts"]
        .as_array_mut()
        .expect("mounts")
        .push(json!({ "name": "kept", "mountPath": "/kept" }));
    cluster.apply(&made.to_string()).await;
    let old = cluster.ready_pod("again", "web-1").await;
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let first = wait::until("the pod has its SVID", POD, async || {
        read("out").lines().next().map(super::pods::serials)
    })
    .await;

    // The object is gone at once, and the process some time later.
    let path = "/api/v1/namespaces/again/pods/web-1?gracePeriodSeconds=0";
    let deleted = cluster.api.request(Method::DELETE, path, None).await;
    deleted.expect("the pod is deleted");
    wait::until(
        "the stream is closed",
        Duration::from_secs(20),
        async || read("err").contains("the pod is gone").then_some(()),
    )
    .await;

    made["spec"]["containers"] = json!([container("main")]);
    cluster.apply(&made.to_string()).await;
    let new = cluster.ready_pod("again", "web-1").await;
    assert_ne!(old["metadata"]["uid"], new["metadata"]["uid"]);
    let second = fetched(cluster, "again", "web-1", "main").await.unwrap();
    let id = account("again");
    assert_eq!(ids(&second), [id.as_str()]);
    assert_ne!(first[&id], second[&id]);
}

#[tokio::test]
async fn an_ephemeral_container_and_an_executed_program_are_seen_as_their_container() {
    let cluster = Deployed::shared().await.cluster;
    namespace(cluster, "visited").await;
    let made = pod("visited", "web-1", &[container("app")]);
    cluster.apply(&made.to_string()).await;
    cluster.ready_pod("visited", "web-1").await;
    let visitor = json!({ "spec": { "ephemeralContainers": [{
        "name": "visitor",
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", FETCH],
        "volumeMounts": socket_mount(),
    }] } });
    let path = "/api/v1/namespaces/visited/pods/web-1/ephemeralcontainers";
    let added = cluster
        .api
        .request(Method::PATCH, path, Some(&visitor))
        .await;
    added.expect("an ephemeral container");
    let own = account("visited");
    // What it is told first may be the account's alone, if the kubelet is slow to name it.
    wait::until("the visitor has its SVID", POD, async || {
        let log = cluster.pod_log("visited", "web-1", "visitor").await;
        let last = log.lines().rfind(|line| line.starts_with('{'));
        let got = super::pods::serials(last?);
        (ids(&got) == [own.as_str(), "spiffe://example.org/visited/visitor"]).then_some(())
    })
    .await;
    // `kubectl exec` starts a program in each of them.
    let app = fetched(cluster, "visited", "web-1", "app").await.unwrap();
    assert_eq!(
        ids(&app),
        [own.as_str(), "spiffe://example.org/visited/app"]
    );
    let visitor = fetched(cluster, "visited", "web-1", "visitor")
        .await
        .unwrap();
    assert_eq!(
        ids(&visitor),
        [own.as_str(), "spiffe://example.org/visited/visitor"]
    );
}

#[tokio::test]
async fn a_mirror_pod_gets_nothing_without_an_entry() {
    let cluster = Deployed::shared().await.cluster;
    for name in ["unlisted", "listed"] {
        // The kubelet names its mirror after the node.
        let mut made = pod("default", name, &[container("main")]);
        made["spec"]["serviceAccountName"] = Value::Null;
        made["metadata"]["labels"] = json!({ "app": "static" });
        cluster.add_static_pod(name, &made.to_string());
    }
    cluster.ready_pod("default", "unlisted-node-1").await;
    cluster.ready_pod("default", "listed-node-1").await;
    // An entry's label never matches a mirror pod.
    let refused = fetched(cluster, "default", "unlisted-node-1", "main").await;
    let refused = refused.expect_err("no entry names it");
    assert!(
        refused.contains("PermissionDenied") || refused.contains("denied"),
        "{refused}"
    );
    let listed = fetched(cluster, "default", "listed-node-1", "main")
        .await
        .unwrap();
    assert_eq!(ids(&listed), ["spiffe://example.org/static/listed"]);
}

#[tokio::test]
async fn an_identity_is_ready_before_its_pod_asks() {
    let deployed = Deployed::shared().await;
    let cluster = deployed.cluster;
    namespace(cluster, "ahead").await;
    let made = pod("ahead", "web-1", &[container("main")]);
    let before = prepared(deployed, MADE).await;
    cluster.apply(&made.to_string()).await;
    cluster.ready_pod("ahead", "web-1").await;
    wait::until("one is made ready", POD, async || {
        (prepared(deployed, MADE).await > before).then_some(())
    })
    .await;
    fetched(cluster, "ahead", "web-1", "main").await.unwrap();
    wait::until("and used", POD, async || {
        (prepared(deployed, USED).await > 0.0).then_some(())
    })
    .await;
}

const MADE: &str = "citadel_agent_prepared_total{outcome=\"made\"}";
const USED: &str = "citadel_agent_prepared_total{outcome=\"used\"}";

/// A counter that shows once it has counted.
async fn prepared(deployed: &Deployed, name: &str) -> f64 {
    series(&deployed.agent_metrics().await, name).unwrap_or_default()
}
