//! A certificate with its key, and the checks before one is taken over.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use citadel_identity::{
    SpiffeId, TrustDomain,
    bundle::BundleSet,
    crypto,
    key::WorkloadKey,
    template,
    verify::{self, ProvenIssuers},
};
use citadel_proto::v1;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::timing::{Plan, PlannedBy};
use crate::holders;

/// An X.509-SVID that is held. The key wipes itself and prints nothing.
pub struct Svid {
    /// Who it says.
    pub id: SpiffeId,
    /// Leaf first, then intermediates; never a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: WorkloadKey,
    /// Lowercase hex. Also the version of this content.
    pub serial: String,
    /// Its end by the CA's clock.
    pub not_after: OffsetDateTime,
    /// The entry's hint; empty for none.
    pub hint: String,
    /// The pod that it belongs to, where there is one.
    pub pod_uid: Option<String>,
    /// See [`Self::encoded`].
    pub(super) encoded: OnceLock<Zeroizing<Vec<u8>>>,
    pub(super) holding: OnceLock<Arc<holders::Content>>,
    pub(super) plan: Plan,
    pub(super) planned_by: PlannedBy,
    pub(super) received: Instant,
    pub(super) received_at: OffsetDateTime,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why an answer of the CA is not taken over; what is held stays.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// Not a SPIFFE ID, of another trust domain, or one that no workload may have.
    #[error(
        "the CA's answer has the SPIFFE ID {0:?}, which is not one of this trust domain's workloads"
    )]
    Id(String),
    /// Another ID than the one that was asked for.
    #[error("the CA's answer is for {got}, not for {wanted}")]
    OtherId {
        /// In the answer.
        got: SpiffeId,
        /// Asked for.
        wanted: SpiffeId,
    },
    /// The certificate does not verify against the trust bundle.
    #[error("the CA's certificate does not verify: {0}")]
    Verify(#[from] verify::VerifyError),
    /// The certificate holds another key than the request.
    #[error("the CA's certificate is for another key")]
    OtherKey,
    /// A field makes no sense.
    #[error("the CA's answer is malformed: {0}")]
    Malformed(&'static str),
}

/// What an answer is checked against.
pub(super) struct Expected<'a> {
    pub trust_domain: &'a TrustDomain,
    pub bundles: &'a BundleSet,
    /// Whose answers were checked before.
    pub issuers: &'a ProvenIssuers,
    pub id: Option<&'a SpiffeId>,
    /// The CA's clock when it answered, milliseconds since the epoch.
    pub server_ms: i64,
    pub jitter: f64,
    pub received: Instant,
    pub received_at: OffsetDateTime,
}

impl Svid {
    /// Checks an answer and pairs it with the key that it was asked for with. Validity
    /// is judged by the CA's clock: a wrong clock here costs no workload its identity.
    pub(super) fn accept(
        answer: v1::X509Svid,
        key: WorkloadKey,
        expected: &Expected<'_>,
    ) -> Result<Self, SvidError> {
        let id = SpiffeId::new(&answer.spiffe_id)
            .ok()
            .filter(|id| id.is_member_of(expected.trust_domain) && !template::is_reserved(id))
            .ok_or_else(|| SvidError::Id(answer.spiffe_id.chars().take(256).collect()))?;
        if let Some(wanted) = expected.id
            && *wanted != id
        {
            return Err(SvidError::OtherId {
                got: id,
                wanted: wanted.clone(),
            });
        }
        let chain: Vec<CertificateDer<'static>> = answer
            .certificate_chain
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let server_time =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(expected.server_ms) * 1_000_000)
                .map_err(|_| SvidError::Malformed("server_time_ms"))?;
        let verified =
            verify::verify_svid_again(&chain, expected.bundles, server_time, expected.issuers)?;
        if verified.spiffe_id != id {
            return Err(SvidError::OtherId {
                got: verified.spiffe_id,
                wanted: id,
            });
        }
        if verified.spki_sha256 != crypto::sha256(key.spki_der()) {
            return Err(SvidError::OtherKey);
        }
        // Serial and end are the certificate's, whatever the fields beside it say.
        let not_after = verified.not_after;
        let planned_by = PlannedBy {
            server_ms: expected.server_ms,
            renew_at: answer.renew_at,
            jitter: expected.jitter,
        };
        let plan = planned_by.plan(not_after.unix_timestamp());
        Ok(Self {
            id,
            chain,
            key,
            serial: verified.serial.to_string(),
            not_after,
            hint: answer.hint,
            pod_uid: (!answer.pod_uid.is_empty()).then_some(answer.pod_uid),
            encoded: OnceLock::new(),
            holding: OnceLock::new(),
            plan,
            planned_by,
            received: expected.received,
            received_at: expected.received_at,
        })
    }

    /// The form in which it is sent, made by `encode` for the first of those who are sent it:
    /// one copy for all streams, which wipes itself. It holds the key.
    pub fn encoded(&self, encode: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.encoded.get_or_init(|| Zeroizing::new(encode()))
    }

    /// For the count of who runs on what.
    pub fn holding(&self) -> Arc<holders::Content> {
        let holding = self.holding.get_or_init(|| {
            Arc::new(holders::Content::Svid {
                spiffe_id: self.id.to_string(),
                serial: self.serial.clone(),
                not_after: self.not_after.unix_timestamp(),
                pod_uid: self.pod_uid.clone(),
            })
        });
        Arc::clone(holding)
    }

    pub(super) fn expires(&self) -> Instant {
        self.received + self.plan.expires_in
    }
}
