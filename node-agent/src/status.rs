//! What administrators see of the agent, over its local socket.

use std::sync::Arc;

use citadel_identity::{TrustDomain, bundle::BundleSet};
use citadel_proto::agent::{
    AgentStatus, AttestationFailures, CaConnection, GetAgentStatusRequest, HeldBundle,
    HeldIdentity, ServedResource, ServedStream, agent_admin_service_server::AgentAdminService,
};
use time::OffsetDateTime;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, transport::server::UdsConnectInfo};

use crate::{
    ca_client::Session,
    clock::Clock,
    connections::REASONS,
    gate::refuse,
    holders::{self, Holders, StreamId},
    metrics::Metrics,
    secrets::{Held, SecretManager},
};

const RPC: &str = "GetAgentStatus";

/// Identities and streams of one answer, by default and at most.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 20_000;

/// The service.
pub struct AgentAdmin {
    /// The uid that the agent runs as: beside root, the one that is served.
    pub own_uid: u32,
    /// Own trust domain.
    pub trust_domain: TrustDomain,
    /// How the agent stands with its CA.
    pub session: Arc<Session>,
    /// What it holds.
    pub manager: SecretManager,
    /// The bundles that it has.
    pub bundles: watch::Receiver<Option<Arc<BundleSet>>>,
    /// Who runs on what.
    pub holders: Holders,
    /// What it counts.
    pub metrics: Metrics,
    /// Tells wall time.
    pub clock: Arc<dyn Clock>,
}

#[tonic::async_trait]
impl AgentAdminService for AgentAdmin {
    async fn get_agent_status(
        &self,
        request: Request<GetAgentStatusRequest>,
    ) -> Result<Response<AgentStatus>, Status> {
        self.check(request.extensions().get())?;
        let limit = match request.into_inner().limit {
            0 => DEFAULT_LIMIT,
            limit => usize::try_from(limit).map_or(MAX_LIMIT, |limit| limit.min(MAX_LIMIT)),
        };
        Ok(Response::new(self.status(limit)))
    }
}

impl AgentAdmin {
    /// The socket's mode keeps others out; a socket can be handed on.
    fn check(&self, peer: Option<&UdsConnectInfo>) -> Result<(), Status> {
        let credentials = peer.and_then(|peer| peer.peer_cred.as_ref());
        let uid = credentials.map(tokio::net::unix::UCred::uid);
        if uid.is_some_and(|uid| uid == 0 || uid == self.own_uid) {
            return Ok(());
        }
        let reason = "only root and the agent's own user may use this socket";
        let peer = format!("uid {uid:?}");
        Err(refuse(Code::PermissionDenied, reason, &peer, RPC))
    }

    fn status(&self, limit: usize) -> AgentStatus {
        let now = self.clock.now();
        let held = self.manager.held();
        let (streams, streams_total, untracked) = self.holders.shown(limit);
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.to_string(),
            time_ms: ms(now),
            ca: Some(self.ca()),
            bundles: self.bundles(),
            identities_total: held.len() as u64,
            identities: held
                .into_iter()
                .take(limit)
                .map(|secret| identity(secret, now))
                .collect(),
            streams_total: streams_total as u64,
            streams: streams.into_iter().map(stream).collect(),
            attestation_failures: self.failures(),
            untracked: untracked as u64,
        }
    }

    fn ca(&self) -> CaConnection {
        let standing = self.session.standing();
        let (agent_id, agent_not_after) = standing
            .identity
            .map(|(id, not_after)| (id.to_string(), not_after))
            .unwrap_or_default();
        CaConnection {
            connected: standing.contact.is_some() && standing.trouble.is_none(),
            agent_id,
            agent_not_after,
            last_contact_ms: standing.contact.map(ms).unwrap_or_default(),
            last_trouble: standing.trouble.unwrap_or_default(),
            clock_skew_seconds: self.metrics.skew(),
        }
    }

    fn bundles(&self) -> Vec<HeldBundle> {
        let set = self.bundles.borrow().clone().unwrap_or_default();
        set.iter()
            .map(|bundle| HeldBundle {
                trust_domain: bundle.trust_domain.to_string(),
                sha256: bundle.authorities_sha256(),
                authorities: u32::try_from(bundle.authorities.len()).unwrap_or(u32::MAX),
                sequence: bundle.sequence,
            })
            .collect()
    }

    fn failures(&self) -> Vec<AttestationFailures> {
        let counted = REASONS.map(|reason| (reason, self.metrics.peers_refused(reason)));
        counted
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| AttestationFailures {
                reason: reason.to_owned(),
                count,
            })
            .collect()
    }
}

fn identity(secret: Held, now: OffsetDateTime) -> HeldIdentity {
    let next = ms(now).saturating_add(i64::try_from(secret.due_in.as_millis()).unwrap_or(i64::MAX));
    let svid = secret.svid.as_ref();
    HeldIdentity {
        subject: secret.subject,
        spiffe_id: svid.map(|svid| svid.id.to_string()).unwrap_or_default(),
        serial: svid.map(|svid| svid.serial.clone()).unwrap_or_default(),
        not_after: svid.map_or(0, |svid| svid.not_after.unix_timestamp()),
        next_renewal_ms: next,
        failures: secret.failures,
    }
}

fn stream((id, stream): (StreamId, holders::Stream)) -> ServedStream {
    ServedStream {
        id,
        protocol: stream.protocol.to_owned(),
        pid: stream.pid,
        peer: stream.peer.to_string(),
        opened_ms: ms(stream.opened),
        resources: stream.resources.into_iter().map(resource).collect(),
    }
}

fn resource(resource: holders::Resource) -> ServedResource {
    let spiffe_id = match &*resource.sent.content {
        holders::Content::Svid { spiffe_id, .. } => spiffe_id.clone(),
        holders::Content::OwnBundle(_) | holders::Content::Other => String::new(),
    };
    let (acknowledged, acknowledged_ms) = resource
        .acknowledged
        .map(|taken| (taken.text, ms(taken.at)))
        .unwrap_or_default();
    ServedResource {
        name: resource.name,
        spiffe_id,
        sent: resource.sent.text,
        sent_ms: ms(resource.sent.at),
        acknowledged,
        acknowledged_ms,
        refused: resource.refused.unwrap_or_default(),
    }
}

fn ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
