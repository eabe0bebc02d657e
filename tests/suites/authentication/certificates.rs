//! Renewals: callers that present an SVID of this CA.

use std::time::Duration;

use citadel_proto::v1::IssueSvidRequest;
use citadel_tests::client::{Client, Identity};
use citadel_tests::kubernetes::TokenRequest;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use super::{both_accept, create_certificate, issue};
use crate::support::Scene;

const NOTICED: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_renewal_ends_with_its_pod() {
    let scene = Scene::start().await;
    let web = scene.workload("renewals").await;
    let identity = scene.identity_of(&web).await;
    let by_certificate = scene.client().identity(&identity).build();
    both_accept(&by_certificate, "a renewal").await;
    scene.api.delete_pod("renewals", "web-1").await;
    refused_from_now_on(&by_certificate).await;
    scene.both_reject(&by_certificate, "is gone").await;
    assert_eq!(
        by_certificate.seen().handshakes().len(),
        1,
        "the connection that stood"
    );
    // A new one, and a good token of another pod beside it, change nothing.
    let other = scene.pod("renewals", "web", "web-2", &web.node).await;
    let beside = scene.client().identity(&identity);
    scene.both_reject(&beside.build(), "is gone").await;
    scene
        .both_reject(&beside.token(&other.token).build(), "is gone")
        .await;
}

#[tokio::test]
async fn a_renewal_ends_with_its_account_and_its_node() {
    let scene = Scene::start().await;
    for end in ["account", "node"] {
        let web = scene.workload(&format!("ends-{end}")).await;
        let by_certificate = scene
            .client()
            .identity(&scene.identity_of(&web).await)
            .build();
        both_accept(&by_certificate, "a renewal").await;
        if end == "account" {
            scene.api.delete_account(&web.namespace, &web.account).await;
            scene.api.create_account(&web.namespace, &web.account).await;
        } else {
            scene.api.delete_node(&web.node).await;
            scene.api.create_node(&web.node).await;
        }
        refused_from_now_on(&by_certificate).await;
        scene.both_reject(&by_certificate, "is gone").await;
    }
}

#[tokio::test]
async fn a_certificate_and_a_token_have_to_name_the_same_caller() {
    let scene = Scene::start().await;
    let web = scene.workload("both").await;
    let neighbour = scene.pod("both", "web", "web-2", &web.node).await;
    let other = scene.pod("both", "db", "db-1", &web.node).await;
    let identity = scene.identity_of(&web).await;
    let presents = |token: &str| scene.client().identity(&identity).token(token).build();

    both_accept(&presents(&web.token), "both of one pod").await;
    // Another pod of the same account is another caller.
    for stranger in [&neighbour, &other] {
        scene
            .both_reject(&presents(&stranger.token), "different callers")
            .await;
    }
    // A bad token beside a good certificate is not overlooked.
    let wanted = TokenRequest::for_pod("both", "web", "web-1").audiences(&["elsewhere"]);
    let foreign = scene.api.request_token(&wanted).await.unwrap();
    scene.both_reject(&presents(&foreign), "audience").await;
}

#[tokio::test]
async fn a_certificate_counts_until_it_expires_however_long_the_connection_lives() {
    let scene = Scene::start().await;
    let web = scene.workload("expiring").await;
    let request = csr::plain();
    let short = IssueSvidRequest {
        csr: request.der.clone(),
        ttl_seconds: 10,
        ..Default::default()
    };
    let answer = scene.client_of(&web).issue_with(short).await.unwrap();
    let client = scene
        .client()
        .identity(&Identity::new(&answer.svid.unwrap(), &request))
        .build();
    both_accept(&client, "while it is valid").await;
    wait::until("it has expired", Duration::from_secs(15), async || {
        issue(&client).await.err()
    })
    .await;
    assert_eq!(
        client.seen().handshakes().len(),
        1,
        "the connection is the same"
    );
    scene.both_reject(&client, "client certificate: ").await;
}

#[tokio::test]
async fn another_cas_certificate_does_not_get_through_the_handshake() {
    let scene = Scene::start().await;
    let web = scene.workload("foreign").await;
    let other = Scene::start().await;
    let foreign = other.identity_of(&web).await;
    let size = scene.admin.size().await;
    // Even beside a good token.
    let client = scene.client().identity(&foreign).token(&web.token).build();
    let status = issue(&client).await.unwrap_err();
    assert!(
        status.metadata().is_empty(),
        "a service answered: {status:?}"
    );
    wait::until("the log says so", NOTICED, async || {
        let lines = scene.ca.refusals().into_iter();
        let mut reasons = lines.map(|line| line["reason"].to_string());
        reasons.find(|reason| reason.contains("TLS handshake failed"))
    })
    .await;
    assert_eq!(scene.admin.size().await, size);
    // The same chain is good enough for the CA that issued it.
    both_accept(
        &other.client().identity(&foreign).token(&web.token).build(),
        "its own CA",
    )
    .await;
}

#[tokio::test]
async fn a_chain_of_renewals_without_a_pod_ends_after_its_age() {
    let scene = Scene::with(|ca| {
        ca.set("allow_unbound", json!(["podless/job"]))
            .set("max_renewal_age", "5s")
    })
    .await;
    scene.api.create_namespace("podless").await;
    scene.api.create_account("podless", "job").await;
    let wanted = TokenRequest::unbound("podless", "job");
    let token = scene.api.request_token(&wanted).await.unwrap();
    let request = csr::plain();
    let answer = scene
        .client()
        .token(&token)
        .build()
        .issue(&request)
        .await
        .unwrap();
    let mut identity = Identity::new(&answer.svid.unwrap(), &request);
    // Each renewal begins with the certificate of the one before.
    let client = wait::until(
        "the chain is too old",
        Duration::from_secs(10),
        async || {
            let client = scene.client().identity(&identity).build();
            let request = csr::plain();
            match client.issue(&request).await {
                Ok(answer) => identity = Identity::new(&answer.svid.unwrap(), &request),
                Err(_) => return Some(client),
            }
            None
        },
    )
    .await;
    let denied = Code::PermissionDenied;
    scene
        .refuses(denied, "max_renewal_age", issue(&client))
        .await;
    scene
        .refuses(denied, "max_renewal_age", create_certificate(&client))
        .await;
    both_accept(&scene.client().token(&token).build(), "a new chain").await;
}

/// Waits until the CA refuses this client.
async fn refused_from_now_on(client: &Client) {
    wait::until("the CA has noticed", NOTICED, async || {
        issue(client).await.err()
    })
    .await;
}
