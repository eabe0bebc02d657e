//! The agent's standing with its CA: attests by token, renews by its SVID, falls back to
//! the token, and carries the calls of everybody else.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use citadel_identity::{
    SpiffeId, TrustDomain,
    key::WorkloadKey,
    tls::Trust,
    x509pop::{self, NodeKey},
};
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, EntriesUpdate, GetChallengeRequest, IssueBatchRequest,
    IssueItem, JoinToken, NodeCertificate, agent_service_client::AgentServiceClient,
};
use citadel_runtime::{
    ShutdownSignal,
    admin::PartHandle,
    client::{self, Address, ChannelOptions},
};
use rand::Rng;
use rustls::{ClientConfig, client::ResolvesClientCert};
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};
use zeroize::Zeroizing;

use super::{
    Ca, CaError, Entries, FirstTrust, Issued, TokenSource, identity::AgentSvid, skew::Skew,
    streams, trust::TrustStore,
};
use crate::{
    clock::Clock,
    external::{self, External, Joining},
    metrics::Metrics,
    secrets::timing,
};

/// How long an attestation may take: the CA may have to ask its API server.
const ATTEST_DEADLINE: Duration = Duration::from_secs(10);

/// How long a batch may take. Short enough that a hung CA costs a certificate of 15 s
/// one try, not its life.
const BATCH_DEADLINE: Duration = Duration::from_secs(5);

/// How long what is asked for before first contact waits for it: the pods of the node are known
/// a moment before the CA knows the agent, and none of them has to wait for a second try.
const FIRST_CONTACT: Duration = Duration::from_secs(1);

/// How often the agent proves itself anew because calls fail, at most.
const REATTEST_EVERY: Duration = Duration::from_secs(5);

/// After this many calls in a row without a connection the SVID itself is in doubt: a
/// server that does not accept it breaks the handshake.
const DOUBT_AFTER: u32 = 3;

/// Bounds of a connection to the CA.
const CHANNEL: ChannelOptions = ChannelOptions {
    connect_timeout: Duration::from_secs(3),
    keepalive_interval: Duration::from_secs(10),
    keepalive_timeout: Duration::from_secs(5),
};

/// What the session needs to know.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The CA's addresses, tried in turn.
    pub addresses: Vec<Address>,
    /// Whom to take for the CA.
    pub first_trust: FirstTrust,
    /// Sent as `clusterid`; empty sends none.
    pub cluster: String,
    /// Whether the containers of a pod can be told apart.
    pub knows_containers: bool,
}

/// What the agent proves itself by where it has no SVID of its own.
#[derive(Debug, Clone)]
pub enum Credential {
    /// Its service-account token.
    Token(Arc<dyn TokenSource>),
    /// What an operator gave a node outside Kubernetes.
    External(Arc<External>),
}

/// See the module. One for the process.
pub struct Session {
    config: SessionConfig,
    pub(super) trust: Arc<TrustStore>,
    credential: Credential,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) skew: Skew,
    ready: PartHandle,
    link: watch::Sender<Option<Arc<Link>>>,
    pub(super) entries: watch::Sender<Option<Arc<Entries>>>,
    /// The newest entries as the CA sent them: a newer agent may understand more of them.
    pub(super) entries_as_sent: Mutex<Option<Vec<u8>>>,
    pub(super) metrics: Metrics,
    /// The CA refused the SVID: prove the pod by the token again.
    refused: AtomicBool,
    prove_anew: Notify,
    unreachable_in_a_row: AtomicU32,
    last_trouble: Mutex<String>,
    last_call: Mutex<LastCall>,
}

/// How the calls under the agent's SVID went.
#[derive(Debug, Default, Clone)]
struct LastCall {
    /// When one last succeeded.
    contact: Option<OffsetDateTime>,
    /// What was wrong with the last one, if it failed.
    trouble: Option<String>,
}

/// How the agent stands with its CA.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// The agent's own identity, and its end by the CA's clock, seconds since the epoch.
    pub identity: Option<(SpiffeId, i64)>,
    /// When a call last succeeded, by this machine's clock.
    pub contact: Option<OffsetDateTime>,
    /// What is wrong now.
    pub trouble: Option<String>,
}

