//! Failover to a standby that lags.

use citadel_tests::citadel::citadel_ca;
use citadel_tests::pki::csr;
use citadel_tests::postgres::Postgres;
use citadel_tests::wait;
use tonic::Code;

use super::{Patient, SOON};
use crate::support::Scene;

#[tokio::test]
async fn a_lagging_standby_that_takes_over_stops_the_ca_which_says_why() {
    let mut primary = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", primary.store())).await;
    let mut patient = Patient::of(scene, "failover").await;
    let mut standby = primary.standby().await;
    // It follows as long as it is not cut off.
    patient.recovers().await;
    let size = "SELECT size FROM head";
    let before = primary.query(size).await;
    wait::until("the standby follows", SOON, async || {
        (standby.query(size).await == before).then_some(())
    })
    .await;
    standby.cut_off().await;
    patient.recovers().await;
    let lost = patient.received.last().unwrap().serial.clone();
    // What a start can know is what a checkpoint covered.
    wait::until("a checkpoint covers it", SOON, async || {
        patient.scene.admin.receipt(&lost).await.ok()
    })
    .await;
    primary.kill().await;
    standby.take_over(&primary).await;

    let answer = wait::until("health says so", SOON, async || {
        let answer = patient.scene.ca.readyz().await?;
        answer.body.contains("went back").then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503);
    let refused = patient.client.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let line = patient.scene.ca.refusals().pop().unwrap();
    assert!(line.to_string().contains("went back"), "{line}");
    let is_there = format!("SELECT count(*) FROM entries WHERE serial = '\\x{lost}'");
    assert_eq!(
        standby.query(&is_there).await,
        "0",
        "the standby did not lag"
    );
    assert_eq!(standby.query(size).await, before, "the CA wrote to it");

    // Nor does a new process on this host go on as if nothing had happened.
    patient.scene.ca.process().kill().await;
    let config = patient.scene.ca.config();
    let args = ["--config", config.to_str().unwrap()];
    let refused = citadel_ca(patient.scene.ca.dir(), args, SOON).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert!(
        refused.errors.contains("went back in time"),
        "{}",
        refused.errors
    );
}

/// One that has all takes over: the CA goes on by itself.
#[tokio::test]
async fn a_standby_that_has_all_takes_over_without_a_word() {
    let mut primary = Postgres::start().await;
    let scene = Scene::with(|ca| ca.set("store", primary.store())).await;
    let mut patient = Patient::of(scene, "switchover").await;
    let mut standby = primary.standby().await;
    patient.recovers().await;
    // In good order a primary waits until its standbys have all that it wrote.
    primary.stop().await;
    standby.take_over(&primary).await;
    patient.recovers().await;
    patient.has_lost_nothing().await;
}
