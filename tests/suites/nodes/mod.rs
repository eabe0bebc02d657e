//! Nodes outside Kubernetes: a CA that serves no cluster at all, and agents of virtual machines.

mod document;
mod envoy;
mod evicted;
mod join;
mod refused;
mod x509pop;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use citadel_proto::log::entry::Kind;
use citadel_proto::v1::{AttestAgentRequest, JoinToken};
use citadel_tests::citadel::{Agent, AgentBuilder, Ca, CaBuilder, Finished, citadel};
use citadel_tests::client::{Admin, ClientBuilder, Identity};
use citadel_tests::dir::TestDir;
use citadel_tests::parts::program;
use citadel_tests::pki::csr::Csr;
use citadel_tests::secrets;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

/// A debug build, on a machine that may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

const PREFIX: &str = "citadel-join-1.";

/// A CA, and where its operator works.
struct Site {
    ca: Ca,
    admin: Admin,
    dir: TestDir,
}

/// A token as the CA's operator carries it.
struct Carried {
    text: String,
    id: String,
}

impl Site {
    async fn start() -> Self {
        Self::with(|ca| ca).await
    }

    async fn with(change: impl FnOnce(CaBuilder) -> CaBuilder) -> Self {
        let ca = CaBuilder::with_clusters(TestDir::new("ca"), json!([])).set(
            "entries",
            json!([
                { "id": "/vm", "dns_names": ["vm.example.org"], "nodes": ["external/vm-1"],
                  "selectors": ["unix:uid:0"], "ttl": "20s" },
                { "id": "/other", "nodes": ["external/vm-2"], "selectors": ["unix:uid:0"] },
            ]),
        );
        let ca = change(ca.set("lifetimes.min", "1s")).start().await;
        Self {
            admin: Admin::of(&ca),
            dir: TestDir::new("operator"),
            ca,
        }
    }

    /// `citadel node …` at the CA.
    async fn node(&self, args: &[&str]) -> Finished {
        let server = self.server();
        let args = [&["node"], args, &[server.as_str()]].concat();
        citadel(&self.dir, args, &[], DEADLINE).await
    }

    fn server(&self) -> String {
        format!("--server=unix://{}", self.ca.admin_socket().display())
    }

    async fn token(&self, node: &str, ttl: &str) -> Carried {
        let address = self.ca.grpc().to_string();
        let create = ["token", "create", "--node", node, "--ttl", ttl];
        let create = [&create[..], &["--ca-address", &address, "--output", "json"]].concat();
        // What it prints is the secret: in no file of the suite.
        let made = Command::new(program("citadel"))
            .arg("node")
            .args(create)
            .arg(self.server())
            .stdin(Stdio::null())
            .output();
        let made = timeout(DEADLINE, made).await.expect("a token").unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let text = made["token"].as_str().unwrap().to_owned();
        let content = content(&text);
        secrets::register_token("join token", content["secret"].as_str().unwrap());
        Carried {
            id: made["id"].as_str().unwrap().to_owned(),
            text,
        }
    }

    /// The kinds of entries that are no certificates, with what they say.
    async fn acts(&self) -> Vec<String> {
        let entries = self.admin.read_log(0).await;
        let shown = entries
            .into_iter()
            .filter_map(|(_, entry)| match entry.kind {
                Some(Kind::AdministratorAct(act)) => {
                    Some(format!("{} by {}: {}", act.act, act.by, act.details))
                }
                Some(Kind::NodeAttested(attested)) => Some(format!(
                    "attested {} by {:?} {}",
                    attested.node,
                    attested.method(),
                    attested.evidence
                )),
                _ => None,
            });
        shown.collect()
    }

    /// A client without any credential.
    fn client(&self) -> ClientBuilder {
        ClientBuilder::new(&self.ca)
    }

    /// A folder for an agent's state; not there yet.
    fn state(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `citadel node join` on the node.
    async fn join(&self, token: &str, state: &Path) -> Finished {
        let state = state.to_str().unwrap();
        let args = ["node", "join", token, "--state-dir", state];
        citadel(&self.dir, args, &[], DEADLINE).await
    }

    /// A node that joined, with its agent.
    async fn agent(&self, node: &str) -> (Agent, PathBuf) {
        let token = self.token(node, "10m").await;
        let state = self.state(node);
        self.join(&token.text, &state).await.success();
        let agent = AgentBuilder::outside(&state).start().await;
        (agent, state)
    }
}

/// The identity that an agent keeps.
fn kept(state: &Path) -> Identity {
    let text = std::fs::read_to_string(state.join("agent.json")).unwrap();
    let kept: Value = serde_json::from_str(&text).unwrap();
    let der = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
    let key = der(&kept["key"]);
    secrets::register_key("agent key", &key);
    let body = STANDARD.encode(&key);
    Identity {
        chain: kept["chain"].as_array().unwrap().iter().map(der).collect(),
        key_pem: format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"),
    }
}

/// What a token says.
fn content(token: &str) -> Value {
    let body = token.strip_prefix(PREFIX).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap()
}

/// A token that says something else.
fn changed(token: &str, key: &str, value: impl Into<Value>) -> String {
    let mut content = content(token);
    content[key] = value.into();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(content.to_string()))
}

/// The request of an agent that shows this token.
fn showing(token: &str, csr: &Csr) -> AttestAgentRequest {
    let content = content(token);
    let bytes = |key: &str| hex::decode(content[key].as_str().unwrap()).unwrap();
    let mut shown = JoinToken::default();
    shown.id = bytes("id");
    shown.secret = bytes("secret");
    AttestAgentRequest {
        csr: csr.der.clone(),
        join_token: Some(shown),
        certificate: None,
    }
}

/// `citadel fetch` as a workload of this node; the ID that it got.
async fn fetch(agent: &Agent, dir: &TestDir) -> Result<String, String> {
    let args = ["fetch", "--output", "json", "--timeout", "10s"];
    let endpoint = agent.endpoint();
    let fetched = citadel(
        dir,
        args,
        &[("SPIFFE_ENDPOINT_SOCKET", &endpoint)],
        DEADLINE,
    )
    .await;
    match fetched.code {
        Some(0) => Ok(fetched.output),
        _ => Err(fetched.errors),
    }
}
