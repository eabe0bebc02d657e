#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn full_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "0b3e7a52-5a3f-4f0e-9d53-2f6f5b7a1c11",
            "resourceVersion": "4711",
            "labels": {"app": "web", "tier": "front"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"a\":[1,2]}"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
            "ownerReferences": [{"kind": "StatefulSet", "uid": "x", "name": "web"}]
        },
        "spec": {
            "serviceAccountName": "web", "nodeName": "node-1",
            "initContainers": [{"name": "setup", "image": "registry.example/setup:1"}],
            "containers": [
                {"name": "web", "image": "registry.example/web:2", "env": [{"name": "A", "value": "b"}]},
                {"name": "proxy", "image": "registry.example/envoy:1.40"}
            ],
            "ephemeralContainers": [{"name": "debug", "image": "registry.example/sh:1"}],
            "volumes": [{"name": "v", "emptyDir": {}}]
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.7",
            "containerStatuses": [{"name": "forged", "image": "forged", "imageID": "forged"}]
        }
    })
}

fn decode(pod: &Value) -> Result<PodRecord, serde_json::Error> {
    serde_json::from_str(&pod.to_string())
}

#[test]
fn a_pod_is_trimmed_to_what_decides() {
    let pod = decode(&full_pod()).unwrap();
    assert_eq!(&*pod.uid, "0b3e7a52-5a3f-4f0e-9d53-2f6f5b7a1c11");
    assert_eq!(
        (&*pod.namespace, &*pod.name, &*pod.account),
        ("shop", "web-0", "web")
    );
    assert_eq!(
        (pod.node.as_deref(), pod.phase),
        (Some("node-1"), Phase::Running)
    );
    assert_eq!(
        pod.labels.iter().collect::<Vec<_>>(),
        [("app", "web"), ("tier", "front")]
    );
    assert_eq!(
        (pod.labels.get("tier"), pod.labels.get("none")),
        (Some("front"), None)
    );
    let containers: Vec<_> = pod
        .containers
        .iter()
        .map(|c| (&*c.name, &*c.image))
        .collect();
    assert_eq!(
        containers,
        [
            ("setup", "registry.example/setup:1"),
            ("web", "registry.example/web:2"),
            ("proxy", "registry.example/envoy:1.40"),
            ("debug", "registry.example/sh:1"),
        ],
        "the containers of spec, never those of status"
    );
    assert_eq!(pod.mirror, None);
}

#[test]
fn a_mirror_pod_is_known_by_its_annotation_which_is_its_config_hash() {
    let mirror = |value: Value| {
        let mut pod = full_pod();
        pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] = value;
        let pod = decode(&pod).unwrap();
        assert!(pod.is_mirror());
        pod.mirror.unwrap()
    };
    let hash = "0123456789abcdef0123456789abcdef";
    assert_eq!(&*mirror(json!(hash)), hash);
    // It is one all the same, and nothing is kept of it.
    for value in [json!(""), json!(null), json!("x".repeat(65))] {
        assert_eq!(&*mirror(value), "");
    }
    // Not by a label of that name, which anybody may set.
    let mut pod = full_pod();
    pod["metadata"]["labels"]["kubernetes.io/config.mirror"] = json!("x");
    assert!(!decode(&pod).unwrap().is_mirror());
}

#[test]
fn what_may_be_missing_or_null() {
    let bare = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}});
    let pod = decode(&bare).unwrap();
    assert_eq!(
        (pod.node, pod.phase, &*pod.account),
        (None, Phase::Pending, "")
    );
    assert!(pod.labels.is_empty() && pod.containers.is_empty());

    let nulls = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": null, "annotations": null},
        "spec": {"containers": null, "nodeName": null, "serviceAccountName": ""},
        "status": null
    });
    assert_eq!(decode(&nulls).unwrap().node, None);
}

#[test]
fn what_may_not_be_missing() {
    for field in ["name", "namespace", "uid"] {
        let mut pod = full_pod();
        pod["metadata"][field] = json!("");
        assert!(decode(&pod).is_err(), "{field} empty");
        pod["metadata"].as_object_mut().unwrap().remove(field);
        assert!(decode(&pod).is_err(), "{field} missing");
    }
    assert!(decode(&json!({"kind": "Pod"})).is_err());
    let account = r#"{"metadata":{"name":"a","uid":"u"}}"#;
    assert!(serde_json::from_str::<AccountRecord>(account).is_err());
    assert!(serde_json::from_str::<NodeRecord>(account).is_ok());
}

#[test]
fn phases() {
    for (phase, expected, over) in [
        ("Pending", Phase::Pending, false),
        ("Running", Phase::Running, false),
        ("Succeeded", Phase::Succeeded, true),
        ("Failed", Phase::Failed, true),
        ("Unknown", Phase::Unknown, false),
        ("Later", Phase::Unknown, false),
    ] {
        let mut pod = full_pod();
        pod["status"]["phase"] = json!(phase);
        let pod = decode(&pod).unwrap();
        assert_eq!((pod.phase, pod.is_finished()), (expected, over));
    }
}

#[test]
fn labels_keep_the_last_of_two_values() {
    let labels = Labels::from_iter([("b", "1"), ("a", "1"), ("b", "2")]);
    assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
}

proptest! {
    #[test]
    fn mutated_json_never_panics(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = full_pod().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        drop(serde_json::from_slice::<PodRecord>(&bytes));
        drop(serde_json::from_slice::<AccountRecord>(&bytes));
        drop(serde_json::from_slice::<NodeRecord>(&bytes));
    }

    #[test]
    fn a_pod_that_is_read_has_its_names(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = full_pod().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(pod) = serde_json::from_slice::<PodRecord>(&bytes) {
            prop_assert!(!pod.uid.is_empty() && !pod.name.is_empty() && !pod.namespace.is_empty());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(serde_json::from_slice::<PodRecord>(&bytes));
    }
}
