//! What istio-proxy sends, and what it needs back.

use citadel_tests::client::{Certificate, Identity};
use citadel_tests::kubernetes::TokenRequest;
use citadel_tests::pki::{csr, der, openssl};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::Code;

use crate::support::{
    Scene, certificate_request, check_leaf, roots_of, verify_with_openssl, with_metadata,
};

const DAY: i64 = 24 * 60 * 60;

#[tokio::test]
async fn the_chain_is_leaf_intermediates_and_roots_last() {
    let scene = Scene::start().await;
    let web = scene.workload("chain").await;
    let request = csr::plain();
    let client = scene.client_of(&web);
    let answer = client
        .create_certificate(certificate_request(&request.pem(), DAY))
        .await
        .unwrap();

    let chain = &answer.cert_chain;
    assert_eq!(chain.len(), 3, "leaf, intermediate, roots: {chain:?}");
    for element in chain {
        // istio-proxy joins the elements as they are.
        assert!(
            element.starts_with("-----BEGIN CERTIFICATE-----\n"),
            "{element}"
        );
        assert!(
            element.ends_with("-----END CERTIFICATE-----\n"),
            "{element}"
        );
    }
    let blocks = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).count();
    assert_eq!(
        (blocks(&chain[0]), blocks(&chain[1])),
        (1, 1),
        "one certificate an element"
    );
    assert_eq!(
        roots_of(&answer),
        std::fs::read_to_string(scene.ca.bundle_file()).unwrap()
    );

    let identity = Identity::of_istio(chain, &request);
    check_leaf(&identity, &web.spiffe_id(), &request.key_pem);
    let intermediate = Certificate::of_der(&identity.chain[1]).grants();
    assert_eq!(intermediate.basic_constraints, (true, Some(0)));
    let roots = scene.ca.dir().write("roots.pem", roots_of(&answer));
    verify_with_openssl(scene.ca.dir(), &identity, &roots).unwrap();
}

#[tokio::test]
async fn the_requests_of_real_proxies_are_served() {
    let scene = Scene::start().await;
    let web = scene.workload("proxies").await;
    let wanted = TokenRequest::for_pod("proxies", "web", "web-1").audiences(&["istio-ca"]);
    let token = scene.api.request_token(&wanted).await.unwrap();
    // `ClusterID` on the wire is lower case, as all headers of HTTP/2.
    let client = scene
        .client()
        .token(&token)
        .header("clusterid", "Kubernetes")
        .build();

    // istio-proxy: RSA-2048, subject `O=`, its own ID as a SAN.
    let rsa = openssl::rsa_key(2048);
    let file = scene.ca.dir().write("proxy.key", &rsa);
    let san = format!("subjectAltName=critical,URI:{}", web.spiffe_id());
    let path = file.to_str().unwrap();
    let args = [
        "req", "-new", "-key", path, "-subj", "/O=", "-addext", &san, "-outform", "DER",
    ];
    let (_, request, _) = openssl::attempt(&args, b"");
    let answer = client
        .create_certificate(certificate_request(&csr::pem(&request), DAY))
        .await;
    let request = csr::Csr {
        der: request,
        key_pem: rsa,
    };
    let identity = Identity::of_istio(&answer.unwrap().cert_chain, &request);
    check_leaf(&identity, &web.spiffe_id(), &request.key_pem);

    // ztunnel: P-256, an empty subject, no `CertSigner`.
    let uri = der::element(der::tag::URI, web.spiffe_id().as_bytes());
    let names = der::extension(&[2, 5, 29, 17], true, &der::sequence(&[uri]));
    let request = csr::Builder::default().extension(names).build();
    let answer = client
        .create_certificate(with_metadata(&request.pem(), DAY, &[]))
        .await
        .unwrap();
    let identity = Identity::of_istio(&answer.cert_chain, &request);
    check_leaf(&identity, &web.spiffe_id(), &request.key_pem);

    // A client without any metadata.
    let mut bare = with_metadata(&csr::plain().pem(), 0, &[]);
    bare.metadata = None;
    client.create_certificate(bare).await.unwrap();
}

#[tokio::test]
async fn an_empty_signer_is_the_only_one() {
    let scene = Scene::start().await;
    let web = scene.workload("signers").await;
    let client = scene.client_of(&web);
    let named = |signer: &str| with_metadata(&csr::plain().pem(), 0, &[("CertSigner", signer)]);
    client.create_certificate(named("")).await.unwrap();
    let call = client.create_certificate(named("vault"));
    let status = scene
        .refuses(Code::InvalidArgument, "CertSigner", call)
        .await;
    assert!(status.message().contains("vault"), "{status:?}");

    let mut odd = named("");
    let number = Value {
        kind: Some(Kind::NumberValue(1.0)),
    };
    odd.metadata = Some(Struct {
        fields: [("ImpersonatedIdentity".into(), number)].into(),
    });
    let call = client.create_certificate(odd);
    scene
        .refuses(Code::InvalidArgument, "ImpersonatedIdentity", call)
        .await;
}

#[tokio::test]
async fn a_configured_default_holds_where_none_is_asked_for() {
    let scene = Scene::with(|ca| {
        ca.set("lifetimes.istio_default", "2h")
            .set("lifetimes.max", "3h")
    })
    .await;
    let web = scene.workload("defaults").await;
    let client = scene.client_of(&web);
    for (wanted, given) in [(0, 7200), (3600, 3600), (DAY, 3 * 3600)] {
        let request = csr::plain();
        let answer = client
            .create_certificate(certificate_request(&request.pem(), wanted))
            .await;
        let identity = Identity::of_istio(&answer.unwrap().cert_chain, &request);
        assert_eq!(
            identity.leaf().not_after() - identity.leaf().not_before(),
            given + 120
        );
    }
}
