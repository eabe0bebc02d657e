#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::records::{Labels, Phase};

fn pod(uid: &str, node: Option<&str>) -> PodRecord {
    PodRecord {
        uid: uid.into(),
        name: format!("pod-{uid}").into(),
        namespace: "shop".into(),
        account: "web".into(),
        node: node.map(Into::into),
        phase: Phase::Running,
        labels: Labels::from_iter([("app", "web")]),
        containers: [].into(),
        mirror: None,
    }
}

fn account(uid: &str, name: &str) -> AccountRecord {
    AccountRecord {
        uid: uid.into(),
        name: name.into(),
        namespace: "shop".into(),
    }
}

fn node(uid: &str, name: &str) -> NodeRecord {
    NodeRecord {
        uid: uid.into(),
        name: name.into(),
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn on_node(inventory: &Inventory, node: &str) -> Vec<String> {
    let mut uids: Vec<_> = inventory
        .pods_on_node(node)
        .iter()
        .map(|pod| pod.uid.to_string())
        .collect();
    uids.sort();
    uids
}

#[test]
fn a_deleted_pod_is_gone_and_stays_gone() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    assert_eq!(inventory.pod("a"), Lookup::Unknown);
    inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
    assert!(matches!(inventory.pod("a"), Lookup::Live(_)));
    inventory.apply_pod(Event::Deleted(pod("a", Some("n1"))), now);
    assert_eq!(inventory.pod("a"), Lookup::Gone);
    assert_eq!(on_node(&inventory, "n1"), Vec::<String>::new());

    // Whatever is older than that: an event, a list, an answer to a request by name.
    inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
    inventory.load_pods(vec![pod("a", Some("n1"))], now);
    assert_eq!(
        inventory.insert_fetched_pod(pod("a", Some("n1")), now),
        Lookup::Gone
    );
    assert_eq!(inventory.pod("a"), Lookup::Gone);
}

#[test]
fn a_finished_pod_is_gone_though_its_object_is_there() {
    for phase in [Phase::Succeeded, Phase::Failed] {
        let (inventory, now) = (Inventory::default(), Instant::now());
        inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
        inventory.apply_pod(
            Event::Applied(PodRecord {
                phase,
                ..pod("a", Some("n1"))
            }),
            now,
        );
        assert_eq!(inventory.pod("a"), Lookup::Gone, "{phase:?}");
        assert!(on_node(&inventory, "n1").is_empty());
        // Never seen alive: just as gone.
        inventory.apply_pod(
            Event::Applied(PodRecord {
                phase,
                ..pod("b", Some("n1"))
            }),
            now,
        );
        assert_eq!(inventory.pod("b"), Lookup::Gone, "{phase:?}");
    }
}

#[test]
fn what_a_complete_list_lacks_is_gone_and_an_unfinished_list_takes_nothing() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.load_pods(vec![pod("a", Some("n1")), pod("b", Some("n1"))], now);

    inventory.apply_pod(Event::ListStarted, now);
    inventory.apply_pod(Event::Page(vec![pod("c", Some("n1"))]), now);
    assert_eq!(on_node(&inventory, "n1"), ["a", "b", "c"]);

    // That list broke off; the next one comes to its end.
    inventory.apply_pod(Event::ListStarted, now);
    inventory.apply_pod(Event::Page(vec![pod("b", Some("n1"))]), now);
    inventory.apply_pod(Event::ListFinished, now);
    assert_eq!(on_node(&inventory, "n1"), ["b"]);
    assert_eq!(inventory.pod("a"), Lookup::Gone);
    assert_eq!(inventory.pod("c"), Lookup::Gone);

    inventory.apply_pod(Event::ListFinished, now);
    assert_eq!(
        on_node(&inventory, "n1"),
        ["b"],
        "an end without a beginning takes nothing"
    );
}

#[test]
fn a_pod_younger_than_the_list_under_way_survives_it() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.load_pods(vec![pod("a", None)], now);
    inventory.apply_pod(Event::ListStarted, now);
    inventory.apply_pod(Event::Page(vec![pod("a", None)]), now);
    assert!(matches!(
        inventory.insert_fetched_pod(pod("new", Some("n1")), now),
        Lookup::Live(_)
    ));
    inventory.apply_pod(Event::ListFinished, now);
    assert!(matches!(inventory.pod("new"), Lookup::Live(_)));
    inventory.load_pods(vec![pod("a", None)], now);
    assert_eq!(
        inventory.pod("new"),
        Lookup::Gone,
        "the next list is younger than the pod"
    );
}

