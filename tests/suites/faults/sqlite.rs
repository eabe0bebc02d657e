//! SQLite's file: a disk that is full, that fails, that may only be read; a lock of another
//! process; files beside it that are lost.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use citadel_tests::citadel::CaBuilder;
use citadel_tests::dir::TestDir;
use citadel_tests::disk::Disk;
use citadel_tests::faulty::{Call, Faulty};
use citadel_tests::kubernetes::ApiServer;
use nix::errno::Errno;

use super::Patient;
use crate::support::Scene;

#[tokio::test]
async fn failed_writes_and_syncs_record_nothing_and_pass() {
    let dir = TestDir::new("faulty");
    let faulty = Faulty::new(&dir);
    let scene = Scene::with(|ca| {
        let with = |ca: CaBuilder, (name, value): (&str, String)| ca.env(name, &value);
        faulty.env().into_iter().fold(ca, with)
    })
    .await;
    let mut patient = Patient::of(scene, "faulty").await;
    for (call, error, words) in [
        (Call::Write, Errno::EIO, "disk I/O error"),
        (Call::Sync, Errno::EIO, "disk I/O error"),
        (Call::Write, Errno::ENOSPC, "full"),
        // What a file system answers that the kernel made read-only.
        (Call::Write, Errno::EROFS, "I/O error"),
    ] {
        faulty.fail(call, error, "citadel.db");
        patient.fails(words).await;
        patient.still_fails().await;
        faulty.heal();
        patient.recovers().await;
    }
    // What the disk holds is what was answered: a start reads it anew.
    patient.scene.ca.kill_and_start_again().await;
    patient.recovers().await;
    patient.has_lost_nothing().await;
}

#[tokio::test]
async fn a_full_disk_stops_issuance_until_there_is_room() {
    let dir = TestDir::new("full");
    let disk = Disk::mount(dir.join("disk"), 4);
    let store = format!("sqlite:{}/citadel.db", disk.path().display());
    let scene = Scene::with(|ca| ca.set("store", store)).await;
    let mut patient = Patient::of(scene, "full").await;
    for _ in 0..2 {
        disk.fill();
        patient.fails("full").await;
        disk.free();
        patient.recovers().await;
    }
    patient.has_lost_nothing().await;
    patient.scene.ca.terminate().await;
}

#[tokio::test]
async fn a_read_only_file_system_is_refused_at_the_start_and_named() {
    let dir = TestDir::new("read-only");
    let disk = Disk::mount(dir.join("disk"), 16);
    let store = format!("sqlite:{}/citadel.db", disk.path().display());
    let mut scene = Scene::with(|ca| ca.set("store", store)).await;
    scene.ca.terminate().await;
    disk.read_only();
    let config = scene.ca.config();
    let refused = citadel_tests::citadel::citadel_ca(
        scene.ca.dir(),
        ["--config", config.to_str().unwrap()],
        super::SOON,
    )
    .await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    for word in ["Read-only file system", disk.path().to_str().unwrap()] {
        assert!(refused.errors.contains(word), "{word}: {}", refused.errors);
    }
    disk.writable();
    scene.ca.start_again().await;
    let patient = Patient::of(scene, "read-only").await;
    patient.has_lost_nothing().await;
    patient.scene.ca.terminate().await;
}

#[tokio::test]
async fn a_lock_of_another_process_stops_issuance_while_it_is_held() {
    let scene = Scene::start().await;
    let database = scene.ca.database();
    let mut patient = Patient::of(scene, "locked").await;
    let shell = Shell::lock(database.to_str().unwrap());
    patient.fails("locked").await;
    patient.still_fails().await;
    shell.release();
    patient.recovers().await;
    patient.has_lost_nothing().await;
}

/// Without the guard file a start can't tell whether the store went back: it says so, goes
/// on, and the next checkpoint makes the file anew.
#[tokio::test]
async fn a_lost_guard_file_is_warned_about_and_made_anew() {
    let ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .start()
        .await;
    let guard = ca.data_dir().join("log.checkpoint");
    let admin = citadel_tests::client::Admin::of(&ca);
    let api = ApiServer::shared().await;
    let mut patient = Patient::of(Scene { api, ca, admin }, "guard").await;
    patient.scene.ca.terminate().await;
    std::fs::remove_file(&guard).unwrap();
    patient.scene.ca.start_again().await;
    patient
        .scene
        .ca
        .process()
        .log_line("the warning", Duration::from_secs(5), |line| {
            line.contains("there is no log.checkpoint")
        })
        .await;
    patient.recovers().await;
    patient.has_lost_nothing().await;
    assert!(guard.exists());
}

/// Another process with an open transaction on the database.
struct Shell(Child);

impl Shell {
    /// Returns when it has the lock.
    fn lock(path: &str) -> Self {
        let script = "import sqlite3, sys\n\
             c = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
             c.execute('BEGIN IMMEDIATE')\n\
             print('locked', flush=True)\n\
             sys.stdin.readline()\n\
             c.execute('ROLLBACK')\n";
        let mut child = Command::new("python3")
            .args(["-c", script, path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        output.read_line(&mut said).expect("a line");
        assert_eq!(said.trim(), "locked");
        Self(child)
    }

    fn release(mut self) {
        let mut input = self.0.stdin.take().expect("its input");
        input.write_all(b"\n").expect("it reads");
        assert!(self.0.wait().expect("it ends").success());
    }
}
