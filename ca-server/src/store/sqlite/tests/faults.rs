//! A disk that is full, a lock that is taken: nothing is acknowledged, nothing is
//! poisoned.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sqlx::Connection;
use tempfile::TempDir;

use super::{options, shell};
use crate::store::{
    LogIndex, Store, StoreError,
    contract::{Sample, everything, fill, within_deadline},
    sqlite::{SqliteOptions, SqliteStore},
};

#[tokio::test]
async fn a_lock_of_another_process_passes() {
    let folder = TempDir::new().unwrap();
    let options = SqliteOptions {
        busy_timeout: Duration::from_millis(20),
        ..options(folder.path())
    };
    let path = options.path.clone();
    let store = SqliteStore::open(options).await.unwrap();
    fill(&store, 0..3).await;
    let mut shell = shell(&path).await;
    let lock = shell.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)), "{error}");
    assert!(!store.health().is_ready());
    lock.rollback().await.unwrap();
    let next = store.append(vec![Sample(3).entry()]).await.unwrap();
    assert_eq!(next, [LogIndex(3)]);
    assert!(store.health().is_ready());
    assert_eq!(store.stats().failed_commits, 1);
    store.close().await;
}

/// Nobody appends to a store that is not ready, so it must find out by itself.
#[tokio::test]
async fn a_store_becomes_ready_without_an_append() {
    let folder = TempDir::new().unwrap();
    let options = SqliteOptions {
        busy_timeout: Duration::from_millis(20),
        ..options(folder.path())
    };
    let path = options.path.clone();
    let store = SqliteStore::open(options).await.unwrap();
    let mut shell = shell(&path).await;
    let lock = shell.begin_with("BEGIN IMMEDIATE").await.unwrap();
    store.append(vec![Sample(0).entry()]).await.unwrap_err();
    let mut health = store.shared.health.subscribe();
    lock.rollback().await.unwrap();
    within_deadline(health.wait_for(crate::store::StoreHealth::is_ready))
        .await
        .unwrap();
    store.close().await;
}

/// Entries that somebody put into the log behind our back are counted, not overwritten.
#[tokio::test]
async fn a_foreign_entry_is_not_overwritten() {
    let folder = TempDir::new().unwrap();
    let options = options(folder.path());
    let store = SqliteStore::open(options.clone()).await.unwrap();
    fill(&store, 0..3).await;
    let mut shell = shell(&options.path).await;
    sqlx::raw_sql("INSERT INTO entries VALUES (3, NULL, x'00')")
        .execute(&mut shell)
        .await
        .unwrap();
    let error = store.append(vec![Sample(3).entry()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert_eq!(
        store.append(vec![Sample(3).entry()]).await.unwrap(),
        [LogIndex(4)]
    );
    assert_eq!(everything(&store).await[3].bytes, [0]);
    store.close().await;
}

#[tokio::test]
async fn a_full_disk_records_nothing_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("not root: the full-disk test is left out");
        return;
    };
    let store = SqliteStore::open(options(&disk.0)).await.unwrap();
    fill(&store, 0..100).await;
    let ballast = disk.fill();

    let mut refused = 0;
    for n in 100..200 {
        match store
            .append((0..20).map(|m| Sample(1000 * n + m).entry()).collect())
            .await
        {
            // What fits into the room that the WAL has already.
            Ok(_) => assert_eq!(refused, 0, "a full disk took an entry"),
            Err(error) => {
                assert!(matches!(error, StoreError::Full(_)), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(
        refused > 0,
        "the disk was not full: this test measured nothing"
    );
    assert!(!store.health().is_ready());
    let before = everything(&store).await;
    assert_eq!(store.size().await.unwrap(), before.len() as u64);

    fs::remove_file(ballast).unwrap();
    let next = store.append(vec![Sample(7_000_000).entry()]).await.unwrap();
    assert_eq!(next, [LogIndex(before.len() as u64)]);
    assert!(store.health().is_ready());
    store.close().await;
    let store = SqliteStore::open(options(&disk.0)).await.unwrap();
    assert_eq!(everything(&store).await[..before.len()], before);
    store.close().await;
}

/// A tmpfs of 4 MB, taken down again at the end.
struct SmallDisk(
    PathBuf,
    #[expect(dead_code, reason = "removed at the end")] TempDir,
);

impl SmallDisk {
    /// `None` when we are not root; anything else that hinders it is an error.
    fn mount() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let folder = TempDir::new().unwrap();
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(&disk)
            .status()
            .expect("cannot run mount");
        assert!(mounted.success(), "cannot mount a tmpfs: {mounted}");
        Some(Self(disk, folder))
    }

    /// Takes all room that is left.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn unmount(disk: &Path) {
    // Lazily: a test that failed may still have files open there.
    let _ = Command::new("umount").arg("-l").arg(disk).status();
}
