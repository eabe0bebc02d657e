//! Batches: how many commits, and when one waits.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::future::join_all;
use sqlx::Connection;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::{options, shell};
use crate::store::{
    Announcement, BatchOptions, Store, StoreError,
    contract::{Sample, within_deadline},
    queue::{Append, Command, Gatherer},
    shared::Shared,
    sqlite::{SqliteOptions, SqliteStore},
};

#[tokio::test]
async fn appends_that_wait_together_share_a_commit() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    let outcomes = join_all((0..200).map(|n| store.append(vec![Sample(n).entry()]))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let stats = store.stats();
    assert_eq!(stats.entries, 200);
    // The first may go alone, the others wait for its fsync.
    assert!(stats.commits <= 3, "{} commits", stats.commits);
    store.close().await;
}

#[tokio::test]
async fn alone_nobody_waits() {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(options(folder.path())).await.unwrap();
    for n in 0..20 {
        let _announcement = store.announce();
        store.append(vec![Sample(n).entry()]).await.unwrap();
    }
    assert_eq!(store.stats().commits, 20);
    assert_eq!(store.stats().waits, 0);
    store.close().await;
}

#[tokio::test]
async fn a_commit_waits_for_half_of_what_was_announced() {
    let folder = TempDir::new().unwrap();
    // A wait that ends by itself only after the test's deadline.
    let options = SqliteOptions {
        batch: BatchOptions {
            max_wait: Duration::from_secs(3600),
            ..BatchOptions::default()
        },
        ..options(folder.path())
    };
    let store = SqliteStore::open(options).await.unwrap();
    let _announcements = [(); 4].map(|()| store.announce());
    let mut first = pin!(store.append(vec![Sample(1).entry()]));
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(first.as_mut().poll(&mut context), Poll::Pending));
    within_deadline(async {
        while store.stats().waits == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(store.stats().commits, 0);
    let second = store.append(vec![Sample(2).entry()]);
    let (first, second) = within_deadline(async { tokio::join!(first, second) }).await;
    assert_eq!((first.unwrap()[0].0, second.unwrap()[0].0), (0, 1));
    assert_eq!(store.stats().commits, 1);
    assert_eq!(store.stats().waits, 1);
    store.close().await;
}

/// Hanging callers that announced themselves cost ever fewer waits.
#[tokio::test(start_paused = true)]
async fn fruitless_waits_become_seldom() {
    let shared = Arc::new(Shared::new(0));
    let _hang = [(); 2].map(|()| Announcement::new(&shared.announced));
    let mut gatherer = Gatherer::new(&BatchOptions::default());
    let (_commands, mut inbox) = mpsc::unbounded_channel();
    for batch in 0..16 {
        let _announcement = Announcement::new(&shared.announced);
        let (reply, _answer) = oneshot::channel();
        let append = Append::new(vec![Sample(batch).entry()], 9, &shared, reply).unwrap();
        let batch = gatherer.gather(append, &mut inbox, &shared).await;
        assert_eq!(batch.appends.len(), 1);
    }
    // Batches 0, 2, 6, 14.
    assert_eq!(shared.stats().waits, 4);
    assert_eq!(
        shared.stats().queued,
        0,
        "a batch that is gone waits no more"
    );
}

#[tokio::test]
async fn a_batch_keeps_its_limits_and_the_order() {
    let shared = Arc::new(Shared::new(0));
    let options = BatchOptions {
        entries: 5,
        ..BatchOptions::default()
    };
    let mut gatherer = Gatherer::new(&options);
    let (commands, mut inbox) = mpsc::unbounded_channel();
    let mut answers = Vec::new();
    for n in [2, 2, 2, 7, 1, 1] {
        let (reply, answer) = oneshot::channel();
        let entries = vec![Sample(n).entry(); usize::try_from(n).unwrap()];
        let append = Append::new(entries, 100, &shared, reply).unwrap();
        assert!(commands.send(Command::Append(append)).is_ok());
        answers.push(answer);
    }
    // The caller of the fifth has gone away.
    drop(answers.remove(4));
    drop(commands);
    let mut sizes = Vec::new();
    while let Some(Command::Append(first)) = gatherer.next(&mut inbox).await {
        let batch = gatherer.gather(first, &mut inbox, &shared).await;
        sizes.push(
            batch
                .appends
                .iter()
                .map(|append| append.entries.len())
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(sizes, [vec![2, 2], vec![2], vec![7], vec![1]]);
}

#[tokio::test]
async fn a_full_queue_refuses_early() {
    let folder = TempDir::new().unwrap();
    let options = SqliteOptions {
        batch: BatchOptions {
            queue: 4,
            ..BatchOptions::default()
        },
        busy_timeout: Duration::from_secs(30),
        ..options(folder.path())
    };
    let path = options.path.clone();
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    // Somebody else's transaction keeps the writer from going on.
    let mut shell = shell(&path).await;
    let lock = shell.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let waiting: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.append(vec![Sample(n).entry()]).await })
        })
        .collect();
    within_deadline(async {
        while store.stats().queued < 4 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = store.append(vec![Sample(9).entry()]).await;
    assert_eq!(refused, Err(StoreError::Overloaded { queued: 4 }));
    assert_eq!(
        store.stats().queued,
        4,
        "a refused append leaves nothing behind"
    );
    lock.rollback().await.unwrap();
    for append in waiting {
        append.await.unwrap().unwrap();
    }
    assert_eq!(store.size().await.unwrap(), 4);
    assert_eq!(store.stats().queued, 0);
    store.close().await;
}
