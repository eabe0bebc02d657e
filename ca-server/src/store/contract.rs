//! What every store must do. Each engine's tests run this suite on it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "contract_nodes.rs"]
mod nodes;

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use citadel_proto::log::{Entry, Issued, Origin, entry::Kind};
use futures::future::join_all;
use proptest::{prelude::*, test_runner::TestRunner};
use prost::Message;
use tokio::runtime::Runtime;

use super::{
    Filter, IndexRow, LogIndex, MAX_APPEND, MAX_ENTRY_BYTES, MAX_SERIAL_BYTES, NewEntry, Query,
    Store, StoreError, StoredEntry,
};

/// One database of the engine under test.
#[async_trait]
pub(super) trait Database: Send + Sync {
    /// Opens it; the one opened before was closed.
    async fn open(&self) -> Arc<dyn Store>;
}

/// Runs the suite; `make` gives a new, empty database each time.
pub(super) fn run<D: Database>(make: impl Fn() -> D) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(indexes_are_dense(&make()));
    runtime.block_on(a_duplicate_serial_fails_alone(&make()));
    runtime.block_on(an_append_is_all_or_nothing(&make()));
    runtime.block_on(entries_without_a_serial_are_kept(&make()));
    runtime.block_on(limits_hold(&make()));
    runtime.block_on(a_closed_store_opens_again(&make()));
    runtime.block_on(the_issuer_is_bound(&make()));
    runtime.block_on(nodes::tokens_and_nodes(&make()));
    runtime.block_on(pages_follow_each_other(&make()));
    runtime.block_on(a_rebuilt_index_answers_the_same(&make()));
    queries_agree_with_a_naive_model(&runtime, &make());
}

// === entries ===

/// Few enough of each that random filters match some entries and not others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample(pub(crate) u64);

impl Sample {
    /// The serial of entry `n`.
    pub(super) fn serial(self) -> Vec<u8> {
        let mut serial = vec![0; 18];
        serial[..8].copy_from_slice(&self.0.to_be_bytes());
        serial
    }

    fn time_ms(self) -> i64 {
        1_700_000_000_000 + self.0.cast_signed() * 1000
    }

    pub(crate) fn entry(self) -> NewEntry {
        let n = self.0;
        let kind = Kind::Issued(Issued {
            certificate: vec![0x30; 700],
            serial: self.serial(),
            spiffe_id: format!("spiffe://td{}.example/ns/n{}/sa/a{}", n % 2, n % 3, n % 5),
            issuer_key_id: vec![u8::try_from(n % 2).unwrap(); 20],
            spki_sha256: vec![u8::try_from(n % 7).unwrap(); 32],
            not_before: self.time_ms() / 1000,
            not_after: self.time_ms() / 1000 + 100 * (1 + (n % 3).cast_signed()),
            r#use: i32::try_from(n % 3).unwrap(),
            origin: Some(Origin {
                cluster: format!("c{}", n % 2),
                namespace: format!("n{}", n % 3),
                service_account: format!("a{}", n % 5),
                pod_uid: format!("p{}", n % 11),
                node: format!("node{}", n % 4),
                node_uid: format!("u{}", n % 4),
                ..Origin::default()
            }),
            ..Issued::default()
        });
        let bytes = Entry {
            version: 1,
            time_ms: self.time_ms(),
            kind: Some(kind),
        };
        NewEntry {
            bytes: bytes.encode_to_vec(),
            serial: Some(self.serial()),
        }
    }

    /// An entry of another kind: no certificate, no serial.
    pub(super) fn note(self) -> NewEntry {
        let entry = Entry {
            version: 1,
            time_ms: self.time_ms(),
            kind: None,
        };
        NewEntry {
            bytes: entry.encode_to_vec(),
            serial: None,
        }
    }
}

pub(super) async fn fill(store: &dyn Store, samples: std::ops::Range<u64>) {
    let samples: Vec<_> = samples.collect();
    for chunk in samples.chunks(100) {
        store
            .append(chunk.iter().map(|n| Sample(*n).entry()).collect())
            .await
            .unwrap();
    }
}

