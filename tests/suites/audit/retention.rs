//! A CA whose log has grown old: what goes, and that Go verifies the rest.

use std::time::Duration;

use citadel_ca_server::store::{
    NewEntry, PostgresOptions, PostgresStore, SqliteOptions, SqliteStore, Store,
};
use citadel_ledger::Checkpoint;
use citadel_proto::log::{Entry, Issued, Origin, entry::Kind};
use citadel_tests::citadel::{CaBuilder, Finished, citadel};
use citadel_tests::foreign::Foreign;
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;
use prost::Message as _;
use serde_json::Value;

use super::{covered, issue};
use crate::support::Scene;

const DEADLINE: Duration = Duration::from_secs(180);

/// Records of certificates that expired in 2023.
const OLD: u64 = 700;

fn old(n: u64) -> NewEntry {
    let mut serial = vec![0; 18];
    serial[..8].copy_from_slice(&n.to_be_bytes());
    let issued = Issued {
        certificate: vec![0x30; 700],
        serial: serial.clone(),
        spiffe_id: format!("spiffe://example.org/ns/old/sa/{}", n % 5),
        spki_sha256: vec![u8::try_from(n % 7).unwrap(); 32],
        not_before: 1_700_000_000,
        not_after: 1_700_003_600,
        origin: Some(Origin {
            namespace: "old".into(),
            ..Origin::default()
        }),
        ..Issued::default()
    };
    let entry = Entry {
        version: 1,
        time_ms: 1_700_000_000_000,
        kind: Some(Kind::Issued(issued)),
    };
    NewEntry {
        bytes: entry.encode_to_vec(),
        serial: Some(serial),
    }
}

async fn fill(store: &dyn Store) {
    for first in (0..OLD).step_by(100) {
        let entries = (first..first + 100).map(old).collect();
        store.append(entries).await.unwrap();
    }
    store.close().await;
}

struct Auditor<'a> {
    scene: &'a Scene<'a>,
    /// Where the store is, and how to get in.
    place: Vec<String>,
    /// The namespace of who reads entries over HTTPS.
    reader: &'static str,
}

impl Auditor<'_> {
    async fn log(&self, args: &[&str]) -> Finished {
        let place = self.place.iter().map(String::as_str);
        let args = ["log"].into_iter().chain(place).chain(args.iter().copied());
        citadel(self.scene.ca.dir(), args, &[], DEADLINE).await
    }

    async fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--output", "json"]].concat();
        let output = self.log(&args).await.success();
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
    }

    /// The CA did it by itself; all commands and Go's verifier take what is left.
    async fn check(&self, planned: &Value) {
        let scene = self.scene;
        let stats = wait::until("the old records go", DEADLINE, async || {
            let stats = self.json(&["stats"]).await;
            (stats["minimum_index"] == planned["new_minimum_index"]).then_some(stats)
        })
        .await;
        let minimum = stats["minimum_index"].to_string();
        wait::until("and their index", DEADLINE, async || {
            let found = self
                .json(&["search", "--namespace", "old", "--count"])
                .await;
            (found["count"].as_u64()? < OLD - 500).then_some(())
        })
        .await;
        let acts = self.log(&["tail", "-n", "20"]).await.success();
        assert!(acts.contains("administrator_act"), "{acts}");
        let first = self.log(&["export", "--json-lines", "-"]).await.success();
        let first = first.lines().next().unwrap();
        assert!(first.contains("\"index\":512,"), "{first}");

        // Twenty checkpoints of a log that goes on, kept by somebody else.
        let web = scene.workload(&format!("{}-kept", self.reader)).await;
        let kept = scene.ca.dir().join("kept");
        std::fs::create_dir(&kept).unwrap();
        let mut sizes = std::collections::BTreeSet::new();
        let (mut key, mut last) = (None, 0);
        while sizes.len() < 20 {
            let svids = issue(scene, &web, 1).await;
            last = svids[0].log_index;
            let (verifier, Checkpoint { size, .. }) = covered(scene, last).await;
            key = Some(verifier.to_string());
            let note = scene.admin.info().await.checkpoint;
            std::fs::write(kept.join(size.to_string()), note).unwrap();
            sizes.insert(size);
        }
        let key = key.unwrap();
        let (_, newest) = covered(scene, last).await;
        assert!(newest.size > 512);

        let valid = self.json(&["verify"]).await;
        assert_eq!(valid["minimum_index"].to_string(), minimum);
        let folder = scene.ca.dir().join("exported");
        let folder = folder.to_str().unwrap();
        self.log(&["export", "--tiles", folder]).await.success();
        let https = format!("https://{}", scene.ca.public());
        let roots = scene.ca.bundle_file();
        let auditor = scene.workload(self.reader).await;
        let of_https = [
            "--server-name",
            "citadel-ca",
            "--roots",
            roots.to_str().unwrap(),
            "--token",
            &auditor.token,
        ];
        for (source, more) in [(folder, &[][..]), (&https, &of_https[..])] {
            let args = [
                "--source",
                source,
                "--key",
                &key,
                "--minimum",
                &minimum,
                "--entries",
                "1000",
                "--older",
                kept.to_str().unwrap(),
            ];
            let line = Foreign::verify_log(scene.ca.dir(), &[&args, more].concat(), DEADLINE)
                .await
                .unwrap();
            assert_eq!(
                (&line["entries"], &line["older"]),
                (&1000.into(), &20.into())
            );
        }
        let below = ["--source", folder, "--key", &key, "--entries", "1000"];
        Foreign::verify_log(scene.ca.dir(), &below, DEADLINE)
            .await
            .unwrap_err();
    }
}

