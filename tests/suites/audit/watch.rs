//! `citadel log watch`: somebody else remembers what the CA signed.

use std::path::Path;
use std::time::Duration;

use citadel_tests::citadel::{Finished, citadel};
use citadel_tests::parts::program;
use citadel_tests::process::Launch;
use citadel_tests::wait;

use super::{covered, issue};
use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(60);

/// The arguments of a watch of this CA.
fn args(scene: &Scene<'_>, key: &str, folder: &Path, more: &[&str]) -> Vec<String> {
    let address = format!("https://{}", scene.ca.public());
    let bundle = scene.ca.bundle_file();
    let common = [
        "log",
        "watch",
        &address,
        "--keep",
        folder.to_str().unwrap(),
        "--key",
        key,
        "--trust-bundle",
        bundle.to_str().unwrap(),
        "--trust-domain",
        "example.org",
    ];
    common
        .iter()
        .chain(more)
        .map(|arg| (*arg).to_owned())
        .collect()
}

async fn once(scene: &Scene<'_>, key: &str, folder: &Path, more: &[&str]) -> Finished {
    let args = args(scene, key, folder, &[more, &["--once"]].concat());
    citadel(scene.ca.dir(), args, &[], DEADLINE).await
}

fn kept(folder: &Path, begins: &str) -> Vec<String> {
    let Ok(files) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(begins)).collect();
    names.sort();
    names
}

/// Puts an older copy of the log in the CA's place, as root on its host can, guard file and all.
async fn roll_back(scene: &mut Scene<'_>, copy: &Path) {
    scene.ca.process().kill().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", scene.ca.database().display()));
    }
    std::fs::copy(copy, scene.ca.database()).unwrap();
    std::fs::remove_file(scene.ca.data_dir().join("log.checkpoint")).unwrap();
    scene.ca.start_again().await;
}

#[tokio::test]
async fn a_log_that_was_rewritten_behind_the_ca_s_back_sets_off_the_alarm() {
    let mut scene = Scene::with(|ca| {
        ca.set("log.public_hashes", true)
            .set("admin.auditor", vec!["watch-reader/web"])
    })
    .await;
    let web = scene.workload("watched").await;
    let svids = issue(&scene, &web, 3).await;
    let (key, _) = covered(&scene, svids[2].log_index).await;
    let key = key.to_string();
    let folder = scene.ca.dir().join("kept-elsewhere");
    once(&scene, &key, &folder, &[]).await.success();
    scene.ca.terminate().await;
    let copy = scene.ca.dir().join("older.db");
    std::fs::copy(scene.ca.database(), &copy).unwrap();
    let refused = once(&scene, &key, &folder, &[]).await;
    assert_eq!(refused.code, Some(3), "nobody answers: {}", refused.errors);
    scene.ca.start_again().await;

    // One that runs on follows what is issued.
    let running = Launch::new("watch", program("citadel"))
        .args(args(&scene, &key, &folder, &["--every", "200ms"]))
        .start(scene.ca.dir());
    let mut last = 0;
    for _ in 0..3 {
        let svids = issue(&scene, &web, 300).await;
        last = svids.last().unwrap().log_index;
        let (_, checkpoint) = covered(&scene, last).await;
        wait::until("it is kept", DEADLINE, async || {
            assert!(running.is_running(), "{}", running.log());
            let newest = kept(&folder, "checkpoint-").pop()?;
            let size: u64 = newest.strip_prefix("checkpoint-")?.parse().unwrap();
            (size >= checkpoint.size).then_some(())
        })
        .await;
    }
    assert!(kept(&folder, "checkpoint-").len() >= 4);
    assert_eq!(kept(&folder, "alarm-").len(), 0);

    // Rolled back, with fewer entries than were seen.
    roll_back(&mut scene, &copy).await;
    let status = running.wait(DEADLINE).await;
    assert_eq!(status.code(), Some(1), "{}", running.log());
    assert!(
        running.log().contains("ALARM: the log went back"),
        "{}",
        running.log()
    );
    assert_eq!(kept(&folder, "alarm-").len(), 1);
    let again = once(&scene, &key, &folder, &[]).await;
    assert_eq!(again.code, Some(1), "it stays one: {}", again.errors);

    // And grown past that again, with another history.
    let svids = issue(&scene, &web, usize::try_from(last).unwrap()).await;
    covered(&scene, svids.last().unwrap().log_index).await;
    assert!(svids.last().unwrap().log_index > last);
    let forked = once(&scene, &key, &folder, &[]).await;
    assert_eq!(forked.code, Some(1), "{}", forked.errors);
    assert!(
        forked.errors.contains("does not go on"),
        "{}",
        forked.errors
    );

    // A key of another log verifies nothing.
    let other = citadel_ledger::LogKey::generate("example.org/citadel/other").unwrap();
    let elsewhere = scene.ca.dir().join("kept-with-another-key");
    let other = other.verifier().to_string();
    let refused = once(&scene, &other, &elsewhere, &[]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert_eq!(kept(&elsewhere, "checkpoint-").len(), 0);
}

#[tokio::test]
async fn where_hashes_are_not_open_the_watch_needs_an_auditor() {
    let scene = Scene::with(|ca| ca.set("admin.auditor", vec!["watch-auditor/web"])).await;
    let auditor = scene.workload("watch-auditor").await;
    let web = scene.workload("watch-closed").await;
    let svids = issue(&scene, &web, 1).await;
    let (key, _) = covered(&scene, svids[0].log_index).await;
    let key = key.to_string();
    let folder = scene.ca.dir().join("kept");
    let refused = once(&scene, &key, &folder, &[]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    let token = scene.ca.dir().write("token", &auditor.token);
    let by_auditor = ["--token-file", token.to_str().unwrap()];
    once(&scene, &key, &folder, &by_auditor).await.success();
    assert_eq!(kept(&folder, "checkpoint-").len(), 1);
}
