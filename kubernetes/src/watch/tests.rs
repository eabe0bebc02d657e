#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::convert::Infallible;
use std::sync::Arc;

use futures::future::pending;
use proptest::prelude::*;
use serde_json::json;
use tokio::time::{advance, timeout};

use self::fake::{Fake, Health, object};
use super::*;
use crate::cluster::{Cluster, ClusterConfig};
use crate::inventory::Lookup;

// === a cluster that follows the fake API server ===

struct Bench {
    fake: Fake,
    inventory: Arc<Inventory>,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Bench {
    fn start(fake: &Fake, config: ClusterConfig) -> Self {
        let service = tower::service_fn({
            let fake = fake.clone();
            move |request| {
                let fake = fake.clone();
                async move { Ok::<_, Infallible>(fake.answer(request).await) }
            }
        });
        let cluster = Cluster::with_transport(config, Transport::to_service(service));
        let inventory = Arc::new(Inventory::default());
        let running = tokio::spawn(cluster.run_watches(inventory.clone(), pending()));
        Self {
            fake: fake.clone(),
            inventory,
            running,
        }
    }

    /// Started, and all three watches open.
    async fn open(fake: &Fake) -> Self {
        let bench = Self::start(fake, config());
        bench
            .fake
            .until(|fake| fake.with(|server| server.watches.len()) == 3)
            .await;
        bench
    }

    async fn until(&self, what: impl Fn(&Inventory) -> bool) {
        let mut revision = self.inventory.subscribe();
        let waiting = async {
            while !what(&self.inventory) {
                revision.changed().await.unwrap();
            }
        };
        timeout(Duration::from_hours(1), waiting)
            .await
            .expect("the inventory does not get there");
    }

    fn staleness(&self) -> u64 {
        self.inventory.staleness(now()).as_secs()
    }
}

fn config() -> ClusterConfig {
    ClusterConfig::new("test", None)
}

fn is_live(inventory: &Inventory, uid: &str) -> bool {
    matches!(inventory.pod(uid), Lookup::Live(_))
}

fn is_gone(inventory: &Inventory, uid: &str) -> bool {
    inventory.pod(uid) == Lookup::Gone
}

/// Lets everything run that can run at this instant.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Passes time in steps, so that whatever is due in between happens at its time.
async fn pass(secs: u64) {
    for _ in 0..secs {
        settle().await;
        advance(Duration::from_secs(1)).await;
    }
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn pages_make_one_list_and_events_follow() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b", "c", "d", "e"]);
    let bench = Bench::open(&fake).await;
    assert_eq!(bench.inventory.count(Kind::Pods), 5);
    assert_eq!(fake.count(|r| r.starts_with("/api/v1/pods?limit=500")), 3);
    assert_eq!(bench.staleness(), 0);

    fake.send("ADDED", object("f"));
    bench.until(|i| is_live(i, "f")).await;
    fake.send("DELETED", object("a"));
    bench.until(|i| is_gone(i, "a")).await;
    let mut finished = object("b");
    finished["status"]["phase"] = json!("Succeeded");
    fake.send("MODIFIED", finished);
    bench.until(|i| is_gone(i, "b")).await;
    let mut leaving = object("c");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    fake.send("MODIFIED", leaving);
    fake.send("ADDED", object("g"));
    bench.until(|i| is_live(i, "g")).await;
    assert!(
        is_live(&bench.inventory, "c"),
        "a deletion timestamp alone takes nothing"
    );
    assert_eq!((fake.pod_lists(), fake.pod_watches()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_agent_asks_for_the_pods_of_its_node_alone_and_probes_nobody() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b", "c"]);
    let service = tower::service_fn({
        let fake = fake.clone();
        move |request| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        }
    });
    let cluster = Cluster::with_transport(config(), Transport::to_service(service));
    let pods = Arc::new(NodePods::default());
    let mut revision = pods.subscribe();
    let following = {
        let pods = pods.clone();
        async move { cluster.run_node_watch("n-1.example", pods, pending()).await }
    };
    let following = tokio::spawn(following);
    fake.until(|fake| fake.with(|server| server.watches.len()) == 1)
        .await;
    assert_eq!(pods.count(), 3);
    fake.send("DELETED", object("a"));
    while pods.pod("a") != Lookup::Gone {
        revision.changed().await.unwrap();
    }
    pass(60).await;
    let asked = fake.with(|server| server.requests.clone());
    // Two pages and a watch.
    assert_eq!(asked.len(), 3, "{asked:?}");
    for request in asked {
        assert!(request.starts_with("/api/v1/pods?"), "{request}");
        let of_node = "&fieldSelector=spec.nodeName%3Dn-1.example";
        assert!(request.ends_with(of_node), "{request}");
    }
    following.abort();
}

#[tokio::test(start_paused = true)]
async fn bookmarks_keep_a_quiet_cluster_fresh_and_answered_probes_do_not() {
    let fake = Fake::new();
    let bench = Bench::open(&fake).await;
    for _ in 0..5 {
        pass(60).await;
        assert_eq!(bench.staleness(), 60);
        fake.bookmark_all();
        settle().await;
        assert_eq!(bench.staleness(), 0);
    }
    assert!(
        fake.count(|r| r == "/readyz") >= 30,
        "the probe was not answered all that time"
    );
    assert_eq!(fake.pod_lists(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_silent_for_three_minutes_is_reopened() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b"]);
    let bench = Bench::open(&fake).await;
    pass(179).await;
    assert_eq!(
        (bench.staleness(), fake.pod_lists(), fake.pod_watches()),
        (179, 1, 1)
    );
    fake.set_pods(&["b"]);
    pass(3).await;
    assert_eq!((fake.pod_lists(), fake.pod_watches()), (2, 2));
    assert!(bench.staleness() < 3);
    assert!(
        is_gone(&bench.inventory, "a"),
        "what went during the silence"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_the_server_ends_goes_on_from_its_version() {
    let fake = Fake::new();
    fake.set_pods(&["a"]);
    let bench = Bench::open(&fake).await;
    fake.send("ADDED", object("b"));
    bench.until(|i| is_live(i, "b")).await;
    pass(60).await;
    fake.close_watches();
    pass(2).await;
    assert_eq!((fake.pod_lists(), fake.pod_watches()), (1, 2));
    assert_eq!(
        fake.count(|r| r.contains("/pods?watch") && r.contains("resourceVersion=101&")),
        1
    );
    assert_eq!(
        bench.staleness(),
        62,
        "a reopened watch proves nothing by itself"
    );
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_leads_to_a_new_list() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b"]);
    let bench = Bench::open(&fake).await;

    // Within the stream…
    fake.set_pods(&["b", "c"]);
    fake.send(
        "ERROR",
        json!({"kind": "Status", "code": 410, "reason": "Expired"}),
    );
    bench.until(|i| is_gone(i, "a") && is_live(i, "c")).await;
    // … and at its opening.
    fake.with(|server| {
        server.version = 500;
        server.oldest = 500;
    });
    fake.set_pods(&["c"]);
    pass(2).await;
    fake.close_watches();
    bench.until(|i| is_gone(i, "b")).await;
    assert_eq!(fake.pod_lists(), 3);
    assert!(is_live(&bench.inventory, "c"));
}

#[tokio::test(start_paused = true)]
async fn a_hung_api_server_makes_it_stale_and_its_return_makes_it_fresh() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b"]);
    let bench = Bench::open(&fake).await;
    fake.with(|server| server.health = Health::Hung);
    pass(170).await;
    assert_eq!(bench.staleness(), 170);
    pass(500).await;
    assert_eq!(
        bench.staleness(),
        670,
        "only the API server can make it fresh"
    );
    assert!(is_live(&bench.inventory, "a"));

    fake.set_pods(&["b"]);
    fake.with(|server| server.health = Health::Up);
    // The probe that hangs is given up, the next one is answered.
    pass(6).await;
    assert!(bench.staleness() <= 5, "{}", bench.staleness());
    assert!(is_gone(&bench.inventory, "a"));
    fake.send("ADDED", object("c"));
    bench.until(|i| is_live(i, "c")).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_short_outage_watches_are_reopened_without_a_list() {
    let fake = Fake::new();
    fake.set_pods(&["a"]);
    let bench = Bench::open(&fake).await;
    fake.with(|server| server.health = Health::Hung);
    pass(30).await;
    fake.with(|server| server.health = Health::Up);
    pass(6).await;
    assert_eq!((fake.pod_lists(), fake.pod_watches()), (1, 2));
    fake.send("ADDED", object("b"));
    bench.until(|i| is_live(i, "b")).await;
}

#[tokio::test(start_paused = true)]
async fn it_starts_before_its_api_server_and_does_not_press_it() {
    let fake = Fake::new();
    fake.set_pods(&["a"]);
    fake.with(|server| server.health = Health::Failing);
    let bench = Bench::start(&fake, config());
    pass(120).await;
    assert_eq!(bench.inventory.staleness(now()), Duration::MAX);
    assert!(
        (10..40).contains(&fake.pod_lists()),
        "{} attempts",
        fake.pod_lists()
    );
    fake.with(|server| server.health = Health::Up);
    bench.until(|i| is_live(i, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_takes_nothing() {
    let fake = Fake::new();
    fake.set_pods(&["a", "b", "c", "d"]);
    let bench = Bench::open(&fake).await;
    fake.set_pods(&["d", "e", "f"]);
    // The first page of the new list is answered, the second is not.
    let breaks = tokio::spawn({
        let fake = fake.clone();
        async move {
            let lists = fake.pod_lists();
            fake.until(|fake| fake.pod_lists() > lists).await;
            settle().await;
            fake.with(|server| server.health = Health::Failing);
        }
    });
    fake.with(|server| server.page = 1);
    fake.send("ERROR", json!({"kind": "Status", "code": 410}));
    breaks.await.unwrap();
    pass(60).await;
    // Whether or not that list came to its end, nothing went that a complete list still had.
    assert!(is_live(&bench.inventory, "d"));
    fake.with(|server| server.health = Health::Up);
    bench.until(|i| is_gone(i, "a") && is_live(i, "f")).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_made_up_for_by_a_list() {
    for line in [
        "{",
        r#"{"type":"DELETED","object":{"metadata":{}}}"#,
        r#"{"type":"NEW","object":{}}"#,
    ] {
        let fake = Fake::new();
        fake.set_pods(&["a", "b"]);
        let bench = Bench::open(&fake).await;
        fake.set_pods(&["b"]);
        fake.send_raw(line);
        bench.until(|i| is_gone(i, "a")).await;
        assert!(is_live(&bench.inventory, "b"));
    }
}

#[tokio::test(start_paused = true)]
async fn one_odd_object_does_not_spoil_a_list() {
    let fake = Fake::new();
    let pods = vec![
        object("a"),
        json!({"metadata": {"name": "odd"}}),
        json!(7),
        object("b"),
    ];
    fake.with(|server| server.objects.insert("/api/v1/pods", pods));
    let bench = Bench::open(&fake).await;
    assert_eq!(bench.inventory.count(Kind::Pods), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_is_not_pressed() {
    let fake = Fake::new();
    let _bench = Bench::open(&fake).await;
    for _ in 0..600 {
        fake.close_watches();
        settle().await;
        advance(Duration::from_millis(100)).await;
    }
    assert!(
        fake.pod_watches() < 40,
        "{} watches in a minute",
        fake.pod_watches()
    );
}

// === decoding ===

#[test]
fn lists_without_items_and_without_a_version() {
    let empty = r#"{"metadata":{"resourceVersion":"7"},"items":null}"#;
    assert_eq!(
        decode_page::<NodeRecord>(empty.as_bytes()).unwrap().version,
        "7"
    );
    for bad in ["", "[]", r#"{"items":[]}"#, r#"{"metadata":{},"items":[]}"#] {
        assert!(decode_page::<NodeRecord>(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn other_errors_of_a_watch_are_no_expiry() {
    let line = br#"{"type":"ERROR","object":{"kind":"Status","code":500}}"#;
    assert_eq!(
        decode_event::<PodRecord>(line).err(),
        Some(EventError::Server(500))
    );
}

#[test]
fn waits_stay_within_their_bounds() {
    for _ in 0..1000 {
        let wait = jittered(Duration::from_secs(10));
        assert!((Duration::from_secs(5)..=Duration::from_secs(10)).contains(&wait));
    }
    assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
}

#[test]
fn what_goes_into_a_query_is_escaped() {
    assert_eq!(query_escaped("eyJ2-_.9"), "eyJ2-_.9");
    assert_eq!(query_escaped("a&b=c/d\n"), "a%26b%3Dc%2Fd%0A");
}

proptest! {
    #[test]
    fn mutated_events_and_lists_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let event = json!({"type": "ADDED", "object": object("a")}).to_string();
        let list = json!({"metadata": {"resourceVersion": "7"}, "items": [object("a"), object("b")]});
        for text in [event, list.to_string()] {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
            drop(decode_event::<PodRecord>(&bytes));
            drop(decode_page::<PodRecord>(&bytes));
            drop(decode_event::<NodePod>(&bytes));
            drop(decode_page::<NodePod>(&bytes));
            drop(decode_page::<AccountRecord>(&bytes));
        }
    }
}
