//! The subjects' table.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::insert::{Inserts, OnFailure};
use crate::store::{
    StoreError, SubjectRow,
    index::{Digest, SubjectIds, SubjectKey, digest},
};

/// Subjects that one statement looks up or inserts.
const CHUNK: usize = 128;

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

/// The statements on it.
pub(super) struct Subjects {
    inserts: Inserts,
    select: std::sync::Arc<str>,
}

// === impl Subjects ===

impl Subjects {
    pub(super) fn new() -> Self {
        let places = vec!["?"; CHUNK].join(",");
        Self {
            inserts: Inserts::new(
                "subjects",
                &COLUMNS,
                "ON CONFLICT (digest) DO NOTHING",
                OnFailure::GiveUp,
            ),
            select: format!("SELECT digest, id FROM subjects WHERE digest IN ({places})").into(),
        }
    }

    /// Makes sure that `ids` knows all of these. `wanted` holds no key twice.
    pub(super) async fn resolve(
        &self,
        connection: &mut SqliteConnection,
        ids: &mut SubjectIds,
        wanted: &[(SubjectKey, SubjectRow)],
    ) -> Result<(), StoreError> {
        ids.make_room(wanted.len());
        for chunk in wanted.chunks(CHUNK) {
            let digests: Vec<Digest> = chunk.iter().map(|(_, subject)| digest(subject)).collect();
            let keys: HashMap<Digest, SubjectKey> = digests
                .iter()
                .zip(chunk)
                .map(|(digest, (key, _))| (*digest, *key))
                .collect();
            let mut insert = self.inserts.rows(chunk.len());
            for (digest, (_, subject)) in digests.iter().zip(chunk) {
                insert = insert
                    .bind(digest.as_slice())
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
                    ids.insert(*key, row.try_get(1)?);
                }
            }
        }
        Ok(())
    }
}
