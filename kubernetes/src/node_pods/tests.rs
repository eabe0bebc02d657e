#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};

use super::*;

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn object(uid: &str) -> Value {
    json!({
        "metadata": { "uid": uid, "name": uid, "namespace": "shop", "resourceVersion": "1" },
        "spec": {
            "nodeName": "n1",
            "containers": [{ "name": "app", "image": "web:1" }],
            "volumes": [
                { "name": "a", "hostPath": { "path": "/run/citadel", "type": "Directory" } },
                { "name": "b", "emptyDir": {} },
            ],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [
                { "name": "setup", "containerID": format!("cri-o://{}", id('a')) },
            ],
            "containerStatuses": [
                { "name": "app", "containerID": format!("containerd://{}", id('b')) },
                { "name": "waits" },
                { "name": "odd", "containerID": "containerd://../x" },
            ],
            "ephemeralContainerStatuses": [
                { "name": "debug", "containerID": format!("docker://{}", id('c')) },
            ],
        },
    })
}

fn pod(object: &Value) -> NodePod {
    serde_json::from_str(&object.to_string()).unwrap()
}

#[test]
fn every_kind_of_container_is_known_by_its_id_under_each_runtime() {
    let pod = pod(&object("u1"));
    assert_eq!(pod.container(&id('a')), Some("setup"));
    assert_eq!(pod.container(&id('b')), Some("app"));
    assert_eq!(pod.container(&id('c')), Some("debug"));
    assert_eq!(pod.running.len(), 3);
    assert_eq!(pod.container(&id('d')), None);
    assert_eq!(*pod.host_paths, ["/run/citadel".into()]);
    assert_eq!(&*pod.record.namespace, "shop");
}

#[test]
fn a_pod_without_a_status_and_volumes_is_a_pod() {
    let mut object = object("u1");
    object["status"] = Value::Null;
    object["spec"]["volumes"] = Value::Null;
    let pod = pod(&object);
    assert!(pod.running.is_empty() && pod.host_paths.is_empty());
}

#[test]
fn what_is_deleted_or_finished_is_gone_and_a_new_container_is_news() {
    let pods = NodePods::default();
    let now = Instant::now();
    let mut revision = pods.subscribe();
    assert_eq!(pods.pod("u1"), Lookup::Unknown);
    pods.apply(Event::ListStarted, now);
    pods.apply(
        Event::Page(vec![pod(&object("u1")), pod(&object("u2"))]),
        now,
    );
    pods.apply(Event::ListFinished, now);
    assert!(revision.has_changed().unwrap());
    assert_eq!(pods.count(), 2);

    revision.mark_unchanged();
    pods.apply(Event::Applied(pod(&object("u1"))), now);
    assert!(!revision.has_changed().unwrap());
    let mut restarted = object("u1");
    restarted["status"]["containerStatuses"][0]["containerID"] =
        format!("containerd://{}", id('e')).into();
    pods.apply(Event::Applied(pod(&restarted)), now);
    assert!(revision.has_changed().unwrap());
    let known = pods.pod("u1").live().unwrap();
    assert_eq!(known.container(&id('e')), Some("app"));
    assert_eq!(known.container(&id('b')), None);

    let mut finished = object("u2");
    finished["status"]["phase"] = "Succeeded".into();
    pods.apply(Event::Applied(pod(&finished)), now);
    assert_eq!(pods.pod("u2"), Lookup::Gone);
    pods.apply(Event::Deleted(pod(&restarted)), now);
    assert_eq!(pods.pod("u1"), Lookup::Gone);
    assert_eq!(pods.count(), 0);
}

#[test]
fn a_static_pod_is_found_by_its_hash() {
    let pods = NodePods::default();
    let mut mirror = object("u1");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "abc" });
    pods.apply(Event::Applied(pod(&mirror)), Instant::now());
    assert_eq!(&*pods.of_hash("abc").unwrap().record.uid, "u1");
    assert!(pods.of_hash("abd").is_none() && pods.of_hash("").is_none());
    // To its kubelet the hash is its UID.
    pods.apply(Event::Applied(pod(&object("abd"))), Instant::now());
    assert_eq!(&*pods.of_hash("abd").unwrap().record.uid, "abd");
}

#[test]
fn what_a_kubelet_does_not_list_is_unknown_and_never_gone() {
    let pods = NodePods::forgetful();
    let now = Instant::now();
    let list = |uids: &[&str]| {
        let page = uids.iter().map(|uid| pod(&object(uid))).collect();
        for event in [Event::ListStarted, Event::Page(page), Event::ListFinished] {
            pods.apply(event, now);
        }
    };
    list(&["u1", "u2"]);
    // A kubelet that has just started.
    list(&[]);
    assert_eq!(pods.pod("u1"), Lookup::Unknown);
    list(&["u1"]);
    assert!(pods.pod("u1").live().is_some());
}
