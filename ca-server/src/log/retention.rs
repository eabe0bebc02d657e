//! Retention: what a log no longer has to hold goes, and what proves the rest stays.
//!
//! The minimum index (C2SP tlog-tiles) rises past whole bundles in which every certificate
//! expired long enough ago. Their records go; entries of other kinds and all hashes stay.

use std::time::Duration;

use citadel_ledger::TILE_WIDTH;
use citadel_proto::log::{AdministratorAct, entry::Kind};
use citadel_runtime::ShutdownSignal;
use time::OffsetDateTime;

use super::{LEASE, Log, LogError, new_entry};
use crate::store::{IndexRow, LogIndex, Store, StoreError, without_gap};

/// Between two looks at what may go.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// The minimum index now.
    pub from: u64,
    /// What it may be.
    pub to: u64,
    /// Records of certificates between the two.
    pub certificates: u64,
    /// Bytes of these records, and of the serials beside them.
    pub bytes: u64,
}

/// What may go of this log: the largest prefix, in whole bundles that a checkpoint covers, in
/// which every certificate expired longer than `after` before `now`. The newest bundle stays.
///
/// # Errors
/// [`StoreError`]; `Corrupt` where an entry is missing.
pub async fn plan_retention(
    store: &dyn Store,
    after: Duration,
    now: OffsetDateTime,
) -> Result<RetentionPlan, StoreError> {
    let tree = store.tree().await?;
    let last = store.size().await?.saturating_sub(1).min(tree.size);
    let width = u64::from(TILE_WIDTH);
    let expired_before = now
        .unix_timestamp()
        .saturating_sub_unsigned(after.as_secs());
    let mut plan = RetentionPlan {
        from: tree.minimum,
        to: tree.minimum,
        ..RetentionPlan::default()
    };
    while plan.to + width <= last {
        let bundle = store.read(LogIndex(plan.to), TILE_WIDTH.into()).await?;
        let whole = without_gap(LogIndex(plan.to), &bundle).len();
        if whole < usize::from(TILE_WIDTH) {
            let index = plan.to + whole as u64;
            return Err(StoreError::Corrupt(format!("entry {index} is missing")));
        }
        let (mut certificates, mut bytes) = (0, 0);
        for entry in bundle {
            let Some(certificate) = IndexRow::of(&entry.bytes).certificate else {
                continue;
            };
            if certificate.not_after >= expired_before {
                return Ok(plan);
            }
            certificates += 1;
            bytes += (entry.bytes.len() + 2 * certificate.serial.len()) as u64;
        }
        plan.to += width;
        plan.certificates += certificates;
        plan.bytes += bytes;
    }
    Ok(plan)
}

impl Log {
    /// Takes away, now and each hour, what expired longer than `after` ago, until the shutdown.
    pub async fn retain(self: std::sync::Arc<Self>, after: Duration, shutdown: ShutdownSignal) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                _ = ticks.tick() => {}
            }
            let work = self.prune(after, OffsetDateTime::now_utc());
            let outcome = tokio::select! {
                // What an end interrupts, the next start goes on with.
                () = shutdown.wait() => return,
                outcome = work => outcome,
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "retention failed; it is tried again in an hour");
            }
        }
    }

    /// One round, where the tree is this server's task.
    pub(super) async fn prune(&self, after: Duration, now: OffsetDateTime) -> Result<(), LogError> {
        if !self.store.lease(&self.holder, LEASE).await? {
            return Ok(());
        }
        let plan = plan_retention(self.store(), after, now).await?;
        if plan.to > plan.from {
            let details = format!(
                "minimum index raised from {} to {}: {} certificates that expired more than {} s \
                 ago",
                plan.from,
                plan.to,
                plan.certificates,
                after.as_secs()
            );
            tracing::info!(%details, "retention");
            let act = Kind::AdministratorAct(AdministratorAct {
                act: "retention".to_owned(),
                by: "the configuration's log.retention".to_owned(),
                details,
            });
            // On record before it is done.
            self.store.append(vec![new_entry(now, act, None)]).await?;
        }
        if plan.to > 0 {
            self.store.prune(plan.to).await?;
        }
        Ok(())
    }
}
