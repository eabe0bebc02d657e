#![allow(clippy::unwrap_used, clippy::expect_used)]

use tokio::time::advance;

use super::*;
use crate::inventory::Event;
use crate::records::Phase;
use crate::testing::{FakeApi, account, node, pod};

struct Bench {
    api: Arc<FakeApi>,
    inventory: Arc<Inventory>,
    resolver: Arc<UnknownUidResolver>,
}

fn bench() -> Bench {
    let (api, inventory) = (Arc::new(FakeApi::default()), Arc::new(Inventory::default()));
    let resolver =
        UnknownUidResolver::new(api.clone(), inventory.clone(), ResolverPolicy::default());
    Bench {
        api,
        inventory,
        resolver: Arc::new(resolver),
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_has_not_shown_yet() {
    let b = bench();
    b.api.put_pod(pod("u1", "web-0"));
    let found = b.resolver.resolve_pod("shop", "web-0", "u1").await;
    assert!(matches!(found, Resolved::Live(record) if &*record.uid == "u1"));
    assert!(matches!(b.inventory.pod("u1"), Lookup::Live(_)));
    b.resolver.resolve_pod("shop", "web-0", "u1").await;
    assert_eq!(b.api.calls(), 1, "the inventory knows it now");
}

#[tokio::test(start_paused = true)]
async fn absent_and_another_uid_are_final_and_asked_once() {
    let b = bench();
    b.api.put_pod(pod("u2", "web-0"));
    for _ in 0..3 {
        assert_eq!(
            b.resolver.resolve_pod("shop", "web-0", "u1").await,
            Resolved::OtherUid
        );
        assert_eq!(
            b.resolver.resolve_pod("shop", "web-1", "u1").await,
            Resolved::Absent
        );
        assert_eq!(
            b.resolver.resolve_account("shop", "web", "u1").await,
            Resolved::Absent
        );
        assert_eq!(b.resolver.resolve_node("n1", "u1").await, Resolved::Absent);
    }
    assert_eq!(b.api.calls(), 4);
    assert_eq!(
        b.inventory.pod("u2"),
        Lookup::Unknown,
        "nobody asked about that one"
    );
}

#[tokio::test(start_paused = true)]
async fn accounts_and_nodes() {
    let b = bench();
    b.api.put_account(account("a1", "web"));
    b.api.put_node(node("n-1", "n1"));
    assert!(matches!(
        b.resolver.resolve_account("shop", "web", "a1").await,
        Resolved::Live(_)
    ));
    assert_eq!(
        b.resolver.resolve_account("shop", "web", "a0").await,
        Resolved::OtherUid
    );
    assert!(matches!(
        b.resolver.resolve_node("n1", "n-1").await,
        Resolved::Live(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn an_account_by_its_name_alone() {
    let b = bench();
    b.api.put_account(account("a1", "web"));
    for _ in 0..2 {
        let found = b.resolver.resolve_account_name("shop", "web").await;
        assert!(matches!(found, Resolved::Live(record) if &*record.uid == "a1"));
        let found = b.resolver.resolve_account_name("shop", "db").await;
        assert_eq!(found, Resolved::Absent);
    }
    assert_eq!(b.api.calls(), 2);
    // The watch knows better than an answer of before.
    let now = Instant::now();
    b.inventory
        .apply_account(Event::Applied(account("a2", "db")), now);
    let found = b.resolver.resolve_account_name("shop", "db").await;
    assert!(matches!(found, Resolved::Live(record) if &*record.uid == "a2"));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_gone_costs_no_request() {
    let b = bench();
    b.api.put_pod(pod("u1", "web-0"));
    let now = Instant::now();
    b.inventory
        .apply_pod(Event::Deleted(pod("u1", "web-0")), now);
    assert_eq!(
        b.resolver.resolve_pod("shop", "web-0", "u1").await,
        Resolved::Absent
    );
    assert_eq!(b.api.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_goes_while_the_answer_is_on_its_way_is_not_brought_back() {
    let b = bench();
    b.api.put_pod(pod("u1", "web-0"));
    b.api.hold();
    let asking = tokio::spawn({
        let resolver = b.resolver.clone();
        async move { resolver.resolve_pod("shop", "web-0", "u1").await }
    });
    b.api.waiting().await;
    b.inventory
        .apply_pod(Event::Deleted(pod("u1", "web-0")), Instant::now());
    b.api.release();
    assert_eq!(asking.await.unwrap(), Resolved::Absent);
    assert_eq!(b.inventory.pod("u1"), Lookup::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_is_absent() {
    let b = bench();
    b.api.put_pod(PodRecord {
        phase: Phase::Succeeded,
        ..pod("u1", "job")
    });
    assert_eq!(
        b.resolver.resolve_pod("shop", "job", "u1").await,
        Resolved::Absent
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_does_not_answer_is_no_verdict() {
    let b = bench();
    for error in [
        ApiError::Unreachable("down".into()),
        ApiError::Denied {
            status: 403,
            hint: String::new(),
        },
        ApiError::Malformed("?".into()),
    ] {
        b.api.fail(Some(error));
        assert_eq!(
            b.resolver.resolve_pod("shop", "web-0", "u1").await,
            Resolved::Unreachable
        );
    }
    b.api.fail(None);
    b.api.put_pod(pod("u1", "web-0"));
    assert!(matches!(
        b.resolver.resolve_pod("shop", "web-0", "u1").await,
        Resolved::Live(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_the_same_are_one_request() {
    let b = bench();
    b.api.put_pod(pod("u1", "web-0"));
    b.api.hold();
    let asking: Vec<_> = (0..500)
        .map(|_| {
            let resolver = b.resolver.clone();
            tokio::spawn(async move { resolver.resolve_pod("shop", "web-0", "u1").await })
        })
        .collect();
    b.api.waiting().await;
    b.api.release();
    for asking in asking {
        assert!(matches!(asking.await.unwrap(), Resolved::Live(_)));
    }
    assert_eq!(b.api.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_are_limited_over_all_kinds() {
    let b = bench();
    let ask = |n: usize| {
        let resolver = b.resolver.clone();
        async move {
            let uid = format!("made-up-{n}");
            match n % 3 {
                0 => resolver.resolve_pod("shop", "x", &uid).await == Resolved::RateLimited,
                1 => resolver.resolve_account("shop", "x", &uid).await == Resolved::RateLimited,
                _ => resolver.resolve_node("x", &uid).await == Resolved::RateLimited,
            }
        }
    };
    let mut limited = 0;
    for n in 0..1000 {
        limited += usize::from(ask(n).await);
    }
    assert_eq!((b.api.calls(), limited), (100, 900));
    advance(Duration::from_secs(1)).await;
    for n in 1000..2000 {
        ask(n).await;
    }
    assert_eq!(b.api.calls(), 150);
    // A refusal for want of room is no verdict.
    b.api.put_pod(pod("u1", "late"));
    assert_eq!(
        b.resolver.resolve_pod("shop", "late", "u1").await,
        Resolved::RateLimited
    );
    advance(Duration::from_secs(1)).await;
    assert!(matches!(
        b.resolver.resolve_pod("shop", "late", "u1").await,
        Resolved::Live(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn final_answers_are_bounded() {
    let policy = ResolverPolicy {
        remember_count: 2,
        ..ResolverPolicy::default()
    };
    let api = Arc::new(FakeApi::default());
    let resolver = UnknownUidResolver::new(api.clone(), Arc::default(), policy);
    for uid in ["a", "b", "c", "c", "b"] {
        resolver.resolve_pod("shop", "x", uid).await;
    }
    assert_eq!(api.calls(), 3);
    resolver.resolve_pod("shop", "x", "a").await;
    assert_eq!(api.calls(), 4, "the oldest made room");
    advance(Duration::from_secs(601)).await;
    resolver.resolve_pod("shop", "x", "c").await;
    assert_eq!(api.calls(), 5, "answers are forgotten in time");
}
