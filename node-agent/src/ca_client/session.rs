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
use citadel_identity::{SpiffeId, TrustDomain};
use citadel_proto::v1::{
    EntriesUpdate, IssueBatchRequest, IssueItem, agent_service_client::AgentServiceClient,
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
use tonic::transport::Channel;

use super::{
    Ca, CaError, Entries, FirstTrust, Issued, TokenSource,
    attest::{AttestError, local},
    identity::AgentSvid,
    skew::Skew,
    status::error_of,
    streams,
    trust::TrustStore,
};
use crate::{clock::Clock, external::External, metrics::Metrics, secrets::timing};

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
pub(super) const CHANNEL: ChannelOptions = ChannelOptions {
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
    pub(super) config: SessionConfig,
    pub(super) trust: Arc<TrustStore>,
    pub(super) credential: Credential,
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
        let link = self.link_under(Arc::new(svid))?;
        self.link.send_replace(Some(Arc::new(link)));
        self.ready.set_ready();
        Ok(())
    }

    pub(super) fn link_under(&self, svid: Arc<AgentSvid>) -> Result<Link, AttestError> {
        let client = AgentServiceClient::new(self.channel(Some(Arc::clone(&svid)))?);
        Ok(Link { client, svid })
    }

    /// A channel whose connections verify the CA by the trust of that moment.
    pub(super) fn channel(&self, svid: Option<Arc<AgentSvid>>) -> Result<Channel, AttestError> {
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

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
