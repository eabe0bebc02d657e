//! Two clusters whose tokens one key signs: no token tells its cluster.

use std::time::Duration;

use citadel_tests::citadel::CaBuilder;
use citadel_tests::client::ClientBuilder;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use crate::support::shows_refusal;

/// The start waits for keys for 5 s; then they are asked for every 10 s.
const SEEN: Duration = Duration::from_secs(60);
const SHARED: &str = "clusters east and west share the key";

/// One that has the same API server twice.
async fn twice(api: &ApiServer) -> CaBuilder {
    let dir = TestDir::new("ca");
    let access = api.ca_access("citadel-system", &dir).await;
    // Two files: of one alone the configuration's check would know.
    let copy = dir.join("west.kubeconfig");
    std::fs::copy(&access.kubeconfig, &copy).unwrap();
    let clusters = json!([
        { "name": "east", "kubeconfig": access.kubeconfig },
        { "name": "west", "kubeconfig": copy },
    ]);
    CaBuilder::with_clusters(dir, clusters)
}

#[tokio::test]
async fn a_key_of_two_clusters_is_a_start_up_error() {
    let ca = twice(ApiServer::shared().await).await.start_unready();
    let status = ca.process().wait(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(1), "{}", ca.log());
    let log = ca.log();
    assert!(log.contains(SHARED), "{log}");
    assert!(log.contains("a signing key of its own"), "{log}");
}

#[tokio::test]
async fn a_key_that_turns_out_to_be_two_clusters_serves_neither() {
    let api = ApiServer::start().await;
    api.create_node("shared-1").await;
    api.create_workload("shared", "web", "web-1", "shared-1")
        .await;
    let token = api.token("shared", "web", "web-1").await;
    let builder = twice(&api).await;
    // Nobody knows the keys at the start.
    api.pause().await;
    let ca = builder.start_unready();
    wait::until("it serves", SEEN, async || ca.readyz().await).await;
    api.resume().await;

    let answer = wait::until("it says why", SEEN, async || {
        let answer = ca.readyz().await?;
        answer.body.contains(SHARED).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 503);
    for cluster in ["east", "west"] {
        let line = format!("cluster {cluster}: not ready: {SHARED}");
        assert!(answer.body.contains(&line), "{}", answer.body);
    }
    let loud = ca
        .log()
        .lines()
        .any(|line| line.contains(SHARED) && line.contains(r#""level":"ERROR""#));
    assert!(loud, "{}", ca.log());
    // Neither the first cluster listed, nor the one that a header names.
    for cluster in [None, Some("east"), Some("west")] {
        let client = ClientBuilder::new(&ca).token(&token);
        let client = match cluster {
            Some(name) => client.header("clusterid", name),
            None => client,
        };
        let status = client.build().issue(&csr::plain()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{cluster:?}: {status:?}");
        let refusals = ca.refusals();
        shows_refusal(refusals.last().unwrap(), "Unavailable", "share the key");
    }
    ca.terminate().await;
}
