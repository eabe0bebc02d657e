//! SIGTERM in the midst of work.

use std::collections::BTreeSet;
use std::time::Duration;

use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use nix::sys::signal::Signal;
use serde_json::json;
use tonic_health::pb::health_check_response::ServingStatus;

use super::waiting;
use crate::support::{Scene, certificate_request};

const IN_FLIGHT: u32 = 10;
const REQUESTS: u32 = 100;

#[tokio::test]
async fn sigterm_loses_no_accepted_request() {
    let api = ApiServer::start().await;
    // Whoever has a turn keeps it until the API server goes on.
    let dir = citadel_tests::dir::TestDir::new("ca");
    let access = api.ca_access("citadel-system", &dir).await;
    let cluster = json!([{
        "name": "default", "kubeconfig": access.kubeconfig,
        "mode": "token_review", "api_deadline": "60s",
    }]);
    let mut scene = Scene::on(&api, |ca| {
        ca.set("clusters", cluster).set(
            "limits",
            json!({ "in_flight": IN_FLIGHT, "request_deadline": "60s" }),
        )
    })
    .await;
    let web = scene.workload("sigterm").await;
    let clients: Vec<_> = (0..4).map(|_| scene.client_of(&web)).collect();
    let mut received = BTreeSet::new();
    for client in &clients {
        received.insert(
            client
                .issue(&csr::plain())
                .await
                .unwrap()
                .svid
                .unwrap()
                .serial,
        );
    }
    let fresh = api.token("sigterm", "web", "web-1").await;

    let nobody = scene.client().build();
    let mut health = nobody.watch_health().await.unwrap();
    let serving = health.message().await.unwrap().unwrap().status();
    assert_eq!(serving, ServingStatus::Serving);

    api.pause().await;
    let asked: Vec<_> = (0..REQUESTS)
        .map(|number| {
            let client = clients[number as usize % clients.len()].with_token(&fresh);
            tokio::spawn(async move {
                let request = csr::plain();
                if number % 10 == 0 {
                    let request = certificate_request(&request.pem(), 0);
                    return client.create_certificate(request).await.map(|_| None);
                }
                client
                    .issue(&request)
                    .await
                    .map(|answer| answer.svid.map(|svid| svid.serial))
            })
        })
        .collect();
    // All are accepted: some are being served, the others wait.
    waiting(&scene.ca, REQUESTS - IN_FLIGHT).await;
    scene.ca.process().signal(Signal::SIGTERM);
    scene
        .ca
        .process()
        .log_line("it has begun to end", Duration::from_secs(5), |line| {
            line.contains("shutting down")
        })
        .await;
    // Who asks how it is, on a connection that stands, hears it while requests are served
    // still, and then no more.
    let draining = health.message().await.unwrap().unwrap().status();
    assert_eq!(draining, ServingStatus::NotServing);
    assert!(health.message().await.unwrap().is_none());
    // From now on nobody new gets in.
    let late = scene
        .client_of(&web)
        .issue(&csr::plain())
        .await
        .unwrap_err();
    assert!(late.metadata().is_empty(), "a service answered: {late:?}");
    assert!(
        scene.ca.process().is_running(),
        "it ended with requests in it"
    );

    api.resume().await;
    let answers = futures::future::join_all(asked).await;
    let mut by_istio = 0;
    for answer in answers {
        match answer.unwrap().expect("an accepted request is answered") {
            Some(serial) => assert!(received.insert(serial), "a serial twice"),
            None => by_istio += 1,
        }
    }
    let status = scene.ca.process().wait(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(0), "{}", scene.ca.log());

    // What was issued was received, and the other way round.
    scene.ca.start_again().await;
    let stored = scene.admin.all(&web.spiffe_id()).await;
    assert_eq!(stored.len(), received.len() + by_istio);
    let stored: BTreeSet<_> = stored
        .iter()
        .map(citadel_tests::client::Record::serial)
        .collect();
    assert!(
        stored.is_superset(&received),
        "received, and not in the store"
    );
}

#[tokio::test]
async fn an_open_stream_does_not_keep_the_ca_from_ending() {
    let scene = Scene::start().await;
    let agent = scene.agent("sigterm-1").await;
    let mut bundles = agent.client.bundles().await.unwrap();
    let mut entries = agent.client.entries().await.unwrap();
    let mut health = agent.client.watch_health().await.unwrap();
    bundles
        .message()
        .await
        .unwrap()
        .expect("the bundles at once");
    entries
        .message()
        .await
        .unwrap()
        .expect("the entries at once");
    health.message().await.unwrap().expect("health at once");
    scene.ca.process().signal(Signal::SIGTERM);
    let status = scene.ca.process().wait(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(0), "{}", scene.ca.log());
    assert!(
        !matches!(bundles.message().await, Ok(Some(_))),
        "the stream goes on"
    );
    assert!(
        !scene.ca.admin_socket().exists(),
        "the socket is cleared away"
    );
}