#[test]
fn a_pod_appears_on_its_node_once_it_is_bound() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.apply_pod(Event::Applied(pod("a", None)), now);
    assert!(on_node(&inventory, "n1").is_empty());
    inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
    assert_eq!(on_node(&inventory, "n1"), ["a"]);
}

#[test]
fn an_account_made_again_under_its_name_is_another() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.apply_account(Event::Applied(account("u1", "web")), now);
    inventory.apply_account(Event::Deleted(account("u1", "web")), now);
    assert_eq!(inventory.account("shop", "web"), None);
    inventory.apply_account(Event::Applied(account("u2", "web")), now);
    assert_eq!(inventory.account_by_uid("u1"), Lookup::Gone);
    assert_eq!(&*inventory.account("shop", "web").unwrap().uid, "u2");
    assert_eq!(inventory.account("other", "web"), None);
}

#[test]
fn a_request_by_name_may_overtake_the_watch() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.apply_node(Event::Applied(node("u1", "n1")), now);
    inventory.insert_fetched_node(node("u2", "n1"), now);
    assert_eq!(&*inventory.node("n1").unwrap().uid, "u2");
    inventory.apply_node(Event::Deleted(node("u1", "n1")), now);
    assert_eq!(&*inventory.node("n1").unwrap().uid, "u2");
    assert_eq!(inventory.node_by_uid("u1"), Lookup::Gone);
}

#[test]
fn gone_is_remembered_for_its_time_and_number() {
    let now = Instant::now();
    let inventory = Inventory::new(Remember {
        duration: secs(100),
        count: 3,
    });
    for uid in ["a", "b", "c", "d"] {
        inventory.apply_pod(Event::Deleted(pod(uid, None)), now);
    }
    assert_eq!(inventory.pod("a"), Lookup::Unknown, "the oldest made room");
    assert_eq!(inventory.pod("d"), Lookup::Gone);
    inventory.apply_pod(Event::Bookmark, now + secs(100));
    assert_eq!(inventory.pod("d"), Lookup::Gone);
    inventory.apply_pod(Event::Bookmark, now + secs(101));
    assert_eq!(inventory.pod("d"), Lookup::Unknown);
}

#[test]
fn staleness_is_that_of_the_stalest_watch() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    assert_eq!(inventory.staleness(now), Duration::MAX);
    inventory.load_pods(vec![], now);
    inventory.load_accounts(vec![], now);
    // An event before the first list proves nothing about the rest.
    inventory.apply_node(Event::Applied(node("u", "n")), now);
    assert_eq!(inventory.staleness(now), Duration::MAX);
    inventory.load_nodes(vec![], now);
    assert_eq!(inventory.staleness(now + secs(5)), secs(5));

    inventory.apply_pod(Event::Bookmark, now + secs(10));
    inventory.apply_account(Event::Applied(account("u", "web")), now + secs(20));
    assert_eq!(
        inventory.staleness(now + secs(30)),
        secs(30),
        "nodes are silent"
    );
    assert_eq!(inventory.staleness_of(Kind::Pods, now + secs(30)), secs(20));
    assert_eq!(
        inventory.staleness_of(Kind::Accounts, now + secs(30)),
        secs(10)
    );
    inventory.apply_node(Event::Deleted(node("u", "n")), now + secs(30));
    assert_eq!(inventory.staleness(now + secs(30)), secs(20));
}

#[test]
fn only_the_watch_makes_it_fresh() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    inventory.load_pods(vec![], now);
    inventory.insert_fetched_pod(pod("a", None), now + secs(60));
    inventory.apply_pod(Event::ListStarted, now + secs(60));
    inventory.apply_pod(Event::Page(vec![pod("a", None)]), now + secs(70));
    assert_eq!(inventory.staleness_of(Kind::Pods, now + secs(70)), secs(70));
    inventory.apply_pod(Event::ListFinished, now + secs(80));
    // A list shows the state of its beginning.
    assert_eq!(inventory.staleness_of(Kind::Pods, now + secs(80)), secs(20));
}

#[test]
fn the_revision_moves_with_what_a_lookup_can_see() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    let mut revision = inventory.subscribe();
    let mut moved = || {
        let moved = revision.has_changed().unwrap();
        revision.mark_unchanged();
        moved
    };
    inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
    assert!(moved());
    inventory.apply_pod(Event::Applied(pod("a", Some("n1"))), now);
    inventory.apply_pod(Event::Bookmark, now);
    inventory.load_pods(vec![pod("a", Some("n1"))], now);
    assert!(!moved(), "nothing is new");
    inventory.load_pods(vec![], now);
    assert!(moved());
}

