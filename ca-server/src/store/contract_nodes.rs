//! Nodes outside Kubernetes and their tokens: each change counts once, and with its entry.

use futures::future::join_all;

use super::super::{ExternalNode, JoinToken, NodeChange, Store, StoreError, UsedBy};
use super::{Database, Sample, everything};

const NOW: i64 = 1_700_000_000_000;

fn token(id: u8, node: &str) -> JoinToken {
    JoinToken {
        id: vec![id; 16],
        secret_sha256: vec![id; 32],
        node: node.into(),
        created_ms: NOW + i64::from(id),
        expires_ms: NOW + 600_000,
        created_by: "local uid 0".into(),
        used: None,
        revoked_ms: None,
    }
}

fn join(id: u8, uid: &str) -> NodeChange {
    NodeChange::Join {
        id: vec![id; 16],
        spki_sha256: uid.as_bytes().to_vec(),
        uid: uid.into(),
        method: 5,
        at_ms: NOW + 1000,
    }
}

fn evict(node: &str) -> NodeChange {
    NodeChange::Evict {
        node: node.into(),
        at_ms: NOW + 2000,
    }
}

fn admit(node: &str) -> NodeChange {
    NodeChange::Admit { node: node.into() }
}

async fn change(store: &dyn Store, change: NodeChange) -> Result<u64, StoreError> {
    let entry = Sample(0).note();
    store.change_nodes(change, entry).await.map(|at| at.0)
}

fn refused(outcome: &Result<u64, StoreError>) {
    assert_eq!(*outcome, Err(StoreError::NotApplied));
}

pub(super) async fn tokens_and_nodes(database: &dyn Database) {
    let store = database.open().await;
    let store = store.as_ref();
    // A change and its entry are one: what does not apply leaves none.
    let added = change(store, NodeChange::AddToken(token(1, "vm-1"))).await;
    assert_eq!(added, Ok(0));
    refused(&change(store, join(9, "u0")).await);
    assert_eq!(store.size().await, Ok(1));
    assert_eq!(store.join_token(&[1; 16]).await, Ok(Some(token(1, "vm-1"))));
    assert_eq!(store.join_token(&[9; 16]).await, Ok(None));

    // However many use a token at once, one of them does.
    let tries = ["u1", "u2", "u3", "u4"].map(|uid| change(store, join(1, uid)));
    let outcomes = join_all(tries).await;
    let winner = outcomes
        .iter()
        .position(Result::is_ok)
        .expect("one of them");
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let uid = ["u1", "u2", "u3", "u4"][winner];
    let used = store.join_token(&[1; 16]).await.unwrap().unwrap().used;
    let by = UsedBy {
        at_ms: NOW + 1000,
        spki_sha256: uid.as_bytes().to_vec(),
        uid: uid.into(),
    };
    assert_eq!(used, Some(by));
    let node = store.external_node("vm-1").await.unwrap().unwrap();
    let wanted = ExternalNode {
        name: "vm-1".into(),
        uid: uid.into(),
        method: 5,
        attested_ms: NOW + 1000,
        evicted_ms: None,
    };
    assert_eq!(node, wanted);

    // Another token of the same node: it is another one from then on.
    change(store, NodeChange::AddToken(token(2, "vm-1")))
        .await
        .unwrap();
    change(store, join(2, "again")).await.unwrap();
    let node = store.external_node("vm-1").await.unwrap().unwrap();
    assert_eq!(node.uid, "again");

    // An expired one, and a revoked one.
    let mut expired = token(3, "vm-2");
    expired.expires_ms = NOW + 1000;
    change(store, NodeChange::AddToken(expired)).await.unwrap();
    refused(&change(store, join(3, "u5")).await);
    change(store, NodeChange::AddToken(token(4, "vm-2")))
        .await
        .unwrap();
    let revoke = || NodeChange::RevokeToken {
        id: vec![4; 16],
        at_ms: NOW + 3000,
    };
    change(store, revoke()).await.unwrap();
    refused(&change(store, revoke()).await);
    refused(&change(store, join(4, "u6")).await);
    assert_eq!(store.external_node("vm-2").await, Ok(None));

    // An eviction ends the node and its open tokens, and stays until it is taken back.
    change(store, NodeChange::AddToken(token(5, "vm-1")))
        .await
        .unwrap();
    change(store, evict("vm-1")).await.unwrap();
    refused(&change(store, evict("vm-1")).await);
    refused(&change(store, join(5, "u7")).await);
    refused(&change(store, NodeChange::AddToken(token(6, "vm-1"))).await);
    let node = store.external_node("vm-1").await.unwrap().unwrap();
    assert_eq!(node.evicted_ms, Some(NOW + 2000));
    change(store, admit("vm-1")).await.unwrap();
    refused(&change(store, admit("vm-1")).await);
    refused(&change(store, join(5, "u8")).await);
    change(store, NodeChange::AddToken(token(6, "vm-1")))
        .await
        .unwrap();
    change(store, join(6, "u9")).await.unwrap();
    // One that proves itself otherwise, and is another one each time.
    let attest = |uid: &str| NodeChange::Attest {
        node: "vm-9".into(),
        uid: uid.into(),
        method: 6,
        at_ms: NOW,
    };
    for uid in ["x1", "x2"] {
        change(store, attest(uid)).await.unwrap();
        let node = store.external_node("vm-9").await.unwrap().unwrap();
        assert_eq!((node.uid.as_str(), node.method), (uid, 6));
    }
    change(store, evict("vm-9")).await.unwrap();
    refused(&change(store, attest("x3")).await);
    change(store, admit("vm-9")).await.unwrap();
    // One that never joined.
    change(store, evict("vm-0")).await.unwrap();
    let names = async |after: &str| {
        let nodes = store.external_nodes(after).await.unwrap();
        nodes.into_iter().map(|node| node.name).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["vm-0", "vm-1"]);
    assert_eq!(names("vm-0").await, ["vm-1"]);
    let ids = store.join_tokens().await.unwrap();
    let ids: Vec<u8> = ids.iter().map(|token| token.id[0]).collect();
    assert_eq!(ids, [6, 5, 4, 3, 2, 1]);

    // Tokens that ended long ago go.
    let mut late = token(7, "vm-3");
    late.created_ms = NOW + 30 * 24 * 3_600_000;
    late.expires_ms = late.created_ms + 1000;
    change(store, NodeChange::AddToken(late)).await.unwrap();
    assert_eq!(store.join_tokens().await.unwrap().len(), 1);

    // The log has one entry for each change that applied, and appends go on behind them.
    let size = store.size().await.unwrap();
    let at = store.append(vec![Sample(1).entry()]).await.unwrap();
    assert_eq!(at[0].0, size);
    assert_eq!(everything(store).await.len() as u64, size + 1);
    store.close().await;
    let store = database.open().await;
    assert_eq!(store.size().await, Ok(size + 1));
    assert_eq!(
        store.external_node("vm-1").await.unwrap().unwrap().uid,
        "u9"
    );
    store.close().await;
}
