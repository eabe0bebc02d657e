//! `citadel bench`: that it measures and reports, not how fast anything is.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use citadel_tests::citadel::citadel;
use citadel_tests::client::Certificate;
use citadel_tests::dir::TestDir;
use citadel_tests::pki::openssl;
use serde_json::Value;

use crate::support::{Scene, Workload};

/// A debug build measures its floor before and after each run.
const PATIENCE: Duration = Duration::from_secs(180);

/// So that a slow machine too answers many requests in a second.
const SMALL: [&str; 4] = ["--concurrency", "4", "--batch", "5"];

/// All that a run reports, as the command's help and `docs/` promise it.
const FIELDS: [&str; 14] = [
    "path",
    "store",
    "certificates_per_s",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "server_cpu_us",
    "floor_us",
    "cpu_ratio",
    "throughput_ratio",
    "server_rss_mb",
    "fsync_ms",
    "certificates",
    "errors",
];

/// `citadel bench issue -o json OPTIONS…`: one object for each run.
async fn bench(dir: &TestDir, options: &[&str]) -> Vec<Value> {
    let always = ["bench", "issue", "--output", "json", "--duration", "1s"];
    let args = [&always[..], options].concat();
    let output = citadel(dir, args, &[], PATIENCE).await.success();
    // Nothing else is on standard output.
    let rows: Value = serde_json::from_str(&output).expect("JSON alone");
    rows.as_array().expect("an array").clone()
}

fn number(row: &Value, field: &str) -> f64 {
    let value = row[field].as_f64();
    let value = value.unwrap_or_else(|| panic!("{field} is no number: {row}"));
    assert!(value.is_finite() && value >= 0.0, "{field}: {row}");
    value
}

/// Every field is there and makes sense beside the others, however slow the machine.
fn check(row: &Value, path: &str, store: &str) {
    let names: BTreeSet<_> = row
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(names, FIELDS.into(), "{row}");
    assert_eq!((&row["path"], &row["store"]), (&path.into(), &store.into()));
    assert_eq!(row["errors"], 0, "{row}");
    let certificates = number(row, "certificates");
    assert!(certificates >= 1.0, "{row}");
    let [p50, p90, p99] = ["p50_ms", "p90_ms", "p99_ms"].map(|field| number(row, field));
    assert!(0.0 < p50 && p50 <= p90 && p90 <= p99, "{row}");
    for field in ["certificates_per_s", "floor_us", "throughput_ratio"] {
        assert!(number(row, field) > 0.0, "{field}: {row}");
    }
    let (floor, cpu) = (number(row, "floor_us"), number(row, "server_cpu_us"));
    assert!(cpu > 0.0, "{row}");
    // Rounded as they are.
    let ratio = number(row, "cpu_ratio");
    assert!((ratio - floor / cpu).abs() <= 0.01 * ratio + 0.001, "{row}");
    // A server of ours takes more than a megabyte and less than all of a machine.
    let resident = number(row, "server_rss_mb");
    assert!((1.0..100_000.0).contains(&resident), "{row}");
}

#[tokio::test]
async fn servers_of_its_own_are_measured_on_both_paths() {
    let dir = TestDir::new("own");
    let place = dir.join("servers");
    let pods = ["--pods", "200", "--dir", place.to_str().unwrap()];
    let rows = bench(&dir, &[&SMALL[..], &pods].concat()).await;
    assert_eq!(rows.len(), 2, "{rows:#?}");
    for (row, path) in rows.iter().zip(["token", "agent"]) {
        check(row, path, "sqlite");
        assert!(number(row, "fsync_ms") > 0.0, "{row}");
    }
    // What it started has ended; --dir keeps what it wrote, a folder for each run.
    let kept: BTreeSet<_> = std::fs::read_dir(&place)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let of = |path: &str| kept.iter().filter(|name| name.contains(path)).count();
    assert_eq!(
        (kept.len(), of("token"), of("agent")),
        (2, 1, 1),
        "{kept:?}"
    );
    assert_eq!(processes_on(&place), [""; 0]);
}

