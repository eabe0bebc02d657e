//! Locks, cuts, crashes and restores under a store: what is not recorded is not answered,
//! and what went wrong passes.

use std::sync::Arc;
use std::time::Duration;

use citadel_ca_server::store::StoreHealth;
use citadel_tests::postgres::Postgres;

use super::contract::{Sample, everything, fill, indexed, within_deadline};
use super::lossy::Lossy;
use super::{
    Filter, LogIndex, NewEntry, PostgresStore, Query, Store, StoreError, open, options, shared,
};

/// What an append says in the end, of one that is tried until it is answered.
async fn until_recorded(store: &dyn Store, entry: &NewEntry) -> LogIndex {
    within_deadline(async {
        loop {
            match store.append(vec![entry.clone()]).await {
                Ok(indexes) => return indexes[0],
                Err(error) if error.is_retryable() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_lock_that_passes_is_waited_for_and_one_that_stays_is_busy() {
    let postgres = shared().await;
    let database = postgres.database().await;
    let mut options = options(postgres, &postgres.url_of(&database));
    options.deadline = Duration::from_millis(600);
    let store = Arc::new(PostgresStore::open(options).await.unwrap());
    fill(&*store, 0..3).await;
    let lock = "SELECT * FROM head FOR UPDATE";
    let held = postgres.hold(&database, lock).await;
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
    assert!(!store.health().is_ready());
    postgres.release(held).await;
    assert_eq!(
        until_recorded(&*store, &Sample(3).entry()).await,
        LogIndex(3)
    );
    assert!(store.health().is_ready());
    store.close().await;
}

/// What fails at COMMIT itself is an error, whatever the statement said before.
#[tokio::test]
async fn a_commit_that_fails_at_its_end_is_no_success() {
    let postgres = shared().await;
    let database = postgres.database().await;
    let store = PostgresStore::open(options(postgres, &postgres.url_of(&database)))
        .await
        .unwrap();
    fill(&store, 0..3).await;
    postgres
        .query_in(
            &database,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'refused at the commit'; END $$; \
             CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON entries \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(
        error.to_string().contains("refused at the commit"),
        "{error}"
    );
    assert_eq!(store.size().await.unwrap(), 3);
    postgres
        .query_in(&database, "DROP TRIGGER refuse ON entries")
        .await;
    assert_eq!(
        store.append(vec![Sample(3).entry()]).await.unwrap(),
        [LogIndex(3)]
    );
    store.close().await;
}

/// Appends until so many were recorded, each time another entry, whenever the store is
/// ready. What it was told is recorded is there with that very index, and it was told of
/// nothing but what passes.
async fn load(store: Arc<PostgresStore>, lane: u64, wanted: usize) -> Vec<(LogIndex, NewEntry)> {
    let mut recorded = Vec::new();
    for n in 0.. {
        while !store.health().is_ready() {
            tokio::task::yield_now().await;
        }
        let entry = Sample(lane * 1_000_000 + n).entry();
        match store.append(vec![entry.clone()]).await {
            Ok(indexes) => recorded.push((indexes[0], entry)),
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
        if recorded.len() == wanted {
            break;
        }
    }
    recorded
}

/// What was answered is in the log, which has neither gap nor repetition.
async fn check(store: &dyn Store, recorded: &[(LogIndex, NewEntry)]) {
    let log = everything(store).await;
    for (position, entry) in log.iter().enumerate() {
        assert_eq!(entry.index.0, position as u64, "a gap");
    }
    let bytes: std::collections::HashSet<_> = log.iter().map(|entry| &entry.bytes).collect();
    assert_eq!(bytes.len(), log.len(), "an entry is there twice");
    for (index, entry) in recorded {
        let found = log.get(usize::try_from(index.0).unwrap());
        assert_eq!(found.map(|found| &found.bytes), Some(&entry.bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_in_the_middle_of_commits_lose_nothing_that_was_answered() {
    let postgres = shared().await;
    let database = postgres.database().await;
    let store = PostgresStore::open(options(postgres, &postgres.url_of(&database)))
        .await
        .unwrap();
    let store = Arc::new(store);
    let lanes: Vec<_> = (0..8)
        .map(|lane| tokio::spawn(load(Arc::clone(&store), lane, 400)))
        .collect();
    let cut = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = '{database}' AND application_name = 'citadel-ca'"
    );
    let (mut cuts, mut seen) = (0, 0);
    while !lanes.iter().all(tokio::task::JoinHandle::is_finished) {
        if store.stats().entries < seen + 50 {
            tokio::task::yield_now().await;
            continue;
        }
        seen = store.stats().entries;
        postgres.query_in("postgres", &cut).await;
        cuts += 1;
    }
    let mut recorded = Vec::new();
    for lane in lanes {
        recorded.extend(lane.await.unwrap());
    }
    let last = Sample(9_999_999).entry();
    recorded.push((until_recorded(&*store, &last).await, last));
    let failed = store.stats().failed_commits;
    println!(
        "{cuts} cuts, {failed} failed commits, {} recorded",
        recorded.len()
    );
    assert!(cuts > 10 && failed > 10, "little was cut");
    check(&*store, &recorded).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_that_was_answered_and_is_found_again() {
    let mut postgres = Postgres::start().await;
    let store = Arc::new(open(&postgres).await.unwrap());
    let mut recorded = Vec::new();
    for round in 0..3 {
        let before = store.stats().entries;
        let lanes: Vec<_> = (0..8)
            .map(|lane| tokio::spawn(load(Arc::clone(&store), round * 10 + lane, 200)))
            .collect();
        within_deadline(async {
            while store.stats().entries < before + 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        postgres.kill().await;
        postgres.start_again().await;
        for lane in lanes {
            recorded.extend(lane.await.unwrap());
        }
        let last = Sample(round * 10_000_000 + 9_999_999).entry();
        recorded.push((until_recorded(&*store, &last).await, last));
        assert!(store.health().is_ready());
    }
    check(&*store, &recorded).await;
    within_deadline(indexed(&*store)).await;
    let of_pod = Filter {
        pod_uid: Some("p8".into()),
        ..Filter::default()
    };
    let found = store.list(&Query::newest(of_pod.clone(), 1000)).await;
    let all = everything(&*store).await;
    let expected = all
        .iter()
        .filter(|entry| of_pod.matches(&super::IndexRow::of(&entry.bytes)))
        .count();
    assert_eq!(found.unwrap().len(), expected.min(1000));
    store.close().await;
}

/// A server that hangs holds nobody for longer than the deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_unavailable_within_the_deadline() {
    let postgres = shared().await;
    let database = postgres.database().await;
    let mut options = options(postgres, &postgres.url_of(&database));
    options.deadline = Duration::from_secs(2);
    let store = PostgresStore::open(options).await.unwrap();
    fill(&store, 0..3).await;
    let stop = |signal: &'static str| {
        let of = format!(
            "SELECT pid FROM pg_stat_activity \
             WHERE datname = '{database}' AND application_name = 'citadel-ca'"
        );
        async move {
            for pid in postgres.query_in("postgres", &of).await.lines() {
                let status = std::process::Command::new("kill")
                    .args([signal, pid])
                    .status();
                assert!(status.unwrap().success());
            }
        }
    };
    stop("-STOP").await;
    let begun = std::time::Instant::now();
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    stop("-CONT").await;
    until_recorded(&store, &Sample(4).entry()).await;
    check(&store, &[]).await;
    store.close().await;
}

/// An older copy of the database comes back: the store stops for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_back_stops_the_store_for_good() {
    let mut postgres = Postgres::start().await;
    let store = open(&postgres).await.unwrap();
    fill(&store, 0..30).await;
    postgres.stop().await;
    let copy = postgres.back_up();
    postgres.start_again().await;
    until_recorded(&store, &Sample(30).entry()).await;
    postgres.stop().await;
    postgres.restore(&copy);
    postgres.start_again().await;

    // Found out without an append, too.
    let went_back = within_deadline(async {
        loop {
            match store.health() {
                StoreHealth::NotReady(error @ StoreError::WentBack(_)) => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert!(went_back.to_string().contains("30 entries"), "{went_back}");
    assert!(went_back.to_string().contains("saw 31"), "{went_back}");
    let error = store.append(vec![Sample(31).entry()]).await.unwrap_err();
    assert_eq!(error, went_back);
    // Another server that knows nothing of it goes on, and the log grows past that point.
    let other = open(&postgres).await.unwrap();
    fill(&other, 40..50).await;
    let error = store.append(vec![Sample(31).entry()]).await.unwrap_err();
    assert_eq!(error, went_back, "it stays stopped");
    assert_eq!(other.size().await.unwrap(), 40);
    other.close().await;
    store.close().await;
}

/// The log grew past what was lost before we came back: our own newest entry is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grew_over_a_lost_entry_stops_the_store() {
    let mut postgres = Postgres::start().await;
    let mut options = options(&postgres, &postgres.url());
    // Only the reconnect is to find out.
    options.index_delay = Duration::from_secs(3600);
    let store = PostgresStore::open(options).await.unwrap();
    fill(&store, 0..30).await;
    store.reindex().await.unwrap();
    postgres.stop().await;
    let copy = postgres.back_up();
    postgres.start_again().await;
    until_recorded(&store, &Sample(30).entry()).await;
    postgres.stop().await;
    postgres.restore(&copy);
    postgres.start_again().await;
    let other = open(&postgres).await.unwrap();
    fill(&other, 40..50).await;
    let error = within_deadline(async {
        loop {
            match store.append(vec![Sample(31).entry()]).await.unwrap_err() {
                error @ StoreError::WentBack(_) => return error,
                other => assert!(other.is_retryable(), "{other}"),
            }
        }
    })
    .await;
    assert!(error.to_string().contains("entry 30"), "{error}");
    other.close().await;
    store.close().await;
}

/// The server has committed, and we never hear of it: the caller is told that nothing is
/// recorded, the record is there, and it is there once.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_on_the_way_is_unavailable_and_recorded_once() {
    let postgres = shared().await;
    let database = postgres.database().await;
    let way = Lossy::before(postgres.address()).await;
    let url = postgres.url_of(&database);
    let url = url.replace(&postgres.address().to_string(), &way.address.to_string());
    let store = PostgresStore::open(options(postgres, &url)).await.unwrap();
    fill(&store, 0..3).await;
    way.lose_answers(true);
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(error.to_string().contains("during the commit"), "{error}");
    assert!(!store.health().is_ready());
    let size = postgres.query_in(&database, "SELECT size FROM head").await;
    assert_eq!(size, "4");
    way.lose_answers(false);
    assert_eq!(
        until_recorded(&store, &Sample(4).entry()).await,
        LogIndex(4)
    );
    let again = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(
        matches!(again, StoreError::DuplicateSerial { .. }),
        "{again}"
    );
    check(&store, &[]).await;
    store.close().await;
}
