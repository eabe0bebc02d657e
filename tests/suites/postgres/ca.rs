//! A real `citadel-ca` whose log is in PostgreSQL.

use std::time::Duration;

use citadel_tests::citadel::{Ca, CaBuilder, citadel};
use citadel_tests::client::Admin;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;

use crate::cacerts::made::Plan;
use crate::support::{LogOf, Scene, names_in, start_load};

/// From a load's start, or a store that is back, to certificates that arrive.
const FLOWING: Duration = Duration::from_secs(30);

/// All that a refusal may be while the database comes and goes.
fn only_retryable(ca: &Ca) -> usize {
    let refusals = ca.refusals();
    for refusal in &refusals {
        let code = refusal["code"].as_str().unwrap_or_default();
        assert!(
            ["Unavailable", "ResourceExhausted"].contains(&code),
            "{refusal}"
        );
    }
    refusals.len()
}

#[tokio::test]
async fn certificates_of_a_ca_on_postgresql_are_in_its_log() {
    let postgres = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let workload = scene.workload("pg-issues").await;
    let answer = scene.client_of(&workload).issue(&csr::plain()).await;
    let svid = answer.unwrap().svid.unwrap();
    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    assert_eq!(record.issued.certificate, svid.certificate_chain[0]);
    assert_eq!(record.issued.spiffe_id, workload.spiffe_id());
    let of_it = scene.admin.all(&workload.spiffe_id()).await;
    assert_eq!(of_it.len(), 1);
    // The database's own word: the CA's serving certificate, and this one.
    let stored = format!(
        "SELECT idx FROM entries WHERE serial = '\\x{}'",
        record.serial()
    );
    assert_eq!(postgres.query(&stored).await, record.index.to_string());
    assert_eq!(
        postgres.query("SELECT size FROM head").await,
        scene.admin.size().await.to_string()
    );
    assert!(!scene.ca.log().contains(postgres.password()));
}

#[tokio::test]
async fn a_ca_that_may_not_use_its_database_ends_with_the_reason() {
    let mut postgres = Postgres::start().await;
    let api = ApiServer::shared().await;
    let ends_with = async |store: serde_json::Value, reasons: &[&str]| {
        let ca = CaBuilder::new(api)
            .await
            .set("store", store)
            .start_unready();
        let status = ca.process().wait(FLOWING).await;
        assert_eq!(status.code(), Some(1));
        let log = ca.log();
        for reason in reasons {
            assert!(log.contains(reason), "{reason}: {log}");
        }
        log
    };
    let mut wrong = postgres.store();
    wrong["postgres"]["password_file"] = postgres
        .dir()
        .write("wrong", "hunter2")
        .to_str()
        .unwrap()
        .into();
    let place = postgres.address().to_string();
    let log = ends_with(wrong, &["password authentication failed", &place]).await;
    assert!(!log.contains("hunter2"));
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        postgres.stop().await;
        postgres.set(setting, "off");
        postgres.start_again().await;
        let reason = format!("would not be durable: {setting} reads back off, not on");
        ends_with(postgres.store(), &[&reason]).await;
        postgres.set(setting, "on");
    }
    postgres.stop().await;
    ends_with(postgres.store(), &["unavailable", &place]).await;
}

#[tokio::test]
async fn a_killed_database_loses_nothing_that_a_client_received() {
    let dir = TestDir::new("pg-crash");
    let mut postgres = Postgres::start().await;
    let ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .set("store", postgres.store())
        .start()
        .await;
    let received = dir.join("received");
    let load = start_load(&dir, &ca, &ca.bundle_file(), &received, "pg-crash").await;
    let mut log = LogOf::default();
    for _ in 0..5 {
        let before = names_in(&received).len();
        wait::until("certificates arrive", FLOWING, async || {
            assert!(load.is_running(), "the load ended: {}", load.log());
            (names_in(&received).len() > before + 50).then_some(())
        })
        .await;
        postgres.kill().await;
        let arrived = names_in(&received);
        wait::until("the CA says so", FLOWING, async || {
            let answer = ca.readyz().await?;
            (answer.status == 503 && answer.body.contains("store")).then_some(())
        })
        .await;
        postgres.start_again().await;
        wait::until("the CA is ready", FLOWING, async || {
            ca.is_ready().await.then_some(())
        })
        .await;
        // The log is read while nothing else wants the processor.
        load.pause();
        log.read_on(&Admin::of(&ca)).await;
        assert!(arrived.is_subset(&log.serials));
        load.resume();
    }
    load.kill().await;
    log.read_on(&Admin::of(&ca)).await;
    let arrived = names_in(&received);
    assert!(arrived.is_subset(&log.serials));
    assert!(ca.process().is_running());
    let refused = only_retryable(&ca);
    println!(
        "{} certificates arrived, {} in the log, {refused} lines of refusals",
        arrived.len(),
        log.size
    );
}

