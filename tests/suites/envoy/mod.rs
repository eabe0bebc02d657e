//! Two real Envoys that speak mTLS with certificates from our SDS, each of them
//! verifying the other's exact SPIFFE ID, on the very files of `deploy/envoy`.

mod delta;
pub(crate) mod mesh;
mod metadata;
pub(crate) mod traffic;
mod trust_domains;

use std::time::Duration;

use mesh::Mesh;
use tokio::time::{Instant, sleep, sleep_until};
use traffic::Traffic;

/// From the start to the first answer.
const FIRST: Duration = Duration::from_secs(30);

/// (a) Certificates of 15 s for 90 s; the CA is killed twice, and back within 4 s.
#[tokio::test]
async fn certificates_of_15_s_outlive_two_kills_of_the_ca_without_one_failure() {
    const OUTAGE: Duration = Duration::from_secs(4);
    let mut mesh = Mesh::start("kills", "15s").await;
    mesh.first_answer(FIRST).await;
    let begun = Instant::now();
    let traffic = Traffic::start(&mesh);
    for at in [20, 50] {
        sleep_until(begun + Duration::from_secs(at)).await;
        mesh.node.ca.process().kill().await;
        let killed = Instant::now();
        // Most of the time that it may take; the rest is its start.
        sleep(OUTAGE / 2).await;
        mesh.node.ca.start_again().await;
        assert!(
            killed.elapsed() <= OUTAGE,
            "the CA took {:?} to be back",
            killed.elapsed()
        );
    }
    sleep_until(begun + Duration::from_secs(90)).await;
    let seen = traffic.stop().await;
    seen.none_failed();
    assert!(
        seen.answers > 500,
        "only {} connections in 90 s",
        seen.answers
    );
    assert!(
        seen.client_serials.len() >= 9,
        "the client's: {:?}",
        seen.client_serials
    );
    assert!(
        seen.server_serials.len() >= 9,
        "the server's: {:?}",
        seen.server_serials
    );
    mesh.refused_nothing();
}

/// (b) Certificates of 60 s; the CA is away for 20 s, over their renewal.
#[tokio::test]
async fn certificates_of_60_s_outlive_20_s_without_the_ca_without_one_failure() {
    let mut mesh = Mesh::start("away", "60s").await;
    mesh.first_answer(FIRST).await;
    let begun = Instant::now();
    let traffic = Traffic::start(&mesh);
    // Renewals fall between 24 s and 36 s.
    sleep_until(begun + Duration::from_secs(20)).await;
    mesh.node.ca.process().kill().await;
    sleep_until(begun + Duration::from_secs(40)).await;
    mesh.node.ca.start_again().await;
    // Past the end of the first certificates.
    sleep_until(begun + Duration::from_secs(75)).await;
    let seen = traffic.stop().await;
    seen.none_failed();
    assert!(
        seen.client_serials.len() >= 2,
        "the client's: {:?}",
        seen.client_serials
    );
    assert!(
        seen.server_serials.len() >= 2,
        "the server's: {:?}",
        seen.server_serials
    );
    mesh.refused_nothing();
}

/// (c) The control: certificates of 15 s can't outlive 20 s without the CA. A test
/// that did not fail here would measure nothing. After it, all is well again.
#[tokio::test]
async fn certificates_of_15_s_do_not_outlive_20_s_without_the_ca() {
    let mut mesh = Mesh::start("control", "15s").await;
    mesh.first_answer(FIRST).await;
    let traffic = Traffic::start(&mesh);
    // Whatever their age was.
    mesh.node.ca.process().kill().await;
    sleep(Duration::from_secs(20)).await;
    let seen = traffic.stop().await;
    assert!(
        !seen.failures.is_empty(),
        "{} answers with certificates of 15 s",
        seen.answers
    );
    assert!(seen.answers > 0, "it failed from the start");
    mesh.node.ca.start_again().await;
    mesh.first_answer(FIRST).await;
}

/// Each side verifies the other's exact ID: with another one in its file, a
/// certificate of the same authority does not get through.
#[tokio::test]
async fn a_peer_with_another_id_is_refused_by_either_side() {
    let mesh = Mesh::start("exact", "15m").await;
    mesh.first_answer(FIRST).await;
    let id = "spiffe://example.org/ns/exact/sa/somebody";
    for (who, expects_server, expects_client) in [
        ("client", id.to_owned(), mesh.client_id.clone()),
        ("server", mesh.server_id.clone(), id.to_owned()),
    ] {
        let pair = mesh
            .envoys(&format!("odd-{who}"), &expects_server, &expects_client)
            .await;
        let refused = match who {
            "client" => (&pair.client, "cluster.mtls_server.ssl.fail_verify_san"),
            _ => (&pair.server, "listener.127.0.0.1_PORT.ssl.fail_verify_san"),
        };
        pair.refuses(refused.0, refused.1, FIRST).await;
    }
}
