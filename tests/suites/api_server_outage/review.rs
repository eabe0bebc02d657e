//! The `TokenReview` mode: without the API server there is no answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Scene, shows_refusal};

/// What a request may take as a whole. It is far beyond what is said below, so that whoever is
/// answered before its half is over was answered by another deadline, on any machine.
const REQUEST: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(30);

/// A CA with these settings of its cluster, that gives requests so much time.
async fn scene(api: &ApiServer, settings: Value) -> Scene<'_> {
    Scene::with_cluster_and(api, settings, |ca| {
        ca.set("limits.request_deadline", format!("{}s", REQUEST.as_secs()))
    })
    .await
}

#[tokio::test]
async fn a_hung_api_server_gives_unavailable_within_the_deadline() {
    let api = Arc::new(ApiServer::start().await);
    let scene = scene(
        &api,
        json!({ "mode": "token_review", "api_deadline": "5s" }),
    )
    .await;
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
    // One alone, and ten at once: nobody waits for the others' deadlines, which would be 50 s
    // one after the other.
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
        long_before_the_request_s(began, clients.len());
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

fn long_before_the_request_s(began: Instant, requests: usize) {
    let took = began.elapsed();
    assert!(took < REQUEST / 2, "{requests} requests took {took:?}");
}

#[tokio::test]
async fn a_stopped_api_server_gives_unavailable_at_once() {
    let api = Arc::new(ApiServer::start().await);
    let settings =
        json!({ "mode": "token_review", "api_deadline": format!("{}s", REQUEST.as_secs()) });
    let scene = scene(&api, settings).await;
    let web = scene.workload("review").await;
    let fresh = scene.client_of(&web);
    api.stop().await;
    let began = Instant::now();
    let status = fresh.issue(&csr::plain()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    long_before_the_request_s(began, 1);
    api.start_again().await;
    wait::until("it recovers", RECOVERY, async || {
        fresh.issue(&csr::plain()).await.ok()
    })
    .await;
}
