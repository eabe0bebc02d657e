#![allow(clippy::unwrap_used, clippy::expect_used)]

use citadel_identity::TrustDomain;
use citadel_proto::v1::{EntriesUpdate, EntryRecord};
use serde_json::{Value, json};

use super::*;

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn entries(all: &[(&str, &[&str])]) -> Entries {
    let record = |(id, selectors): &(&str, &[&str])| EntryRecord {
        entry_id: (*id).to_owned(),
        spiffe_id: format!("spiffe://example.org/{id}"),
        selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
        ..EntryRecord::default()
    };
    let update = EntriesUpdate {
        entries: all.iter().map(record).collect(),
        revision: 7,
    };
    Entries::from_update(update, &TrustDomain::new("example.org").unwrap(), true)
}

fn alice() -> UnixFacts {
    UnixFacts {
        uid: 1000,
        gid: 1000,
        groups: vec![27],
        path: None,
        sha256: None,
    }
}

fn names(entries: &Entries, place: Place<'_>) -> (Vec<String>, bool) {
    let choice = choose(entries, place, &alice());
    let names = choice.entries.iter().map(|e| e.entry_id.clone()).collect();
    (names, choice.awaits_container)
}

fn object() -> Value {
    json!({
        "metadata": { "uid": "u1", "name": "web-0", "namespace": "shop", "labels": { "tier": "front" } },
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "web",
            "initContainers": [{ "name": "setup", "image": "tool:1" }],
            "containers": [
                { "name": "app", "image": "web:1" },
                { "name": "proxy", "image": "proxy:1" },
            ],
            "ephemeralContainers": [{ "name": "debug", "image": "tool:1" }],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [
                { "name": "setup", "containerID": format!("containerd://{}", id('a')) },
            ],
            "containerStatuses": [
                { "name": "app", "containerID": format!("containerd://{}", id('b')) },
            ],
            "ephemeralContainerStatuses": [
                { "name": "debug", "containerID": format!("containerd://{}", id('c')) },
            ],
        },
    })
}

fn pod(object: &Value) -> NodePod {
    serde_json::from_str(&object.to_string()).unwrap()
}

fn in_container<'a>(pod: &'a NodePod, container: &'a str) -> Place<'a> {
    Place::Known {
        pod,
        container: Some(container),
    }
}

const UNKNOWN: Place<'static> = Place::Pod {
    may_be_known: false,
};

#[test]
fn unix_entries_match_when_all_their_selectors_do() {
    let entries = entries(&[
        ("a", &["unix:uid:1000"]),
        ("b", &["unix:uid:1000", "unix:supplementary-gid:27"]),
        ("c", &["unix:uid:1000", "unix:gid:4"]),
        ("d", &["unix:path:/bin/x"]),
    ]);
    assert_eq!(names(&entries, Place::Host).0, ["a", "b"]);
    // A uid inside of a container is no user of the host.
    assert_eq!(names(&entries, UNKNOWN).0, [""; 0]);
    let pod = pod(&object());
    assert_eq!(names(&entries, in_container(&pod, &id('b'))).0, [""; 0]);
}

#[test]
fn what_is_not_known_of_a_pod_is_the_cas_to_check() {
    let entries = entries(&[
        ("ns", &["k8s:ns:elsewhere"]),
        ("both", &["k8s:ns:elsewhere", "unix:uid:1000"]),
        ("other", &["k8s:ns:elsewhere", "unix:uid:0"]),
    ]);
    assert_eq!(
        names(&entries, UNKNOWN),
        (vec!["ns".into(), "both".into()], false)
    );
    assert_eq!(names(&entries, Place::Host).0, [""; 0]);
}

#[test]
fn what_is_known_of_a_pod_is_checked_here_too() {
    let entries = entries(&[
        (
            "all",
            &[
                "k8s:ns:shop",
                "k8s:sa:web",
                "k8s:pod-name:web-0",
                "k8s:pod-uid:u1",
            ],
        ),
        ("label", &["k8s:pod-label:tier:front"]),
        ("elsewhere", &["k8s:ns:elsewhere"]),
        ("other-label", &["k8s:pod-label:tier:back"]),
    ]);
    let pod = pod(&object());
    let known = names(&entries, in_container(&pod, &id('b')));
    assert_eq!(known, (vec!["all".into(), "label".into()], false));
}

#[test]
fn containers_of_one_pod_are_told_apart_and_of_every_kind() {
    let entries = entries(&[
        ("app", &["k8s:ns:shop", "k8s:container-name:app"]),
        ("tool", &["k8s:container-image:tool:1"]),
        (
            "mixed",
            &["k8s:container-name:app", "k8s:container-image:tool:1"],
        ),
        ("debug", &["k8s:container-name:debug"]),
    ]);
    let pod = pod(&object());
    let of = |digit| names(&entries, in_container(&pod, &id(digit)));
    assert_eq!(of('b'), (vec!["app".into()], false));
    assert_eq!(of('a'), (vec!["tool".into()], false));
    assert_eq!(of('c'), (vec!["tool".into(), "debug".into()], false));
    // A process of the pod that is in none of its containers.
    let place = Place::Known {
        pod: &pod,
        container: None,
    };
    assert_eq!(names(&entries, place), (vec![], false));
}

#[test]
fn a_container_that_the_kubelet_has_not_named_is_waited_for_where_it_matters() {
    let pod = pod(&object());
    let new = id('d');
    let place = in_container(&pod, &new);
    let proxy = entries(&[("proxy", &["k8s:container-name:proxy"])]);
    assert_eq!(names(&proxy, place), (vec![], true));
    // No container of the pod is called so, or the pod is another one's: no wait.
    for selectors in [
        &["k8s:container-name:nobody"][..],
        &["k8s:container-name:proxy", "k8s:ns:elsewhere"],
    ] {
        assert_eq!(names(&entries(&[("x", selectors)]), place), (vec![], false));
    }
    // The pod itself is not known (yet).
    assert_eq!(
        names(&proxy, Place::Pod { may_be_known: true }),
        (vec![], true)
    );
    assert_eq!(names(&proxy, UNKNOWN), (vec![], false));
}

#[test]
fn label_image_and_account_never_match_a_mirror_pod() {
    let mut mirror = object();
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "hash" });
    let pod = pod(&mirror);
    let entries = entries(&[
        ("label", &["k8s:pod-label:tier:front"]),
        ("image", &["k8s:container-image:web:1"]),
        ("account", &["k8s:sa:web"]),
        ("name", &["k8s:ns:shop", "k8s:container-name:app"]),
    ]);
    let chosen = names(&entries, in_container(&pod, &id('b')));
    assert_eq!(chosen, (vec!["name".into()], false));
}
