//! Questions to the log.

use super::{IndexRow, LogIndex, Store, StoreError, StoredEntry};

/// Entries that one answer holds at most.
pub const MAX_PAGE: usize = 1000;

/// One page of a question: newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Which entries.
    pub filter: Filter,
    /// Only entries below this index: the last one of the page before.
    pub before: Option<LogIndex>,
    /// Entries wanted, clamped to 1…[`MAX_PAGE`].
    pub limit: usize,
}

/// All conditions that are set must hold. An empty filter means every entry, of every
/// kind; any condition on a certificate leaves out entries that record none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The entry was made at this time or later (milliseconds since the epoch).
    pub recorded_since_ms: Option<i64>,
    /// The entry was made before this time (milliseconds since the epoch).
    pub recorded_until_ms: Option<i64>,
    /// The exact serial.
    pub serial: Option<Vec<u8>>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub spki_sha256: Option<Vec<u8>>,
    /// Trust domain.
    pub trust_domain: Option<String>,
    /// The exact SPIFFE ID.
    pub spiffe_id: Option<String>,
    /// What the SPIFFE ID starts with.
    pub spiffe_id_prefix: Option<String>,
    /// `citadel.log.v1.CertificateUse` as a number.
    pub certificate_use: Option<i32>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// Namespace of the account.
    pub namespace: Option<String>,
    /// Name of the service account.
    pub account: Option<String>,
    /// UID of the pod.
    pub pod_uid: Option<String>,
    /// Name of the node.
    pub node: Option<String>,
    /// UID of the Node object.
    pub node_uid: Option<String>,
    /// Subject key id of the issuer.
    pub issuer_key_id: Option<Vec<u8>>,
    /// The certificate was still valid at this time (seconds): `not_after` is at or
    /// after it.
    pub valid_since: Option<i64>,
    /// The certificate was already valid at this time (seconds): `not_before` is at or
    /// before it. With `valid_since`: valid at some instant of that interval.
    pub valid_until: Option<i64>,
    /// `not_after` is before this time (seconds).
    pub expires_before: Option<i64>,
}

// === impl Query ===

impl Query {
    /// The newest entries that pass the filter.
    pub fn newest(filter: Filter, limit: usize) -> Self {
        Self {
            filter,
            before: None,
            limit,
        }
    }

    /// The page's size within its limits.
    pub fn page(&self) -> usize {
        self.limit.clamp(1, MAX_PAGE)
    }

    /// The page where only this entry can be on it.
    pub(super) fn alone(&self, entry: Option<StoredEntry>) -> Vec<StoredEntry> {
        entry
            .into_iter()
            .filter(|entry| self.before.is_none_or(|before| entry.index < before))
            .filter(|entry| self.filter.matches(&IndexRow::of(&entry.bytes)))
            .collect()
    }
}

/// How many entries pass the filter below `before`, as far as so many pages reach; and where
/// to go on, unless that was all.
///
/// # Errors
/// The store can't be read.
pub async fn count(
    store: &dyn Store,
    filter: Filter,
    before: Option<LogIndex>,
    pages: usize,
) -> Result<(u64, Option<LogIndex>), StoreError> {
    let mut query = Query::newest(filter, MAX_PAGE);
    query.before = before;
    let mut count = 0;
    for _ in 0..pages {
        let page = store.list(&query).await?;
        count += page.len() as u64;
        query.before = page.last().map(|last| last.index);
        if page.len() < MAX_PAGE {
            return Ok((count, None));
        }
    }
    Ok((count, query.before))
}

// === impl Filter ===

impl Filter {
    /// The one meaning of a filter: the index may only narrow down what this decides.
    pub fn matches(&self, row: &IndexRow) -> bool {
        if self
            .recorded_since_ms
            .is_some_and(|since| row.time_ms < since)
            || self
                .recorded_until_ms
                .is_some_and(|until| row.time_ms >= until)
        {
            return false;
        }
        let Some(certificate) = &row.certificate else {
            return !self.asks_for_certificates();
        };
        let subject = &certificate.subject;
        is(self.serial.as_deref(), &certificate.serial)
            && is(self.spki_sha256.as_deref(), &certificate.spki_sha256)
            && is(self.trust_domain.as_deref(), &subject.trust_domain)
            && is(self.spiffe_id.as_deref(), &subject.spiffe_id)
            && is(self.cluster.as_deref(), &subject.cluster)
            && is(self.namespace.as_deref(), &subject.namespace)
            && is(self.account.as_deref(), &subject.account)
            && is(self.pod_uid.as_deref(), &subject.pod_uid)
            && is(self.node.as_deref(), &subject.node)
            && is(self.node_uid.as_deref(), &subject.node_uid)
            && is(self.issuer_key_id.as_deref(), &subject.issuer_key_id)
            && self
                .certificate_use
                .is_none_or(|wanted| wanted == subject.certificate_use)
            && self
                .spiffe_id_prefix
                .as_deref()
                .is_none_or(|prefix| subject.spiffe_id.starts_with(prefix))
            && self
                .valid_since
                .is_none_or(|since| certificate.not_after >= since)
            && self
                .valid_until
                .is_none_or(|until| certificate.not_before <= until)
            && self
                .expires_before
                .is_none_or(|end| certificate.not_after < end)
    }

    /// True when a condition is set that only a certificate's entry can meet.
    pub fn asks_for_certificates(&self) -> bool {
        self.asks_for_subject()
            || self.serial.is_some()
            || self.spki_sha256.is_some()
            || self.valid_since.is_some()
            || self.valid_until.is_some()
            || self.expires_before.is_some()
    }

    /// True when a condition is set on whose certificate it is.
    pub(super) fn asks_for_subject(&self) -> bool {
        self.trust_domain.is_some()
            || self.spiffe_id.is_some()
            || self.spiffe_id_prefix.is_some()
            || self.certificate_use.is_some()
            || self.cluster.is_some()
            || self.namespace.is_some()
            || self.account.is_some()
            || self.pod_uid.is_some()
            || self.node.is_some()
            || self.node_uid.is_some()
            || self.issuer_key_id.is_some()
    }
}

fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, found: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}
