//! The clock of the CA's process is set back an hour, and put right again.

use citadel_tests::client::ClientBuilder;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::claims_of;
use citadel_tests::parts::part;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use super::{Patient, SOON};
use crate::cacerts::made::Plan;
use crate::support::{Scene, series};

const HOUR: i64 = 3600;

#[tokio::test]
async fn a_clock_that_is_set_back_an_hour_makes_nothing_inconsistent() {
    let dir = TestDir::new("clock");
    let clock = dir.write("offset", "+0\n");
    // Valid since an hour: the issuer's certificate bounds those of the leaves.
    let cacerts = Plan::new("P-256").make().write();
    let scene = Scene::with(|ca| {
        ca.set("ca.cacerts_dir", cacerts.path().to_str().unwrap())
            .env("LD_PRELOAD", part("FAKETIME").to_str().unwrap())
            .env("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
            .env("FAKETIME_NO_CACHE", "1")
            // Schedules rest on the monotonic clock, which nobody sets.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    })
    .await;
    let roots = std::fs::read(cacerts.join("root-cert.pem")).unwrap();
    let workload = scene.workload("clock").await;
    let client = |token: &str| {
        ClientBuilder::at(scene.ca.grpc(), &roots)
            .token(token)
            .build()
    };
    // As the API server signed it two hours ago, for long enough.
    let mut claims = claims_of(&workload.token);
    let issued_at = claims["iat"].as_i64().unwrap();
    claims["iat"] = json!(issued_at - 2 * HOUR);
    claims["nbf"] = json!(issued_at - 2 * HOUR);
    claims["exp"] = json!(issued_at + 2 * HOUR);
    let old = scene.api.sign_token(&claims);
    let (old, early) = (client(&old), client(&old));
    let young = client(&workload.token);
    let mut patient = Patient {
        scene,
        client: old,
        received: Vec::new(),
    };
    patient.recovers().await;
    young.issue(&csr::plain()).await.unwrap();

    dir.write("offset", format!("-{HOUR}\n"));
    // A token of what is the future now is no token yet, and the log says so.
    let refused = young.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let line = patient.scene.ca.refusals().pop().unwrap().to_string();
    assert!(line.contains("not valid yet"), "{line}");
    for _ in 0..3 {
        patient.recovers().await;
    }
    patient.has_lost_nothing().await;
    wait::until("the difference is shown", SOON, async || {
        let metrics = patient.scene.ca.metrics().await;
        let name = "citadel_ca_clock_skew_seconds{cluster=\"default\"}";
        // The API server's clock minus ours.
        (series(&metrics, name)? > 3500.0).then_some(())
    })
    .await;

    // Before the issuer's own time nothing can be issued, until the clock is right again.
    dir.write("offset", format!("-{}\n", HOUR * 3 / 2));
    let refused = early.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let line = patient.scene.ca.refusals().pop().unwrap().to_string();
    assert!(line.contains("clock of this machine is behind"), "{line}");
    dir.write("offset", format!("-{HOUR}\n"));

    // What starts with such a clock goes on with the log of the future.
    patient.scene.ca.kill_and_start_again().await;
    patient.recovers().await;
    dir.write("offset", "+0\n");
    patient.recovers().await;
    young.issue(&csr::plain()).await.unwrap();
    patient.has_lost_nothing().await;

    let starts: Vec<i64> = patient
        .received
        .iter()
        .map(|svid| svid.not_before)
        .collect();
    let back = starts.iter().filter(|start| **start < issued_at - HOUR / 2);
    assert_eq!(
        back.count(),
        4,
        "of the time that the process had: {starts:?}"
    );
}