fn settings(ca: CaBuilder, reader: &str) -> CaBuilder {
    ca.set("log.public_hashes", true)
        .set("ca.dns_names", vec!["citadel-ca"])
        .set("admin.auditor", vec![format!("{reader}/web")])
}

#[tokio::test]
async fn old_records_go_and_go_verifies_the_rest_on_sqlite() {
    const READER: &str = "retained-sqlite";
    let mut scene = Scene::with(|ca| settings(ca, READER)).await;
    scene.ca.terminate().await;
    let path = scene.ca.database();
    // A log of long ago in place of the one that just began.
    for file in ["citadel.db", "citadel-index.db"] {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(path.with_file_name(format!("{file}{end}")));
        }
    }
    std::fs::remove_file(scene.ca.data_dir().join("log.checkpoint")).unwrap();
    fill(&SqliteStore::open(SqliteOptions::new(&path)).await.unwrap()).await;
    let place = vec!["--store".to_owned(), format!("sqlite:{}", path.display())];
    // The tree does not cover them yet: nothing would go.
    let planned = {
        let auditor = Auditor {
            scene: &scene,
            place: place.clone(),
            reader: READER,
        };
        auditor.json(&["retention", "--dry-run"]).await
    };
    assert_eq!(planned["new_minimum_index"], 0);
    scene.ca.start_again().await;
    let auditor = Auditor {
        scene: &scene,
        place,
        reader: READER,
    };
    auditor
        .check(&serde_json::json!({ "new_minimum_index": 512 }))
        .await;
    let after = auditor.json(&["retention", "--dry-run"]).await;
    assert_eq!(after["minimum_index"], 512);
    assert_eq!(
        (&after["certificates"], &after["bytes"]),
        (&0.into(), &0.into())
    );
}

#[tokio::test]
async fn old_records_go_and_go_verifies_the_rest_on_postgresql() {
    const READER: &str = "retained-pg";
    let postgres = Postgres::start().await;
    let mut options = PostgresOptions::from_url(&postgres.url()).unwrap();
    options.password_file = Some(postgres.password_file());
    fill(&PostgresStore::open(options).await.unwrap()).await;
    let scene = Scene::with(|ca| settings(ca, READER).set("store", postgres.store())).await;
    let key = scene.admin.info().await.log_key;
    let (url, password) = (postgres.url(), postgres.password_file());
    let password = password.to_str().unwrap();
    let place = ["--store", &url, "--key", &key, "--password-file", password];
    let place = place.map(str::to_owned).to_vec();
    let auditor = Auditor {
        scene: &scene,
        place,
        reader: READER,
    };
    auditor
        .check(&serde_json::json!({ "new_minimum_index": 512 }))
        .await;
}
