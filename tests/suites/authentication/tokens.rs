//! Tokens that are wrong in one thing each.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use citadel_tests::kubernetes::{
    ApiServer, KeyType, Signer, SigningKey, TokenRequest, assemble, claims_of,
};
use citadel_tests::pki::csr;
use serde_json::{Value, json};

use super::{both_accept, issue};
use crate::support::{Scene, Workload};

/// A token, why the local check refuses it, and why the API server's does.
struct Bad {
    what: &'static str,
    token: String,
    local: &'static str,
    review: &'static str,
}

#[tokio::test]
async fn a_token_with_one_fault_is_refused_with_the_reason() {
    let scene = Scene::start().await;
    let web = scene.workload("faulty").await;
    both_accept(&scene.client_of(&web), "the token of which all are made").await;
    for bad in bad_tokens(scene.api, &web).await {
        eprintln!("{}: {}", bad.what, bad.local);
        scene
            .both_reject(&scene.client().token(&bad.token).build(), bad.local)
            .await;
    }
}

#[tokio::test]
async fn token_review_mode_refuses_the_same_tokens() {
    let api = ApiServer::shared().await;
    let scene = Scene::with_cluster(api, json!({ "mode": "token_review" })).await;
    let web = scene.workload("reviewed").await;
    both_accept(&scene.client_of(&web), "the token of which all are made").await;
    for bad in bad_tokens(scene.api, &web).await {
        eprintln!("{}: {}", bad.what, bad.review);
        scene
            .both_reject(&scene.client().token(&bad.token).build(), bad.review)
            .await;
    }
}

#[tokio::test]
async fn nothing_that_is_not_one_bearer_token_counts_as_one() {
    let scene = Scene::start().await;
    let web = scene.workload("headers").await;
    let bare = || scene.client();
    let token = || format!("Bearer {}", web.token);
    for (what, client) in [
        ("no header", bare()),
        ("empty", bare().header("authorization", "")),
        ("no token", bare().header("authorization", "Bearer ")),
        (
            "another scheme",
            bare().header("authorization", format!("Basic {}", web.token)),
        ),
        (
            "no scheme",
            bare().header("authorization", web.token.clone()),
        ),
        (
            "two tokens",
            bare()
                .header("authorization", token())
                .header("authorization", token()),
        ),
        ("another header", bare().header("x-authorization", token())),
    ] {
        eprintln!("{what}");
        scene.both_reject(&client.build(), "no credential").await;
    }
    both_accept(
        &bare().header("authorization", token()).build(),
        "one token",
    )
    .await;
    let lower = format!("bearer {}", web.token);
    both_accept(
        &bare().header("authorization", lower).build(),
        "schemes know no case",
    )
    .await;
}

#[tokio::test]
async fn a_token_of_a_megabyte_is_refused_by_the_http2_layer() {
    let scene = Scene::start().await;
    let web = scene.workload("megabyte").await;
    let (size, lines) = (scene.admin.size().await, scene.ca.refusals().len());
    let metrics = requests_counted(&scene).await;
    let client = scene
        .client()
        .token(&format!("{}{}", web.token, "A".repeat(1 << 20)))
        .build();
    let status = client.issue(&csr::plain()).await.unwrap_err();
    // No service answered: whatever code there is, the client made it up.
    assert!(status.metadata().get("grpc-status").is_none(), "{status:?}");
    assert_eq!(scene.ca.refusals().len(), lines);
    assert_eq!(requests_counted(&scene).await, metrics);
    assert_eq!(scene.admin.size().await, size);
    both_accept(&scene.client_of(&web), "the CA goes on").await;
}

#[tokio::test]
async fn a_header_may_narrow_the_only_cluster_but_not_change_it() {
    let scene = Scene::start().await;
    let web = scene.workload("clusterid").await;
    // istio-proxy always sends one, of its own choice.
    for name in ["default", "Kubernetes", "elsewhere"] {
        let client = scene
            .client()
            .token(&web.token)
            .header("clusterid", name)
            .build();
        both_accept(&client, name).await;
    }
    let record = &scene.admin.list(&web.spiffe_id(), 1, 0).await[0];
    assert_eq!(record.caller().cluster, "default");
}

