//! A real token's way to an SVID, and the record of it.

use std::path::Path;

use citadel_proto::log::{AuthenticationMethod, Authority, CertificateUse};
use citadel_proto::v1::IssueSvidRequest;
use citadel_tests::client::{Identity, Record};
use citadel_tests::foreign::Foreign;
use citadel_tests::kubernetes::claims_of;
use citadel_tests::pki::csr;
use tonic::Code;

use crate::support::{
    Scene, Workload, certificate_request, check_leaf, roots_of, verify_with_openssl,
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

#[tokio::test]
async fn a_pod_bound_token_yields_its_accounts_identity_through_both_services() {
    let scene = Scene::start().await;
    let web = scene.pod_named_shop_web().await;
    let client = scene.client_of(&web);
    let request = csr::plain();

    let answer = client.issue(&request).await.unwrap();
    let svid = answer.svid.unwrap();
    assert_eq!(svid.spiffe_id, "spiffe://example.org/ns/shop/sa/web");
    let identity = Identity::new(&svid, &request);
    check_leaf(&identity, &svid.spiffe_id, &request.key_pem);
    assert_eq!(svid.serial, identity.leaf().serial());
    assert_eq!(
        (svid.not_before, svid.not_after),
        (identity.leaf().not_before(), identity.leaf().not_after())
    );
    assert_eq!(svid.pod_uid, web.uid);
    lifetime_is(&identity, HOUR, 120);
    let left = svid.not_after - answer.server_time_ms / 1000;
    let renewal = svid.renew_at - answer.server_time_ms / 1000;
    // Its place in half of the lifetime, and a sixteenth of that away at least.
    assert!(
        (left / 32..=left * 17 / 32 + 1).contains(&renewal),
        "renew in {renewal} of {left} s"
    );
    let roots = &answer.bundles[0].x509_authorities;
    assert_eq!((answer.bundles.len(), roots.len()), (1, 1));
    assert_eq!(answer.bundles[0].trust_domain, "example.org");
    assert!(
        !identity.chain.contains(&roots[0]),
        "the root belongs into the bundle"
    );

    let other = csr::plain();
    let answer = client
        .create_certificate(certificate_request(&other.pem(), 0))
        .await
        .unwrap();
    let by_istio = Identity::of_istio(&answer.cert_chain, &other);
    check_leaf(
        &by_istio,
        "spiffe://example.org/ns/shop/sa/web",
        &other.key_pem,
    );
    lifetime_is(&by_istio, DAY, 120);
    assert_eq!(by_istio.chain[1..], identity.chain[1..], "one issuer");

    let roots = scene.ca.dir().write("roots.pem", roots_of(&answer));
    for one in [&identity, &by_istio] {
        verify_with_openssl(scene.ca.dir(), one, &roots).unwrap();
        let (svid, key) = one.write(scene.ca.dir(), "svid");
        let verified = Foreign::verify(scene.ca.dir(), &svid, &key, &roots)
            .await
            .unwrap();
        assert!(
            verified
                .to_string()
                .contains("spiffe://example.org/ns/shop/sa/web")
        );
    }
}

#[tokio::test]
async fn the_record_says_who_asked_and_holds_no_token() {
    let scene = Scene::start().await;
    let web = scene.workload("recorded").await;
    let claims = claims_of(&web.token);
    let client = scene.client_of(&web);
    let request = csr::plain();
    let svid = client.issue(&request).await.unwrap().svid.unwrap();
    let identity = Identity::new(&svid, &request);

    let record = scene.admin.certificate(&svid.serial).await.unwrap();
    assert_eq!(record.index, svid.log_index);
    let issued = &record.issued;
    assert_eq!(issued.certificate, identity.chain[0]);
    assert_eq!(
        (record.serial(), &issued.spiffe_id),
        (svid.serial.clone(), &svid.spiffe_id)
    );
    assert_eq!(
        (issued.not_before, issued.not_after),
        (svid.not_before, svid.not_after)
    );
    assert_eq!(issued.r#use(), CertificateUse::Workload);
    let info = scene.admin.info().await;
    assert_eq!(hex::encode(&issued.issuer_key_id), info.issuer_key_id);
    assert_eq!(issued.spki_sha256.len(), 32);

    let bound = &claims["kubernetes.io"];
    let caller = record.caller();
    assert_eq!(caller.method(), AuthenticationMethod::Jwks);
    assert_eq!(caller.token_id, claims["jti"].as_str().unwrap());
    assert_eq!(caller.address, client.seen().only().local.to_string());
    let origin = record.origin();
    assert_eq!(origin.method(), AuthenticationMethod::Jwks);
    assert_eq!(origin.authority(), Authority::Self_);
    for (recorded, real) in [
        (&caller.cluster, "default"),
        (&caller.namespace, "recorded"),
        (&caller.service_account, "web"),
        (
            &caller.service_account_uid,
            text(&bound["serviceaccount"]["uid"]),
        ),
        (&caller.pod, "web-1"),
        (&caller.pod_uid, web.uid.as_str()),
        (&caller.node, "node-recorded"),
        (&caller.node_uid, text(&bound["node"]["uid"])),
        (&origin.cluster, "default"),
        (&origin.namespace, "recorded"),
        (&origin.service_account, "web"),
        (
            &origin.service_account_uid,
            text(&bound["serviceaccount"]["uid"]),
        ),
        (&origin.pod, "web-1"),
        (&origin.pod_uid, web.uid.as_str()),
        (&origin.node, "node-recorded"),
        (&origin.node_uid, text(&bound["node"]["uid"])),
    ] {
        assert_eq!(recorded, real, "{record:#?}");
    }

    let by_istio = client
        .create_certificate(certificate_request(&csr::plain().pem(), 0))
        .await;
    let leaf = Identity::of_istio(&by_istio.unwrap().cert_chain, &csr::plain());
    let second = scene
        .admin
        .certificate(&leaf.leaf().serial())
        .await
        .unwrap();
    assert_eq!(
        second.caller(),
        record.caller(),
        "one caller through either service"
    );

    let all = scene.admin.all(&web.spiffe_id()).await;
    assert_eq!(serials(&all), [second.serial(), svid.serial.clone()]);
    // Neither the record nor anything else on the disk.
    let signature = web.token.rsplit('.').next().unwrap();
    assert!(!holds(&record.bytes, signature.as_bytes()));
    for folder in [scene.ca.data_dir(), scene.ca.store_folder()] {
        assert!(files_with(&folder, signature.as_bytes()).is_empty());
    }
    // The serial, which stands there several times: a database's own page headers may part what
    // is longer.
    let serial = hex::decode(&svid.serial).unwrap();
    assert!(
        !files_with(&scene.ca.store_folder(), &serial).is_empty(),
        "the search finds what is there"
    );
}

#[tokio::test]
async fn a_record_outlives_kill_9() {
    let mut scene = Scene::start().await;
    let web = scene.workload("durable").await;
    let mut serials = Vec::new();
    for _ in 0..10 {
        let answer = scene.client_of(&web).issue(&csr::plain()).await.unwrap();
        serials.push(answer.svid.unwrap().serial);
    }
    scene.ca.kill_and_start_again().await;
    for serial in serials {
        assert_eq!(
            scene.admin.certificate(&serial).await.unwrap().serial(),
            serial
        );
    }
    let unknown = scene.admin.certificate(&"1".repeat(36)).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn lifetimes_are_clamped_and_not_refused() {
    let scene = Scene::start().await;
    let web = scene.workload("lifetimes").await;
    let client = scene.client_of(&web);
    // Wanted, given, and how far NotBefore lies back: a tenth, two minutes at most.
    for (wanted, given, back) in [
        (0, HOUR, 120),
        (1, 10, 1),
        (60, 60, 6),
        (7 * HOUR, 7 * HOUR, 120),
        (3650 * DAY, DAY, 120),
        (i64::MAX, DAY, 120),
    ] {
        let request = csr::plain();
        let answer = client
            .issue_with(IssueSvidRequest {
                csr: request.der.clone(),
                ttl_seconds: wanted,
                ..Default::default()
            })
            .await
            .unwrap();
        lifetime_is(&Identity::new(&answer.svid.unwrap(), &request), given, back);

        let given = if wanted == 0 { DAY } else { given };
        let answer = client
            .create_certificate(certificate_request(&request.pem(), wanted))
            .await;
        lifetime_is(
            &Identity::of_istio(&answer.unwrap().cert_chain, &request),
            given,
            back,
        );
    }
    let negative = IssueSvidRequest {
        csr: csr::plain().der,
        ttl_seconds: -1,
        ..Default::default()
    };
    scene
        .refuses(
            Code::InvalidArgument,
            "ttl_seconds",
            client.issue_with(negative),
        )
        .await;
    let negative = certificate_request(&csr::plain().pem(), -1);
    let call = client.create_certificate(negative);
    scene
        .refuses(Code::InvalidArgument, "validity_duration", call)
        .await;
}

#[tokio::test]
async fn a_renewal_names_what_it_replaces_and_rests_on_the_same() {
    let scene = Scene::start().await;
    let web = scene.workload("renewed").await;
    let first = scene.identity_of(&web).await;
    let by_certificate = scene.client().identity(&first).build();
    let request = csr::plain();
    let renewed = by_certificate.issue(&request).await.unwrap().svid.unwrap();
    check_leaf(
        &Identity::new(&renewed, &request),
        &web.spiffe_id(),
        &request.key_pem,
    );

    let before = scene
        .admin
        .certificate(&first.leaf().serial())
        .await
        .unwrap();
    let after = scene.admin.certificate(&renewed.serial).await.unwrap();
    assert_eq!(
        after.origin(),
        before.origin(),
        "the first authentication's, its time too"
    );
    assert_eq!(after.issued.previous_serial, before.issued.serial);
    let caller = after.caller();
    assert_eq!(caller.method(), AuthenticationMethod::ClientCertificate);
    assert_eq!(
        (&caller.spiffe_id, &caller.pod_uid),
        (&web.spiffe_id(), &web.uid)
    );
    assert_eq!(caller.client_serial, before.issued.serial);
    assert_eq!(caller.token_id, "");

    // Istio's proxies renew so, too, when they have no token.
    let request = csr::plain();
    let answer = by_certificate
        .create_certificate(certificate_request(&request.pem(), 0))
        .await;
    let identity = Identity::of_istio(&answer.unwrap().cert_chain, &request);
    check_leaf(&identity, &web.spiffe_id(), &request.key_pem);
}

impl Scene<'_> {
    /// The pod of issue 3: account `web` in namespace `shop`.
    async fn pod_named_shop_web(&self) -> Workload {
        self.api.create_node("node-1").await;
        self.pod("shop", "web", "web-1", "node-1").await
    }
}

/// Panics unless it is valid for so many seconds from about now, and back-dated
/// by so many.
fn lifetime_is(identity: &Identity, seconds: i64, back: i64) {
    let leaf = identity.leaf();
    assert_eq!(leaf.not_after() - leaf.not_before(), seconds + back);
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let begins = leaf.not_before() + back;
    assert!(
        (now - 30..=now).contains(&begins),
        "begins at {begins}, now {now}"
    );
}

fn serials(records: &[Record]) -> Vec<String> {
    records.iter().map(Record::serial).collect()
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap()
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn files_with(folder: &Path, needle: &[u8]) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.is_file() && holds(&std::fs::read(path).unwrap(), needle))
        .collect()
}
