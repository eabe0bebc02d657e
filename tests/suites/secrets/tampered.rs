//! Answers of an API server that repeat the token where nobody expects it.
//! kube-client logs a whole body at WARN when it can't decode it.

use citadel_tests::citadel::CaBuilder;
use citadel_tests::client::{Admin, ClientBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use serde_json::json;
use tonic::Code;

use super::proxy::{Answer, Proxy};
use super::searched;

const JSON: &str = "application/json";
const CREATED: &str = "201 Created";

/// What is wrong with it, the answer, and what the client hears.
const ANSWERS: &[(&str, Answer, Code)] = &[
    (
        "fields of other types",
        |token| {
            let spec = json!({ "token": token });
            let status = json!({ "authenticated": "yes", "user": [token] });
            (
                CREATED,
                JSON,
                json!({ "spec": spec, "status": status }).to_string(),
            )
        },
        Code::Unavailable,
    ),
    (
        "cut off",
        |token| {
            (
                CREATED,
                JSON,
                format!("{{\"spec\":{{\"token\":\"{token}\"}},\"sta"),
            )
        },
        Code::Unavailable,
    ),
    (
        "no JSON",
        |token| (CREATED, "text/plain", token.to_owned()),
        Code::Unavailable,
    ),
    (
        "an error with the token in it",
        |token| {
            let status = json!({ "authenticated": false, "error": format!("what is {token}?") });
            let review = json!({ "spec": { "token": token }, "status": status });
            (CREATED, JSON, review.to_string())
        },
        Code::Unauthenticated,
    ),
    (
        "a user of the token's name",
        |token| {
            let user = json!({ "username": token, "uid": token, "groups": ["system:serviceaccounts", token] });
            let status = json!({ "authenticated": true, "audiences": ["citadel"], "user": user });
            (
                CREATED,
                JSON,
                json!({ "spec": { "token": token }, "status": status }).to_string(),
            )
        },
        Code::Unauthenticated,
    ),
    (
        "refused by the server, in words with the token",
        |token| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                "message": format!("may not review {token}"), "reason": "Forbidden",
            });
            ("403 Forbidden", JSON, status.to_string())
        },
        Code::Unavailable,
    ),
    (
        "broken, in words with the token",
        |token| {
            (
                "500 Internal Server Error",
                "text/plain",
                format!("panic: {token}"),
            )
        },
        Code::Unavailable,
    ),
];

#[tokio::test]
async fn an_answer_that_repeats_the_token_is_not_logged() {
    let api = ApiServer::shared().await;
    let dir = TestDir::new("ca");
    let access = api.ca_access("citadel-system", &dir).await;
    let proxy = Proxy::start(api, &access, &dir, ANSWERS[0].1).await;
    let cluster = json!([{
        "name": "default", "kubeconfig": proxy.kubeconfig, "mode": "token_review",
    }]);
    let ca = CaBuilder::with_clusters(dir, cluster).start().await;
    let admin = Admin::of(&ca);
    let size = admin.size().await;
    api.create_node("tampered-1").await;
    api.create_workload("tampered", "web", "web-1", "tampered-1")
        .await;

    let mut last = String::new();
    for &(what, answer, code) in ANSWERS {
        proxy.answers(answer);
        // A new one each time: answers are kept for a while.
        last = api.token("tampered", "web", "web-1").await;
        let client = ClientBuilder::new(&ca).token(&last).build();
        let status = client.issue(&csr::plain()).await.unwrap_err();
        assert_eq!(status.code(), code, "{what}: {status:?}");
        let signature = last.rsplit('.').next().unwrap();
        assert!(
            !format!("{status:?}").contains(signature),
            "{what}: {status:?}"
        );
    }
    assert_eq!(admin.size().await, size);
    assert_eq!(ca.refusals().len(), ANSWERS.len());
    searched(
        &[ca.dir()],
        "citadel-ca.log",
        last.rsplit('.').next().unwrap(),
    );
}