#[tokio::test]
async fn each_algorithm_of_an_api_server_is_known_or_asked_about() {
    for (kind, method) in [
        (KeyType::P256, "AUTHENTICATION_METHOD_JWKS"),
        (KeyType::P384, "AUTHENTICATION_METHOD_JWKS"),
        // ES512 can't be checked here: the API server is asked.
        (KeyType::P521, "AUTHENTICATION_METHOD_TOKEN_REVIEW"),
    ] {
        let api = ApiServer::start_with(citadel_tests::kubernetes::Options {
            key_type: kind,
            ..Default::default()
        })
        .await;
        let scene = Scene::on(&api, |ca| ca).await;
        let web = scene.workload("algorithms").await;
        both_accept(&scene.client_of(&web), method).await;
        let record = &scene.admin.list(&web.spiffe_id(), 1, 0).await[0];
        assert_eq!(record.caller().method().as_str_name(), method);
        assert_eq!(
            record.caller().token_id,
            claims_of(&web.token)["jti"].as_str().unwrap()
        );
        let tampered = tampered(&web.token, |claims| claims["jti"] = json!("another"));
        let refused = issue(&scene.client().token(&tampered).build())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    }
}

async fn bad_tokens(api: &ApiServer, web: &Workload) -> Vec<Bad> {
    let claims = claims_of(&web.token);
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let asked_for = async |audiences: &[&str]| {
        let wanted = TokenRequest::for_pod(&web.namespace, &web.account, &web.pod);
        api.request_token(&wanted.audiences(audiences))
            .await
            .unwrap()
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims.clone();
        change(&mut claims);
        api.sign_token(&claims)
    };
    let header = api.token_header();
    let with_header = |algorithm: &str, signer: Signer<'_>| {
        let mut header = header.clone();
        header["alg"] = json!(algorithm);
        assemble(&header, &claims, signer)
    };
    let public = api.signing_key().public_pem().as_bytes();
    let stranger = SigningKey::generate(KeyType::Rsa2048);
    let one = |what, token, local, review| Bad {
        what,
        token,
        local,
        review,
    };
    vec![
        one(
            "wrong audience",
            asked_for(&["elsewhere"]).await,
            "audience",
            "audience",
        ),
        one(
            "the API server's audience",
            asked_for(&[]).await,
            "audience",
            "audience",
        ),
        one(
            "two audiences, both ours",
            asked_for(&["citadel", "istio-ca"]).await,
            "exactly one audience",
            "exactly one audience",
        ),
        one(
            "expired, beyond all leeway",
            with(&|claims| claims["exp"] = json!(now - 11)),
            "expired",
            "expired",
        ),
        one(
            "not yet valid",
            with(&|claims| claims["nbf"] = json!(now + 60)),
            "not valid yet",
            "not valid yet",
        ),
        one(
            "another issuer",
            with(&|claims| claims["iss"] = json!("https://elsewhere.test")),
            "TokenReview",
            "TokenReview",
        ),
        one(
            "tampered claims",
            tampered(&web.token, |claims| {
                claims["kubernetes.io"]["pod"]["name"] = json!("db-1");
            }),
            "signature does not verify",
            "TokenReview",
        ),
        one(
            "tampered signature",
            with_flipped_signature(&web.token),
            "signature does not verify",
            "TokenReview",
        ),
        one(
            "alg none",
            with_header("none", Signer::Nobody),
            "algorithm none",
            "TokenReview",
        ),
        one(
            "alg none without a key",
            assemble(&json!({ "alg": "none" }), &claims, Signer::Nobody),
            "names no key",
            "TokenReview",
        ),
        one(
            "HS256 with the public key as secret",
            with_header("HS256", Signer::Hmac(public)),
            "algorithm HS256",
            "TokenReview",
        ),
        one(
            "another algorithm of the same key",
            with_header("RS512", Signer::Key(api.signing_key())),
            "algorithm RS512",
            "TokenReview",
        ),
        one(
            "a stranger's key under our key's name",
            assemble(&header, &claims, Signer::Key(&stranger)),
            "signature does not verify",
            "TokenReview",
        ),
        one(
            "9 KB, all else right",
            with(&|claims| claims["padding"] = json!("x".repeat(7 * 1024))),
            "the limit is 8192",
            "the limit is 8192",
        ),
        one("no JWT", "A".repeat(40), "compact", "compact"),
    ]
}

fn tampered(token: &str, change: impl Fn(&mut Value)) -> String {
    let mut claims = claims_of(token);
    change(&mut claims);
    let mut parts: Vec<_> = token.split('.').map(str::to_owned).collect();
    parts[1] = URL_SAFE_NO_PAD.encode(claims.to_string());
    parts.join(".")
}

fn with_flipped_signature(token: &str) -> String {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    bytes[17] ^= 1;
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Every request that reached a service is counted by its code.
async fn requests_counted(scene: &Scene<'_>) -> Vec<String> {
    let metrics = scene.ca.metrics().await;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("citadel_ca_requests_total"));
    lines.map(str::to_owned).collect()
}
