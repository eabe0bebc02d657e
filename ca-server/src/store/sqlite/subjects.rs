//! Ids of subjects: the indexer writes whose certificate it is once, not with each renewal.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use citadel_identity::crypto::sha256;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::insert::Inserts;
use crate::store::{StoreError, SubjectRow};

/// Identifies a subject in the database: first half of the SHA-256 over all its fields.
type Digest = [u8; 16];

/// Identifies a subject in memory: two `SipHash`es with keys of this process, so that
/// nobody can choose names that collide. It costs a fifth of a [`Digest`].
pub(super) type Key = (u64, u64);

/// Ids kept in memory; 40 bytes each. Pods that come and go fill it with what is gone,
/// so it is emptied when it is full: finding an id again costs a lookup.
const CACHED: usize = 65_536;

/// Subjects that one statement looks up or inserts.
const CHUNK: usize = 64;

const COLUMNS: [&str; 13] = [
    "digest",
    "trust_domain",
    "spiffe_id",
    "certificate_use",
    "cluster",
    "namespace",
    "account",
    "account_uid",
    "pod",
    "pod_uid",
    "node",
    "node_uid",
    "issuer_key_id",
];

/// The ids of subjects that were met lately.
pub(super) struct Subjects {
    hashers: (RandomState, RandomState),
    ids: HashMap<Key, i64>,
    inserts: Inserts,
    select: std::sync::Arc<str>,
}

// === impl Subjects ===

impl Subjects {
    pub(super) fn new() -> Self {
        let places = vec!["?"; CHUNK].join(",");
        Self {
            hashers: (RandomState::new(), RandomState::new()),
            ids: HashMap::new(),
            inserts: Inserts::new("subjects", &COLUMNS, "ON CONFLICT (digest) DO NOTHING"),
            select: format!("SELECT digest, id FROM subjects WHERE digest IN ({places})").into(),
        }
    }

    /// Forgets all ids: the table was emptied, or a transaction that gave some failed.
    pub(super) fn clear(&mut self) {
        self.ids.clear();
    }

    pub(super) fn key(&self, subject: &SubjectRow) -> Key {
        (
            self.hashers.0.hash_one(subject),
            self.hashers.1.hash_one(subject),
        )
    }

    pub(super) fn id(&self, key: &Key) -> Option<i64> {
        self.ids.get(key).copied()
    }

    /// Makes sure that [`Self::id`] knows all of these. `wanted` holds no key twice.
    pub(super) async fn resolve(
        &mut self,
        connection: &mut SqliteConnection,
        wanted: &[(Key, SubjectRow)],
    ) -> Result<(), StoreError> {
        if self.ids.len() + wanted.len() > CACHED {
            self.ids.clear();
        }
        for chunk in wanted.chunks(CHUNK) {
            let keys: HashMap<Digest, Key> = chunk
                .iter()
                .map(|(key, subject)| (digest(subject), *key))
                .collect();
            let mut insert = self.inserts.rows(chunk.len());
            for (_, subject) in chunk {
                insert = insert
                    .bind(digest(subject).to_vec())
                    .bind(&subject.trust_domain)
                    .bind(&subject.spiffe_id)
                    .bind(subject.certificate_use)
                    .bind(&subject.cluster)
                    .bind(&subject.namespace)
                    .bind(&subject.account)
                    .bind(&subject.account_uid)
                    .bind(&subject.pod)
                    .bind(&subject.pod_uid)
                    .bind(&subject.node)
                    .bind(&subject.node_uid)
                    .bind(&subject.issuer_key_id);
            }
            insert.execute(&mut *connection).await?;
            let mut select = sqlx::query(AssertSqlSafe(self.select.clone()));
            for digest in keys.keys() {
                select = select.bind(digest.as_slice());
            }
            for row in select.fetch_all(&mut *connection).await? {
                let digest: &[u8] = row.try_get(0)?;
                if let Some(key) = keys.get(digest) {
                    self.ids.insert(*key, row.try_get(1)?);
                }
            }
        }
        Ok(())
    }
}

/// The subject's digest: each field preceded by its length, so that no two subjects
/// yield the same bytes.
fn digest(subject: &SubjectRow) -> Digest {
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
