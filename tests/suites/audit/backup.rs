//! A backup made under load, the way back, and an index made anew.

use std::time::Duration;

use citadel_tests::citadel::{CaBuilder, Finished, citadel, citadel_ca};
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::wait;

use crate::support::{LogOf, names_in, start_load};

const DEADLINE: Duration = Duration::from_secs(60);

async fn log(dir: &TestDir, args: &[&str]) -> Finished {
    citadel(dir, ["log"].iter().chain(args), &[], DEADLINE).await
}

#[track_caller]
fn refused_with(finished: &Finished, code: i32, reason: &str) {
    assert_eq!(finished.code, Some(code), "{}", finished.errors);
    assert!(finished.errors.contains(reason), "{}", finished.errors);
}

#[tokio::test]
async fn a_backup_under_load_is_whole_and_comes_back() {
    let dir = TestDir::new("backup");
    let mut ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .start()
        .await;
    let store = format!("sqlite:{}", ca.database().display());
    let received = dir.join("received");
    let load = start_load(&dir, &ca, &ca.bundle_file(), &received, "backup").await;
    let flowing = async |more: usize| {
        let before = names_in(&received).len();
        wait::until("certificates arrive", DEADLINE, async || {
            assert!(load.is_running(), "the load ended: {}", load.log());
            (names_in(&received).len() > before + more).then_some(())
        })
        .await;
    };
    flowing(300).await;
    let arrived = names_in(&received);
    let backup = dir.join("copy");
    let folder = backup.to_str().unwrap();
    log(&dir, &["backup", folder, "--store", &store])
        .await
        .success();
    flowing(100).await;
    refused_with(
        &log(&dir, &["backup", folder, "--store", &store]).await,
        2,
        "exists already",
    );
    // What runs holds its store: nothing but the server writes to it.
    refused_with(
        &log(&dir, &["reindex", "--store", &store]).await,
        5,
        "already open for writing by process",
    );
    refused_with(
        &log(&dir, &["restore", folder, "--store", &store]).await,
        2,
        "nothing is overwritten",
    );
    load.kill().await;
    let mut whole = LogOf::default();
    whole.read_on(&Admin::of(&ca)).await;

    // The copy by itself: all that had arrived is in it, and it holds together.
    let copy = format!("sqlite:{folder}/citadel.db");
    let lines = log(&dir, &["export", "--json-lines", "-", "--store", &copy])
        .await
        .success();
    for serial in &arrived {
        assert!(
            lines.contains(serial.as_str()),
            "{serial} is not in the backup"
        );
    }
    assert!((lines.lines().count() as u64) < whole.size);
    log(&dir, &["verify", "--store", &copy]).await.success();

    // A damaged one is not put anywhere.
    let damaged = dir.join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    for name in ["citadel.db", "log.pub", "log.checkpoint"] {
        std::fs::copy(backup.join(name), damaged.join(name)).unwrap();
    }
    // The oldest: a checkpoint covers it for certain.
    flip(&damaged.join("citadel.db"), arrived.iter().min().unwrap());
    let elsewhere = dir.join("elsewhere/citadel.db");
    let to_elsewhere = format!("sqlite:{}", elsewhere.display());
    let damaged = damaged.to_str().unwrap();
    refused_with(
        &log(&dir, &["restore", damaged, "--store", &to_elsewhere]).await,
        1,
        "entry ",
    );
    assert!(!elsewhere.exists());
    log(&dir, &["restore", folder, "--store", &to_elsewhere])
        .await
        .success();

    // In the CA's own place: it refuses what went back, until that is accepted.
    let held = ca.database().with_extension("db.away");
    std::fs::rename(ca.database(), &held).unwrap();
    refused_with(
        &log(&dir, &["restore", folder, "--store", &store]).await,
        5,
        "already open for writing by process",
    );
    std::fs::rename(&held, ca.database()).unwrap();
    ca.process().kill().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", ca.database().display()));
    }
    let restored = log(&dir, &["restore", folder, "--store", &store]).await;
    assert!(
        restored.errors.contains("--accept-rollback"),
        "{}",
        restored.errors
    );
    restored.success();
    let config = ca.config();
    let config = config.to_str().unwrap();
    let refused = citadel_ca(ca.dir(), ["--config", config], DEADLINE).await;
    refused_with(&refused, 1, "went back in time");
    log(&dir, &["reindex", "--store", &store]).await.success();
    let verified = log(&dir, &["verify", "--store", &copy]).await.success();
    assert!(verified.contains("no index"), "{verified}");
    // Against the CA's own newer checkpoint, which lies beside the store.
    let refused = log(&dir, &["verify", "--store", &store]).await;
    refused_with(&refused, 1, "covers");
    std::fs::remove_file(ca.data_dir().join("log.checkpoint")).unwrap();
    let verified = log(&dir, &["verify", "--store", &store]).await.success();
    assert!(!verified.contains("no index"), "{verified}");
    ca.start_again().await;
}

/// One bit of this serial wherever it stands: a page may hold leftovers that are nobody's.
fn flip(file: &std::path::Path, serial: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let serial: Vec<u8> = hex::decode(serial).unwrap();
    let places: Vec<usize> = bytes
        .windows(serial.len())
        .enumerate()
        .filter_map(|(at, window)| (window == serial).then_some(at))
        .collect();
    assert!(!places.is_empty(), "the serial is in the file");
    for at in places {
        bytes[at + serial.len() - 1] ^= 1;
    }
    std::fs::write(file, bytes).unwrap();
}
