//! Ids of subjects: an indexer writes whose certificate it is once, not with each renewal.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use citadel_identity::crypto::sha256;

use crate::store::{SubjectRow, facts::SubjectFacts};

/// Identifies a subject in the database: first half of the SHA-256 over all its fields.
pub(in crate::store) type Digest = [u8; 16];

/// Identifies a subject in memory: two `SipHash`es with keys of this process, so that
/// nobody can choose names that collide. It costs a fifth of a [`Digest`].
pub(in crate::store) type SubjectKey = (u64, u64);

/// Ids kept in memory; 40 bytes each. Pods that come and go fill it with what is gone,
/// so it is emptied when it is full: finding an id again costs a lookup.
const CACHED: usize = 65_536;

/// The ids of subjects that were met lately.
#[derive(Default)]
pub(in crate::store) struct SubjectIds {
    hashers: (RandomState, RandomState),
    ids: HashMap<SubjectKey, i64>,
}

// === impl SubjectIds ===

impl SubjectIds {
    /// Forgets all ids: the table was emptied, or a transaction that gave some failed.
    pub(in crate::store) fn clear(&mut self) {
        self.ids.clear();
    }

    /// Makes room for so many more, by forgetting all others if need be.
    pub(in crate::store) fn make_room(&mut self, more: usize) {
        if self.ids.len() + more > CACHED {
            self.ids.clear();
        }
    }

    pub(in crate::store) fn key(&self, subject: &SubjectFacts<'_>) -> SubjectKey {
        (
            self.hashers.0.hash_one(subject),
            self.hashers.1.hash_one(subject),
        )
    }

    pub(in crate::store) fn id(&self, key: &SubjectKey) -> Option<i64> {
        self.ids.get(key).copied()
    }

    pub(in crate::store) fn insert(&mut self, key: SubjectKey, id: i64) {
        self.ids.insert(key, id);
    }
}

/// The subject's digest: each field preceded by its length, so that no two subjects
/// yield the same bytes.
pub(in crate::store) fn digest(subject: &SubjectRow) -> Digest {
    let mut bytes = Vec::with_capacity(512);
    let mut field = |value: &[u8]| {
        bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
        bytes.extend_from_slice(value);
    };
    field(subject.trust_domain.as_bytes());
    field(subject.spiffe_id.as_bytes());
    field(&subject.certificate_use.to_be_bytes());
    field(subject.cluster.as_bytes());
    field(subject.namespace.as_bytes());
    field(subject.account.as_bytes());
    field(subject.account_uid.as_bytes());
    field(subject.pod.as_bytes());
    field(subject.pod_uid.as_bytes());
    field(subject.node.as_bytes());
    field(subject.node_uid.as_bytes());
    field(&subject.issuer_key_id);
    let hash = sha256(&bytes);
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash[..16]);
    digest
}
