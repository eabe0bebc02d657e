//! The CA's end of TLS: what it presents, and what it agrees on.

use citadel_tests::client::{Certificate, Versions};
use citadel_tests::pki::csr;
use rustls::{NamedGroup, ProtocolVersion};

use crate::support::Scene;

#[tokio::test]
async fn it_presents_its_own_identity_with_the_whole_chain() {
    let scene =
        Scene::with(|ca| ca.set("ca.dns_names", serde_json::json!(["ca.example.org"]))).await;
    let web = scene.workload("presented").await;
    let client = scene.client_of(&web);
    client.issue(&csr::plain()).await.unwrap();
    let handshake = client.seen().only();

    let [leaf, intermediate, root] = handshake.chain.as_slice() else {
        panic!(
            "leaf, intermediate, root: {} certificates",
            handshake.chain.len()
        );
    };
    let grants = Certificate::of_der(leaf).grants();
    assert_eq!(
        grants.names,
        ["URI:spiffe://example.org/citadel/ca", "DNS:ca.example.org"]
    );
    assert!(!grants.basic_constraints.0);
    assert_eq!(
        Certificate::of_der(intermediate).grants().basic_constraints,
        (true, Some(0))
    );
    assert!(Certificate::of_der(root).grants().basic_constraints.0);
    // The root's hash is a first trust: it has to be the one of the bundle.
    let bundle = std::fs::read_to_string(scene.ca.bundle_file()).unwrap();
    assert_eq!(citadel_tests::client::to_pem(root).trim(), bundle.trim());

    // Its own certificate is in the log like any other.
    let serial = Certificate::of_der(leaf).serial();
    let record = scene.admin.certificate(&serial).await.unwrap();
    assert_eq!(record.issued.certificate, *leaf);
    assert_eq!(
        record.issued.r#use(),
        citadel_proto::log::CertificateUse::CaServer
    );
}

#[tokio::test]
async fn tls_1_3_and_1_2_over_h2_with_post_quantum_keys_preferred() {
    let scene = Scene::start().await;
    let web = scene.workload("versions").await;
    for (versions, agreed, group) in [
        (
            Versions::All,
            ProtocolVersion::TLSv1_3,
            NamedGroup::X25519MLKEM768,
        ),
        (
            Versions::Only13,
            ProtocolVersion::TLSv1_3,
            NamedGroup::X25519MLKEM768,
        ),
        (
            Versions::Only12,
            ProtocolVersion::TLSv1_2,
            NamedGroup::X25519,
        ),
    ] {
        let client = scene.client().token(&web.token).versions(versions).build();
        client.issue(&csr::plain()).await.unwrap();
        let handshake = client.seen().only();
        assert_eq!(handshake.version, agreed, "{versions:?}");
        assert_eq!(handshake.group, group, "{versions:?}");
        assert_eq!(handshake.alpn.as_deref(), Some(&b"h2"[..]), "{versions:?}");
    }
}