/// The whole log, oldest first.
pub(super) async fn everything(store: &dyn Store) -> Vec<StoredEntry> {
    let mut all = Vec::new();
    loop {
        let more = store.read(LogIndex(all.len() as u64), 100).await.unwrap();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

/// Resolves when the index covers the log. The engine's own clock decides when; the
/// deadline is for a test that would otherwise hang.
pub(crate) async fn indexed(store: &dyn Store) {
    within_deadline(async {
        while store.stats().indexed < store.size().await.unwrap() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) async fn within_deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(60), future)
        .await
        .expect("took over 60 s")
}

// === the suite ===

async fn indexes_are_dense(database: &dyn Database) {
    let store = database.open().await;
    let appends = (0..64_u64).map(|caller| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            for round in 0..8 {
                let first = caller * 100 + round * 10;
                let entries: Vec<_> = (first..=first + round % 3)
                    .map(|n| Sample(n).entry())
                    .collect();
                let indexes = store.append(entries.clone()).await.unwrap();
                assert_eq!(indexes.len(), entries.len());
                assert!(indexes.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1));
                mine.extend(indexes.into_iter().zip(entries));
            }
            mine
        })
    });
    let mut appended: Vec<_> = join_all(appends)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    appended.sort_by_key(|(index, _)| *index);
    let log = everything(&*store).await;
    assert_eq!(log.len(), appended.len());
    assert_eq!(store.size().await.unwrap(), log.len() as u64);
    for (position, (stored, (index, entry))) in log.iter().zip(&appended).enumerate() {
        assert_eq!(stored.index, LogIndex(position as u64));
        assert_eq!((stored.index, &stored.bytes), (*index, &entry.bytes));
        let found = store
            .issued_by_serial(entry.serial.as_ref().unwrap())
            .await
            .unwrap();
        assert_eq!(found.as_ref(), Some(stored));
    }
    assert_eq!(store.issued_by_serial(&[9; 18]).await.unwrap(), None);
    store.close().await;
}

async fn a_duplicate_serial_fails_alone(database: &dyn Database) {
    let store = database.open().await;
    store.append(vec![Sample(5).entry()]).await.unwrap();
    // At once, so that they share commits; 5 is there already, 3 comes twice.
    let numbers = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9];
    let outcomes = join_all(numbers.map(|n| store.append(vec![Sample(n).entry()]))).await;
    let refused: Vec<_> = numbers
        .iter()
        .zip(&outcomes)
        .filter_map(|(n, outcome)| outcome.as_ref().err().map(|error| (*n, error.clone())))
        .collect();
    let duplicate = |n: u64| StoreError::DuplicateSerial {
        serial: hex::encode(Sample(n).serial()),
    };
    assert_eq!(refused, [(3, duplicate(3)), (5, duplicate(5))]);
    assert_eq!(store.size().await.unwrap(), 10);
    assert!(
        store.health().is_ready(),
        "a caller's mistake is not the store's"
    );
    store.close().await;
}

async fn an_append_is_all_or_nothing(database: &dyn Database) {
    let store = database.open().await;
    let twice = vec![Sample(1).entry(), Sample(2).entry(), Sample(1).entry()];
    assert!(matches!(
        store.append(twice).await,
        Err(StoreError::DuplicateSerial { .. })
    ));
    assert_eq!(store.size().await.unwrap(), 0);
    assert_eq!(
        store.issued_by_serial(&Sample(2).serial()).await.unwrap(),
        None
    );
    // Nothing of it is in the way.
    let again = store
        .append(vec![Sample(2).entry(), Sample(1).entry()])
        .await
        .unwrap();
    assert_eq!(again, [LogIndex(0), LogIndex(1)]);
    assert_eq!(store.append(Vec::new()).await.unwrap(), []);
    store.close().await;
}

async fn entries_without_a_serial_are_kept(database: &dyn Database) {
    let store = database.open().await;
    let entries = vec![Sample(0).note(), Sample(1).note(), Sample(2).entry()];
    let unknown = NewEntry {
        bytes: vec![0xff; 9],
        serial: None,
    };
    store.append(entries).await.unwrap();
    store.append(vec![unknown.clone()]).await.unwrap();
    indexed(&*store).await;
    let all = store
        .list(&Query::newest(Filter::default(), 10))
        .await
        .unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!(
        all[0].bytes, unknown.bytes,
        "bytes that are no entry of ours are kept"
    );
    let certificates = Filter {
        valid_since: Some(0),
        ..Filter::default()
    };
    let found = store.list(&Query::newest(certificates, 10)).await.unwrap();
    assert_eq!(
        found.iter().map(|entry| entry.index.0).collect::<Vec<_>>(),
        [2]
    );
    store.close().await;
}

