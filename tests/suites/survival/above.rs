//! What is above the agent goes away: the CA, the API server, and with them the agent's
//! own certificate.

use std::time::{Duration, UNIX_EPOCH};

use citadel_tests::kubernetes::ApiServer;
use tokio::time::sleep;

use super::{Scene, TTL};
use crate::support::series;

/// Gone for a third of a lifetime, back for a renewal, again and again.
#[tokio::test]
async fn the_ca_gone_for_a_third_of_a_lifetime_again_and_again() {
    let mut scene = Scene::start("thirds", TTL, |ca| ca, |agent| agent).await;
    for _ in 0..3 {
        scene.mesh.node.ca.process().kill().await;
        // The outage itself is what is waited for.
        sleep(TTL / 3).await;
        let back = UNIX_EPOCH.elapsed().expect("a clock").as_secs_f64().floor();
        scene.mesh.node.ca.start_again().await;
        scene.all_renewed_since(back).await;
    }
    let seen = scene.stop().await;
    assert!(seen.client_serials.len() >= 3, "{:?}", seen.client_serials);
}

/// What the CA knew last is good for 10 minutes: renewals go on.
#[tokio::test]
async fn without_the_api_server_renewals_go_on() {
    let api = ApiServer::start().await;
    let scene = Scene::on(&api, "no-api", TTL, |ca| ca, |agent| agent).await;
    api.stop().await;
    for _ in 0..2 {
        scene.renewed().await;
    }
    api.start_again().await;
    api.pause().await;
    scene.renewed().await;
    api.resume().await;
    scene.stop().await;
}

/// The agent's own certificate ends while the CA is away; then it proves itself by its
/// token, and workloads have noticed nothing.
#[tokio::test]
async fn an_agent_whose_own_certificate_has_expired_attests_anew() {
    const OWN: Duration = Duration::from_secs(10);
    let mut scene = Scene::start(
        "expired",
        Duration::from_mins(1),
        |ca| ca.set("lifetimes.default", format!("{}s", OWN.as_secs())),
        |agent| agent,
    )
    .await;
    let attested = |log: &str| log.matches("the CA knows this agent").count();
    scene.mesh.node.ca.process().kill().await;
    sleep(OWN + Duration::from_secs(2)).await;
    let before = attested(&scene.mesh.node.agent.log());
    scene.mesh.node.ca.start_again().await;
    let agent = scene.mesh.node.agent.process();
    agent
        .log_line("it attests by its token", super::RENEWAL, |line| {
            line.contains("the CA knows this agent") && line.contains("\"by\":\"token\"")
        })
        .await;
    citadel_tests::wait::until("another identity", super::RENEWAL, async || {
        (attested(&scene.mesh.node.agent.log()) > before).then_some(())
    })
    .await;
    // And it is good for something.
    scene.follower.renewed(Duration::from_mins(1)).await;
    let metrics = scene.mesh.node.agent.metrics().await;
    let identities = series(&metrics, "citadel_agent_identities");
    assert_eq!(identities, Some(3.0), "{metrics}");
    scene.stop().await;
}
