//! The `TokenReview` mode: without the API server there is no answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use crate::support::{Scene, shows_refusal};

/// How long the API server may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// For a slow machine.
const SLACK: Duration = Duration::from_secs(2);
const RECOVERY: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_hung_api_server_gives_unavailable_within_the_deadline() {
    let api = Arc::new(ApiServer::start().await);
    let settings = json!({ "mode": "token_review", "api_deadline": "2s" });
    let scene = Scene::with_cluster(&api, settings).await;
    let web = scene.workload("review").await;
    scene.client_of(&web).issue(&csr::plain()).await.unwrap();
    let size = scene.admin.size().await;
    // Tokens whose review nobody has heard yet.
    let mut fresh = Vec::new();
    for _ in 0..12 {
        fresh.push(
            scene
                .client()
                .token(&api.token("review", "web", "web-1").await)
                .build(),
        );
    }

    api.pause().await;
    // One alone, and ten at once: nobody waits for the others' deadlines.
    let (one, ten) = fresh.split_at(1);
    for clients in [one, &ten[..10]] {
        let began = Instant::now();
        let answers = clients.iter().map(|client| async move {
            client
                .issue(&csr::plain())
                .await
                .expect_err("nobody can tell")
        });
        for status in futures::future::join_all(answers).await {
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(
                status.metadata().contains_key("grpc-retry-pushback-ms"),
                "{status:?}"
            );
        }
        let took = began.elapsed();
        assert!(
            took < DEADLINE + SLACK,
            "{} requests took {took:?}",
            clients.len()
        );
    }
    shows_refusal(
        scene.ca.refusals().last().unwrap(),
        "Unavailable",
        "TokenReview at cluster",
    );
    assert_eq!(scene.admin.size().await, size);

    api.resume().await;
    let last = fresh.last().unwrap();
    wait::until("it recovers", RECOVERY, async || {
        last.issue(&csr::plain()).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_stopped_api_server_gives_unavailable_at_once() {
    let api = Arc::new(ApiServer::start().await);
    let scene = Scene::with_cluster(&api, json!({ "mode": "token_review" })).await;
    let web = scene.workload("review").await;
    let fresh = scene.client_of(&web);
    api.stop().await;
    let began = Instant::now();
    let status = fresh.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    api.start_again().await;
    wait::until("it recovers", RECOVERY, async || {
        fresh.issue(&csr::plain()).await.ok()
    })
    .await;
}
