//! The values that travel down the line. Their fields are private: only the stage before
//! makes one.

use citadel_identity::{
    SpiffeId,
    csr::ProvenKey,
    lint::{self, LintContext, LintSubject},
    profile::{self, SvidRequest, SvidUse, Unsigned},
    serial::Serial,
    slot::renewal_slot,
};
use citadel_proto::log;
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::{IssuanceError, Issuer};
use crate::{
    authz::{Grant, Use},
    caller::unix_ms,
    log::new_entry,
    store::{LogIndex, NewEntry, Store},
};

/// NotBefore lies this much before the issuance, at most: clocks differ. A tenth of the
/// lifetime where that is less, since some proxies renew at half of NotBefore..NotAfter.
const MAX_BACKDATE: Duration = Duration::minutes(2);

/// What the certificate will say.
#[derive(Debug)]
pub struct Template {
    grant: Grant,
    key: ProvenKey,
    request: SvidRequest,
    now: OffsetDateTime,
}

/// Built and linted: the exact bytes to be signed.
#[derive(Debug)]
pub struct Prepared {
    template: Template,
    unsigned: Unsigned,
}

/// May be signed: where the key lies elsewhere, the intent is on record.
#[derive(Debug)]
pub struct Intended {
    prepared: Prepared,
}

/// Signed, and not to leave the process yet.
#[derive(Debug)]
pub struct Signed {
    template: Template,
    certificate: Vec<u8>,
}

/// Durable in the log.
#[derive(Debug)]
pub struct Recorded {
    signed: Signed,
    index: LogIndex,
}

/// What the caller receives.
#[derive(Clone, Debug)]
pub struct Svid {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The leaf, DER.
    pub certificate: CertificateDer<'static>,
    /// Its serial.
    pub serial: Serial,
    /// Start of validity.
    pub not_before: OffsetDateTime,
    /// End of validity.
    pub not_after: OffsetDateTime,
    /// When to renew: the slot that this CA assigns.
    pub renew_at: OffsetDateTime,
    /// Where it stands in the log.
    pub index: LogIndex,
    /// The hint of its entry.
    pub hint: String,
    /// The pod that it belongs to.
    pub pod_uid: Option<String>,
}

// === impl Template ===

impl Template {
    /// The profile: who, for how long, under which serial. The lifetime ends with the
    /// issuer's at the latest.
    ///
    /// # Errors
    /// [`IssuanceError::IssuerExpiring`] when the issuer has less than `shortest` left,
    /// [`IssuanceError::IssuerNotYetValid`] when its validity has not begun.
    pub fn new(
        grant: Grant,
        key: ProvenKey,
        issuer: &Issuer,
        shortest: std::time::Duration,
        now: OffsetDateTime,
    ) -> Result<Self, IssuanceError> {
        // Certificates count whole seconds: what is cut off must not make them longer.
        let now_s = now.replace_nanosecond(0).unwrap_or(now);
        let certificate = issuer.certificate();
        let (issuer_start, issuer_end) = (certificate.not_before(), certificate.not_after());
        if now < issuer_start {
            return Err(IssuanceError::IssuerNotYetValid(issuer_start));
        }
        let lifetime = Duration::try_from(grant.lifetime()).unwrap_or(Duration::HOUR);
        let not_after = (now_s + lifetime).min(issuer_end);
        if not_after - now_s < shortest.min(grant.lifetime()) {
            return Err(IssuanceError::IssuerExpiring(issuer_end));
        }
        let backdate = MAX_BACKDATE.min(lifetime / 10);
        let not_before = (now_s - backdate).max(issuer_start);
        let serial = Serial::new(u64::try_from(unix_ms(now)).unwrap_or_default());
        let request = SvidRequest {
            spiffe_id: grant.spiffe_id().clone(),
            dns_names: grant.dns_names().to_vec(),
            not_before,
            not_after,
            serial,
            use_: match grant.usage() {
                Use::Workload => SvidUse::Leaf,
                Use::Agent => SvidUse::Agent,
                Use::CaServer => SvidUse::CaServer,
            },
        };
        Ok(Self {
            grant,
            key,
            request,
            now,
        })
    }