#[tokio::test]
async fn three_cas_on_one_database_write_one_log() {
    let dir = TestDir::new("pg-three");
    let postgres = Postgres::start().await;
    // All sign with one key: the store refuses another.
    let cacerts = Plan::new("P-256").make().write();
    let roots = cacerts.join("root-cert.pem");
    let mut cas = Vec::new();
    for _ in 0..3 {
        let ca = CaBuilder::new(ApiServer::shared().await)
            .await
            .set("store", postgres.store())
            .set("ca.cacerts_dir", cacerts.path().to_str().unwrap());
        // The checkpoints of all are signed with one key too.
        let data = ca.dir().join("data");
        if let Some(first) = cas.first() {
            let first: &Ca = first;
            std::fs::create_dir_all(&data).unwrap();
            std::fs::copy(first.data_dir().join("log.key"), data.join("log.key")).unwrap();
        }
        let ca = ca.start_unready();
        ca.wait_ready().await;
        cas.push(ca);
    }
    let mut loads = Vec::new();
    for (number, ca) in cas.iter().enumerate() {
        let received = dir.join(format!("received-{number}"));
        let name = format!("pg-three-{number}");
        loads.push((
            start_load(&dir, ca, &roots, &received, &name).await,
            received,
        ));
    }
    for (load, received) in &loads {
        wait::until("certificates arrive", FLOWING, async || {
            assert!(load.is_running(), "the load ended: {}", load.log());
            (names_in(received).len() > 300).then_some(())
        })
        .await;
    }
    let mut arrived = std::collections::HashSet::new();
    for (load, received) in &loads {
        load.kill().await;
        arrived.extend(names_in(received));
    }
    for ca in &cas {
        // Each of them shows the log of all.
        let mut log = LogOf::default();
        log.read_on(&Admin::of(ca)).await;
        assert!(arrived.is_subset(&log.serials));
        assert!(ca.refusals().is_empty(), "{:?}", ca.refusals());
    }
    let other = CaBuilder::new(ApiServer::shared().await)
        .await
        .set("store", postgres.store())
        .start_unready();
    assert_eq!(other.process().wait(FLOWING).await.code(), Some(1));
    assert!(other.log().contains("active issuer key"), "{}", other.log());
}

#[tokio::test]
async fn a_ca_whose_log_went_back_stops_and_says_why() {
    let mut postgres = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", postgres.store())).await;
    let workload = scene.workload("pg-back").await;
    let client = scene.client_of(&workload);
    postgres.stop().await;
    let copy = postgres.back_up();
    postgres.start_again().await;
    wait::until("an SVID", FLOWING, async || {
        client.issue(&csr::plain()).await.ok()
    })
    .await;
    postgres.stop().await;
    postgres.restore(&copy);
    postgres.start_again().await;
    let answer = wait::until("health says so", FLOWING, async || {
        let answer = scene.ca.readyz().await?;
        answer.body.contains("went back").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503);
    let refused = client.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let line = scene.ca.refusals().pop().unwrap();
    assert!(line.to_string().contains("went back"), "{line}");
}

#[tokio::test]
async fn the_bench_measures_a_schema_of_its_own_and_drops_it() {
    let dir = TestDir::new("pg-bench");
    let postgres = Postgres::start().await;
    let line = format!("*:*:*:citadel:{}\n", postgres.password());
    let passwords = postgres.dir().write("pgpass", line);
    std::fs::set_permissions(
        &passwords,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let url = postgres.url();
    let options = ["--pods", "200", "--concurrency", "4", "--duration", "1s"];
    let args = ["bench", "issue", "--output", "json", "--path", "token"];
    let args = [&args[..], &options, &["--store", &url]].concat();
    let env = [("PGPASSFILE", passwords.to_str().unwrap())];
    let patience = Duration::from_secs(180);
    let output = citadel(&dir, args, &env, patience).await.success();
    let rows: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(rows[0]["store"], "postgres", "{rows}");
    assert_eq!(rows[0]["errors"], 0, "{rows}");
    assert!(rows[0]["certificates"].as_u64() > Some(0), "{rows}");
    assert!(
        rows[0]["fsync_ms"].is_null(),
        "another machine's disk: {rows}"
    );
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'citadel%'";
    assert_eq!(postgres.query(left).await, "0");
}
