#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use citadel_identity::{SpiffeId, key::WorkloadKey};
use time::OffsetDateTime;

use super::*;
use crate::secrets::timing::{Plan, PlannedBy};

fn pod(uid: &str) -> Wanted {
    Wanted {
        key: SecretKey::Pod {
            uid: uid.to_owned(),
        },
        principal: format!("pod {uid}").into(),
        revision: 0,
        spiffe_id: None,
        ttl_seconds: 0,
        token: None,
    }
}

fn svid(now: Instant, renew_in: u64, expires_in: u64) -> Svid {
    Svid {
        id: SpiffeId::new("spiffe://example.org/a").unwrap(),
        chain: Vec::new(),
        key: WorkloadKey::generate().unwrap(),
        serial: "01".into(),
        not_after: OffsetDateTime::UNIX_EPOCH,
        hint: String::new(),
        pod_uid: None,
        planned_by: PlannedBy {
            server_ms: 0,
            renew_at: 0,
            jitter: 0.0,
        },
        encoded: OnceLock::new(),
        holding: OnceLock::new(),
        plan: Plan {
            renew_in: Duration::from_secs(renew_in),
            expires_in: Duration::from_secs(expires_in),
        },
        received: now,
        received_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn taken(table: &mut Table, now: Instant, count: usize, bytes: usize) -> Vec<String> {
    let asks = table.take_due(Lane::Own, now, count, bytes, |_| 10);
    asks.into_iter()
        .map(|ask| match ask.wanted.key {
            SecretKey::Pod { uid } => uid,
            SecretKey::Entry { entry_id, .. } => entry_id,
            other @ SecretKey::Relayed { .. } => panic!("{other}"),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_most_urgent_come_first_and_a_batch_is_bounded() {
    let now = Instant::now();
    let mut table = Table::new(100);
    // The later it ends, the earlier its slot: slots say when, not who is first.
    for (uid, renew_in, expires_in) in [
        ("c", 10, 90),
        ("a", 30, 40),
        ("e", 5, 400),
        ("b", 20, 60),
        ("d", 6, 100),
    ] {
        table.subscribe(pod(uid), now).unwrap();
        assert_eq!(taken(&mut table, now, 10, 1000), [uid]);
        table.succeeded(&pod(uid).key, svid(now, renew_in, expires_in), now);
    }
    assert!(taken(&mut table, now, 10, 1000).is_empty());
    assert_eq!(
        table.next_due(Lane::Own),
        Some(now + Duration::from_secs(5))
    );
    let later = now + Duration::from_secs(31);
    table.subscribe(pod("new"), later).unwrap();
    // By number and by size; what is being asked for is not taken twice. "a" has less
    // than a quarter of its life left: it comes before who has nothing yet.
    assert_eq!(taken(&mut table, later, 2, 1000), ["a", "new"]);
    assert_eq!(taken(&mut table, later, 10, 25), ["b", "c"]);
    assert_eq!(taken(&mut table, later, 10, 1000), ["d", "e"]);
    assert!(taken(&mut table, later, 10, 1000).is_empty());
    assert_eq!(table.next_due(Lane::Own), None);
}

fn entry(name: String, principal: &str) -> Wanted {
    Wanted {
        key: SecretKey::Entry {
            entry_id: name,
            pod_uid: Some(principal.to_owned()),
        },
        principal: principal.into(),
        ..pod("")
    }
}

fn token(number: u32, principal: &str) -> Wanted {
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    Wanted {
        key: SecretKey::Relayed {
            token: digest,
            pod_uid: Some(principal.to_owned()),
        },
        principal: principal.into(),
        ..pod("")
    }
}

fn denial() -> Failure {
    Failure::Denied {
        reason: "no".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn forged_tokens_take_few_places_and_nobody_elses() {
    let now = Instant::now();
    let mut table = Table::new(64);
    let held: Vec<_> = (0..1000)
        .filter_map(|number| table.subscribe(token(number, "evil"), now).ok())
        .collect();
    assert_eq!(held.len(), TOKENS.0);
    assert_eq!(
        table.subscribe(token(1000, "evil"), now).unwrap_err(),
        NotNow::Waiting
    );
    // Its own account, others' tokens and others' accounts have their places.
    table.subscribe(pod("evil"), now).unwrap();
    table.subscribe(token(1, "good"), now).unwrap();
    for number in 0..50 {
        table.subscribe(pod(&number.to_string()), now).unwrap();
    }
    // What is refused gives its place back, to be asked for again after a pause.
    let asked = table.take_due(Lane::Tokens, now, 100, 1000, |_| 1);
    assert_eq!(asked.len(), TOKENS.0 + 1);
    for ask in &asked {
        assert!(!table.failed(&ask.wanted.key, denial(), now));
    }
    assert_eq!(table.values().count(), 51);
    let refused = table.subscribe(token(7, "evil"), now).unwrap_err();
    assert_eq!(refused, NotNow::Refused("no".into()));
    let later = now + Duration::from_secs(1);
    table.subscribe(token(7, "evil"), later).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_proven_leaves_its_place_to_the_next() {
    let now = Instant::now();
    let mut table = Table::new(100);
    let mut held = Vec::new();
    for number in 0..20 {
        held.push(table.subscribe(token(number, "a"), now).unwrap());
        assert_eq!(table.take_due(Lane::Tokens, now, 9, 9, |_| 1).len(), 1);
        let svid = Svid {
            pod_uid: Some("a".to_owned()),
            ..svid(now, 10, 20)
        };
        table.succeeded(&token(number, "a").key, svid, now);
    }
    // Renewals rest on the agent's authority.
    let later = now + Duration::from_secs(11);
    assert!(
        table
            .take_due(Lane::Tokens, later, 99, 99, |_| 1)
            .is_empty()
    );
    assert_eq!(table.take_due(Lane::Own, later, 99, 99, |_| 1).len(), 20);
}

#[tokio::test(start_paused = true)]
async fn callers_take_turns_and_pressing_renewals_wait_for_nobody() {
    let now = Instant::now();
    let mut table = Table::new(100);
    table.subscribe(pod("held"), now).unwrap();
    taken(&mut table, now, 10, 1000);
    table.succeeded(&pod("held").key, svid(now, 50, 100), now);
    // Many entries could be for one pod; others come later and want one thing each.
    let mut subscriptions = Vec::new();
    for number in 0..WAITING {
        let wanted = entry(format!("e{number}"), "many");
        subscriptions.push(table.subscribe(wanted, now).unwrap());
    }
    let later = now + Duration::from_secs(50);
    for (uid, ago) in [("x", 2), ("y", 1)] {
        let came = later.checked_sub(Duration::from_secs(ago)).unwrap();
        subscriptions.push(table.subscribe(pod(uid), came).unwrap());
    }
    let first = taken(&mut table, later, 4, 1000);
    assert_eq!(first[1..], ["x", "y", "held"]);
    table.failed(
        &pod("held").key,
        Failure::Trouble {
            reason: "the CA is away".to_owned(),
            retry_after: None,
        },
        later,
    );
    let pressing = now + Duration::from_secs(80);
    assert_eq!(taken(&mut table, pressing, 1, 1000), ["held"]);
}

#[tokio::test(start_paused = true)]
async fn entries_that_match_nobody_do_not_fill_the_table() {
    let now = Instant::now();
    let mut table = Table::new(1000);
    let mut asked = 0;
    // Fifty pods, and for each two hundred entries that could be for it.
    for pod in 0..50 {
        for number in 0..200 {
            let wanted = entry(number.to_string(), &format!("pod {pod}"));
            let state = match table.subscribe(wanted.clone(), now) {
                Ok(state) => state,
                Err(full) => panic!("{full}"),
            };
            if table.values().count() == WAITING {
                let batch = table.take_due(Lane::Own, now, 256, 1000, |_| 1);
                asked += batch.len();
                for ask in batch {
                    table.failed(&ask.wanted.key, denial(), now);
                }
                assert!(matches!(&*state.borrow(), State::Denied(_)));
            }
        }
    }
    assert!(asked > 9_900, "{asked}");
    assert!(table.values().count() < WAITING);
    table.subscribe(self::pod("new"), now).unwrap();
}

#[test]
fn what_was_prepared_is_kept_for_a_time_and_counted_once() {
    let (mut table, now) = (Table::new(10), Instant::now());
    let until = now + Duration::from_secs(60);
    let linger = Duration::from_secs(5);
    assert!(table.prepare(pod("a"), until, 2, now));
    assert!(!table.prepare(pod("a"), until, 2, now));
    assert!(table.prepare(pod("b"), until, 2, now));
    // As many as may wait do.
    assert!(!table.prepare(pod("c"), until, 2, now));
    let used = table.subscribe(pod("a"), now).unwrap();
    assert_eq!(table.waiting_for_use(), 1);
    let made = Prepared {
        made: 2,
        used: 1,
        dropped: 0,
    };
    assert_eq!(table.take_prepared(), made);

    // Unused it outlives the linger, and not its time.
    table.sweep(until - Duration::from_secs(1), linger);
    assert_eq!(table.values().count(), 2);
    table.sweep(until, linger);
    assert_eq!(table.values().count(), 1);
    assert_eq!(table.take_prepared().dropped, 1);
    // Used, it is like any other.
    drop(used);
    table.sweep(until, linger);
    table.sweep(until + linger, linger);
    assert_eq!(table.values().count(), 0);
    assert_eq!(table.take_prepared(), Prepared::default());
}

#[test]
fn all_that_is_for_a_pod_ends_with_it() {
    let (mut table, now) = (Table::new(10), Instant::now());
    let of_pod = table.subscribe(pod("a"), now).unwrap();
    let entry = Wanted {
        key: SecretKey::Entry {
            entry_id: "e".into(),
            pod_uid: Some("a".into()),
        },
        ..pod("a")
    };
    let of_entry = table.subscribe(entry, now).unwrap();
    let other = table.subscribe(pod("b"), now).unwrap();
    assert_eq!(table.end_pods(|uid| uid == "a", now), 2);
    for ended in [of_pod, of_entry] {
        assert!(
            matches!(&*ended.borrow(), State::Denied(reason) if &**reason == crate::pods::GONE)
        );
    }
    assert!(matches!(&*other.borrow(), State::Waiting { .. }));
}
