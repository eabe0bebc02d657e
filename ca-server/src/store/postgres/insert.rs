//! Writes a run into the index's tables: one statement a table, each column an array.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::texts::column;
use crate::store::{
    StoreError, SubjectRow,
    index::{Bounds, Digest, Run, SubjectIds, SubjectKey, digest},
};

/// Rows of one statement at most.
const CHUNK: usize = 4096;

/// Writes all of the run, and remembers the ids of its subjects.
pub(super) async fn run(
    mut run: Run,
    ids: &mut SubjectIds,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let unknown = run.take_unknown();
    ids.make_room(unknown.len());
    for chunk in unknown.chunks(CHUNK) {
        subjects(chunk, ids, connection).await?;
    }
    for chunk in run.issued(ids)?.chunks(CHUNK) {
        let of = |part: fn(&(i64, i64, i64, i64, i64)) -> i64| -> Vec<i64> {
            chunk.iter().map(part).collect()
        };
        sqlx::query(
            "INSERT INTO index_issued (epoch, subject, idx, not_before, not_after) \
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], \
                                  $4::bigint[], $5::bigint[])",
        )
        .bind(of(|row| row.0))
        .bind(of(|row| row.1))
        .bind(of(|row| row.2))
        .bind(of(|row| row.3))
        .bind(of(|row| row.4))
        .execute(&mut *connection)
        .await?;
    }
    let (keys, epochs) = run.into_keys_and_epochs();
    for chunk in keys.chunks(CHUNK) {
        let of =
            |part: fn(&(i64, i64, i64)) -> i64| -> Vec<i64> { chunk.iter().map(part).collect() };
        sqlx::query(
            "INSERT INTO index_keys (epoch, spki, idx) \
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])",
        )
        .bind(of(|row| row.0))
        .bind(of(|row| row.1))
        .bind(of(|row| row.2))
        .execute(&mut *connection)
        .await?;
    }
    for (epoch, bounds) in epochs {
        widen(epoch, bounds, connection).await?;
    }
    Ok(())
}

/// Makes sure that `ids` knows all of these. `wanted` holds no key twice.
async fn subjects(
    wanted: &[(SubjectKey, SubjectRow)],
    ids: &mut SubjectIds,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    let keys: HashMap<Digest, SubjectKey> = wanted
        .iter()
        .map(|(key, subject)| (digest(subject), *key))
        .collect();
    let digests: Vec<Vec<u8>> = wanted
        .iter()
        .map(|(_, subject)| digest(subject).to_vec())
        .collect();
    let texts = |part: fn(&SubjectRow) -> &str| -> Vec<String> {
        wanted.iter().map(|(_, row)| column(part(row))).collect()
    };
    let uses: Vec<i32> = wanted.iter().map(|(_, row)| row.certificate_use).collect();
    let issuers: Vec<&[u8]> = wanted
        .iter()
        .map(|(_, row)| row.issuer_key_id.as_slice())
        .collect();
    sqlx::query(
        "INSERT INTO index_subjects (digest, trust_domain, spiffe_id, certificate_use, cluster, \
            namespace, account, account_uid, pod, pod_uid, node, node_uid, issuer_key_id) \
         SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::integer[], $5::text[], \
            $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], \
            $12::text[], $13::bytea[]) \
         ON CONFLICT (digest) DO NOTHING",
    )
    .bind(&digests)
    .bind(texts(|row| &row.trust_domain))
    .bind(texts(|row| &row.spiffe_id))
    .bind(uses)
    .bind(texts(|row| &row.cluster))
    .bind(texts(|row| &row.namespace))
    .bind(texts(|row| &row.account))
    .bind(texts(|row| &row.account_uid))
    .bind(texts(|row| &row.pod))
    .bind(texts(|row| &row.pod_uid))
    .bind(texts(|row| &row.node))
    .bind(texts(|row| &row.node_uid))
    .bind(issuers)
    .execute(&mut *connection)
    .await?;
    let rows: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT digest, id FROM index_subjects WHERE digest = ANY ($1)")
            .bind(&digests)
            .fetch_all(connection)
            .await?;
    for (digest, id) in rows {
        let digest = Digest::try_from(digest.as_slice()).unwrap_or_default();
        if let Some(key) = keys.get(&digest) {
            ids.insert(*key, id);
        }
    }
    Ok(())
}

/// LEAST and GREATEST leave NULLs out.
async fn widen(
    epoch: i64,
    bounds: Bounds,
    connection: &mut PgConnection,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO index_epochs AS e (epoch, min_time_ms, max_time_ms, \
                                        min_not_before, min_not_after, max_not_after) \
         VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (epoch) DO UPDATE SET \
           min_time_ms = least(e.min_time_ms, $2), \
           max_time_ms = greatest(e.max_time_ms, $3), \
           min_not_before = least(e.min_not_before, $4), \
           min_not_after = least(e.min_not_after, $5), \
           max_not_after = greatest(e.max_not_after, $6)",
    )
    .bind(epoch)
    .bind(bounds.min_time_ms)
    .bind(bounds.max_time_ms)
    .bind(bounds.validity.map(|validity| validity.0))
    .bind(bounds.validity.map(|validity| validity.1))
    .bind(bounds.validity.map(|validity| validity.2))
    .execute(connection)
    .await?;
    Ok(())
}
