//! Retention by several servers at once, across the border of an epoch of the index.

use std::sync::Arc;

use citadel_ca_server::log::{Log, Rollback, verify};
use citadel_identity::TrustDomain;
use citadel_proto::log::{Entry, entry::Kind};
use futures::future::join_all;
use prost::Message as _;

use super::contract::{Sample, indexed, within_deadline};
use super::{Filter, LogIndex, MAX_APPEND, NewEntry, Query, Store, shared, three};

/// Entries of one epoch of the index.
const EPOCH: u64 = 65_536;

/// A certificate of a pod of its own.
fn of_pod(n: u64, pod: &str) -> NewEntry {
    let sample = Sample(n).entry();
    let mut entry = Entry::decode(sample.bytes.as_slice()).unwrap();
    let Some(Kind::Issued(issued)) = &mut entry.kind else {
        panic!("{entry:?}");
    };
    pod.clone_into(&mut issued.origin.as_mut().unwrap().pod_uid);
    NewEntry {
        bytes: entry.encode_to_vec(),
        serial: sample.serial,
    }
}

async fn found(store: &dyn Store, pod: &str) -> Vec<u64> {
    let filter = Filter {
        pod_uid: Some(pod.to_owned()),
        ..Filter::default()
    };
    let page = store.list(&Query::newest(filter, 1000)).await.unwrap();
    page.iter().map(|entry| entry.index.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_prune_one_log_across_an_epoch_s_border() {
    let stores = three(shared().await).await;
    // One pod that is in the first epoch alone, one in both, and many others.
    let end = EPOCH + 2048;
    let entry = |n| match n {
        5 | 300 => of_pod(n, "gone"),
        7 | 66_500 => of_pod(n, "stays"),
        n => Sample(n).entry(),
    };
    for first in (0..end).step_by(MAX_APPEND) {
        let entries = (first..first + MAX_APPEND as u64).map(entry).collect();
        stores[0].append(entries).await.unwrap();
    }
    for store in &stores {
        within_deadline(indexed(&**store)).await;
        assert_eq!(found(&**store, "gone").await, [300, 5]);
    }
    // The tree takes everything in.
    let folder = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::new("example.org").unwrap();
    let log = Log::open(
        stores[0].clone(),
        folder.path().join("keys"),
        &trust_domain,
        Rollback::Refuse,
    );
    let log = log.await.unwrap();

    // Each to somewhere else, and one goes on issuing, also to whom retention forgets.
    let minimum = EPOCH + 512;
    let prunes = stores
        .iter()
        .zip([512, EPOCH, minimum])
        .map(|(store, to)| store.prune(to));
    let issuing = async {
        for n in 0..40 {
            let entry = of_pod(end + n, if n % 2 == 0 { "gone" } else { "new" });
            stores[1].append(vec![entry]).await.unwrap();
        }
    };
    let (pruned, ()) = tokio::join!(join_all(prunes), issuing);
    let gone: u64 = pruned.into_iter().map(Result::unwrap).sum();
    assert_eq!(gone, minimum, "each entry goes once");
    // Whoever was late finds nothing left.
    for store in &stores {
        assert_eq!(store.prune(minimum).await.unwrap(), 0);
        assert_eq!(store.tree().await.unwrap().minimum, minimum);
        within_deadline(indexed(&**store)).await;
        let even: Vec<u64> = (0..40).rev().filter(|n| n % 2 == 0).collect();
        let again: Vec<u64> = even.iter().map(|n| end + n).collect();
        assert_eq!(found(&**store, "gone").await, again);
        assert_eq!(found(&**store, "new").await.len(), 20);
        assert_eq!(found(&**store, "stays").await, [66_500]);
        assert_eq!(found(&**store, "p3").await.last(), Some(&(minimum + 10)));
        let first = store.read(LogIndex(0), 1).await.unwrap();
        assert_eq!(first[0].index, LogIndex(minimum));
    }
    // Entries, tree and each row of the index fit each other.
    let store: Arc<dyn Store> = stores[2].clone();
    let verified = verify(&store, log.verifier(), &[], |_| {}).await.unwrap();
    assert_eq!((verified.minimum, verified.size), (minimum, end + 40));
    assert_eq!(verified.indexed, Some(end + 40));
    for store in stores {
        store.close().await;
    }
}
