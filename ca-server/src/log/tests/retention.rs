//! Retention on a real store: what goes, what stays, and that the rest proves itself.

use citadel_ledger::Tile;
use citadel_proto::log::{AdministratorAct, Entry, Issued, entry::Kind};
use sqlx::Connection as _;

use super::{verification::verdict, *};
use crate::store::{Filter, NewEntry, Query, contract};

const DAY: Duration = Duration::from_secs(86_400);

/// Something that is no certificate.
fn note(log: &Log) -> NewEntry {
    let act = Kind::AdministratorAct(AdministratorAct {
        act: "note".into(),
        by: log.holder.clone(),
        details: String::new(),
    });
    new_entry(time::OffsetDateTime::now_utc(), act, None)
}

/// A certificate that is valid still.
fn valid() -> NewEntry {
    let serial = vec![9; 18];
    let issued = Issued {
        serial: serial.clone(),
        not_after: time::OffsetDateTime::now_utc().unix_timestamp() + 600,
        ..Issued::default()
    };
    new_entry(
        time::OffsetDateTime::now_utc(),
        Kind::Issued(issued),
        Some(serial),
    )
}

/// 700 certificates of long ago, an act at 100, and one valid certificate at this index.
async fn filled(folder: &Path, valid_at: u64) -> Arc<Log> {
    let log = opened(folder).await;
    issue(&log, 0..100).await;
    log.store.append(vec![note(&log)]).await.unwrap();
    issue(&log, 101..valid_at).await;
    log.store.append(vec![valid()]).await.unwrap();
    issue(&log, valid_at + 1..700).await;
    log.grow().await.unwrap();
    contract::indexed(log.store.as_ref()).await;
    log
}

async fn retain(log: &Log) {
    let now = time::OffsetDateTime::now_utc();
    log.prune(90 * DAY, now).await.unwrap();
}

async fn minimum(log: &Log) -> u64 {
    log.store.tree().await.unwrap().minimum
}

/// What a certificate's index, its serial and its searches find.
async fn found(log: &Log, n: u64) -> (bool, bool, bool) {
    let serial = Sample(n).entry().serial.unwrap();
    let by_serial = log.store.issued_by_serial(&serial).await.unwrap();
    let read = log.store.read(LogIndex(n), 1).await.unwrap();
    let filter = Filter {
        pod_uid: Some(format!("p{}", n % 11)),
        ..Filter::default()
    };
    let listed = log.store.list(&Query::newest(filter, 1000)).await.unwrap();
    let at = |index: LogIndex| index.0 == n;
    (
        by_serial.is_some_and(|entry| at(entry.index)),
        read.first().is_some_and(|entry| at(entry.index)),
        listed.iter().any(|entry| at(entry.index)),
    )
}

async fn assert_pruned_to_512(log: &Log) {
    assert_eq!(minimum(log).await, 512);
    for gone in [0, 99, 101, 511] {
        assert_eq!(found(log, gone).await, (false, false, false), "{gone}");
    }
    for here in [512, 699] {
        assert_eq!(found(log, here).await, (true, true, true), "{here}");
        assert_proven(log, here).await;
    }
    // What is no certificate stays, is found and is proven.
    assert_proven(log, 100).await;
    let all = log
        .store
        .list(&Query::newest(Filter::default(), 1000))
        .await
        .unwrap();
    assert_eq!(all.last().unwrap().index, LogIndex(100));
    assert!(all.windows(2).all(|pair| pair[0].index > pair[1].index));
    let tile = |index| Tile::at(0, index, 700).unwrap();
    for (index, there) in [(0, false), (1, false), (2, true)] {
        let bundle = bundle(log.store(), tile(index)).await.unwrap();
        assert_eq!(bundle.is_some(), there, "bundle {index}");
    }
}

