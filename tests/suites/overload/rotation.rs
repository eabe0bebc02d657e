//! The CA's serving certificate rotates under open streams.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use citadel_tests::client::Certificate;
use citadel_tests::pki::csr;

use crate::support::Scene;

/// Three lives of a certificate of 15 s that is renewed at about the half.
const LASTS: Duration = Duration::from_secs(40);
const BETWEEN: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_serving_certificate_of_15_s_rotates_under_an_open_stream() {
    let scene = Scene::with(|ca| ca.set("ca.serving_ttl", "15s")).await;
    let agent = scene.agent("rotation-1").await;
    let web = scene.pod("rotation", "web", "web-1", "rotation-1").await;
    let mut bundles = agent.client.bundles().await.unwrap();
    bundles
        .message()
        .await
        .unwrap()
        .expect("the bundles at once");
    let lasting = scene.client_of(&web);

    let began = Instant::now();
    let mut serials = BTreeSet::new();
    while began.elapsed() < LASTS {
        lasting
            .issue(&csr::plain())
            .await
            .expect("on the connection that stands");
        let fresh = scene.client_of(&web);
        // The client verifies what it is shown, its time included.
        fresh
            .issue(&csr::plain())
            .await
            .expect("on a new connection");
        let chain = fresh.seen().only().chain;
        let leaf = Certificate::of_der(&chain[0]);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let left = leaf.not_after() - now;
        assert!((0..=15).contains(&left), "{left} s left");
        serials.insert(leaf.serial());
        tokio::select! {
            ended = bundles.message() => panic!("the stream ended: {ended:?}"),
            () = tokio::time::sleep(BETWEEN) => {}
        }
    }
    assert!(
        serials.len() >= 4,
        "{} certificates in {LASTS:?}",
        serials.len()
    );
    assert_eq!(
        lasting.seen().handshakes().len(),
        1,
        "the connection was dropped"
    );
    assert_eq!(
        agent.client.seen().handshakes().len(),
        1,
        "the stream's was dropped"
    );
    // Each of them is in the log.
    for serial in serials {
        let record = scene.admin.certificate(&serial).await.unwrap();
        assert_eq!(record.issued.spiffe_id, "spiffe://example.org/citadel/ca");
    }
}