/// A connection to the CA under one SVID of the agent.
pub(super) struct Link {
    pub client: AgentServiceClient<Channel>,
    svid: Arc<AgentSvid>,
}

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
    Answer(#[from] super::identity::AgentSvidError),
}

impl Session {
    /// Nothing is connected before [`Self::run`].
    pub fn new(
        config: SessionConfig,
        credential: Credential,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        ready: PartHandle,
    ) -> Arc<Self> {
        ready.set_not_ready("the CA was not reached yet");
        Arc::new(Self {
            trust: Arc::new(TrustStore::new(
                config.trust_domain.clone(),
                config.first_trust.clone(),
            )),
            config,
            credential,
            clock,
            skew: Skew::new(metrics.clone()),
            ready,
            link: watch::Sender::new(None),
            entries: watch::Sender::new(None),
            entries_as_sent: Mutex::default(),
            metrics,
            refused: AtomicBool::new(false),
            prove_anew: Notify::new(),
            unreachable_in_a_row: AtomicU32::new(0),
            last_trouble: Mutex::new("the CA was not reached yet".to_owned()),
            last_call: Mutex::default(),
        })
    }

    /// How the agent stands with its CA.
    pub fn standing(&self) -> Standing {
        let LastCall { contact, trouble } = self.last_call().clone();
        let link = self.link.borrow().clone();
        let Some(link) = link else {
            let trouble = self.last_trouble.lock();
            let trouble = trouble.unwrap_or_else(PoisonError::into_inner).clone();
            return Standing {
                trouble: Some(trouble),
                ..Standing::default()
            };
        };
        Standing {
            identity: Some((link.svid.id.clone(), link.svid.not_after)),
            contact,
            trouble,
        }
    }

    fn last_call(&self) -> MutexGuard<'_, LastCall> {
        self.last_call
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The bundles that the CA sent; `None` before first contact.
    pub fn bundles(&self) -> watch::Receiver<Option<Arc<citadel_identity::bundle::BundleSet>>> {
        self.trust.published()
    }

    /// The entries of this node; `None` before the CA sent them.
    pub fn entries(&self) -> watch::Receiver<Option<Arc<Entries>>> {
        self.entries.subscribe()
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    pub(super) fn links(&self) -> watch::Receiver<Option<Arc<Link>>> {
        self.link.subscribe()
    }

    pub(super) fn entries_of(&self, update: EntriesUpdate) -> Entries {
        let SessionConfig {
            trust_domain,
            knows_containers,
            ..
        } = &self.config;
        Entries::from_update(update, trust_domain, *knows_containers)
    }

    /// Keeps the agent's identity and its streams until the shutdown.
    pub async fn run(self: Arc<Self>, shutdown: ShutdownSignal) {
        let streams = streams::run(Arc::clone(&self), shutdown.clone());
        tokio::select! {
            () = self.keep_identity() => {}
            () = streams => {}
            () = self.keep_roots() => {}
            () = shutdown.wait() => {}
        }
    }

    /// Attests once and keeps what comes of it: `citadel node join`.
    ///
    /// # Errors
    /// Why not.
    pub async fn join(&self) -> Result<(SpiffeId, i64), String> {
        let link = self.attest(None).await;
        let link = link.map_err(|error| error.to_string())?;
        Ok((link.svid.id.clone(), link.svid.not_after))
    }

    /// On a node outside Kubernetes: the roots of the moment are there after a restart.
    async fn keep_roots(&self) {
        let Credential::External(external) = &self.credential else {
            return std::future::pending().await;
        };
        let mut bundles = self.bundles();
        while bundles.changed().await.is_ok() {
            let set = bundles.borrow_and_update().clone();
            let own = set.as_ref().and_then(|set| set.get(self.trust_domain()));
            if let Some(Err(error)) = own.map(|own| external.keep_bundle(own)) {
                tracing::error!(%error, "the trust bundle is not kept for the next start");
            }
        }
    }

    /// The SVID that this node kept over a restart, or that `citadel node join` put there; each
    /// is tried once.
    fn kept_svid(&self, seen: &mut Vec<u8>, held: Option<&AgentSvid>) -> Option<Arc<AgentSvid>> {
        let Credential::External(external) = &self.credential else {
            return None;
        };
        let kept = match external.kept() {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::error!(%error, "this node's own SVID is not to be had");
                return None;
            }
        };
        let leaf = kept.chain.first()?;
        if *leaf == *seen || held.and_then(AgentSvid::leaf) == Some(leaf) {
            return None;
        }
        seen.clone_from(leaf);
        let bundles = kept.bundles();
        let now = self.clock.now();
        let now_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let restored = WorkloadKey::from_pkcs8(&kept.key)
            .map_err(|error| error.to_string())
            .and_then(|key| {
                AgentSvid::restore(
                    &kept.chain,
                    Arc::new(key),
                    self.trust_domain(),
                    &bundles,
                    now_ms,
                )
                .map_err(|error| error.to_string())
            });
        match restored {
            Ok(svid) => {
                self.trust.adopt(bundles);
                Some(Arc::new(svid))
            }
            Err(reason) => {
                tracing::warn!(reason, "the SVID that this node kept is of no use any more");
                None
            }
        }
    }

