//! One attestation of the agent: by its SVID, its token, or what an operator gave the node.

use std::{fmt::Display, sync::Arc, time::Duration};

use citadel_identity::{
    bundle::Bundle,
    join_token,
    key::WorkloadKey,
    tls::Trust,
    x509pop::{self, NodeKey},
};
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, GetChallengeRequest, JoinToken, NodeCertificate,
    agent_service_client::AgentServiceClient,
};
use citadel_runtime::client;
use rand::Rng;
use tonic::{Request, metadata::MetadataValue, transport::Channel};
use zeroize::Zeroizing;

use super::{
    CaError, Credential, Session,
    identity::{AgentSvid, AgentSvidError},
    session::{CHANNEL, Link},
    status::{describe, error_of, is_refusal},
    streams,
};
use crate::external::{self, Joining};

/// How long an attestation may take: the CA may have to ask its API server.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why an attestation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttestError {
    #[error("{0}")]
    Local(String),
    #[error("the CA refuses this agent: {0}")]
    Refused(String),
    #[error("{0}")]
    Call(#[from] CaError),
    #[error("{0}")]
    Answer(#[from] AgentSvidError),
}

pub(super) fn local(error: &dyn Display) -> AttestError {
    AttestError::Local(error.to_string())
}

impl Session {
    /// Proves the agent to the CA, and connects under the SVID that comes of it.
    pub(super) async fn attest(
        &self,
        by_svid: Option<Arc<AgentSvid>>,
    ) -> Result<Link, AttestError> {
        let joining = match &self.credential {
            Credential::External(external) if by_svid.is_none() => {
                let joining = external.joining(self.trust_domain());
                Some(joining.map_err(|error| local(&error))?)
            }
            _ => None,
        };
        let key = match &joining {
            Some(Joining::Token(_, key)) => Arc::clone(key),
            _ => Arc::new(WorkloadKey::generate().map_err(|error| local(&error))?),
        };
        let channel = match &joining {
            Some(Joining::Token(token, _)) => self.channel_to(token)?,
            _ => self.channel(by_svid.clone())?,
        };
        let mut client = AgentServiceClient::new(channel);
        let shown = shown(&mut client, joining.as_ref(), &key).await?;
        let request = self.request(shown, by_svid.is_none())?;
        let asked = self.clock.now();
        let answer = tokio::time::timeout(DEADLINE, client.attest_agent(request))
            .await
            .map_err(|_| CaError::Unreachable("no answer in time".to_owned()))?;
        let AttestAgentResponse {
            svid,
            bundles,
            server_time_ms,
        } = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_refusal(&status) => {
                return Err(AttestError::Refused(describe(&status)));
            }
            Err(status) => return Err(error_of(&status).into()),
        };
        self.skew.note(server_time_ms, asked, self.clock.now());
        let bundles = streams::bundle_set(bundles);
        let chain = svid.as_ref().map(|svid| svid.certificate_chain.clone());
        let svid = AgentSvid::accept(
            svid,
            Arc::clone(&key),
            self.trust_domain(),
            &bundles,
            server_time_ms,
            rand::rng().random(),
        )?;
        if let (Some(chain), Some(own)) = (chain, bundles.get(self.trust_domain())) {
            self.keep(chain, &key, own, joining.as_ref());
        }
        self.trust.update(bundles);
        self.link_under(Arc::new(svid))
    }

    /// With the agent's token where it has no SVID to show, if it is one that has tokens.
    fn request(
        &self,
        shown: AttestAgentRequest,
        by_token: bool,
    ) -> Result<Request<AttestAgentRequest>, AttestError> {
        let mut request = Request::new(shown);
        if let (true, Credential::Token(source)) = (by_token, &self.credential) {
            let token = source.token().map_err(|error| local(&error))?;
            let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let mut value = MetadataValue::try_from(bearer.as_str())
                .map_err(|_| local(&"the token holds characters that no token has"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        if !self.config.cluster.is_empty() {
            let value = MetadataValue::try_from(self.config.cluster.as_str())
                .map_err(|_| local(&"the cluster's name is no header value"))?;
            request.metadata_mut().insert("clusterid", value);
        }
        Ok(request)
    }

    /// On a node outside Kubernetes the identity is there after a restart.
    fn keep(
        &self,
        chain: Vec<Vec<u8>>,
        key: &WorkloadKey,
        own: &Bundle,
        joining: Option<&Joining>,
    ) {
        let Credential::External(external) = &self.credential else {
            return;
        };
        let token = match joining {
            Some(Joining::Token(token, _)) => Some(token),
            _ => None,
        };
        let configured = self.config.addresses.iter().map(ToString::to_string);
        let addresses = match token {
            Some(token) => token.ca_addresses.clone(),
            None => configured.collect(),
        };
        // The identity counts all the same: it is a restart that would not find it.
        let joined_with = token.map(|token| token.id);
        if let Err(error) = external.keep(chain, key, own, addresses, joined_with) {
            tracing::error!(%error, "this node's SVID is not kept for the next start");
        }
    }

    /// A channel to the CA that a join token names, known by the hash that it carries: nothing
    /// is sent to another one.
    fn channel_to(&self, token: &join_token::JoinToken) -> Result<Channel, AttestError> {
        let trust = Trust::RootSha256(token.root_sha256);
        let tls = self.trust.tls_by(trust, None);
        let tls = Arc::new(tls.map_err(|error| local(&error))?);
        let addresses = external::addresses(&token.ca_addresses);
        client::channel(addresses, Arc::new(move || Arc::clone(&tls)), CHANNEL)
            .map_err(|error| local(&error))
    }
}

/// A request for this key, with what the node shows of itself in it.
async fn shown(
    client: &mut AgentServiceClient<Channel>,
    joining: Option<&Joining>,
    key: &WorkloadKey,
) -> Result<AttestAgentRequest, AttestError> {
    let mut shown = AttestAgentRequest {
        csr: key.csr().map_err(|error| local(&error))?,
        ..AttestAgentRequest::default()
    };
    match joining {
        None => {}
        Some(Joining::Token(token, _)) => {
            let mut join_token = JoinToken::default();
            join_token.id = token.id.to_vec();
            join_token.secret = token.secret.to_vec();
            shown.join_token = Some(join_token);
        }
        Some(Joining::Certificate(chain, key)) => {
            let proof = prove(client, chain, key, &shown.csr).await?;
            shown.certificate = Some(proof);
        }
    }
    Ok(shown)
}

/// Proves the node's certificate by a challenge of this connection.
async fn prove(
    client: &mut AgentServiceClient<Channel>,
    chain: &[Vec<u8>],
    key: &NodeKey,
    csr: &[u8],
) -> Result<NodeCertificate, AttestError> {
    let asked = client.get_challenge(GetChallengeRequest {});
    let answer = tokio::time::timeout(DEADLINE, asked)
        .await
        .map_err(|_| CaError::Unreachable("no answer in time".to_owned()))?;
    let answer = answer.map_err(|status| error_of(&status))?.into_inner();
    let challenge = <[u8; x509pop::CHALLENGE_BYTES]>::try_from(answer.challenge.as_slice())
        .map_err(|_| CaError::Other("a challenge of another size".to_owned()))?;
    let (scheme, signature) = key.sign(&challenge, csr).map_err(|error| local(&error))?;
    Ok(NodeCertificate {
        chain: chain.to_vec(),
        signature_scheme: scheme.into(),
        signature,
    })
}
