//! `citadel log --server`: a running CA answers what its store says.

use std::time::Duration;

use citadel_tests::citadel::{Finished, citadel};
use serde_json::Value;

use super::{covered, issue};
use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(30);

async fn log(scene: &Scene<'_>, place: &[&str], args: &[&str]) -> Finished {
    let args = [&["log"], place, args].concat();
    citadel(scene.ca.dir(), args, &[], DEADLINE).await
}

#[tokio::test]
async fn a_running_ca_answers_as_its_store_does_to_auditors_alone() {
    let scene = Scene::with(|ca| ca.set("admin.auditor", vec!["asked-by/web"])).await;
    let auditor = scene.workload("asked-by").await;
    let web = scene.workload("asked-about").await;
    let svids = issue(&scene, &web, 7).await;
    covered(&scene, svids[6].log_index).await;
    let serial = svids[3].serial.as_str();
    let store = format!("sqlite:{}", scene.ca.database().display());
    let socket = format!("unix://{}", scene.ca.admin_socket().display());
    let address = scene.ca.grpc().to_string();
    let bundle = scene.ca.bundle_file();
    let token = scene.ca.dir().write("auditor-token", &auditor.token);
    let network = [
        "--server",
        &address,
        "--trust-bundle",
        bundle.to_str().unwrap(),
        "--trust-domain",
        "example.org",
    ];
    let by_auditor = [&network[..], &["--token-file", token.to_str().unwrap()]].concat();
    let id = web.spiffe_id();
    let svid = &svids[3];
    let facts = log(
        &scene,
        &["--store", &store],
        &["show", serial, "--output", "json"],
    )
    .await;
    let facts: Value = serde_json::from_str(&facts.success()).unwrap();
    let key = facts["spki_sha256"].as_str().unwrap();
    let issuer = facts["issuer_key_id"].as_str().unwrap();
    let before = svid.log_index.to_string();
    for args in [
        &["search", "--id", &id][..],
        &["search", "--id", "spiffe://example.org/ns/asked-about/*"],
        &["search", "--serial", serial],
        &["search", "--key-sha256", key],
        &["search", "--pod", &web.uid],
        &["search", "--node", "node-asked-about"],
        &["search", "--account", "web", "--namespace", "asked-about"],
        &[
            "search",
            "--cluster",
            "default",
            "--issuer",
            issuer,
            "--limit",
            "3",
        ],
        &[
            "search",
            "--since",
            "2026-01-01T00:00:00Z",
            "--until",
            "2100-01-01T00:00:00Z",
        ],
        &[
            "search",
            "--id",
            &id,
            "--expires-before",
            "2100-01-01T00:00:00Z",
        ],
        &[
            "search",
            "--id",
            &id,
            "--valid-since",
            "2100-01-01T00:00:00Z",
        ],
        &["search", "--id", &id, "--before", &before, "--limit", "2"],
        &["search", "--id", &id, "--count"],
        &["search", "--count"],
        &["show", serial],
        &["tail", "-n", "1000"],
    ] {
        let expected = log(&scene, &["--store", &store], args).await.success();
        for place in [&["--server", &socket][..], &by_auditor] {
            let found = log(&scene, place, args).await.success();
            assert_eq!(found, expected, "{args:?} at {place:?}");
        }
    }
    let count = log(&scene, &by_auditor, &["search", "--id", &id, "--count"]).await;
    assert_eq!(count.success().trim(), "7");
    let stats = log(&scene, &by_auditor, &["stats", "--output", "json"]).await;
    let stats: Value = serde_json::from_str(&stats.success()).unwrap();
    assert!(stats["entries_in_checkpoint"].as_u64().unwrap() > svids[6].log_index);

    // The receipt of the server verifies with the key alone.
    let receipt = log(&scene, &by_auditor, &["prove", serial]).await.success();
    let receipt = scene.ca.dir().write("receipt", receipt);
    let verified = log(
        &scene,
        &[
            "--key",
            scene.ca.data_dir().join("log.pub").to_str().unwrap(),
        ],
        &["verify-receipt", receipt.to_str().unwrap()],
    )
    .await;
    assert!(verified.success().contains(serial));

    // Others get nothing, and are told what is missing.
    let other = scene.ca.dir().write("workload-token", &web.token);
    let by_workload = [&network[..], &["--token-file", other.to_str().unwrap()]].concat();
    for (place, code) in [(&by_workload[..], 4), (&network[..], 4), (&network[..2], 2)] {
        let refused = log(&scene, place, &["search", "--count"]).await;
        assert_eq!(refused.code, Some(code), "{place:?}: {}", refused.errors);
    }
    let refused = log(&scene, &["--server", &socket], &["verify"]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.errors);
    let refused = log(&scene, &["--server", &socket], &["show", "0102"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
}

#[tokio::test]
async fn a_table_has_a_line_for_each_entry() {
    let scene = Scene::start().await;
    let web = scene.workload("tabled").await;
    let svids = issue(&scene, &web, 3).await;
    covered(&scene, svids[2].log_index).await;
    let store = format!("sqlite:{}", scene.ca.database().display());
    let place = ["--store", store.as_str()];
    let table = log(&scene, &place, &["export", "--csv", "-"])
        .await
        .success();
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("index,time,kind,spiffe_id,serial,"),
        "{table}"
    );
    for svid in &svids {
        let start = format!("{},", svid.log_index);
        let line = lines.iter().find(|line| line.starts_with(&start)).unwrap();
        for field in [svid.serial.as_str(), &web.spiffe_id(), &web.uid] {
            assert!(
                line.split(',').any(|found| found == field),
                "{field}: {line}"
            );
        }
    }
    assert_eq!(lines.len() as u64, scene.admin.size().await + 1);
}