#[tokio::test]
async fn what_expired_long_enough_ago_goes_and_the_rest_proves_itself() {
    let folder = TempDir::new().unwrap();
    let log = filled(folder.path(), 600).await;
    let now = time::OffsetDateTime::now_utc();
    let plan = plan_retention(log.store(), 90 * DAY, now).await.unwrap();
    assert_eq!((plan.from, plan.to, plan.certificates), (0, 512, 511));
    assert!(plan.bytes > 511 * 700);
    retain(&log).await;
    assert_pruned_to_512(&log).await;
    let key = log.verifier().clone();
    let act = log.store.read(LogIndex(700), 1).await.unwrap().remove(0);
    match Entry::decode(act.bytes.as_slice()).unwrap().kind.unwrap() {
        Kind::AdministratorAct(act) => assert_eq!(act.act, "retention"),
        other => panic!("{other:?}"),
    }
    // A second round finds nothing more, and records nothing.
    retain(&log).await;
    assert_eq!(log.store.size().await.unwrap(), 701);
    log.close().await;

    let verified = verdict(folder.path(), &key, &[]).await.unwrap();
    assert_eq!((verified.minimum, verified.size), (512, 702));
    // After a restart, and with an index that was made anew.
    let log = opened(folder.path()).await;
    assert_pruned_to_512(&log).await;
    log.store.reindex().await.unwrap();
    assert_pruned_to_512(&log).await;
    contract::indexed(log.store.as_ref()).await;
    log.close().await;
    let verified = verdict(folder.path(), &key, &[]).await.unwrap();
    assert!(verified.indexed.unwrap() >= 702);
    fs::remove_file(folder.path().join("citadel-index.db")).unwrap();
    let log = opened(folder.path()).await;
    contract::indexed(log.store.as_ref()).await;
    assert_pruned_to_512(&log).await;
    log.close().await;
    verdict(folder.path(), &key, &[]).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_valid_keeps_its_bundle_and_all_after_it() {
    let folder = TempDir::new().unwrap();
    let log = filled(folder.path(), 300).await;
    retain(&log).await;
    assert_eq!(minimum(&log).await, 256);
    assert_eq!(found(&log, 255).await, (false, false, false));
    assert_eq!(found(&log, 256).await, (true, true, true));
    // Not yet, if it has to be longer ago than that.
    let now = time::OffsetDateTime::now_utc();
    let plan = plan_retention(log.store(), 36_500 * DAY, now)
        .await
        .unwrap();
    assert_eq!(plan.to, plan.from);
    log.close().await;
}

#[tokio::test]
async fn what_an_interruption_left_goes_in_the_next_round() {
    let folder = TempDir::new().unwrap();
    let log = filled(folder.path(), 600).await;
    let key = log.verifier().clone();
    // Raised, and some of it gone.
    run_sql(
        folder.path(),
        "UPDATE tree SET minimum = 512; DELETE FROM entries WHERE idx BETWEEN 0 AND 50",
    )
    .await;
    log.close().await;
    verdict(folder.path(), &key, &[]).await.unwrap();
    let log = opened(folder.path()).await;
    retain(&log).await;
    assert_pruned_to_512(&log).await;
    log.close().await;
}

#[tokio::test]
async fn what_is_left_below_the_minimum_index_is_verified_too() {
    let folder = TempDir::new().unwrap();
    let log = filled(folder.path(), 600).await;
    retain(&log).await;
    let key = log.verifier().clone();
    log.close().await;
    let original = TempDir::new().unwrap();
    copy(folder.path(), original.path());
    for (sql, named) in [
        (
            "UPDATE entries SET bytes = substr(bytes, 1, length(bytes) - 1) WHERE idx = 100",
            "entry 100",
        ),
        (
            "UPDATE tiles SET hashes = zeroblob(length(hashes)) WHERE id = 1",
            "does not follow",
        ),
        ("DELETE FROM tiles WHERE id = 0", "no tile/0/000"),
        ("UPDATE tree SET minimum = 256", "entry 256 is missing"),
        (
            "DELETE FROM entries WHERE idx = 512",
            "entry 512 is missing",
        ),
    ] {
        run_sql(folder.path(), sql).await;
        let broken = verdict(folder.path(), &key, &[]).await.unwrap_err();
        assert!(broken.to_string().contains(named), "{sql}: {broken}");
        copy(original.path(), folder.path());
    }
    shell(folder.path()).await.close().await.unwrap();
    verdict(folder.path(), &key, &[]).await.unwrap();
}
