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
use citadel_identity::{SpiffeId, TrustDomain, key::WorkloadKey};
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, EntriesUpdate, IssueBatchRequest, IssueItem,
    agent_service_client::AgentServiceClient,
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
use crate::{clock::Clock, metrics::Metrics, secrets::timing};

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

/// See the module. One for the process.
pub struct Session {
    config: SessionConfig,
    pub(super) trust: Arc<TrustStore>,
    token: Arc<dyn TokenSource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) skew: Skew,
    ready: PartHandle,
    link: watch::Sender<Option<Arc<Link>>>,
    pub(super) entries: watch::Sender<Option<Arc<Entries>>>,
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
enum AttestError {
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
        token: Arc<dyn TokenSource>,
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
            token,
            clock,
            skew: Skew::new(metrics.clone()),
            ready,
            link: watch::Sender::new(None),
            entries: watch::Sender::new(None),
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
            () = shutdown.wait() => {}
        }
    }

    async fn keep_identity(&self) {
        let mut held: Option<Arc<AgentSvid>> = None;
        let mut failures: u32 = 0;
        loop {
            // By turns, so that neither a dead SVID nor an unreadable token is the end.
            let by_svid = held
                .as_ref()
                .filter(|svid| {
                    !svid.has_expired()
                        && !self.refused.load(Ordering::Relaxed)
                        && failures.is_multiple_of(2)
                })
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
                        continue;
                    }
                    let plan = held.as_ref().map(|svid| &svid.plan);
                    timing::pause(failures, plan, rand::rng().random())
                }
            };
            let began = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.prove_anew.notified() => {
                    failures = failures.max(1);
                    tokio::time::sleep_until(began + REATTEST_EVERY.min(wait)).await;
                }
            }
        }
    }

    async fn attest(&self, by_svid: Option<Arc<AgentSvid>>) -> Result<Link, AttestError> {
        let local = |error: &dyn std::fmt::Display| AttestError::Local(error.to_string());
        let key = WorkloadKey::generate().map_err(|error| local(&error))?;
        let csr = key.csr().map_err(|error| local(&error))?;
        let mut request = Request::new(AttestAgentRequest { csr });
        if by_svid.is_none() {
            let token = self.token.token().map_err(|error| local(&error))?;
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
        let mut client = AgentServiceClient::new(self.channel(by_svid)?);
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
        let svid = AgentSvid::accept(
            svid,
            &key,
            &self.config.trust_domain,
            &bundles,
            server_time_ms,
            jitter,
        )?;
        self.trust.update(bundles);
        let svid = Arc::new(svid);
        let client = AgentServiceClient::new(self.channel(Some(Arc::clone(&svid)))?);
        Ok(Link { client, svid })
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
        let options = ChannelOptions {
            connect_timeout: Duration::from_secs(3),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        };
        client::channel(self.config.addresses.clone(), source, options)
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
