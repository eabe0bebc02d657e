//! The agent's own SVID: `spiffe://<trust domain>/citadel/agent/<cluster>/<node>`.

use std::{fmt, sync::Arc, time::Duration};

use citadel_identity::{
    SpiffeId, TrustDomain, bundle::BundleSet, key::WorkloadKey, template, tls::certified_key,
    verify,
};
use citadel_proto::v1;
use rustls::{
    SignatureScheme, client::ResolvesClientCert, pki_types::CertificateDer, sign::CertifiedKey,
};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::secrets::timing::{Plan, PlannedBy};

/// The agent's identity while it lasts.
pub(super) struct AgentSvid {
    pub id: SpiffeId,
    pub plan: Plan,
    pub received: Instant,
    /// Its end by the CA's clock, seconds since the epoch.
    pub not_after: i64,
    pub planned_by: PlannedBy,
    /// Wipes itself.
    pub key: Arc<WorkloadKey>,
    certified: Arc<CertifiedKey>,
}

/// Why the CA's answer is no identity of an agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentSvidError {
    #[error("the CA's answer holds no SVID")]
    Missing,
    #[error("the CA's answer names {0:?}, which is not an agent of this trust domain")]
    NotAnAgent(String),
    #[error("the CA's certificate does not verify: {0}")]
    Verify(#[from] verify::VerifyError),
    #[error("the CA's certificate is for another key")]
    OtherKey,
    #[error("the CA's clock makes no sense")]
    ServerTime,
}

impl AgentSvid {
    pub(super) fn accept(
        answer: Option<v1::X509Svid>,
        key: Arc<WorkloadKey>,
        trust_domain: &TrustDomain,
        bundles: &BundleSet,
        server_ms: i64,
        jitter: f64,
    ) -> Result<Self, AgentSvidError> {
        let answer = answer.ok_or(AgentSvidError::Missing)?;
        let id = SpiffeId::new(&answer.spiffe_id)
            .ok()
            .filter(|id| id.is_member_of(trust_domain) && template::parse_agent_id(id).is_some())
            .ok_or_else(|| {
                AgentSvidError::NotAnAgent(answer.spiffe_id.chars().take(256).collect())
            })?;
        let chain: Vec<CertificateDer<'static>> = answer
            .certificate_chain
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(server_ms) * 1_000_000)
            .map_err(|_| AgentSvidError::ServerTime)?;
        let verified = verify::verify_svid(&chain, bundles, now)?;
        if verified.spiffe_id != id {
            return Err(AgentSvidError::NotAnAgent(verified.spiffe_id.to_string()));
        }
        let certified = certified_key(chain, &key).map_err(|_| AgentSvidError::OtherKey)?;
        let not_after = verified.not_after.unix_timestamp();
        let planned_by = PlannedBy {
            server_ms,
            renew_at: answer.renew_at,
            jitter,
        };
        Ok(Self {
            id,
            plan: planned_by.plan(not_after),
            received: Instant::now(),
            not_after,
            planned_by,
            key,
            certified: Arc::new(certified),
        })
    }

    /// DER, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// What is left until it is to be renewed.
    pub(super) fn renews_in(&self) -> Duration {
        self.plan.renew_in.saturating_sub(self.received.elapsed())
    }

    /// What was kept over a restart, as long as it is valid by this machine's clock.
    pub(super) fn restore(
        chain: &[Vec<u8>],
        key: Arc<WorkloadKey>,
        trust_domain: &TrustDomain,
        bundles: &BundleSet,
        now_ms: i64,
    ) -> Result<Self, AgentSvidError> {
        let leaf = chain.first().ok_or(AgentSvidError::Missing)?;
        let svid = v1::X509Svid {
            spiffe_id: verify::spiffe_id(leaf)?.to_string(),
            certificate_chain: chain.to_vec(),
            ..v1::X509Svid::default()
        };
        Self::accept(Some(svid), key, trust_domain, bundles, now_ms, 0.0)
    }

    /// DER.
    pub(super) fn leaf(&self) -> Option<&[u8]> {
        self.certified.cert.first().map(AsRef::as_ref)
    }

    pub(super) fn has_expired(&self) -> bool {
        self.received.elapsed() >= self.plan.expires_in
    }
}

impl fmt::Debug for AgentSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSvid")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

// rustls asks for the certificate at each handshake.
impl ResolvesClientCert for AgentSvid {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
