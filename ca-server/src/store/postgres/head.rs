//! The head row, and what this process knows of the log: neither ever goes back.

use std::sync::{Arc, OnceLock};

use citadel_identity::crypto::sha256;
use sqlx::PgConnection;

use crate::store::{StoreError, StoreHealth, shared::Shared, writer::to_row};

/// Names the log, and remembers how far it was seen to reach.
#[derive(Debug)]
pub(super) struct Head {
    log_id: Vec<u8>,
    shared: Arc<Shared>,
    /// Why nothing is appended any more, once that is so. It stays.
    stopped: OnceLock<StoreError>,
}

/// The newest entry that this process appended.
pub(super) struct Newest {
    index: u64,
    sha256: Vec<u8>,
}

// === impl Head ===

impl Head {
    pub(super) fn new(log_id: Vec<u8>, shared: Arc<Shared>) -> Self {
        Self {
            log_id,
            shared,
            stopped: OnceLock::new(),
        }
    }

    pub(super) fn log_id(&self) -> &[u8] {
        &self.log_id
    }

    /// The least size that the log can have: take it before the question is sent.
    pub(super) fn known(&self) -> u64 {
        *self.shared.committed.borrow()
    }

    /// Refuses once the log went back.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.stopped
            .get()
            .map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Compares what the database says with what was known before it was asked.
    pub(super) fn seen(&self, size: u64, log_id: &[u8], known: u64) -> Result<(), StoreError> {
        if log_id != self.log_id {
            return Err(self.stop("the database holds another log than before".into()));
        }
        if size < known {
            return Err(self.stop(format!(
                "the log has {size} entries, and this server saw {known} of it"
            )));
        }
        self.shared.grown_to(size);
        self.check()
    }

    /// Looks at the head on a connection that was just made: the server may be another
    /// one than before.
    pub(super) async fn verify(
        &self,
        connection: &mut PgConnection,
        newest: Option<&Newest>,
    ) -> Result<(), StoreError> {
        let known = self.known();
        let (size, log_id): (i64, Vec<u8>) = sqlx::query_as("SELECT size, log_id FROM head")
            .fetch_one(&mut *connection)
            .await?;
        self.seen(size.unsigned_abs(), &log_id, known)?;
        let Some(newest) = newest else {
            return Ok(());
        };
        // A standby that took over may have grown past what it had lost.
        let (found, minimum): (Option<Vec<u8>>, i64) = sqlx::query_as(
            "SELECT (SELECT sha256(bytes) FROM entries WHERE idx = $1), minimum FROM tree",
        )
        .bind(to_row(newest.index)?)
        .fetch_one(connection)
        .await?;
        let pruned = found.is_none() && newest.index < minimum.unsigned_abs();
        if pruned || found.as_deref() == Some(&newest.sha256) {
            return Ok(());
        }
        Err(self.stop(format!(
            "entry {} is not the one that this server appended",
            newest.index
        )))
    }

    /// The store stops for good.
    fn stop(&self, what: String) -> StoreError {
        let error = self.stopped.get_or_init(|| {
            let error = StoreError::WentBack(what);
            tracing::error!(%error, "nothing is issued any more");
            error
        });
        self.shared.set_health(StoreHealth::NotReady(error.clone()));
        error.clone()
    }
}

// === impl Newest ===

impl Newest {
    pub(super) fn new(index: u64, bytes: &[u8]) -> Self {
        Self {
            index,
            sha256: sha256(bytes).to_vec(),
        }
    }
}

/// Size and name of the log at a start, checked against what can be known without reading
/// it. One statement, so that other servers may append meanwhile.
pub(super) async fn read(connection: &mut PgConnection) -> Result<(u64, Vec<u8>), StoreError> {
    let (size, log_id, minimum, first, last): (i64, Vec<u8>, i64, Option<i64>, Option<i64>) =
        sqlx::query_as(
            "SELECT h.size, h.log_id, t.minimum, \
                    (SELECT min(idx) FROM entries WHERE idx >= t.minimum), \
                    (SELECT max(idx) FROM entries) \
             FROM head h, tree t",
        )
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| StoreError::Corrupt("the log has no head".into()))?;
    if let Some(first) = first.filter(|first| *first != minimum) {
        return Err(StoreError::Corrupt(format!(
            "the log begins with entry {first}, not {minimum}"
        )));
    }
    let entries = last.map_or(0, |last| last + 1);
    if entries != size {
        return Err(StoreError::Corrupt(format!(
            "the log has {entries} entries, and its head says {size}"
        )));
    }
    Ok((size.unsigned_abs(), log_id))
}
