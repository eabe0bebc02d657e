//! Whom an agent takes for its CA: only a server with the CA's own SPIFFE ID that
//! chains to its first trust. Everybody else gets neither token nor request.

mod configmap;
mod impostor;

use std::path::Path;
use std::time::Duration;

use citadel_tests::citadel::{AgentBuilder, Ca, CaBuilder};
use citadel_tests::client::{Admin, ClientBuilder, Identity};
use citadel_tests::kubernetes::{AgentPod, ApiServer};
use citadel_tests::pki::csr;
use citadel_tests::{http, wait};
use impostor::{Impostor, ca_lookalike, self_signed};

/// An agent tries again within a second or two.
const TRIES: Duration = Duration::from_secs(30);

const CA_ID: &str = "spiffe://example.org/citadel/ca";

/// How an agent knows its CA.
#[derive(Clone, Copy, Debug)]
enum FirstTrust {
    Bundle,
    RootHash,
}

struct Scene {
    ca: Ca,
    agent: AgentPod,
}

impl Scene {
    async fn start(node: &str) -> Self {
        let api = ApiServer::shared().await;
        let agent = api.create_agent(node).await;
        Self {
            ca: CaBuilder::new(api).await.start().await,
            agent,
        }
    }

    /// An agent that trusts this scene's CA and is pointed at `address`.
    fn agent_of(&self, address: &str, trust: FirstTrust) -> AgentBuilder {
        let agent = AgentBuilder::for_address(address, &self.agent.token);
        match trust {
            FirstTrust::Bundle => {
                let bundle = self.ca.bundle_file();
                agent.set("ca.bundle_file", bundle.to_str().expect("a plain path"))
            }
            FirstTrust::RootHash => agent.set("ca.root_sha256", self.ca.root_sha256()),
        }
    }

    /// Points an agent at this server; it has to come back a few times, and to leave
    /// each time before it has said anything.
    async fn refuses(&self, what: &str, server: &Identity, trust: FirstTrust) {
        let impostor = Impostor::start(server).await;
        let agent = self
            .agent_of(&impostor.address().to_string(), trust)
            .start_unready();
        wait::until(what, TRIES, async || {
            (impostor.connections() >= 3).then_some(())
        })
        .await;
        let seen = impostor.seen();
        assert_eq!(
            seen.handshakes, 0,
            "{what}, {trust:?}: a handshake was completed"
        );
        assert!(
            seen.plain.is_empty(),
            "{what}, {trust:?}: {} bytes came",
            seen.plain.len()
        );
        assert!(
            !agent.is_ready().await,
            "{what}, {trust:?}: the agent calls itself ready"
        );
        let health = http::get(agent.admin(), "/readyz")
            .await
            .expect("its health");
        assert!(health.body.contains("ca"), "{what}: {}", health.body);
        // The reason is in the log; the token is not (the search after the suite).
        assert!(
            agent.log().contains("could not prove itself"),
            "{what}: {}",
            agent.log()
        );
    }
}

#[tokio::test]
async fn a_workload_s_or_an_agent_s_svid_of_the_same_root_is_not_the_ca() {
    let scene = Scene::start("trust-svid").await;
    let api = ApiServer::shared().await;
    api.create_workload("trust-svid", "web", "web-1", "trust-svid")
        .await;
    let token = api.token("trust-svid", "web", "web-1").await;
    let csr = csr::plain();
    let client = ClientBuilder::new(&scene.ca);
    let answer = client
        .clone()
        .token(&token)
        .build()
        .issue(&csr)
        .await
        .expect("an SVID");
    let mut workload = Identity::new(&answer.svid.expect("an SVID"), &csr);
    let csr = csr::plain();
    let attested = client
        .token(&scene.agent.token)
        .build()
        .attest(&csr)
        .await
        .expect("an SVID");
    let mut agent = Identity::new(&attested.svid.expect("an SVID"), &csr);
    // As the CA's own server does, the root comes along.
    let root = impostor::der_of(&scene.ca.bundle_file());
    workload.chain.push(root.clone());
    agent.chain.push(root);
    for trust in [FirstTrust::Bundle, FirstTrust::RootHash] {
        scene.refuses("a workload's SVID", &workload, trust).await;
        scene.refuses("an agent's SVID", &agent, trust).await;
    }
}

#[tokio::test]
async fn a_ca_outside_of_the_first_trust_is_refused() {
    let (scene, other) = (
        Scene::start("trust-other").await,
        Scene::start("trust-2").await,
    );
    let foreign = ca_lookalike(&other.ca.data_dir(), CA_ID);
    let mut with_our_root = foreign.clone();
    with_our_root
        .chain
        .push(impostor::der_of(&scene.ca.bundle_file()));
    for trust in [FirstTrust::Bundle, FirstTrust::RootHash] {
        scene.refuses("another CA", &foreign, trust).await;
        scene
            .refuses("another CA that shows our root", &with_our_root, trust)
            .await;
        scene
            .refuses(
                "a certificate of its own making",
                &self_signed(CA_ID),
                trust,
            )
            .await;
    }
    // A whole real CA of the same trust domain, with the same API server behind it.
    let size = Admin::of(&other.ca).size().await;
    let agent = scene
        .agent_of(&other.ca.grpc().to_string(), FirstTrust::Bundle)
        .start_unready();
    agent
        .process()
        .log_line("a try", TRIES, |line| {
            line.contains("could not prove itself")
        })
        .await;
    assert!(!agent.is_ready().await);
    assert_eq!(
        Admin::of(&other.ca).size().await,
        size,
        "the other CA issued something"
    );
    // It saw connections that the agent broke off in the handshake, and no call.
    for line in other.ca.refusals() {
        assert_eq!(line["code"], "CONNECTION_REFUSED", "{line}");
    }
}

#[tokio::test]
async fn names_near_the_ca_s_own_are_not_the_ca() {
    let scene = Scene::start("trust-names").await;
    let data = scene.ca.data_dir();
    for id in [
        "spiffe://example.org/citadel/ca/x",
        "spiffe://example.org/citadel/cb",
        "spiffe://example.org.evil.example/citadel/ca",
        "spiffe://example.org",
        "https://example.org/citadel/ca",
    ] {
        scene
            .refuses(id, &ca_lookalike(&data, id), FirstTrust::Bundle)
            .await;
    }
}

/// The control: whoever holds the CA's key and uses its name gets the token. So the
/// impostor of the other tests would have seen one.
#[tokio::test]
async fn a_server_that_is_the_ca_in_every_respect_is_told_the_token() {
    let scene = Scene::start("trust-control").await;
    for trust in [FirstTrust::Bundle, FirstTrust::RootHash] {
        let impostor = Impostor::start(&ca_lookalike(&scene.ca.data_dir(), CA_ID)).await;
        let address = impostor.address().to_string();
        let _agent = scene.agent_of(&address, trust).start_unready();
        wait::until("the token", TRIES, async || {
            // HTTP/2 with Huffman coding: its length tells.
            (impostor.seen().plain.len() > scene.agent.token.len() / 2).then_some(())
        })
        .await;
        assert!(impostor.seen().handshakes > 0);
    }
    // The real one takes the same agent.
    let agent = scene
        .agent_of(&scene.ca.grpc().to_string(), FirstTrust::RootHash)
        .start()
        .await;
    assert!(agent.is_ready().await);
    assert!(Path::new(&agent.socket()).exists());
}