    async fn keep_identity(&self) {
        // Handed over by the process before this one.
        let link = self.link.borrow().clone();
        let mut held: Option<Arc<AgentSvid>> = link.map(|link| Arc::clone(&link.svid));
        let mut seen = Vec::new();
        let mut failures: u32 = 0;
        let mut svid_refused = false;
        let only_svid = matches!(self.credential, Credential::External(_));
        if let Some(svid) = &held {
            self.rest(svid.renews_in(), &mut failures).await;
        }
        loop {
            let useless = held.as_ref().is_none_or(|svid| svid.has_expired()) || svid_refused;
            if useless && let Some(kept) = self.kept_svid(&mut seen, held.as_deref()) {
                held = Some(kept);
                svid_refused = false;
            }
            // By turns, so that neither a dead SVID nor an unreadable token is the end. A join
            // token works once: there is no turn for it while the SVID may do.
            let by_turns = if only_svid {
                !svid_refused || failures.is_multiple_of(2)
            } else {
                !self.refused.load(Ordering::Relaxed) && failures.is_multiple_of(2)
            };
            let by_svid = held
                .as_ref()
                .filter(|svid| !svid.has_expired() && by_turns)
                .cloned();
            let used_svid = by_svid.is_some();
            let wait = match self.attest(by_svid).await {
                Ok(link) => {
                    tracing::info!(
                        spiffe_id = %link.svid.id,
                        by = if used_svid { "svid" } else { "token" },
                        "the CA knows this agent"
                    );
                    failures = 0;
                    svid_refused = false;
                    self.refused.store(false, Ordering::Relaxed);
                    self.note_call(Ok(()));
                    self.ready.set_ready();
                    let wait = link.svid.plan.renew_in;
                    held = Some(Arc::clone(&link.svid));
                    self.link.send_replace(Some(Arc::new(link)));
                    wait
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.metrics.attestation_failed();
                    let reason = error.to_string();
                    tracing::warn!(
                        reason,
                        by = if used_svid { "svid" } else { "token" },
                        "this agent could not prove itself to the CA"
                    );
                    // Holding an identity the agent works on: only a first contact that
                    // fails makes it unready.
                    if held.as_ref().is_none_or(|svid| svid.has_expired()) {
                        self.ready.set_not_ready(reason.clone());
                    }
                    *self
                        .last_trouble
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner) = reason;
                    if used_svid && matches!(error, AttestError::Refused(_)) {
                        svid_refused = true;
                        continue;
                    }
                    let plan = held.as_ref().map(|svid| &svid.plan);
                    timing::pause(failures, plan, rand::rng().random())
                }
            };
            self.rest(wait, &mut failures).await;
        }
    }

    /// Waits, or until the agent has to prove itself anew.
    async fn rest(&self, wait: Duration, failures: &mut u32) {
        let began = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.prove_anew.notified() => {
                *failures = (*failures).max(1);
                tokio::time::sleep_until(began + REATTEST_EVERY.min(wait)).await;
            }
        }
    }

    /// The agent's own identity, while there is one.
    pub(super) fn own(&self) -> Option<Arc<AgentSvid>> {
        self.link
            .borrow()
            .as_ref()
            .map(|link| Arc::clone(&link.svid))
    }

    /// Works under an identity that the process before this one had.
    pub(super) fn adopt(&self, svid: AgentSvid) -> Result<(), AttestError> {
        let svid = Arc::new(svid);
        let client = AgentServiceClient::new(self.channel(Some(Arc::clone(&svid)))?);
        self.link
            .send_replace(Some(Arc::new(Link { client, svid })));
        self.ready.set_ready();
        Ok(())
    }

    async fn attest(&self, by_svid: Option<Arc<AgentSvid>>) -> Result<Link, AttestError> {
        let local = |error: &dyn std::fmt::Display| AttestError::Local(error.to_string());
        let joining = match &self.credential {
            Credential::External(external) if by_svid.is_none() => {
                let joining = external.joining(&self.config.trust_domain);
                Some(joining.map_err(|error| local(&error))?)
            }
            _ => None,
        };
        let key = match &joining {
            Some(Joining::Token(_, key)) => Arc::clone(key),
            _ => Arc::new(WorkloadKey::generate().map_err(|error| local(&error))?),
        };
        let csr = key.csr().map_err(|error| local(&error))?;
        let channel = match &joining {
            Some(Joining::Token(token, _)) => self.channel_to(token)?,
            _ => self.channel(by_svid.clone())?,
        };
        let mut client = AgentServiceClient::new(channel);
        let mut shown = AttestAgentRequest {
            csr,
            ..AttestAgentRequest::default()
        };
        match &joining {
            None => {}
            Some(Joining::Token(token, _)) => {
                let mut join_token = JoinToken::default();
                join_token.id = token.id.to_vec();
                join_token.secret = token.secret.to_vec();
                shown.join_token = Some(join_token);
            }
            Some(Joining::Certificate(chain, key)) => {
                let proof = prove(&mut client, chain, key, &shown.csr).await?;
                shown.certificate = Some(proof);
            }
        }
        let mut request = Request::new(shown);
        if let (None, Credential::Token(source)) = (&by_svid, &self.credential) {
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
        let asked = self.clock.now();
        let answer = tokio::time::timeout(ATTEST_DEADLINE, client.attest_agent(request))
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
        let jitter = rand::rng().random();
        let chain = svid.as_ref().map(|svid| svid.certificate_chain.clone());
        let svid = AgentSvid::accept(
            svid,
            Arc::clone(&key),
            &self.config.trust_domain,
            &bundles,
            server_time_ms,
            jitter,
        )?;
        let own = bundles.get(&self.config.trust_domain).cloned();
        if let (Credential::External(external), Some(chain), Some(own)) =
            (&self.credential, chain, own)
        {
            let token = match &joining {
                Some(Joining::Token(token, _)) => Some(token),
                _ => None,
            };
            let addresses = match token {
                Some(token) => token.ca_addresses.clone(),
                None => self
                    .config
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            };
            // The identity counts all the same: it is a restart that would not find it.
            let joined_with = token.map(|token| token.id);
            if let Err(error) = external.keep(chain, &key, &own, addresses, joined_with) {
                tracing::error!(%error, "this node's SVID is not kept for the next start");
            }
        }
        self.trust.update(bundles);
        let svid = Arc::new(svid);
        let client = AgentServiceClient::new(self.channel(Some(Arc::clone(&svid)))?);
        Ok(Link { client, svid })
    }

    /// A channel to the CA that a join token names, known by the hash that it carries: nothing
    /// is sent to another one.
    fn channel_to(
        &self,
        token: &citadel_identity::join_token::JoinToken,
    ) -> Result<Channel, AttestError> {
        let local = |error: &dyn std::fmt::Display| AttestError::Local(error.to_string());
        let trust = Trust::RootSha256(token.root_sha256);
        let tls = self.trust.tls_by(trust, None);
        let tls = Arc::new(tls.map_err(|error| local(&error))?);
        let addresses = external::addresses(&token.ca_addresses);
        client::channel(addresses, Arc::new(move || Arc::clone(&tls)), CHANNEL)
            .map_err(|error| local(&error))
    }

    /// A channel whose connections verify the CA by the trust of that moment.
    fn channel(&self, svid: Option<Arc<AgentSvid>>) -> Result<Channel, AttestError> {
        let local = |error: &dyn std::fmt::Display| AttestError::Local(error.to_string());
        let resolver = svid.map(|svid| svid as Arc<dyn ResolvesClientCert>);
        let first: Arc<ClientConfig> = self
            .trust
            .tls(resolver.clone())
            .map(Arc::new)
            .map_err(|error| local(&error))?;
        let trust = Arc::clone(&self.trust);
        let source = Arc::new(move || {
            trust
                .tls(resolver.clone())
                .map_or_else(|_| Arc::clone(&first), Arc::new)
        });
        client::channel(self.config.addresses.clone(), source, CHANNEL)
            .map_err(|error| local(&error))
    }

    /// Notes how a call under the agent's SVID ended.
    pub(super) fn note_call(&self, outcome: Result<(), &CaError>) {
        {
            let mut last = self.last_call();
            match outcome {
                Ok(()) => {
                    last.contact = Some(self.clock.now());
                    last.trouble = None;
                }
                Err(error) => last.trouble = Some(error.to_string()),
            }
        }
        match outcome {
            Ok(()) => self.unreachable_in_a_row.store(0, Ordering::Relaxed),
            Err(CaError::Refused(_)) => {
                self.refused.store(true, Ordering::Relaxed);
                self.prove_anew.notify_one();
            }
            Err(CaError::Unreachable(_)) => {
                let failed = self.unreachable_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                if failed.is_multiple_of(DOUBT_AFTER) {
                    self.prove_anew.notify_one();
                }
            }
            Err(_) => {}
        }
    }
}

