//! A machine with a certificate of its operator's own CA.

use std::path::Path;

use citadel_proto::log::AuthenticationMethod;
use citadel_proto::v1::{AttestAgentRequest, NodeCertificate};
use citadel_tests::citadel::{Agent, AgentBuilder};
use citadel_tests::client::{Client, to_pem};
use citadel_tests::dir::TestDir;
use citadel_tests::pki::{csr, openssl};
use citadel_tests::secrets;
use serde_json::json;
use tonic::Code;

use super::{DEADLINE, Site, fetch};
use crate::support::shows_refusal;

/// The operator's own CA.
struct Corp(TestDir);

/// A certificate of it.
struct Machine {
    chain: Vec<Vec<u8>>,
    key_pem: String,
}

const CLIENT: &str = "extendedKeyUsage=clientAuth\nkeyUsage=critical,digitalSignature\n";
const ECDSA_SHA256: u32 = 0x0403;

fn text(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

impl Corp {
    fn new() -> Self {
        let dir = TestDir::new("corp");
        let key = openssl::ec_key("P-256");
        secrets::register_key_pem("the operator's CA", &key);
        let key = text(&dir.write("key.pem", key));
        let args = [
            "req",
            "-x509",
            "-new",
            "-key",
            &key,
            "-subj",
            "/CN=corp",
            "-days",
            "30",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ];
        dir.write("roots.pem", openssl::run(&args, b""));
        Self(dir)
    }

    fn roots(&self) -> String {
        text(&self.0.join("roots.pem"))
    }

    /// A certificate for this key; `validity` is in openssl's words.
    fn issue(&self, key_pem: &str, name: &str, extensions: &str, validity: &[&str]) -> Machine {
        secrets::register_key_pem("a machine's key", key_pem);
        let dir = TestDir::new("machine");
        let key = text(&dir.write("key.pem", key_pem));
        let subject = format!("/CN={name}");
        let request = openssl::run(&["req", "-new", "-key", &key, "-subj", &subject], b"");
        let extensions = text(&dir.write("extensions", extensions));
        let (ca, ca_key) = (self.roots(), text(&self.0.join("key.pem")));
        let mut args = vec![
            "x509",
            "-req",
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-extfile",
            &extensions,
            "-outform",
            "DER",
        ];
        args.extend(validity);
        Machine {
            chain: vec![openssl::run(&args, &request)],
            key_pem: key_pem.to_owned(),
        }
    }

    fn machine(&self, dns: &str) -> Machine {
        let extensions = format!("{CLIENT}subjectAltName=DNS:{dns}\n");
        self.issue(&openssl::ec_key("P-256"), "x", &extensions, &["-days", "1"])
    }

    async fn site(&self) -> Site {
        let rules = json!([
            { "dns": "{node}.vms.example.org" },
            { "common_name": "db.corp", "node": "vm-2" },
        ]);
        let x509pop = json!({ "roots_file": self.roots(), "rules": rules });
        Site::with(|ca| ca.set("external.x509pop", x509pop)).await
    }
}

impl Machine {
    /// Proves itself by this connection's challenge, or by `instead`.
    async fn shown_to(&self, client: &Client, instead: Option<Vec<u8>>) -> AttestAgentRequest {
        let request = csr::plain();
        let challenge = match instead {
            Some(challenge) => challenge,
            None => client.challenge().await.unwrap(),
        };
        self.proof(&request.der, &request.der, &challenge)
    }

    fn proof(&self, csr: &[u8], signed_csr: &[u8], challenge: &[u8]) -> AttestAgentRequest {
        let dir = TestDir::new("proof");
        let key = text(&dir.write("key.pem", &self.key_pem));
        let csr_hash = openssl::run(&["dgst", "-sha256", "-binary"], signed_csr);
        let message = [b"citadel x509pop 1\0", challenge, &csr_hash].concat();
        AttestAgentRequest {
            csr: csr.to_vec(),
            join_token: None,
            certificate: Some(NodeCertificate {
                chain: self.chain.clone(),
                signature_scheme: ECDSA_SHA256,
                signature: openssl::run(&["dgst", "-sha256", "-sign", &key], &message),
            }),
        }
    }

    /// Its agent, configured as an operator does.
    async fn agent(&self, site: &Site, name: &str) -> Agent {
        let chain: String = self.chain.iter().map(|der| to_pem(der)).collect();
        let certificate = text(&site.dir.write(format!("{name}.pem"), chain));
        let key = text(&site.dir.write(format!("{name}-key.pem"), &self.key_pem));
        AgentBuilder::outside(&site.state(name))
            .set("trust_domain", "example.org")
            .set("ca.addresses", vec![site.ca.grpc().to_string()])
            .set("ca.root_sha256", site.ca.root_sha256())
            .set("external.x509pop.certificate_file", certificate)
            .set("external.x509pop.key_file", key)
            .start()
            .await
    }
}

async fn refused(site: &Site, client: &Client, request: AttestAgentRequest, reason: &str) {
    let (size, lines) = (site.admin.size().await, site.ca.refusals().len());
    let Err(status) = client.attest_with(request).await else {
        panic!("not refused: {reason}");
    };
    assert_eq!(status.code(), Code::Unauthenticated, "{reason}");
    assert_eq!(status.message(), "the caller could not be authenticated");
    shows_refusal(&site.ca.refusals()[lines], "Unauthenticated", reason);
    assert_eq!(site.admin.size().await, size, "{reason}");
}

#[tokio::test]
async fn machines_join_by_their_certificates_of_each_kind_of_key() {
    let corp = Corp::new();
    let site = corp.site().await;
    let san = format!("{CLIENT}subjectAltName=DNS:vm-1.vms.example.org\n");
    let day = ["-days", "1"];
    for (kind, machine) in [
        ("p256", corp.machine("vm-1.vms.example.org")),
        ("rsa", corp.issue(&openssl::rsa_key(2048), "x", &san, &day)),
        (
            "ed25519",
            corp.issue(&openssl::ed25519_key(), "x", &san, &day),
        ),
    ] {
        let mut agent = machine.agent(&site, kind).await;
        let svid = fetch(&agent, &site.dir).await.unwrap();
        assert!(svid.contains("spiffe://example.org/vm"), "{kind}: {svid}");
        let own = "spiffe://example.org/citadel/agent/external/vm-1";
        let newest = &site.admin.all(own).await[0];
        assert_eq!(
            newest.caller().method(),
            AuthenticationMethod::X509pop,
            "{kind}"
        );
        // It keeps its SVID like one that joined by token.
        let before = site.acts().await.len();
        agent.process().kill().await;
        agent.start_again().await;
        assert_eq!(site.acts().await.len(), before, "{kind}");
    }
    let by_name = corp.issue(&openssl::ec_key("P-384"), "db.corp", CLIENT, &day);
    let agent = by_name.agent(&site, "by-name").await;
    let svid = fetch(&agent, &site.dir).await.unwrap();
    assert!(svid.contains("spiffe://example.org/other"), "{svid}");
    let acts = site.acts().await;
    assert_eq!(
        acts.iter().filter(|act| act.contains("by X509pop")).count(),
        4,
        "{acts:#?}"
    );

    // Evicted, no certificate lets it in again before it is admitted.
    site.node(&["evict", "vm-2"]).await.success();
    let told = agent
        .process()
        .log_line("the agent's log", DEADLINE, |line| {
            line.contains("could not prove itself")
        });
    told.await;
    let client = site.client().build();
    let machine = corp.issue(&openssl::ec_key("P-256"), "db.corp", CLIENT, &day);
    let request = machine.shown_to(&client, None).await;
    refused(&site, &client, request, "node external/vm-2 is evicted").await;
    site.node(&["admit", "vm-2"]).await.success();
    let request = machine.shown_to(&client, None).await;
    client.attest_with(request).await.unwrap();
}

#[tokio::test]
async fn a_challenge_is_of_its_connection_and_works_once() {
    let corp = Corp::new();
    let site = corp.site().await;
    let machine = corp.machine("vm-1.vms.example.org");
    let client = site.client().build();
    let none = "no challenge was given on this connection";
    let unasked = machine.shown_to(&client, Some(vec![7; 32])).await;
    refused(&site, &client, unasked, none).await;
    let request = machine.shown_to(&client, None).await;
    client.attest_with(request.clone()).await.unwrap();
    refused(&site, &client, request, none).await;
    // Of another connection.
    let other = site.client().build();
    let foreign = client.challenge().await.unwrap();
    let request = machine.shown_to(&other, Some(foreign)).await;
    refused(&site, &other, request.clone(), none).await;
    other.challenge().await.unwrap();
    let wrong = "the signature over the challenge is not one";
    refused(&site, &other, request, wrong).await;
    // For another key than the one that is asked for.
    let (mine, theirs) = (csr::plain(), csr::plain());
    let challenge = client.challenge().await.unwrap();
    let request = machine.proof(&theirs.der, &mine.der, &challenge);
    refused(&site, &client, request, wrong).await;
    // With a scheme that is not taken: RSA PKCS#1 with SHA-1.
    let mut request = machine.shown_to(&client, None).await;
    request.certificate.as_mut().unwrap().signature_scheme = 0x0201;
    refused(
        &site,
        &client,
        request,
        "the signature scheme 0x0201 is not accepted",
    )
    .await;
    // Somebody else's certificate with one's own key.
    let thief = corp.machine("vm-2.vms.example.org");
    let mut request = thief.shown_to(&client, None).await;
    request.certificate.as_mut().unwrap().chain = machine.chain.clone();
    refused(&site, &client, request, wrong).await;
}

#[tokio::test]
async fn a_certificate_lets_in_by_its_path_its_time_its_usage_and_its_name() {
    let corp = Corp::new();
    let site = corp.site().await;
    let client = site.client().build();
    let key = openssl::ec_key("P-256");
    let san = "subjectAltName=DNS:vm-1.vms.example.org\n";
    let day = ["-days", "1"];
    let past = ["-days", "-1"];
    let with = |extensions: &str| format!("{extensions}{san}");
    for (reason, machine) in [
        (
            "a signature in the chain does not verify",
            Corp::new().machine("vm-1.vms.example.org"),
        ),
        ("expired", corp.issue(&key, "x", &with(CLIENT), &past)),
        (
            "key usage",
            corp.issue(&key, "x", &with("extendedKeyUsage=serverAuth\n"), &day),
        ),
        (
            "igital",
            corp.issue(&key, "x", &with("keyUsage=critical,keyAgreement\n"), &day),
        ),
        (
            "CA",
            corp.issue(
                &key,
                "x",
                &with("basicConstraints=critical,CA:TRUE\n"),
                &day,
            ),
        ),
        (
            "no rule of external.x509pop",
            corp.machine("vm-1.example.org"),
        ),
        (
            "no rule of external.x509pop",
            corp.machine("a.b.vms.example.org"),
        ),
        (
            "those of several nodes: vm-1, vm-2",
            corp.machine("vm-1.vms.example.org,DNS:vm-2.vms.example.org"),
        ),
    ] {
        let request = machine.shown_to(&client, None).await;
        refused(&site, &client, request, reason).await;
    }
    // Where the operator configured none, no certificate lets anybody in.
    let without = Site::start().await;
    let client = without.client().build();
    let request = corp
        .machine("vm-1.vms.example.org")
        .shown_to(&client, None)
        .await;
    refused(
        &without,
        &client,
        request,
        "external.x509pop is not configured",
    )
    .await;
}