async fn limits_hold(database: &dyn Database) {
    let store = database.open().await;
    let of = |bytes, serial| NewEntry {
        bytes: vec![1; bytes],
        serial: Some(vec![1; serial]),
    };
    for (entry, size, limit) in [
        (
            of(MAX_ENTRY_BYTES + 1, 18),
            MAX_ENTRY_BYTES + 1,
            MAX_ENTRY_BYTES,
        ),
        (
            of(9, MAX_SERIAL_BYTES + 1),
            MAX_SERIAL_BYTES + 1,
            MAX_SERIAL_BYTES,
        ),
    ] {
        let error = store.append(vec![entry]).await.unwrap_err();
        assert!(
            matches!(error, StoreError::TooLarge { size: s, limit: l, .. } if (s, l) == (size, limit)),
            "{error}"
        );
    }
    let many = (0..=MAX_APPEND as u64)
        .map(|n| Sample(n).entry())
        .collect::<Vec<_>>();
    let error = store.append(many.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(store.size().await.unwrap(), 0);
    store
        .append(vec![of(MAX_ENTRY_BYTES, MAX_SERIAL_BYTES)])
        .await
        .unwrap();
    store.append(many[1..].to_vec()).await.unwrap();
    assert_eq!(store.size().await.unwrap(), 1 + MAX_APPEND as u64);
    store.close().await;
}

async fn a_closed_store_opens_again(database: &dyn Database) {
    let store = database.open().await;
    fill(&*store, 0..250).await;
    let before = everything(&*store).await;
    store.close().await;
    let error = store.append(vec![Sample(999).entry()]).await.unwrap_err();
    assert_eq!(error, StoreError::Closed);
    drop(store);

    let store = database.open().await;
    assert_eq!(everything(&*store).await, before);
    let error = store.append(vec![Sample(7).entry()]).await.unwrap_err();
    assert!(
        matches!(error, StoreError::DuplicateSerial { .. }),
        "{error}"
    );
    let next = store.append(vec![Sample(250).entry()]).await.unwrap();
    assert_eq!(next, [LogIndex(250)]);
    indexed(&*store).await;
    let of_pod = Filter {
        pod_uid: Some("p8".into()),
        ..Filter::default()
    };
    let found = store.list(&Query::newest(of_pod, 1000)).await.unwrap();
    assert_eq!(found.len(), (0..=250).filter(|n| n % 11 == 8).count());
    store.close().await;
}

async fn the_issuer_is_bound(database: &dyn Database) {
    let store = database.open().await;
    store.bind_issuer(b"first", None).await.unwrap();
    store.bind_issuer(b"first", None).await.unwrap();
    store.close().await;
    let store = database.open().await;
    let error = store.bind_issuer(b"other", None).await.unwrap_err();
    let wrong = StoreError::WrongIssuer {
        active: hex::encode("first"),
        offered: hex::encode("other"),
    };
    assert_eq!(error, wrong);
    assert_eq!(
        store
            .bind_issuer(b"other", Some(b"third"))
            .await
            .unwrap_err(),
        wrong
    );
    store.bind_issuer(b"other", Some(b"first")).await.unwrap();
    let error = store.bind_issuer(b"first", None).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongIssuer { .. }), "{error}");
    store.close().await;
}

async fn pages_follow_each_other(database: &dyn Database) {
    let store = database.open().await;
    fill(&*store, 0..300).await;
    indexed(&*store).await;
    // The newest are in the tail that the index need not cover.
    fill(&*store, 300..350).await;
    let mut query = Query::newest(
        Filter {
            namespace: Some("n1".into()),
            ..Filter::default()
        },
        7,
    );
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        query.before = Some(last.index);
        found.extend(page.iter().map(|entry| entry.index.0));
    }
    let expected: Vec<u64> = (0..350).rev().filter(|n| n % 3 == 1).collect();
    assert_eq!(found, expected);
    store.close().await;
}