    /// Builds the certificate once with a capturing key, and lints what it would be.
    ///
    /// # Errors
    /// [`IssuanceError::Profile`], [`IssuanceError::Lint`].
    pub fn prepare(self, issuer: &Issuer) -> Result<Prepared, IssuanceError> {
        let unsigned = profile::prepare(
            &self.request,
            &self.key,
            issuer.certificate(),
            issuer.signer().algorithm(),
        )?;
        let context = LintContext {
            issuer: issuer.certificate(),
            trust_domain: issuer.trust_domain(),
            max_lifetime: issuer.max_lifetime(),
            now: self.now,
            subject: LintSubject::Leaf {
                use_: self.request.use_,
                spiffe_id: self.grant.spiffe_id(),
                dns_names: self.grant.dns_names(),
                spki_der: self.key.spki_der(),
            },
        };
        lint::lint(&unsigned.dummy, &context)?;
        Ok(Prepared {
            template: self,
            unsigned,
        })
    }
}

// === impl Prepared ===

impl Prepared {
    /// Free while the key is in this process: a crash then loses only a certificate that
    /// nobody has. A key elsewhere needs its intent on record before the signature can exist.
    ///
    /// # Errors
    /// [`IssuanceError::NoIntent`] for a key elsewhere: the log has no entry for it yet.
    pub fn intend(self, issuer: &Issuer) -> Result<Intended, IssuanceError> {
        if issuer.signer().in_process() {
            Ok(Intended { prepared: self })
        } else {
            Err(IssuanceError::NoIntent)
        }
    }
}

// === impl Intended ===

impl Intended {
    /// Signs exactly the bytes that were linted.
    ///
    /// # Errors
    /// [`IssuanceError::Sign`]; [`IssuanceError::Profile`] if the result holds other bytes.
    pub async fn sign(self, issuer: &Issuer) -> Result<Signed, IssuanceError> {
        let tbs = &self.prepared.unsigned.tbs;
        let signature = issuer.signer().sign(tbs).await?;
        let Prepared { template, unsigned } = self.prepared;
        let certificate =
            profile::assemble(&unsigned.tbs, issuer.signer().algorithm(), &signature)?;
        Ok(Signed {
            template,
            certificate,
        })
    }
}

// === impl Signed ===

impl Signed {
    /// Records certificates in one commit; they are released only after it is durable.
    ///
    /// # Errors
    /// [`IssuanceError::Store`]: then none of them may leave.
    pub async fn record(
        signed: Vec<Self>,
        issuer: &Issuer,
        store: &dyn Store,
    ) -> Result<Vec<Recorded>, IssuanceError> {
        let entries = signed.iter().map(|one| one.entry(issuer)).collect();
        let indexes = store.append(entries).await?;
        Ok(signed
            .into_iter()
            .zip(indexes)
            .map(|(signed, index)| Recorded { signed, index })
            .collect())
    }

    #[cfg(test)]
    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    fn entry(&self, issuer: &Issuer) -> NewEntry {
        let Template {
            grant,
            key,
            request,
            now,
        } = &self.template;
        let issued = log::Issued {
            certificate: self.certificate.clone(),
            serial: request.serial.as_bytes().to_vec(),
            spiffe_id: request.spiffe_id.to_string(),
            issuer_key_id: issuer.key_id().to_vec(),
            spki_sha256: key.spki_sha256().to_vec(),
            not_before: request.not_before.unix_timestamp(),
            not_after: request.not_after.unix_timestamp(),
            r#use: log::CertificateUse::from(grant.usage()).into(),
            caller: Some(grant.caller().to_record()),
            origin: Some(grant.origin().to_record()),
            policy_revision: grant.policy_revision(),
            previous_serial: grant
                .previous_serial()
                .map(|serial| serial.as_bytes().to_vec())
                .unwrap_or_default(),
            dns_names: request.dns_names.clone(),
        };
        let serial = request.serial.as_bytes().to_vec();
        new_entry(*now, log::entry::Kind::Issued(issued), Some(serial))
    }
}

// === impl Recorded ===

impl Recorded {
    /// Lets the certificate go.
    pub fn release(self) -> Svid {
        let Template {
            grant,
            request,
            now,
            ..
        } = self.signed.template;
        Svid {
            renew_at: renewal_slot(&grant.holder(), now, request.not_after),
            spiffe_id: request.spiffe_id,
            certificate: CertificateDer::from(self.signed.certificate),
            serial: request.serial,
            not_before: request.not_before,
            not_after: request.not_after,
            index: self.index,
            pod_uid: grant.pod_uid().map(ToOwned::to_owned),
            hint: grant.hint().to_owned(),
        }
    }
}