#[async_trait]
impl Ca for Session {
    async fn issue_batch(&self, items: Vec<IssueItem>) -> Result<Issued, CaError> {
        let mut links = self.link.subscribe();
        let first = tokio::time::timeout(FIRST_CONTACT, links.wait_for(Option::is_some)).await;
        let link = first.ok().and_then(|link| link.ok()?.clone());
        let Some(link) = link else {
            let why = self
                .last_trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            return Err(CaError::NotAttested(why));
        };
        let mut client = link.client.clone();
        let asked = self.clock.now();
        let call = client.issue_batch(IssueBatchRequest { items });
        let answer = match tokio::time::timeout(BATCH_DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(error_of(&status)),
            Err(_) => Err(CaError::Unreachable("no answer in time".to_owned())),
        };
        self.note_call(answer.as_ref().map(|_| ()));
        let answer = answer?;
        self.skew
            .note(answer.server_time_ms, asked, self.clock.now());
        Ok(Issued {
            results: answer.results,
            server_time_ms: answer.server_time_ms,
        })
    }
}

/// Proves the node's certificate by a challenge of this connection.
async fn prove(
    client: &mut AgentServiceClient<Channel>,
    chain: &[Vec<u8>],
    key: &NodeKey,
    csr: &[u8],
) -> Result<NodeCertificate, AttestError> {
    let asked = client.get_challenge(GetChallengeRequest {});
    let answer = tokio::time::timeout(ATTEST_DEADLINE, asked)
        .await
        .map_err(|_| CaError::Unreachable("no answer in time".to_owned()))?;
    let answer = answer.map_err(|status| error_of(&status))?.into_inner();
    let challenge = <[u8; x509pop::CHALLENGE_BYTES]>::try_from(answer.challenge.as_slice())
        .map_err(|_| CaError::Other("a challenge of another size".to_owned()))?;
    let (scheme, signature) = key
        .sign(&challenge, csr)
        .map_err(|error| AttestError::Local(error.to_string()))?;
    Ok(NodeCertificate {
        chain: chain.to_vec(),
        signature_scheme: scheme.into(),
        signature,
    })
}

fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied
    )
}

/// What a failed call says of the CA.
pub(super) fn error_of(status: &Status) -> CaError {
    let reason = describe(status);
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => CaError::Refused(reason),
        Code::ResourceExhausted => {
            // gRPC's own header for it, in milliseconds.
            let retry_after = status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .map(Duration::from_millis);
            CaError::Overloaded {
                reason,
                retry_after,
            }
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            CaError::Unreachable(reason)
        }
        _ => CaError::Other(reason),
    }
}

/// Code, message and causes: tonic keeps "connection refused" in the source.
fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.chars().filter(|c| !c.is_control()).take(512).collect()
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
