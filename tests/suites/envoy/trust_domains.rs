//! Envoy's SPIFFE validator, as the agent sets it up where there are several trust domains.

use std::net::SocketAddr;
use std::time::Duration;

use citadel_tests::citadel::AgentBuilder;
use citadel_tests::client::Identity;
use citadel_tests::deploy::{self, Mtls};
use citadel_tests::dir::TestDir;
use citadel_tests::envoy::Envoy;
use citadel_tests::pki::openssl;
use citadel_tests::{ports, wait};

use crate::support::federated::FederatedCa;

const START: Duration = Duration::from_secs(30);

/// Whether the server answers this client over mTLS.
fn answers(dir: &TestDir, server: SocketAddr, client: &Identity) -> bool {
    let (chain, key) = client.write(dir, "client");
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let server = server.to_string();
    let args = [
        "s_client",
        "-quiet",
        "-ign_eof",
        "-connect",
        &server,
        "-cert",
        &chain,
        "-cert_chain",
        &chain,
        "-key",
        &key,
    ];
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (_, output, _) = openssl::attempt(&args, request);
    String::from_utf8_lossy(&output).contains("hello over mTLS")
}

/// Starts a server on the bundle of this name that admits this ID.
async fn server(
    agent: &citadel_tests::citadel::Agent,
    dir: &TestDir,
    bundle: &str,
    expected: &str,
) -> (Envoy, SocketAddr) {
    let socket = agent.socket();
    let of_server = Mtls {
        socket: &socket,
        admin: ports::address(),
        server: ports::address(),
        expected,
    };
    let file = deploy::with_bundle(&deploy::envoy_server(&of_server), bundle);
    let name = format!("server-{}", of_server.server.port());
    let envoy = Envoy::start(&name, dir, &file, of_server.admin).await;
    wait::until("the listener", START, async || {
        let active = envoy.stat("listener_manager.total_listeners_active").await;
        (active == 1).then_some(())
    })
    .await;
    (envoy, of_server.server)
}

#[tokio::test]
async fn sds_req_14_each_trust_domain_vouches_for_its_own_names_alone() {
    let dir = TestDir::new("trust-domains");
    let ca = FederatedCa::start().await;
    let bundle = ca.own.file();
    let agent = AgentBuilder::for_address(&ca.address.to_string(), "a token")
        .set("ca.bundle_file", bundle.to_str().expect("a plain path"))
        .start()
        .await;
    let (foreign, ours) = ("spiffe://other.org/client", "spiffe://example.org/client");
    let by_other = ca.other.identity(foreign);
    // What a compromised or careless authority might sign.
    let foreign_by_own = ca.own.identity(foreign);
    let ours_by_other = ca.other.identity(ours);
    let ours_by_own = ca.own.identity(ours);

    // All bundles: each for its own.
    let (envoy, address) = server(&agent, &dir, "ALL", foreign).await;
    assert!(answers(&dir, address, &by_other));
    assert!(
        !answers(&dir, address, &foreign_by_own),
        "our root vouches for other.org"
    );
    let (_envoy, address) = server(&agent, &dir, "ALL", ours).await;
    assert!(answers(&dir, address, &ours_by_own));
    assert!(
        !answers(&dir, address, &ours_by_other),
        "their root vouches for us"
    );

    // One bundle: the others are not trusted at all.
    let (_envoy, address) = server(&agent, &dir, "ROOTCA", ours).await;
    assert!(answers(&dir, address, &ours_by_own));
    assert!(!answers(&dir, address, &ours_by_other));
    let (_envoy, address) = server(&agent, &dir, "ROOTCA", foreign).await;
    assert!(!answers(&dir, address, &by_other));
    let (_envoy, address) = server(&agent, &dir, "spiffe://other.org", foreign).await;
    assert!(answers(&dir, address, &by_other));
    assert!(!answers(&dir, address, &foreign_by_own));

    let metrics = agent.metrics().await;
    assert!(
        metrics.contains("citadel_agent_sds_nacks_total 0"),
        "{metrics}"
    );
    assert!(envoy.process().is_running());
}
