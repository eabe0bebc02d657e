//! Tokens that are good in themselves, of what is there no more.

use std::time::{Duration, Instant};

use citadel_tests::client::Client;
use citadel_tests::kubernetes::{ApiServer, KeyType, Options, Pod, TokenRequest, claims_of};
use citadel_tests::wait;
use serde_json::json;
use tonic::Code;

use super::{both_accept, create_certificate, issue};
use crate::support::{Scene, Workload};

/// How soon the CA must know of a deletion: well before the 6 s for which the
/// API server itself goes on accepting the token.
const NOTICED: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_pod_deleted_a_second_ago_is_refused_while_its_token_still_passes_review() {
    let scene = Scene::start().await;
    refused_after_deletion(&scene, &scene.workload("deleted-local").await).await;
}

#[tokio::test]
async fn the_same_in_token_review_mode() {
    let api = ApiServer::shared().await;
    let scene = Scene::with_cluster(api, json!({ "mode": "token_review" })).await;
    refused_after_deletion(&scene, &scene.workload("deleted-review").await).await;
}

#[tokio::test]
async fn the_same_where_token_review_stands_behind_the_local_mode() {
    // ES512 can't be checked locally, so these tokens do go to the API server.
    let options = Options {
        key_type: KeyType::P521,
        ..Default::default()
    };
    let api = ApiServer::start_with(options).await;
    let scene = Scene::on(&api, |ca| ca).await;
    let web = scene.workload("deleted-behind").await;
    refused_after_deletion(&scene, &web).await;
}

async fn refused_after_deletion(scene: &Scene<'_>, web: &Workload) {
    let client = scene.client_of(web);
    both_accept(&client, "while the pod lives").await;
    let reviewed = async || scene.api.review(&web.token, &["citadel"]).await;
    assert_eq!(reviewed().await["authenticated"], true);

    let deleted = Instant::now();
    scene.api.delete_pod(&web.namespace, &web.pod).await;
    refused_from_now_on(&client).await;
    assert!(
        deleted.elapsed() < NOTICED,
        "noticed only after {:?}",
        deleted.elapsed()
    );
    scene.both_reject(&client, "is gone").await;
    let review = reviewed().await;
    assert_eq!(
        review["authenticated"], true,
        "the API server knew, too: {review}"
    );
}

#[tokio::test]
async fn an_account_deleted_and_made_again_is_another_one() {
    let scene = Scene::start().await;
    let web = scene.workload("again").await;
    let client = scene.client_of(&web);
    both_accept(&client, "while the account lives").await;
    let old = claims_of(&web.token)["kubernetes.io"]["serviceaccount"]["uid"].clone();

    scene.api.delete_account("again", "web").await;
    let new = scene.api.create_account("again", "web").await;
    assert_ne!(old, new.as_str());
    refused_from_now_on(&client).await;
    scene.both_reject(&client, "is gone").await;
    // The pod has lived on, and may ask under the new account's UID.
    let fresh = scene.api.token("again", "web", "web-1").await;
    both_accept(
        &scene.client().token(&fresh).build(),
        "the new account's token",
    )
    .await;
}

#[tokio::test]
async fn a_pod_made_again_under_its_name_is_another_one() {
    let scene = Scene::start().await;
    let web = scene.workload("remade").await;
    let client = scene.client_of(&web);
    both_accept(&client, "while the pod lives").await;
    scene.api.delete_pod("remade", "web-1").await;
    scene
        .api
        .create_pod(&Pod::new("remade", "web-1", "web").on(&web.node))
        .await;
    refused_from_now_on(&client).await;
    scene.both_reject(&client, "is gone").await;
}

#[tokio::test]
async fn a_pod_that_the_watch_never_held_is_looked_up_by_name() {
    let scene = Scene::start().await;
    let web = scene.workload("never").await;
    let mut claims = claims_of(&web.token);
    claims["kubernetes.io"]["pod"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    let other_uid = scene.client().token(&scene.api.sign_token(&claims)).build();
    scene
        .both_reject(&other_uid, "was deleted and made again")
        .await;
    claims["kubernetes.io"]["pod"]["name"] = json!("nobody");
    claims["kubernetes.io"]["pod"]["uid"] = json!("00000000-0000-4000-8000-000000000001");
    let absent = scene.client().token(&scene.api.sign_token(&claims)).build();
    scene.both_reject(&absent, "does not exist").await;
}

#[tokio::test]
async fn a_pod_ends_with_its_phase_and_not_with_its_deletion_timestamp() {
    let scene = Scene::start().await;
    scene.api.create_node("node-phases").await;
    let leaving = scene.pod("phases", "web", "leaving", "node-phases").await;
    scene.api.begin_pod_deletion("phases", "leaving").await;
    for phase in ["Succeeded", "Failed"] {
        let pod = format!("pod-{}", phase.to_lowercase());
        let ended = scene.pod("phases", "web", &pod, "node-phases").await;
        let client = scene.client_of(&ended);
        both_accept(&client, "before its end").await;
        scene.api.set_pod_phase("phases", &pod, phase).await;
        refused_from_now_on(&client).await;
        scene.both_reject(&client, "is gone").await;
    }
    // What the watch says of the other pods came after it.
    both_accept(&scene.client_of(&leaving), "a pod on its way out").await;
}

#[tokio::test]
async fn an_unbound_token_is_refused_unless_its_account_is_listed() {
    let scene = Scene::with(|ca| ca.set("allow_unbound", json!(["unbound/listed"]))).await;
    scene.api.create_namespace("unbound").await;
    for account in ["listed", "unlisted"] {
        scene.api.create_account("unbound", account).await;
    }
    let token = async |account: &str| {
        scene
            .api
            .request_token(&TokenRequest::unbound("unbound", account))
            .await
            .unwrap()
    };
    let unlisted = scene.client().token(&token("unlisted").await).build();
    scene.both_reject(&unlisted, "bound to no pod").await;
    both_accept(
        &scene.client().token(&token("listed").await).build(),
        "a listed account",
    )
    .await;
    let record = &scene
        .admin
        .list("spiffe://example.org/ns/unbound/sa/listed", 1, 0)
        .await[0];
    assert_eq!(
        (
            record.caller().pod.as_str(),
            record.caller().pod_uid.as_str()
        ),
        ("", "")
    );
}

#[tokio::test]
async fn a_token_bound_to_a_node_or_a_secret_is_no_pods_token() {
    let scene = Scene::start().await;
    let web = scene.workload("bound").await;
    let bound_to_node = TokenRequest {
        bound_to: Some(("Node", web.node.clone())),
        ..TokenRequest::unbound("bound", "web")
    };
    let token = scene.api.request_token(&bound_to_node).await.unwrap();
    let client = scene.client().token(&token).build();
    scene.both_reject(&client, "bound to no pod").await;
}

/// Waits until the CA refuses this client.
async fn refused_from_now_on(client: &Client) {
    wait::until("the CA has noticed", NOTICED, async || {
        let (one, other) = (
            issue(client).await.err()?,
            create_certificate(client).await.err()?,
        );
        assert_eq!(
            (one.code(), other.code()),
            (Code::Unauthenticated, Code::Unauthenticated)
        );
        Some(())
    })
    .await;
}