async fn a_rebuilt_index_answers_the_same(database: &dyn Database) {
    let store = database.open().await;
    fill(&*store, 0..700).await;
    indexed(&*store).await;
    let filters = [
        Filter {
            node: Some("node1".into()),
            ..Filter::default()
        },
        Filter {
            spki_sha256: Some(vec![3; 32]),
            ..Filter::default()
        },
        Filter {
            spiffe_id_prefix: Some("spiffe://td1.example/ns/n2/".into()),
            ..Filter::default()
        },
    ];
    let queries = filters.map(|filter| Query::newest(filter, 1000));
    let ask = async || join_all(queries.iter().map(|query| store.list(query))).await;
    let before = ask().await;
    // Beside the rebuild as well: an answer is complete at any time.
    let (rebuilt, during) = tokio::join!(store.reindex(), ask());
    rebuilt.unwrap();
    assert_eq!(store.stats().indexed, 700);
    let after = ask().await;
    for (position, query) in queries.iter().enumerate() {
        let expected = naive(&everything(&*store).await, query);
        assert!(!expected.is_empty());
        for answer in [&before, &during, &after] {
            assert_eq!(answer[position].as_ref().unwrap(), &expected);
        }
    }
    store.close().await;
}

/// What a query means: every entry of the log, newest first, asked one by one.
fn naive(log: &[StoredEntry], query: &Query) -> Vec<StoredEntry> {
    log.iter()
        .rev()
        .filter(|entry| query.before.is_none_or(|before| entry.index < before))
        .filter(|entry| query.filter.matches(&IndexRow::of(&entry.bytes)))
        .take(query.page())
        .cloned()
        .collect()
}

fn queries_agree_with_a_naive_model(runtime: &Runtime, database: &dyn Database) {
    let store = runtime.block_on(database.open());
    runtime.block_on(async {
        fill(&*store, 0..400).await;
        store
            .append(vec![Sample(400).note(), Sample(401).note()])
            .await
            .unwrap();
        indexed(&*store).await;
    });
    compare_with_naive(runtime, &*store);
    // Now with a tail that the index does not cover (for most of the questions).
    runtime.block_on(async {
        fill(&*store, 402..600).await;
        store.append(vec![Sample(600).note()]).await.unwrap();
    });
    compare_with_naive(runtime, &*store);
    runtime.block_on(store.close());
}

fn compare_with_naive(runtime: &Runtime, store: &dyn Store) {
    let log = runtime.block_on(everything(store));
    let answered = std::cell::Cell::new(0);
    TestRunner::deterministic()
        .run(&any_query(), |query| {
            let expected = naive(&log, &query);
            answered.set(answered.get() + usize::from(!expected.is_empty()));
            let found = runtime.block_on(store.list(&query)).unwrap();
            prop_assert_eq!(found, expected);
            Ok(())
        })
        .unwrap();
    assert!(
        answered.get() > 50,
        "only {} questions had an answer",
        answered.get()
    );
}

fn any_query() -> impl Strategy<Value = Query> {
    (any_filter(), proptest::option::of(0..650_u64), 0..50_usize).prop_map(
        |(filter, before, limit)| Query {
            filter,
            before: before.map(LogIndex),
            limit,
        },
    )
}

/// Two or three conditions at a time: more match nothing.
fn any_filter() -> impl Strategy<Value = Filter> {
    proptest::collection::vec((0..17_usize, 0..700_u64), 0..4).prop_map(|conditions| {
        let mut filter = Filter::default();
        for (which, n) in conditions {
            condition(&mut filter, which, n);
        }
        filter
    })
}

/// Sets one condition to something that sample `n` has.
fn condition(filter: &mut Filter, which: usize, n: u64) {
    let sample = Sample(n);
    let row = IndexRow::of(&sample.entry().bytes).certificate.unwrap();
    let subject = row.subject;
    let at = sample.time_ms() / 1000;
    match which {
        0 => filter.recorded_since_ms = Some(sample.time_ms()),
        1 => filter.recorded_until_ms = Some(sample.time_ms()),
        2 => filter.serial = Some(sample.serial()),
        3 => filter.spki_sha256 = Some(row.spki_sha256),
        4 => filter.trust_domain = Some(subject.trust_domain),
        5 => filter.spiffe_id = Some(subject.spiffe_id),
        6 => filter.spiffe_id_prefix = Some(subject.spiffe_id[..27].to_owned()),
        7 => filter.certificate_use = Some(subject.certificate_use),
        8 => filter.cluster = Some(subject.cluster),
        9 => filter.namespace = Some(subject.namespace),
        10 => filter.account = Some(subject.account),
        11 => filter.pod_uid = Some(subject.pod_uid),
        12 => filter.node = Some(subject.node),
        13 => filter.node_uid = Some(subject.node_uid),
        14 => filter.issuer_key_id = Some(subject.issuer_key_id),
        15 => (filter.valid_since, filter.valid_until) = (Some(at), Some(at + 50)),
        _ => filter.expires_before = Some(at),
    }
}
