//! PostgreSQL's disk, and an older copy of it.

use citadel_tests::citadel::citadel_ca;
use citadel_tests::dir::TestDir;
use citadel_tests::disk::Disk;
use citadel_tests::faulty::{Call, Faulty};
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;
use nix::errno::Errno;

use super::{Patient, SOON};
use crate::support::Scene;

/// Starts it again if it ended by itself: it does where it can't write its own log.
async fn revive(postgres: &mut Postgres) {
    if !postgres.is_running() {
        postgres.kill().await;
        postgres.start_again().await;
    }
}

#[tokio::test]
async fn a_full_disk_of_the_database_stops_issuance_until_there_is_room() {
    let dir = TestDir::new("pg-full");
    let disk = Disk::mount(dir.join("data"), 120);
    let small = [("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let mut postgres = Postgres::start_in(dir, &small).await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let mut patient = Patient::of(scene, "pg-full").await;
    disk.fill();
    patient.fails("store").await;
    disk.free();
    revive(&mut postgres).await;
    patient.recovers().await;
    patient.has_lost_nothing().await;
    patient.scene.ca.terminate().await;
    postgres.stop().await;
}

/// Its log can't be written or synced: it panics and recovers, and with it the CA.
#[tokio::test]
async fn failed_writes_and_syncs_of_the_database_s_log_lose_nothing() {
    let dir = TestDir::new("pg-faulty");
    let faulty = Faulty::new(&dir);
    let mut postgres = Postgres::start().await;
    postgres.stop().await;
    for (name, value) in faulty.env() {
        postgres.set_env(name, &value);
    }
    postgres.start_again().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let mut patient = Patient::of(scene, "pg-faulty").await;
    for (call, error) in [
        (Call::Sync, Errno::EIO),
        (Call::Write, Errno::EIO),
        (Call::Write, Errno::ENOSPC),
    ] {
        faulty.fail(call, error, "pg_wal/");
        patient.fails("store").await;
        patient.still_fails().await;
        faulty.heal();
        revive(&mut postgres).await;
        patient.recovers().await;
    }
    patient.has_lost_nothing().await;
}

/// An older copy is put in place while no CA runs: the guard file beside the key knows.
#[tokio::test]
async fn a_database_restored_from_an_old_backup_is_refused_at_the_start() {
    let mut postgres = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let mut patient = Patient::of(scene, "pg-backup").await;
    patient.scene.ca.terminate().await;
    postgres.stop().await;
    let copy = postgres.back_up();
    postgres.start_again().await;
    patient.scene.ca.start_again().await;
    patient.recovers().await;
    patient.scene.ca.terminate().await;
    postgres.stop().await;
    postgres.restore(&copy);
    postgres.start_again().await;

    let config = patient.scene.ca.config();
    let config = config.to_str().unwrap();
    let refused = citadel_ca(patient.scene.ca.dir(), ["--config", config], SOON).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    for words in ["went back in time", "--accept-rollback"] {
        assert!(refused.errors.contains(words), "{}", refused.errors);
    }
    let size = "SELECT size FROM head";
    let before = postgres.query(size).await;
    // An administrator says that it is meant so; that is in the log.
    let accepts = async || {
        let args = ["--config", config, "--accept-rollback"];
        citadel_ca(patient.scene.ca.dir(), args, SOON).await
    };
    tokio::select! {
        ended = accepts() => panic!("{}", ended.errors),
        () = wait::until("it goes on", SOON, async || {
            (postgres.query(size).await != before && patient.scene.ca.is_ready().await).then_some(())
        }) => {}
    }
    let text = "SELECT count(*) FROM entries \
                WHERE position('accept-rollback'::bytea IN bytes) > 0";
    assert_eq!(postgres.query(text).await, "1");
}
