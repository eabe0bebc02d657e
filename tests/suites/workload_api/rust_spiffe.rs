//! The Rust crate `spiffe` on our socket: a client that shares no code with our services.
//! (Its types for IDs and trust domains are those that `identity` uses.)

use std::collections::BTreeSet;
use std::time::Duration;

use citadel_tests::client::Certificate;
use rustls::pki_types::CertificateDer;
use spiffe::{TrustDomain, X509Source};

use crate::node::{Node, user_entry};

/// A renewal of a certificate of 10 s, which is due after half of it.
const RENEWAL: Duration = Duration::from_secs(20);

/// Its source asks for mandatory fields, parses every entry, and takes over each update.
#[tokio::test]
async fn spiffe_req_28_30_31_the_rust_crate_s_source_follows_two_rotations() {
    let id = "spiffe://example.org/unix/root";
    let other = "spiffe://example.org/unix/other";
    let entries = vec![
        user_entry("/unix/root", "rustspiffe", 0),
        user_entry("/unix/other", "rustspiffe", 0),
    ];
    let node = Node::with(
        "rustspiffe",
        |ca| ca.set("entries", entries),
        |agent| agent.set("svid_ttl", "10s"),
    )
    .await;
    let source = X509Source::builder().endpoint(node.agent.endpoint());
    let source = source.build().await.expect("the first answer");
    let mut updates = source.updated();
    let mut serials = BTreeSet::new();
    loop {
        let context = source.x509_context().expect("a context");
        let ids: Vec<_> = context
            .svids()
            .iter()
            .map(|svid| svid.spiffe_id().to_string())
            .collect();
        assert_eq!(ids, [id, other]);
        let svid = source.svid().expect("the default one");
        assert_eq!(svid.spiffe_id().to_string(), id);
        let leaf = CertificateDer::from(svid.leaf().as_bytes().to_vec());
        serials.insert(Certificate::of_der(&leaf).serial());
        let own = TrustDomain::new("example.org").expect("a name");
        let bundle = context.bundle_set().get(&own).expect("our bundle");
        let roots = bundle.authorities();
        assert_eq!(roots.len(), 1);
        if serials.len() == 3 {
            break;
        }
        let update = tokio::time::timeout(RENEWAL, updates.changed()).await;
        update.expect("an update in time").expect("a source");
    }
    assert!(source.is_healthy());
    source.shutdown().await;
}

/// One that may have nothing is told so at once.
#[tokio::test]
async fn spiffe_req_26_the_rust_crate_s_client_is_told_that_it_has_no_identity() {
    let entry = user_entry("/unix/nobody", "rustnobody", 4242);
    let node = Node::with(
        "rustnobody",
        |ca| ca.set("entries", vec![entry]),
        |agent| agent,
    )
    .await;
    let client = spiffe::WorkloadApiClient::connect_to(node.agent.endpoint()).await;
    let client = client.expect("a connection");
    let refused = client.fetch_x509_svid().await.expect_err("nothing is its");
    assert!(
        matches!(
            refused,
            spiffe::WorkloadApiError::PermissionDenied(_)
                | spiffe::WorkloadApiError::NoIdentityIssued
        ),
        "{refused:?}"
    );
}
