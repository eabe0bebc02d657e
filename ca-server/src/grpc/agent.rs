//! `citadel.v1.AgentService`: for node agents alone.

use std::{pin::Pin, time::Duration};

use citadel_identity::limits;
use citadel_proto::v1::{self, agent_service_server::AgentService, issue_item::Subject};
use futures::Stream;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{
    MAX_BATCH_ITEMS,
    front::{Front, credentials, now_ms, peer_of, to_bundles},
    refusal::Refusal,
    workload::{check_kind, wish},
};
use crate::{
    authn::{Credentials, PresentedCertificate, PresentedToken},
    authz::{Ask, Denied, Registered, Wish},
    caller::{BearerToken, Caller, Role},
    holders::ReportError,
    issuance::{Item, ItemError},
};

pub(super) const ATTEST: &str = "citadel.v1.AgentService/AttestAgent";
pub(super) const CHALLENGE: &str = "citadel.v1.AgentService/GetChallenge";
pub(super) const ISSUE: &str = "citadel.v1.AgentService/IssueBatch";
pub(super) const ENTRIES: &str = "citadel.v1.AgentService/StreamEntries";
pub(super) const REPORT: &str = "citadel.v1.AgentService/ReportHolders";
pub(super) const BUNDLES: &str = "citadel.v1.AgentService/StreamTrustBundles";

/// An open stream's agent is authenticated again this often: its pod or node may be gone.
const RECHECK: Duration = Duration::from_secs(10);

/// The longest idempotency key, bytes.
const MAX_IDEMPOTENCY_KEY: usize = 64;
/// The longest name or UID of a Kubernetes object, bytes.
const MAX_NAME: usize = 253;
/// The longest entry ID, bytes: a SPIFFE ID's path, `#` and 12 digits.
const MAX_ENTRY_ID: usize = limits::SPIFFE_ID_BYTES + 13;

