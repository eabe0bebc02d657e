//! Good sets, and what is issued from them.

use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::client::{ClientBuilder, Identity};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::{csr, openssl};
use rcgen::Issuer;
use time::{Duration, OffsetDateTime};

use super::made::{self, Plan, Set};
use crate::support::{certificate_request, check_leaf, roots_of, verify_with_openssl};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

#[tokio::test]
async fn rsa_2048_is_accepted() {
    issues_with(&Plan::new("RSA-2048").make(), "sha256WithRSAEncryption").await;
}

#[tokio::test]
async fn rsa_4096_is_accepted() {
    issues_with(&Plan::new("RSA-4096").make(), "sha256WithRSAEncryption").await;
}

#[tokio::test]
async fn p_256_is_accepted() {
    issues_with(&Plan::new("P-256").make(), "ecdsa-with-SHA256").await;
}

#[tokio::test]
async fn p_384_is_accepted() {
    issues_with(&Plan::new("P-384").make(), "ecdsa-with-SHA384").await;
}

#[tokio::test]
async fn keys_of_the_older_forms_are_accepted() {
    for (kind, form) in [("RSA-2048", "RSA PRIVATE KEY"), ("P-256", "EC PRIVATE KEY")] {
        let mut set = Plan::new(kind).make();
        set.key = openssl::run_text(&["pkey", "-traditional"], set.key.as_bytes());
        assert!(set.key.contains(form));
        started(&set.write()).await;
    }
}

#[tokio::test]
async fn a_root_that_issues_by_itself_is_accepted() {
    // What istiod makes when nothing is plugged in.
    let mut set = Plan::new("P-256").make();
    let key = made::key("P-256");
    set.root = made::ca("lone", None)
        .self_signed(&made::pair(&key))
        .unwrap()
        .pem();
    (set.certificate, set.chain, set.key) = (set.root.clone(), set.root.clone(), key);
    issues_with(&set, "ecdsa-with-SHA256").await;
}

#[tokio::test]
async fn a_longer_chain_travels_whole() {
    let root_key = made::pair(&made::key("P-256"));
    let root = made::ca("root", None);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, root_key);
    let middle_key = made::pair(&made::key("P-256"));
    let middle = made::ca("middle", Some(1));
    let middle_pem = middle.signed_by(&middle_key, &root).unwrap().pem();
    let middle = Issuer::new(middle, middle_key);
    let key = made::key("P-256");
    let certificate = made::ca("issuing", Some(0))
        .signed_by(&made::pair(&key), &middle)
        .unwrap();
    let certificate = certificate.pem();
    let chain = format!("{certificate}{middle_pem}{root_pem}");
    let set = Set {
        certificate,
        key,
        root: root_pem,
        chain,
    };
    let identity = issues_with(&set, "ecdsa-with-SHA256").await;
    assert_eq!(identity.chain.len(), 3, "leaf, issuing, middle");
}

#[tokio::test]
async fn the_files_of_a_tls_secret_are_accepted() {
    let set = Plan::new("P-256").make();
    let dir = TestDir::new("tls-secret");
    dir.write("tls.crt", &set.certificate);
    dir.write("tls.key", &set.key);
    dir.write("ca.crt", &set.root);
    started(&dir).await;
}

#[tokio::test]
async fn nothing_outlives_its_issuer() {
    let mut plan = Plan::new("P-256");
    let end = OffsetDateTime::now_utc() + Duration::minutes(20);
    plan.ca.not_after = end;
    let identity = issues_with(&plan.make(), "ecdsa-with-SHA256").await;
    assert_eq!(identity.leaf().not_after(), end.unix_timestamp());
}

#[tokio::test]
async fn a_store_stays_with_its_issuer() {
    let (one, other) = (
        Plan::new("P-256").make().write(),
        Plan::new("P-256").make().write(),
    );
    let mut ca = started(&one).await;
    assert!(ca.terminate().await.success());
    ca.start_again().await;
    assert!(ca.terminate().await.success());
    // Another key on this store is another CA.
    let builder = CaBuilder::new(ApiServer::shared().await).await;
    let second = builder
        .set("ca.cacerts_dir", other.path().to_str().unwrap())
        .set("store", ca.store());
    let words = super::refused::words_of(&second.start_unready()).await;
    assert!(words.contains("issuer"), "{words}");
}

/// Starts a CA on these files.
async fn started(files: &TestDir) -> Ca {
    let ca = CaBuilder::new(ApiServer::shared().await).await;
    ca.set("ca.cacerts_dir", files.path().to_str().unwrap())
        .start()
        .await
}

/// Has a CA issue from this set, and openssl and a TLS client check all of it.
async fn issues_with(set: &Set, algorithm: &str) -> Identity {
    let api = ApiServer::shared().await;
    let ca = started(&set.write()).await;
    let (node, pod) = (
        format!("node-{}", ca.grpc().port()),
        format!("web-{}", ca.grpc().port()),
    );
    api.create_node(&node).await;
    api.create_workload("shop", "web", &pod, &node).await;
    let token = api.token("shop", "web", &pod).await;
    // Whoever trusts this root reaches the CA by it.
    let client = ClientBuilder::at(ca.grpc(), set.root.as_bytes())
        .token(&token)
        .build();
    let roots = ca.dir().write("root.pem", &set.root);

    let request = csr::plain();
    let answer = client.issue(&request).await.unwrap();
    let identity = Identity::new(&answer.svid.unwrap(), &request);
    check_leaf(&identity, ID, &request.key_pem);
    verify_with_openssl(ca.dir(), &identity, &roots).unwrap();
    let args = ["x509", "-inform", "DER", "-noout", "-text"];
    let text = openssl::run_text(&args, &identity.chain[0]);
    assert!(
        text.contains(&format!("Signature Algorithm: {algorithm}")),
        "{text}"
    );

    let answer = client
        .create_certificate(certificate_request(&request.pem(), 0))
        .await
        .unwrap();
    assert_eq!(roots_of(&answer).trim(), set.root.trim());
    let by_istio = Identity::of_istio(&answer.cert_chain, &request);
    verify_with_openssl(ca.dir(), &by_istio, &roots).unwrap();
    // Renewals are verified by the same root.
    let renewing = ClientBuilder::at(ca.grpc(), set.root.as_bytes())
        .identity(&identity)
        .build();
    renewing.issue(&csr::plain()).await.unwrap();
    identity
}
