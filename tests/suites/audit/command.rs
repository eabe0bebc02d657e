//! `citadel log` on the store of a running CA, and after its end.

use std::time::Duration;

use citadel_tests::citadel::{Finished, citadel};
use citadel_tests::foreign::Foreign;
use serde_json::Value;

use super::{covered, issue};
use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(30);

async fn log(scene: &Scene<'_>, args: &[&str]) -> Finished {
    let store = format!("sqlite:{}", scene.ca.database().display());
    let args = ["log", "--store", &store]
        .into_iter()
        .chain(args.iter().copied());
    citadel(scene.ca.dir(), args, &[], DEADLINE).await
}

async fn json(scene: &Scene<'_>, args: &[&str]) -> Value {
    let args: Vec<_> = args.iter().copied().chain(["--output", "json"]).collect();
    let output = log(scene, &args).await.success();
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

#[tokio::test]
async fn an_auditor_finds_proves_and_verifies() {
    let mut scene = Scene::start().await;
    let web = scene.workload("audited").await;
    let other = scene.workload("beside").await;
    let svids = issue(&scene, &web, 5).await;
    issue(&scene, &other, 2).await;
    let serial = svids[2].serial.as_str();
    covered(&scene, svids[4].log_index + 2).await;

    let found = json(&scene, &["search", "--id", &web.spiffe_id()]).await;
    let serials: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["serial"].clone())
        .collect();
    let expected: Vec<_> = svids.iter().rev().map(|svid| svid.serial.clone()).collect();
    assert_eq!(serials, expected, "newest first");
    for (condition, value, count) in [
        ("--pod", web.uid.as_str(), 5),
        ("--namespace", "beside", 2),
        ("--node", "node-audited", 5),
        ("--id", "spiffe://example.org/ns/beside/*", 2),
        ("--serial", serial, 1),
        ("--pod", "nobody", 0),
    ] {
        let found = json(&scene, &["search", condition, value, "--count"]).await;
        assert_eq!(found["count"], count, "{condition} {value}");
    }
    let page = json(
        &scene,
        &["search", "--id", &web.spiffe_id(), "--limit", "2"],
    )
    .await;
    let before = page[1]["index"].to_string();
    let next = [
        "search",
        "--id",
        &web.spiffe_id(),
        "--limit",
        "1",
        "--before",
        &before,
    ];
    assert_eq!(json(&scene, &next).await[0]["serial"], svids[2].serial);

    let shown = json(&scene, &["show", serial]).await;
    assert_eq!(shown["spiffe_id"], web.spiffe_id());
    assert_eq!(shown["origin"]["pod_uid"], web.uid);
    assert_eq!(shown["caller"]["method"], "jwks");
    assert_eq!(shown["proven"], true);
    let text = log(&scene, &["show", serial]).await.success();
    assert!(
        text.contains(&web.spiffe_id()) && text.contains("BEGIN CERTIFICATE"),
        "{text}"
    );
    assert_eq!(log(&scene, &["show", "0102"]).await.code, Some(1));
    assert_eq!(log(&scene, &["show", "xyz"]).await.code, Some(2));

    let receipt = log(&scene, &["prove", serial]).await.success();
    let file = scene.ca.dir().write("receipt", &receipt);
    let file = file.to_str().unwrap();
    let verified = json(&scene, &["verify-receipt", file]).await;
    assert_eq!(verified["serial"], serial);
    // Offline, with the key alone.
    let key = std::fs::read_to_string(scene.ca.data_dir().join("log.pub")).unwrap();
    let offline = ["log", "verify-receipt", file, "--key", key.trim()];
    citadel(scene.ca.dir(), offline, &[], DEADLINE)
        .await
        .success();
    let forged = scene
        .ca
        .dir()
        .write("forged", receipt.replacen("extra C", "extra D", 1));
    let refused = log(&scene, &["verify-receipt", forged.to_str().unwrap()]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);

    let valid = json(&scene, &["verify"]).await;
    let stats = json(&scene, &["stats"]).await;
    assert_eq!(valid["valid"], true);
    assert!(stats["entries"].as_u64() >= valid["entries_in_checkpoint"].as_u64());
    let tail = log(&scene, &["tail", "-n", "1000"]).await.success();
    assert!(
        tail.lines().next().unwrap().contains("server_started"),
        "{tail}"
    );
    assert_eq!(tail.matches(&web.spiffe_id()).count(), 5);

    // Kept elsewhere, and held against the log when the CA has ended.
    let kept = scene
        .ca
        .dir()
        .write("kept", scene.admin.info().await.checkpoint);
    scene.ca.terminate().await;
    log(&scene, &["verify", "--checkpoint", kept.to_str().unwrap()])
        .await
        .success();
    let tiles = scene.ca.dir().join("exported");
    log(&scene, &["export", "--tiles", tiles.to_str().unwrap()])
        .await
        .success();
    let line = Foreign::verify_log(
        scene.ca.dir(),
        &[
            "--source",
            tiles.to_str().unwrap(),
            "--key",
            key.trim(),
            "--entries",
            "1000",
        ],
        DEADLINE,
    )
    .await
    .unwrap();
    assert_eq!(line["entries"], 1000);
    let again = log(&scene, &["export", "--tiles", tiles.to_str().unwrap()]).await;
    assert_eq!(again.code, Some(2), "an existing folder is not touched");
    let lines = log(&scene, &["export", "--json-lines", "-"])
        .await
        .success();
    assert_eq!(lines.lines().count() as u64, line["size"].as_u64().unwrap());

    // A store that went back is refused, until an operator says that it is meant.
    let backup = scene.ca.dir().join("backup.db");
    std::fs::copy(scene.ca.database(), &backup).unwrap();
    scene.ca.start_again().await;
    let later = issue(&scene, &web, 3).await;
    covered(&scene, later[2].log_index).await;
    scene.ca.process().kill().await;
    for end in ["", "-wal", "-shm"] {
        let name = format!("{}{end}", scene.ca.database().display());
        let _ = std::fs::remove_file(name);
    }
    std::fs::copy(&backup, scene.ca.database()).unwrap();
    let config = scene.ca.config();
    let refused = citadel_tests::citadel::citadel_ca(
        scene.ca.dir(),
        ["--config", config.to_str().unwrap()],
        DEADLINE,
    )
    .await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert!(
        refused.errors.contains("went back in time"),
        "{}",
        refused.errors
    );
    assert!(
        refused.errors.contains("--accept-rollback"),
        "{}",
        refused.errors
    );
}
