//! `/metrics`: Istio's names, which its dashboards know, and ours beside them.

use std::time::Duration;

use citadel_tests::client::Certificate;
use citadel_tests::pki::csr;
use citadel_tests::wait;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Code;

use crate::support::{Scene, certificate_request, roots_of, series};

/// The CA looks at each cluster every second.
const SHOWN: Duration = Duration::from_secs(10);
const BY_ISTIO: &str = "istio.v1.auth.IstioCertificateService/CreateCertificate";
const BY_CITADEL: &str = "citadel.v1.WorkloadService/IssueSvid";

/// A series and how much it has to have grown.
type Growth = (String, f64);

fn requests(rpc: &str, code: &str, growth: f64) -> Growth {
    let labels = format!("rpc=\"{rpc}\",code=\"{code}\"");
    (format!("citadel_ca_requests_total{{{labels}}}"), growth)
}

fn stage(stage: &str, growth: f64) -> Growth {
    let name = format!("citadel_ca_stage_seconds_count{{stage=\"{stage}\"}}");
    (name, growth)
}

#[tokio::test]
async fn what_was_issued_and_refused_is_counted_by_istios_names_and_by_ours() {
    let scene = Scene::start().await;
    let web = scene.workload("metrics").await;
    let client = scene.client_of(&web);
    let before = scene.ca.metrics().await;

    let good = certificate_request(&csr::plain().pem(), 0);
    client.create_certificate(good.clone()).await.unwrap();
    let stranger = scene.client().token("not.a.token").build();
    let bad = certificate_request("no CSR", 0);
    let mut unproven = csr::plain();
    *unproven.der.last_mut().unwrap() ^= 1;
    for (wanted, refused) in [
        (
            Code::Unauthenticated,
            stranger.create_certificate(good).await.map(drop),
        ),
        (
            Code::InvalidArgument,
            client.create_certificate(bad).await.map(drop),
        ),
        (
            Code::InvalidArgument,
            client.issue(&unproven).await.map(drop),
        ),
    ] {
        assert_eq!(refused.unwrap_err().code(), wanted);
    }

    let after = scene.ca.metrics().await;
    let named = |name: &str, growth| (name.to_owned(), growth);
    for (name, growth) in [
        named("citadel_server_csr_count", 4.0),
        named("citadel_server_authentication_failure_count", 1.0),
        named(
            "citadel_server_csr_sign_err_count{error=\"CSR_ERROR\"}",
            2.0,
        ),
        named("citadel_server_success_cert_issuance_count", 1.0),
        named("citadel_ca_certificates_issued_total", 1.0),
        requests(BY_ISTIO, "Ok", 1.0),
        requests(BY_ISTIO, "Unauthenticated", 1.0),
        requests(BY_ISTIO, "InvalidArgument", 1.0),
        requests(BY_CITADEL, "InvalidArgument", 1.0),
        // What does not come to its end in a stage is not measured there.
        stage("Authenticate", 3.0),
        stage("Authorize", 2.0),
        stage("ProvePossession", 1.0),
        stage("Prepare", 1.0),
        stage("Sign", 1.0),
        stage("Record", 1.0),
    ] {
        let now = series(&after, &name).unwrap_or_else(|| panic!("no {name} in {after}"));
        let grown = now - series(&before, &name).unwrap_or_default();
        assert!(
            (grown - growth).abs() < f64::EPSILON,
            "{name}: {grown}, not {growth}"
        );
    }
    let record = "citadel_ca_stage_seconds_sum{stage=\"Record\"}";
    assert!(series(&after, record).unwrap() > 0.0, "{after}");
    assert_eq!(series(&after, "citadel_ca_queue_waiting"), Some(0.0));
    assert!(after.ends_with("# EOF\n"), "{after}");
}

#[tokio::test]
async fn the_expiry_of_each_ca_certificate_is_there() {
    let scene = Scene::start().await;
    let web = scene.workload("expiry").await;
    let request = certificate_request(&csr::plain().pem(), 0);
    let answer = scene.client_of(&web).create_certificate(request).await;
    let answer = answer.unwrap();
    let [_, issuer, _] = answer.cert_chain.as_slice() else {
        panic!("leaf, intermediate, roots: {answer:?}");
    };
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (issuer, root) = (der(issuer), der(roots_of(&answer)));
    let (issuer, root) = (Certificate::of_der(&issuer), Certificate::of_der(&root));
    assert!(issuer.not_after() < root.not_after());

    let metrics = scene.ca.metrics().await;
    for (name, certificate) in [
        ("citadel_server_root_cert_expiry_timestamp", &root),
        // The earliest of the chain.
        ("citadel_server_cert_chain_expiry_timestamp", &issuer),
    ] {
        let line = format!("{name} {}", certificate.not_after());
        assert!(
            metrics.lines().any(|found| found == line),
            "no {line} in {metrics}"
        );
    }
    for (place, certificate) in [("root", &root), ("issuer", &issuer)] {
        let head =
            format!("citadel_ca_certificate_expiry_timestamp_seconds{{certificate=\"{place}\"");
        let mut lines = metrics.lines().filter(|line| line.starts_with(&head));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no {place} in {metrics}"));
        let serial = format!("serial=\"{}\"", certificate.serial());
        assert!(line.contains(&serial), "{line}");
        let end = format!("}} {}", certificate.not_after());
        assert!(line.ends_with(&end), "{line}");
        assert_eq!(lines.next(), None, "one {place} alone");
    }
}

#[tokio::test]
async fn the_clock_of_the_clusters_api_server_is_ours() {
    let scene = Scene::start().await;
    let skew = wait::until("the skew is shown", SHOWN, async || {
        let name = "citadel_ca_clock_skew_seconds{cluster=\"default\"}";
        series(&scene.ca.metrics().await, name)
    })
    .await;
    // One machine has one clock; its answers have whole seconds.
    assert!(skew.abs() < 2.0, "{skew}");
}
