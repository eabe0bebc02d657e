//! Bad sets: a CA does not start on them, and says what is wrong.

use std::time::Duration;

use citadel_tests::citadel::{Ca, CaBuilder};
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::openssl;
use rcgen::{BasicConstraints, CustomExtension, IsCa, KeyUsagePurpose, SanType};
use time::OffsetDateTime;

use super::made::{Plan, Set};

const END: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_incomplete_set() {
    for missing in Set::ISTIO {
        let dir = Plan::new("P-256").make().write();
        std::fs::remove_file(dir.join(missing)).unwrap();
        refused(&dir, &["incomplete", missing]).await;
    }
    refused(
        &TestDir::new("empty"),
        &["incomplete", "ca-cert.pem", "ca-key.pem"],
    )
    .await;
}

#[tokio::test]
async fn a_key_of_another_certificate() {
    let mut set = Plan::new("P-256").make();
    set.key = super::made::key("P-256");
    refused(
        &set.write(),
        &["does not match the certificate", "issuing of a test"],
    )
    .await;
}

#[tokio::test]
async fn a_chain_that_does_not_lead_to_the_root() {
    let mut set = Plan::new("P-256").make();
    // Another root of the same name: the signature tells.
    set.root = Plan::new("P-256").make().root;
    set.chain = set.certificate.clone();
    refused(&set.write(), &["did not sign", "root of a test"]).await;

    let mut plan = Plan::new("P-256");
    plan.root
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, "another");
    set.root = plan.make().root;
    refused(
        &set.write(),
        &["does not lead to a root", "issuing of a test"],
    )
    .await;
}

#[tokio::test]
async fn certificates_out_of_their_time() {
    let now = OffsetDateTime::now_utc();
    let mut plan = Plan::new("P-256");
    plan.ca.not_after = now - time::Duration::MINUTE;
    refused(
        &plan.make().write(),
        &["\"CN=issuing of a test\" expired at"],
    )
    .await;
    let mut plan = Plan::new("P-256");
    plan.root.not_after = now - time::Duration::MINUTE;
    refused(&plan.make().write(), &["root of a test", "expired at"]).await;
    let mut plan = Plan::new("P-256");
    plan.ca.not_before = now + time::Duration::HOUR;
    refused(
        &plan.make().write(),
        &["issuing of a test", "not valid before"],
    )
    .await;
}

#[tokio::test]
async fn a_path_length_that_leaves_no_room() {
    let mut plan = Plan::new("P-256");
    plan.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    refused(&plan.make().write(), &["path length", "root of a test"]).await;
}

#[tokio::test]
async fn a_certificate_that_is_no_cas() {
    let mut plan = Plan::new("P-256");
    plan.ca.is_ca = IsCa::ExplicitNoCa;
    refused(
        &plan.make().write(),
        &["is not a CA's", "issuing of a test"],
    )
    .await;
    let mut plan = Plan::new("P-256");
    plan.ca.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    refused(&plan.make().write(), &["keyCertSign", "issuing of a test"]).await;
}

#[tokio::test]
async fn a_key_of_a_kind_that_is_not_signed_with() {
    refused(&Plan::new("P-521").make().write(), &["ca-key.pem"]).await;
    let mut set = Plan::new("RSA-2048").make();
    set.key = openssl::rsa_key(1024);
    refused(&set.write(), &["ca-key.pem", "1024"]).await;
}

#[tokio::test]
async fn a_key_that_cannot_be_read() {
    let mut set = Plan::new("P-256").make();
    let args = ["pkey", "-aes256", "-passout", "pass:test"];
    set.key = openssl::run_text(&args, set.key.as_bytes());
    refused(&set.write(), &["ca-key.pem", "encrypted"]).await;
    set.key = "hello".into();
    refused(&set.write(), &["ca-key.pem"]).await;
}

#[tokio::test]
async fn files_that_hold_something_else() {
    let good = Plan::new("P-256").make();
    let broken = Set {
        certificate: good.key.clone(),
        ..good.clone()
    };
    let words = refused(&broken.write(), &["ca-cert.pem", "PRIVATE KEY"]).await;
    assert!(!words.contains("BEGIN"), "the key itself: {words}");
    let broken = Set {
        root: "hello".into(),
        ..good.clone()
    };
    refused(&broken.write(), &["root-cert.pem"]).await;
    let dir = good.write();
    dir.write("tls.crt", &good.certificate);
    refused(&dir, &["keep one of the two sets"]).await;
}

#[tokio::test]
async fn a_ca_of_another_trust_domain() {
    let mut plan = Plan::new("P-256");
    let uri = "spiffe://elsewhere.test".try_into().unwrap();
    plan.ca.subject_alt_names.push(SanType::URI(uri));
    refused(&plan.make().write(), &["elsewhere.test", "example.org"]).await;
}

#[tokio::test]
async fn an_extension_that_must_be_understood() {
    let mut plan = Plan::new("P-256");
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 55555, 1], vec![5, 0]);
    unknown.set_criticality(true);
    plan.ca.custom_extensions.push(unknown);
    refused(&plan.make().write(), &["critical", "1.3.6.1.4.1.55555.1"]).await;
}

/// Panics unless a CA refuses to start on these files and says all of this.
/// Its words.
async fn refused(files: &TestDir, reasons: &[&str]) -> String {
    let folder = files.path().to_str().unwrap();
    let ca = CaBuilder::new(ApiServer::shared().await)
        .await
        .set("ca.cacerts_dir", folder);
    let ca = ca.start_unready();
    let words = words_of(&ca).await;
    for reason in reasons.iter().chain([&folder]) {
        assert!(words.contains(reason), "{reason:?} is not said: {words}");
    }
    assert!(
        !ca.data_dir().join("citadel.db").exists(),
        "a store was made"
    );
    words
}

/// What a CA says that does not start.
pub(super) async fn words_of(ca: &Ca) -> String {
    let status = ca.process().wait(END).await;
    assert_eq!(status.code(), Some(1), "{}", ca.log());
    ca.log()
}
