//! What the index knows of an entry, derived from the entry's own bytes.

use citadel_proto::log::{Entry, entry::Kind};
use prost::Message;

use super::facts::{CertificateFacts, EntryFacts, Facts, SubjectFacts};

/// The indexed facts of one log entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexRow {
    /// Wall time of the entry, milliseconds since the epoch.
    pub time_ms: i64,
    /// `None` for entries that record no certificate, and for kinds that this program
    /// does not know.
    pub certificate: Option<CertificateRow>,
}

/// The indexed facts of an issued certificate. Empty strings are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRow {
    /// Big-endian, as in the certificate.
    pub serial: Vec<u8>,
    /// SHA-256 of the subject's SubjectPublicKeyInfo.
    pub spki_sha256: Vec<u8>,
    /// Seconds since the epoch, as in the certificate.
    pub not_before: i64,
    /// Seconds since the epoch, as in the certificate.
    pub not_after: i64,
    /// Whose certificate it is: the same for all renewals of one workload.
    pub subject: SubjectRow,
}

/// Whose certificate it is, and under which key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectRow {
    /// Trust domain of the SPIFFE ID.
    pub trust_domain: String,
    /// The whole SPIFFE ID.
    pub spiffe_id: String,
    /// `citadel.log.v1.CertificateUse`, as a number: newer uses are kept.
    pub certificate_use: i32,
    /// Name of the cluster.
    pub cluster: String,
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account's name.
    pub account: String,
    /// The service account's UID.
    pub account_uid: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The node's name.
    pub node: String,
    /// The Node object's UID.
    pub node_uid: String,
    /// Subject key id of the issuer.
    pub issuer_key_id: Vec<u8>,
}

// === impl IndexRow ===

impl IndexRow {
    /// Derives the row from an encoded `citadel.log.v1.Entry`. Bytes that are none yield
    /// a row without facts: the log keeps what it was given, and so does its index.
    pub fn of(bytes: &[u8]) -> Self {
        match Facts::of(bytes) {
            Facts::InPlace(facts) => facts.to_row(),
            Facts::Decoded(row) => row,
        }
    }

    /// The same by the full decoder.
    pub(super) fn decoded(bytes: &[u8]) -> Self {
        let Ok(entry) = Entry::decode(bytes) else {
            return Self::default();
        };
        let Some(Kind::Issued(issued)) = entry.kind else {
            return Self {
                time_ms: entry.time_ms,
                certificate: None,
            };
        };
        let origin = issued.origin.unwrap_or_default();
        Self {
            time_ms: entry.time_ms,
            certificate: Some(CertificateRow {
                serial: issued.serial,
                spki_sha256: issued.spki_sha256,
                not_before: issued.not_before,
                not_after: issued.not_after,
                subject: SubjectRow {
                    trust_domain: trust_domain(&issued.spiffe_id).to_owned(),
                    spiffe_id: issued.spiffe_id,
                    certificate_use: issued.r#use,
                    cluster: origin.cluster,
                    namespace: origin.namespace,
                    account: origin.service_account,
                    account_uid: origin.service_account_uid,
                    pod: origin.pod,
                    pod_uid: origin.pod_uid,
                    node: origin.node,
                    node_uid: origin.node_uid,
                    issuer_key_id: issued.issuer_key_id,
                },
            }),
        }
    }

    pub(super) fn facts(&self) -> EntryFacts<'_> {
        EntryFacts {
            time_ms: self.time_ms,
            certificate: self.certificate.as_ref().map(|row| CertificateFacts {
                serial: &row.serial,
                spki_sha256: &row.spki_sha256,
                not_before: row.not_before,
                not_after: row.not_after,
                subject: row.subject.facts(),
            }),
        }
    }
}

// === impl SubjectRow ===

impl SubjectRow {
    fn facts(&self) -> SubjectFacts<'_> {
        SubjectFacts {
            trust_domain: &self.trust_domain,
            spiffe_id: &self.spiffe_id,
            certificate_use: self.certificate_use,
            cluster: &self.cluster,
            namespace: &self.namespace,
            account: &self.account,
            account_uid: &self.account_uid,
            pod: &self.pod,
            pod_uid: &self.pod_uid,
            node: &self.node,
            node_uid: &self.node_uid,
            issuer_key_id: &self.issuer_key_id,
        }
    }
}

/// The authority of a SPIFFE ID; empty where the text is none.
pub(super) fn trust_domain(spiffe_id: &str) -> &str {
    spiffe_id
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default()
}
