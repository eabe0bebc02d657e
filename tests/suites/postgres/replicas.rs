//! Several stores on one database.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;

use super::contract::{Sample, everything, indexed, within_deadline};
use super::{
    Filter, IndexRow, JoinToken, LogIndex, NodeChange, PostgresStore, Query, Store, StoreError,
    options, shared, three,
};

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_one_admits_a_node_by_a_token_and_all_see_its_eviction() {
    let stores = three(shared().await).await;
    for round in 0..20_u8 {
        let id = vec![round; 16];
        let token = JoinToken {
            id: id.clone(),
            secret_sha256: vec![0; 32],
            node: "vm-1".into(),
            created_ms: 1,
            expires_ms: 1_000_000,
            created_by: "local uid 0".into(),
            used: None,
            revoked_ms: None,
        };
        let add = NodeChange::AddToken(token);
        stores[0].change_nodes(add, Sample(0).note()).await.unwrap();
        let joins = stores.iter().enumerate().map(|(server, store)| {
            let join = NodeChange::Join {
                id: id.clone(),
                spki_sha256: vec![1],
                uid: format!("{round}-{server}"),
                method: 5,
                at_ms: 1000,
            };
            store.change_nodes(join, Sample(0).note())
        });
        let outcomes = join_all(joins).await;
        let winners: Vec<_> = (0..3).filter(|server| outcomes[*server].is_ok()).collect();
        let [winner] = winners[..] else {
            panic!("{outcomes:?}");
        };
        for outcome in outcomes.into_iter().filter_map(Result::err) {
            assert_eq!(outcome, StoreError::NotApplied);
        }
        for store in &stores {
            let node = store.external_node("vm-1").await.unwrap().unwrap();
            assert_eq!(node.uid, format!("{round}-{winner}"));
        }
    }
    let evict = NodeChange::Evict {
        node: "vm-1".into(),
        at_ms: 2000,
    };
    stores[1]
        .change_nodes(evict, Sample(0).note())
        .await
        .unwrap();
    for store in &stores {
        let node = store.external_node("vm-1").await.unwrap().unwrap();
        assert_eq!(node.evicted_ms, Some(2000));
    }
    // 20 tokens, 20 joins, one eviction: what did not apply is not in the log.
    assert_eq!(everything(&*stores[2]).await.len(), 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_number_one_log_without_a_gap() {
    let stores = three(shared().await).await;
    let appends = (0..3_u64).flat_map(|server| (0..16_u64).map(move |lane| (server, lane)));
    let tasks = appends.map(|(server, lane)| {
        let store = Arc::clone(&stores[usize::try_from(server).unwrap()]);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            for n in 0..20 {
                let first = server * 1_000_000 + lane * 1_000 + n * 10;
                let entries: Vec<_> = (first..=first + n % 3).map(|n| Sample(n).entry()).collect();
                let indexes = store.append(entries.clone()).await.unwrap();
                assert!(indexes.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1));
                mine.extend(indexes.into_iter().zip(entries));
            }
            mine
        })
    });
    let mut appended = Vec::new();
    for mine in join_all(tasks.collect::<Vec<_>>()).await {
        appended.extend(mine.unwrap());
    }
    appended.sort_by_key(|(index, _)| *index);
    let log = everything(&*stores[0]).await;
    assert_eq!(log.len(), appended.len());
    for (position, (stored, (index, entry))) in log.iter().zip(&appended).enumerate() {
        assert_eq!(stored.index, LogIndex(position as u64));
        assert_eq!((stored.index, &stored.bytes), (*index, &entry.bytes));
    }
    // Any of them answers for all, at once and when the index has caught up.
    let filter = Filter {
        pod_uid: Some("p3".into()),
        ..Filter::default()
    };
    let expected: Vec<_> = log
        .iter()
        .rev()
        .filter(|entry| filter.matches(&IndexRow::of(&entry.bytes)))
        .cloned()
        .collect();
    let query = Query::newest(filter, 1000);
    assert!(expected.len() > 20);
    for store in &stores {
        assert_eq!(store.list(&query).await.unwrap(), expected);
        within_deadline(indexed(&**store)).await;
        assert_eq!(store.list(&query).await.unwrap(), expected);
    }
    // One rebuilds: what the others remember of the index counts no more.
    stores[1].reindex().await.unwrap();
    let more: Vec<_> = (0..300).map(|n| Sample(9_000_000 + n).entry()).collect();
    stores[0].append(more).await.unwrap();
    let log = everything(&*stores[2]).await;
    for store in &stores {
        within_deadline(indexed(&**store)).await;
        let found = store.list(&query).await.unwrap();
        let expected: HashSet<_> = log
            .iter()
            .filter(|entry| query.filter.matches(&IndexRow::of(&entry.bytes)))
            .map(|entry| entry.index.0)
            .collect();
        assert_eq!(
            found.iter().map(|e| e.index.0).collect::<HashSet<_>>(),
            expected
        );
    }
    for store in stores {
        store.close().await;
    }
}

#[tokio::test]
async fn a_serial_of_another_server_is_a_duplicate() {
    let postgres = shared().await;
    let options = options(postgres, &postgres.url_of(&postgres.database().await));
    let one = PostgresStore::open(options.clone()).await.unwrap();
    let two = PostgresStore::open(options).await.unwrap();
    one.append(vec![Sample(5).entry()]).await.unwrap();
    // Beside others in one batch.
    let outcomes = join_all((4..8).map(|n| two.append(vec![Sample(n).entry()]))).await;
    for (n, outcome) in (4..).zip(outcomes) {
        match outcome {
            Err(StoreError::DuplicateSerial { .. }) => assert_eq!(n, 5),
            other => assert!(other.is_ok() && n != 5, "{n}: {other:?}"),
        }
    }
    let found = two.issued_by_serial(&Sample(5).serial()).await.unwrap();
    assert_eq!(found.unwrap().index, LogIndex(0));
    one.bind_issuer(b"key", None).await.unwrap();
    let error = two.bind_issuer(b"other", None).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongIssuer { .. }), "{error}");
    one.close().await;
    two.close().await;
}