/// The command lines of the processes that name this folder.
fn processes_on(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(folder))
        .collect()
}

#[tokio::test]
async fn an_agent_s_path_is_measured_against_a_real_ca_and_what_arrives_is_in_its_store() {
    let scene = Scene::start().await;
    let dir = TestDir::new("target");
    let agent = scene.agent("bench").await;
    let mut pods: Vec<Workload> = Vec::new();
    for account in ["web", "db", "job"] {
        pods.push(
            scene
                .pod("bench", account, &format!("{account}-1"), "bench")
                .await,
        );
    }
    // One of another node, which this agent must not ask for.
    let elsewhere = scene.workload("elsewhere").await;
    for pod in &pods {
        scene.seen_by(&agent, pod).await;
    }
    let tokens: Vec<_> = pods
        .iter()
        .chain([&elsewhere])
        .map(|pod| pod.token.as_str())
        .collect();
    let tokens = dir.write("tokens", tokens.join("\n"));
    agent.identity.write(&dir, "svid");
    let (before, received) = (scene.admin.size().await, dir.join("received"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (grpc, admin) = (scene.ca.grpc().to_string(), scene.ca.admin().to_string());
    let bundle = text(&scene.ca.bundle_file());
    let target = [
        "--path",
        "agent",
        "--target",
        &grpc,
        "--target-admin",
        &admin,
    ];
    let trust = ["--trust-bundle", &bundle, "--tokens", &text(&tokens)];
    let (own, received_text) = (text(dir.path()), text(&received));
    let agent_s = ["--agent-svid", &own, "--received", &received_text];
    let options = [&SMALL[..], &target, &trust, &agent_s].concat();
    let rows = bench(&dir, &options).await;
    let [row] = rows.as_slice() else {
        panic!("one run: {rows:#?}");
    };
    check(row, "agent", "target");
    assert!(row["fsync_ms"].is_null(), "another machine's disk: {row}");

    // Each file is the certificate that the store has under the file's name.
    let ids: BTreeSet<_> = pods.iter().map(Workload::spiffe_id).collect();
    let mut seen = BTreeSet::new();
    let records = scene.admin.all("").await;
    let files: Vec<_> = std::fs::read_dir(&received)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    for file in &files {
        let serial = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let pem = std::fs::read(file).unwrap();
        let der = openssl::run(&["x509", "-outform", "DER"], &pem);
        let leaf = Certificate::of_der(&der);
        assert_eq!(leaf.serial().trim_start_matches("00"), serial);
        let record = records.iter().find(|record| record.serial() == serial);
        let record = record.unwrap_or_else(|| panic!("{serial} is not in the store"));
        assert_eq!(record.issued.certificate, der, "{serial}");
        assert_eq!(leaf.uris(), std::slice::from_ref(&record.issued.spiffe_id));
        seen.insert(record.issued.spiffe_id.clone());
    }
    assert_eq!(seen, ids, "every pod of its node, and no other's");
    // Warming up counts in no figure, and its certificates arrive too. What was under way
    // at the end is in the store and was never received.
    let arrived = files.len() as u64;
    assert!(
        row["certificates"]
            .as_u64()
            .is_some_and(|measured| measured <= arrived),
        "{row}"
    );
    assert!(arrived <= scene.admin.size().await - before);
}

/// All that `bench store` reports at one size.
const STORE_FIELDS: [&str; 15] = [
    "entries",
    "bytes_per_certificate",
    "append_floors",
    "append_cpu_floors",
    "floor_us",
    "index_backlog",
    "fill_per_s",
    "indexed_per_s",
    "warm_identity_p99_ms",
    "warm_serial_p99_ms",
    "cold_identity_p99_ms",
    "cold_serial_p99_ms",
    "start_ms",
    "server_rss_mb",
    "verified_per_s",
];

#[tokio::test]
async fn the_store_is_filled_asked_started_on_and_verified() {
    let dir = TestDir::new("store");
    let place = dir.join("store");
    let args = ["bench", "store", "--output", "json", "--entries", "3000"];
    let args = [&args[..], &["--dir", place.to_str().unwrap()]].concat();
    let output = citadel(&dir, args, &[], PATIENCE).await.success();
    let rows: Value = serde_json::from_str(&output).expect("JSON alone");
    let [row] = rows.as_array().expect("an array").as_slice() else {
        panic!("one size: {rows}");
    };
    let names: BTreeSet<_> = row
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(names, STORE_FIELDS.into(), "{row}");
    assert_eq!(row["entries"], 3000);
    for field in [
        "append_floors",
        "append_cpu_floors",
        "start_ms",
        "verified_per_s",
    ] {
        assert!(number(row, field) > 0.0, "{field}: {row}");
    }
    // A certificate and who asked for it take more than half a kilobyte.
    assert!(
        (500.0..10_000.0).contains(&number(row, "bytes_per_certificate")),
        "{row}"
    );
    // What is left is a whole log, with the fleet's certificates and the servers' own.
    let store = std::fs::read_dir(&place)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let store = format!("sqlite:{}", store.join("data/citadel.db").display());
    let args = ["log", "--store", &store, "stats", "--output", "json"];
    let stats = citadel(&dir, args, &[], PATIENCE).await.success();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert!(stats["entries"].as_u64().unwrap() > 3000, "{stats}");
    assert_eq!(processes_on(&place), [""; 0]);
}

/// What `bench agent` promises, and what of it a run of a second in a debug build must reach:
/// nothing but to be there.
const AGENT_FIELDS: [&str; 8] = [
    "reissue_10k_s",
    "sds_kb_per_stream",
    "agent_rss_mb_1k",
    "push_p99_ms_5k",
    "first_fetch_prepared_ms",
    "first_fetch_ms",
    "cached_fetch_cpu_us",
    "idle_cpu_percent_1k",
];

#[tokio::test]
async fn an_agent_of_its_own_is_measured_in_every_part() {
    let dir = TestDir::new("agent");
    let place = dir.join("agents");
    let folder = place.to_str().unwrap();
    let always = ["bench", "agent", "--output", "json", "--dir", folder];
    let sizes = ["--identities", "60", "--streams", "20", "--pushes", "2"];
    let more = [
        "--pods",
        "3",
        "--concurrency",
        "4",
        "--idle-identities",
        "10",
    ];
    let times = ["--duration", "1s", "--idle", "1s"];
    let args = [&always[..], &sizes, &more, &times].concat();
    let output = citadel(&dir, args, &[], PATIENCE).await.success();
    let report: Value = serde_json::from_str(&output).expect("JSON alone");
    for field in AGENT_FIELDS {
        // So few streams may fit into memory that was there already, and so few identities
        // may cost less than a tick of the kernel's clock.
        let may_be_nothing = ["sds_kb_per_stream", "idle_cpu_percent_1k"].contains(&field);
        let some = number(&report, field) > 0.0 || may_be_nothing;
        assert!(some, "{field}: {report}");
    }
    assert_eq!(report["reissue_identities"], 60);
    assert_eq!(report["streams"], 20);
    // The fastest is never slower than the slowest.
    for (fast, slow) in [
        ("push_p50_ms_5k", "push_p99_ms_5k"),
        ("push_p99_ms_5k", "push_last_ms_5k"),
        ("first_fetch_prepared_ms", "first_fetch_prepared_p99_ms"),
        ("first_fetch_ms", "first_fetch_p99_ms"),
        ("reissue_first_to_last_s", "reissue_10k_s"),
    ] {
        assert!(number(&report, fast) <= number(&report, slow), "{report}");
    }
    assert_eq!(processes_on(&place), [""; 0]);
    // A part alone, for people: its figures beside their marks and no others.
    let args = ["bench", "agent", "--only", "fetch", "--concurrency", "2"];
    let args = [&args[..], &["--duration", "1s"]].concat();
    let text = citadel(&dir, args, &[], PATIENCE).await.success();
    assert!(text.contains("FetchX509SVID, agent CPU"), "{text}");
    assert!(text.contains("< 70") && !text.contains("push"), "{text}");
}
