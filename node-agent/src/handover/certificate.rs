//! A certificate with its key on its way between two agents.

use citadel_identity::key::{KeyError, WorkloadKey};
use citadel_proto::{agent::HandedSvid, v1};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::secrets::timing::PlannedBy;

/// What a process holds of a certificate, to be handed over.
pub(crate) struct Holding<'a> {
    pub spiffe_id: String,
    pub chain: &'a [CertificateDer<'static>],
    pub key: &'a WorkloadKey,
    pub planned_by: PlannedBy,
    pub received: Instant,
    pub received_at: OffsetDateTime,
    pub hint: &'a str,
    pub pod_uid: Option<&'a str>,
}

/// What came of it, not judged yet.
pub(crate) struct Given {
    /// The answer as the CA gave it.
    pub answer: v1::X509Svid,
    pub key: WorkloadKey,
    pub planned_by: PlannedBy,
    pub received: Instant,
    pub received_at: OffsetDateTime,
}

impl Holding<'_> {
    pub(crate) fn to_handed(&self, now: Instant) -> HandedSvid {
        let age = now.saturating_duration_since(self.received).as_millis();
        let received_at = self.received_at.unix_timestamp_nanos() / 1_000_000;
        HandedSvid {
            spiffe_id: self.spiffe_id.clone(),
            certificate_chain: self.chain.iter().map(|der| der.to_vec()).collect(),
            private_key: self.key.pkcs8_der().to_vec(),
            renew_at: self.planned_by.renew_at,
            hint: self.hint.to_owned(),
            pod_uid: self.pod_uid.unwrap_or_default().to_owned(),
            server_time_ms: self.planned_by.server_ms,
            jitter: self.planned_by.jitter,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            received_at_ms: i64::try_from(received_at).unwrap_or_default(),
        }
    }
}

impl Given {
    /// The key has to be one; what else stands there is judged as the CA's answers are.
    pub(crate) fn from_handed(mut handed: HandedSvid, now: Instant) -> Result<Self, KeyError> {
        let key = WorkloadKey::from_pkcs8(&handed.private_key)?;
        let age = std::time::Duration::from_millis(handed.age_ms);
        let received_at = i128::from(handed.received_at_ms) * 1_000_000;
        Ok(Self {
            answer: v1::X509Svid {
                spiffe_id: std::mem::take(&mut handed.spiffe_id),
                certificate_chain: std::mem::take(&mut handed.certificate_chain),
                renew_at: handed.renew_at,
                hint: std::mem::take(&mut handed.hint),
                pod_uid: std::mem::take(&mut handed.pod_uid),
                ..v1::X509Svid::default()
            },
            key,
            planned_by: PlannedBy {
                server_ms: handed.server_time_ms,
                renew_at: handed.renew_at,
                jitter: handed.jitter,
            },
            // Older than the machine can't be.
            received: now.checked_sub(age).unwrap_or(now),
            received_at: OffsetDateTime::from_unix_timestamp_nanos(received_at)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        })
    }
}
