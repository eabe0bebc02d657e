//! A server that runs already: what the user gave to reach it, and an agent's identity.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use citadel_identity::bundle::BundleSet;
use citadel_identity::key::WorkloadKey;
use citadel_identity::{SpiffeId, TrustDomain, template};
use citadel_proto::v1::{AttestAgentRequest, AttestAgentResponse};
use prost::Message as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;

use super::args::IssueArgs;
use super::http_get::http_get;
use super::material::{PodRef, pod_of};
use super::measure::{self, Usage};
use super::wire::{Call, CallError, Line, bearer};
use crate::certificate::Facts;
use crate::exit::Failure;
use crate::trust::{self, ClientIdentity};

const ATTEST_AGENT: &str = "/citadel.v1.AgentService/AttestAgent";
const ATTEST_TIMEOUT: Duration = Duration::from_secs(30);
const ADMIN_PORT: u16 = 15_014;

/// The server that --target names.
pub(crate) struct Target {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) bundles: BundleSet,
    admin: String,
}

impl Target {
    pub(crate) fn read(args: &IssueArgs, address: &str) -> Result<Self, Failure> {
        let Some((host, _)) = address.rsplit_once(':') else {
            return Err(
                Failure::usage(format!("--target {address}: the port is missing"))
                    .next("Write --target 127.0.0.1:15012."),
            );
        };
        // clap requires it with --target.
        let path = args.trust_bundle.as_deref().unwrap_or(Path::new(""));
        let pem = read(path)?;
        let (trust_domain, bundles) = trust::bundles(path, &pem, args.trust_domain.as_deref())?;
        Ok(Self {
            bundles,
            trust_domain,
            admin: args
                .target_admin
                .clone()
                .unwrap_or_else(|| format!("{host}:{ADMIN_PORT}")),
        })
    }

    pub(crate) async fn usage(&self) -> Option<Usage> {
        match http_get(&self.admin, "/metrics").await {
            Ok((200, text)) => measure::parse_metrics(&text),
            _ => None,
        }
    }
}

/// The tokens of --tokens, one a line.
pub(crate) fn tokens(args: &IssueArgs) -> Result<Vec<String>, Failure> {
    // `IssueArgs::check` requires it with --target.
    let path = args.tokens.as_deref().unwrap_or(Path::new(""));
    let content = String::from_utf8(read(path)?)
        .map_err(|_| Failure::usage(format!("{} is not text", path.display())))?;
    let tokens: Vec<String> = content
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(String::from)
        .collect();
    if tokens.is_empty() {
        return Err(
            Failure::usage(format!("{} has no token in it", path.display()))
                .next("Write one token a line."),
        );
    }
    Ok(tokens)
}

/// An agent's identity from --agent-svid.
pub(crate) struct Agent {
    pub(crate) identity: ClientIdentity,
    node: String,
}

impl Agent {
    pub(crate) fn read(args: &IssueArgs) -> Result<Self, Failure> {
        // `IssueArgs::check` requires it for this path.
        let folder = args.agent_svid.as_deref().unwrap_or(Path::new(""));
        let identity = trust::identity(folder)?;
        let facts = Facts::of(&identity.chain[0], 1)
            .map_err(|error| Failure::local(format!("the agent's certificate: {error}")))?;
        let id = facts.uris.first().and_then(|uri| SpiffeId::new(uri).ok());
        let node = id
            .as_ref()
            .and_then(template::parse_agent_id)
            .map(|(_, node)| node);
        let Some(node) = node else {
            return Err(Failure::usage(format!(
                "{} is not an agent's",
                folder.join("svid.pem").display()
            ))
            .next("An agent's SPIFFE ID is spiffe://TRUST_DOMAIN/citadel/agent/CLUSTER/NODE."));
        };
        Ok(Self { identity, node })
    }

    /// The pods that these tokens are bound to and that are on this agent's node.
    pub(crate) fn pods(&self, tokens: &[String]) -> Result<Vec<PodRef>, Failure> {
        let bound = tokens.iter().filter_map(|token| pod_of(token));
        let pods: Vec<PodRef> = bound.filter(|pod| pod.node == self.node).collect();
        if pods.is_empty() {
            return Err(Failure::usage(format!(
                "no token of --tokens is of a pod on {}",
                self.node
            ))
            .next("An agent may only ask for the pods of its own node."));
        }
        Ok(pods)
    }
}

/// Becomes a node's agent: its token, then a certificate of its own.
pub(crate) async fn attest(
    line: &Arc<Line>,
    token: &str,
    key: WorkloadKey,
) -> Result<ClientIdentity, Failure> {
    let csr = key
        .csr()
        .map_err(|error| Failure::local(format!("can't make a CSR: {error}")))?;
    let token = bearer(token).map_err(|_| Failure::local("the agent's token fits in no header"))?;
    let request = AttestAgentRequest {
        csr,
        join_token: None,
        certificate: None,
    };
    let call = Call::new(ATTEST_AGENT, Some(token), &request);
    let refused = |error: CallError| {
        Failure::unavailable(format!(
            "the server does not attest the bench's agent: {error}"
        ))
    };
    let mut caller = line.caller();
    caller
        .ready(Instant::now() + ATTEST_TIMEOUT)
        .await
        .map_err(refused)?;
    let answer = caller.call(&call).await.map_err(refused)?;
    let answer = AttestAgentResponse::decode(answer)
        .map_err(|_| Failure::check("the server's answer to AttestAgent can't be decoded"))?;
    let svid = answer
        .svid
        .ok_or_else(|| Failure::check("AttestAgent brought no certificate"))?;
    let key = PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec());
    Ok(ClientIdentity {
        chain: svid.certificate_chain,
        key: PrivateKeyDer::from(key),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path)
        .map_err(|error| Failure::local(format!("can't read {}: {error}", path.display())))
}