#[derive(Debug, Clone)]
enum Step {
    Apply { uid: u8, node: u8, finished: bool },
    Fetch { uid: u8 },
    Delete { uid: u8 },
    List { uids: Vec<u8>, finish: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u8..12, 0u8..4, prop::bool::weighted(0.1)).prop_map(|(uid, node, finished)| {
            Step::Apply {
                uid,
                node,
                finished,
            }
        }),
        (0u8..12).prop_map(|uid| Step::Fetch { uid }),
        (0u8..12).prop_map(|uid| Step::Delete { uid }),
        (prop::collection::vec(0u8..12, 0..12), any::<bool>())
            .prop_map(|(uids, finish)| Step::List { uids, finish }),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Against a model: what went never comes back, and both ways to a pod agree.
    #[test]
    fn no_order_of_events_revives_a_pod(steps in steps()) {
        let (inventory, now) = (Inventory::default(), Instant::now());
        let name = |n: u8| format!("u{n}");
        let (mut gone, mut live) = (HashSet::<u8>::new(), HashMap::<u8, u8>::new());
        for step in steps {
            match step {
                Step::Apply { uid, node, finished } => {
                    let phase = if finished { Phase::Failed } else { Phase::Running };
                    let record = pod(&name(uid), Some(&name(node)));
                    inventory.apply_pod(Event::Applied(PodRecord { phase, ..record }), now);
                    if finished {
                        live.remove(&uid);
                        gone.insert(uid);
                    } else if !gone.contains(&uid) {
                        live.insert(uid, node);
                    }
                }
                Step::Fetch { uid } => {
                    inventory.insert_fetched_pod(pod(&name(uid), Some("u0")), now);
                    if !gone.contains(&uid) {
                        live.insert(uid, 0);
                    }
                }
                Step::Delete { uid } => {
                    inventory.apply_pod(Event::Deleted(pod(&name(uid), None)), now);
                    live.remove(&uid);
                    gone.insert(uid);
                }
                Step::List { uids, finish } => {
                    inventory.apply_pod(Event::ListStarted, now);
                    let page = uids.iter().map(|uid| pod(&name(*uid), Some("u1"))).collect();
                    inventory.apply_pod(Event::Page(page), now);
                    live.extend(uids.iter().filter(|uid| !gone.contains(uid)).map(|uid| (*uid, 1)));
                    if finish {
                        inventory.apply_pod(Event::ListFinished, now);
                        gone.extend(live.keys().filter(|uid| !uids.contains(uid)));
                        live.retain(|uid, _| uids.contains(uid));
                    }
                }
            }
            for uid in 0..12 {
                let expected = match (live.contains_key(&uid), gone.contains(&uid)) {
                    (true, _) => "live",
                    (false, true) => "gone",
                    (false, false) => "unknown",
                };
                let found = match inventory.pod(&name(uid)) {
                    Lookup::Live(_) => "live",
                    Lookup::Gone => "gone",
                    Lookup::Unknown => "unknown",
                };
                prop_assert_eq!(found, expected);
            }
            for node in 0..4 {
                let mut expected: Vec<_> =
                    live.iter().filter(|(_, on)| **on == node).map(|(uid, _)| name(*uid)).collect();
                expected.sort();
                prop_assert_eq!(on_node(&inventory, &name(node)), expected);
            }
        }
    }
}

#[test]
fn a_mirror_pod_is_found_on_its_node_by_the_static_pods_hash() {
    let (inventory, now) = (Inventory::default(), Instant::now());
    let mirror = |uid: &str, node: &str, hash: &str| PodRecord {
        mirror: Some(hash.into()),
        ..pod(uid, Some(node))
    };
    inventory.load_pods(
        vec![
            pod("a", Some("n1")),
            mirror("m1", "n1", "cafe"),
            mirror("m2", "n2", "cafe"),
            mirror("m3", "n1", ""),
        ],
        now,
    );
    let uid = |node: &str, hash: &str| {
        let found = inventory.mirror_on_node(node, hash);
        found.map(|pod| pod.uid.to_string())
    };
    assert_eq!(uid("n1", "cafe").as_deref(), Some("m1"));
    assert_eq!(uid("n2", "cafe").as_deref(), Some("m2"));
    assert_eq!(uid("n3", "cafe"), None);
    assert_eq!(uid("n1", "a"), None, "a UID is no hash");
    assert_eq!(uid("n1", ""), None);
    inventory.apply_pod(Event::Deleted(mirror("m1", "n1", "cafe")), now);
    assert_eq!(uid("n1", "cafe"), None);
}