/// The service.
pub(crate) struct AgentApi(pub(crate) Front);

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for AgentApi {
    async fn attest_agent(
        &self,
        request: Request<v1::AttestAgentRequest>,
    ) -> Result<Response<v1::AttestAgentResponse>, Status> {
        let credentials = credentials(&request)?;
        // Taken in any case: whatever becomes of this request, its challenge is used up.
        let challenge = peer_of(request.extensions())?.take_challenge();
        let v1::AttestAgentRequest {
            csr,
            join_token,
            certificate,
        } = request.into_inner();
        let front = &self.0;
        front
            .serve(ATTEST, &credentials, async {
                let now = OffsetDateTime::now_utc();
                front.metrics.csrs(1);
                let caller = match (&join_token, &certificate) {
                    (None, None) => front.caller(&credentials, now).await?,
                    (None, Some(certificate)) => {
                        let scheme = u16::try_from(certificate.signature_scheme);
                        let presented = PresentedCertificate {
                            chain: &certificate.chain,
                            challenge,
                            scheme: scheme.unwrap_or_default(),
                            signature: &certificate.signature,
                            csr: &csr,
                        };
                        let authenticator = &front.authenticator;
                        let joining =
                            authenticator.join_by_certificate(&credentials, presented, now);
                        front.authenticated(joining).await?
                    }
                    (Some(_), Some(_)) => {
                        return Err(Refusal::invalid(
                            "join_token and certificate: present one of the two",
                        ));
                    }
                    (Some(token), None) => {
                        let presented = PresentedToken {
                            id: &token.id,
                            secret: &token.secret,
                            csr: &csr,
                        };
                        let joining = front.authenticator.join(&credentials, presented, now);
                        front.authenticated(joining).await?
                    }
                };
                let item = Item {
                    ask: Ask::AgentIdentity,
                    wish: Wish::default(),
                    csr,
                };
                let svid = front
                    .issuance
                    .issue(&caller, &item, now)
                    .await
                    .map_err(|error| Refusal::from(error).of(&caller))?;
                Ok(Response::new(v1::AttestAgentResponse {
                    svid: Some(front.svid(&svid)),
                    bundles: front.bundles(),
                    server_time_ms: now_ms(),
                }))
            })
            .await
    }

    async fn get_challenge(
        &self,
        request: Request<v1::GetChallengeRequest>,
    ) -> Result<Response<v1::GetChallengeResponse>, Status> {
        let credentials = credentials(&request)?;
        let peer = peer_of(request.extensions())?.clone();
        self.0
            .serve(CHALLENGE, &credentials, async {
                let challenge = peer.new_challenge().to_vec();
                Ok(Response::new(v1::GetChallengeResponse { challenge }))
            })
            .await
    }

    async fn issue_batch(
        &self,
        request: Request<v1::IssueBatchRequest>,
    ) -> Result<Response<v1::IssueBatchResponse>, Status> {
        let credentials = credentials(&request)?;
        let items = request.into_inner().items;
        let front = &self.0;
        front
            .serve(ISSUE, &credentials, async {
                let now = OffsetDateTime::now_utc();
                front.metrics.csrs(items.len());
                if items.len() > MAX_BATCH_ITEMS {
                    return Err(Refusal::invalid(format!(
                        "items: {} are too many, send at most {MAX_BATCH_ITEMS}",
                        items.len()
                    )));
                }
                let caller = self.agent(&credentials, now).await?;
                Ok(Response::new(
                    self.issue_items(&credentials, &caller, items, now).await,
                ))
            })
            .await
    }

    type StreamEntriesStream = Updates<v1::EntriesUpdate>;

    async fn stream_entries(
        &self,
        request: Request<v1::StreamEntriesRequest>,
    ) -> Result<Response<Self::StreamEntriesStream>, Status> {
        let credentials = credentials(&request)?;
        let front = self.0.clone();
        let caller = front
            .serve(ENTRIES, &credentials, async {
                self.agent(&credentials, OffsetDateTime::now_utc()).await
            })
            .await?;
        let mut registered = front.issuance.policy().follow();
        registered.mark_changed();
        let (sender, receiver) = mpsc::channel(1);
        let api = Self(front);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = api.0.shutdown.wait() => return,
                    changed = registered.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let update = entries_of(&registered.borrow_and_update(), &caller);
                        if sender.send(Ok(update)).await.is_err() {
                            return;
                        }
                    }
                    () = tokio::time::sleep(RECHECK) => {
                        if let Err(status) = api.recheck(ENTRIES, &credentials).await {
                            let _ = sender.send(Err(status)).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report_holders(
        &self,
        request: Request<v1::ReportHoldersRequest>,
    ) -> Result<Response<v1::ReportHoldersResponse>, Status> {
        let credentials = credentials(&request)?;
        let report = request.into_inner().report;
        let front = &self.0;
        front
            .serve(REPORT, &credentials, async {
                let now = OffsetDateTime::now_utc();
                let caller = self.agent(&credentials, now).await?;
                let Role::Agent { cluster, node } = &caller.role else {
                    return Err(Refusal::no_agent().of(&caller));
                };
                let node = (cluster.clone(), node.name.clone());
                front
                    .holders
                    .note(node, report, now)
                    .map_err(|error| match error {
                        ReportError::Full => Refusal::new(
                            Code::ResourceExhausted,
                            error.to_string(),
                            "a report of one node more than are kept",
                        ),
                        _ => Refusal::invalid(error.to_string()),
                    })
                    .map_err(|refusal| refusal.of(&caller))?;
                Ok(Response::new(v1::ReportHoldersResponse {
                    server_time_ms: now_ms(),
                }))
            })
            .await
    }

    type StreamTrustBundlesStream = Updates<v1::TrustBundlesUpdate>;

    async fn stream_trust_bundles(
        &self,
        request: Request<v1::StreamTrustBundlesRequest>,
    ) -> Result<Response<Self::StreamTrustBundlesStream>, Status> {
        let credentials = credentials(&request)?;
        let front = self.0.clone();
        front
            .serve(BUNDLES, &credentials, async {
                self.agent(&credentials, OffsetDateTime::now_utc()).await
            })
            .await?;
        let mut bundles = front.bundles.clone();
        bundles.mark_changed();
        let (sender, receiver) = mpsc::channel(1);
        let api = Self(front);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    () = api.0.shutdown.wait() => return,
                    changed = bundles.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let update = v1::TrustBundlesUpdate {
                            bundles: to_bundles(&bundles.borrow_and_update()),
                            server_time_ms: now_ms(),
                        };
                        if sender.send(Ok(update)).await.is_err() {
                            return;
                        }
                    }
                    () = tokio::time::sleep(RECHECK) => {
                        if let Err(status) = api.recheck(BUNDLES, &credentials).await {
                            let _ = sender.send(Err(status)).await;
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl AgentApi {
    /// Authenticates the sender, which must be an agent by its SVID.
    async fn agent(
        &self,
        credentials: &Credentials,
        now: OffsetDateTime,
    ) -> Result<Caller, Refusal> {
        let caller = self.0.caller(credentials, now).await?;
        match caller.role {
            Role::Agent { .. } => Ok(caller),
            Role::Workload | Role::CaServer => Err(Refusal::no_agent().of(&caller)),
        }
    }

    /// Whether an open stream may go on. What can't be decided now changes nothing.
    async fn recheck(&self, rpc: &'static str, credentials: &Credentials) -> Result<(), Status> {
        match self.agent(credentials, OffsetDateTime::now_utc()).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.code == Code::Unavailable => Ok(()),
            Err(refusal) => {
                self.0.refused(rpc, credentials, &refusal);
                Err(refusal.into())
            }
        }
    }

    async fn issue_items(
        &self,
        credentials: &Credentials,
        caller: &Caller,
        items: Vec<v1::IssueItem>,
        now: OffsetDateTime,
    ) -> v1::IssueBatchResponse {
        let front = &self.0;
        let mut keys = Vec::with_capacity(items.len());
        let mut wanted = Vec::with_capacity(items.len());
        for item in items {
            keys.push(item.idempotency_key.clone());
            wanted.push(self.item(credentials, caller, item, now).await);
        }
        let releases = front.issuance.issue_many(caller, wanted, now).await;
        let results = keys
            .into_iter()
            .zip(releases)
            .map(|(idempotency_key, release)| {
                let outcome = match release {
                    Ok(svid) => v1::issue_result::Outcome::Svid(front.svid(&svid)),
                    Err(error) => {
                        let refusal = Refusal::from(error).of(caller);
                        front.refused(ISSUE, credentials, &refusal);
                        v1::issue_result::Outcome::Error(refusal.into_item_error())
                    }
                };
                v1::IssueResult {
                    idempotency_key,
                    outcome: Some(outcome),
                }
            })
            .collect();
        v1::IssueBatchResponse {
            results,
            server_time_ms: now_ms(),
        }
    }

    async fn item(
        &self,
        credentials: &Credentials,
        agent: &Caller,
        item: v1::IssueItem,
        now: OffsetDateTime,
    ) -> Result<Item, ItemError> {
        let invalid = |refusal: Refusal| Denied::Invalid(refusal.message);
        check_kind(item.kind).map_err(invalid)?;
        bounded("idempotency_key", item.idempotency_key, MAX_IDEMPOTENCY_KEY)?;
        let wish = wish(item.ttl_seconds, &item.previous_serial).map_err(invalid)?;
        let given = |text: String| (!text.is_empty()).then_some(text);
        let ask = match item.subject {
            Some(Subject::Pod(pod)) => Ask::Pod {
                uid: bounded("pod_uid", pod.pod_uid, MAX_NAME)?,
                namespace: given(bounded("namespace", pod.namespace, MAX_NAME)?),
                account: given(bounded("service_account", pod.service_account, MAX_NAME)?),
            },
            Some(Subject::Entry(entry)) => Ask::Entry {
                entry_id: bounded("entry_id", entry.entry_id, MAX_ENTRY_ID)?,
                pod_uid: given(bounded("pod_uid", entry.pod_uid, MAX_NAME)?),
            },
            Some(Subject::RelayedToken(relayed)) => {
                // The token's cluster can only be the agent's: no header may say otherwise.
                let cluster = match &agent.role {
                    Role::Agent { cluster, .. } => Some(cluster.as_str()),
                    _ => None,
                };
                let pod_uid = bounded("pod_uid", relayed.pod_uid, MAX_NAME)?;
                let token = BearerToken::new(relayed.token);
                let workload = self
                    .0
                    .authenticator
                    .token(&token, cluster, credentials.address, now)
                    .await?;
                Ask::Relayed {
                    workload: Box::new(workload),
                    pod_uid: given(pod_uid),
                }
            }
            None => {
                return Err(Denied::Invalid(
                    "subject: missing; name a pod, an entry or a relayed token".into(),
                )
                .into());
            }
        };
        Ok(Item {
            ask,
            wish,
            csr: item.csr,
        })
    }
}

/// The text, unless it is longer than what it can name.
fn bounded(field: &str, text: String, most: usize) -> Result<String, Denied> {
    if text.len() > most {
        return Err(Denied::Invalid(format!(
            "{field}: longer than {most} bytes"
        )));
    }
    Ok(text)
}

fn entries_of(registered: &Registered, caller: &Caller) -> v1::EntriesUpdate {
    let entries = match &caller.role {
        Role::Agent { cluster, node } => registered
            .of_node(cluster, &node.name)
            .into_iter()
            .map(crate::authz::Entry::to_record)
            .collect(),
        Role::Workload | Role::CaServer => Vec::new(),
    };
    v1::EntriesUpdate {
        entries,
        revision: registered.revision,
    }
}
