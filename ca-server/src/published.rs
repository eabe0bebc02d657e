//! What the CA keeps in a ConfigMap of each cluster: the trust bundle, where agents find it,
//! and the newest checkpoint, which outlives this host's disk.

use std::{sync::Arc, time::Duration};

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_kubernetes::Published;
use citadel_runtime::ShutdownSignal;
use tokio::sync::watch;

use crate::{
    clusters::Clusters,
    log::{Log, LogError, Rollback},
};

/// Between two writes while the bundle does not change: for so long somebody else's edit
/// stands, and so old the checkpoint is. The API server stores nothing where nothing differs.
const INTERVAL: Duration = Duration::from_secs(30);

/// The same after a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Namespace and name of the ConfigMap.
pub(crate) type Place = (String, String);

/// Holds the log against the checkpoints that were kept so, before anything is recorded. What
/// can't be read, or is no checkpoint of this log, decides nothing: the guard file does.
///
/// # Errors
/// The store went back in time, or has another history, and that is not accepted.
pub(crate) async fn check(
    clusters: &Clusters,
    (namespace, name): &Place,
    log: &Log,
    rollback: Rollback,
) -> Result<(), LogError> {
    for cluster in clusters.iter() {
        let cluster_name = cluster.name();
        let note = match cluster.api().published_checkpoint(namespace, name).await {
            Ok(Some(note)) => note,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(cluster = cluster_name, %error,
                    "the checkpoint in the ConfigMap can't be read: the store is not held against it");
                continue;
            }
        };
        match log.hold_against(note, rollback).await {
            Ok(()) => {}
            Err(LogError::Checkpoint(error)) => {
                tracing::warn!(cluster = cluster_name, %error,
                    "what the ConfigMap has is no checkpoint of this log");
            }
            Err(error) => {
                tracing::error!(cluster = cluster_name, %error,
                    "the ConfigMap has a checkpoint that this store does not go on from");
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Keeps both there until the shutdown.
pub(crate) async fn run(
    clusters: Arc<Clusters>,
    (namespace, name): Place,
    mut bundles: watch::Receiver<Arc<BundleSet>>,
    log: Arc<Log>,
    shutdown: ShutdownSignal,
) {
    loop {
        let published = Published {
            bundle: bundles
                .borrow_and_update()
                .iter()
                .map(Bundle::to_pem)
                .collect(),
            checkpoint: log.newest().map(|newest| newest.note.clone()),
        };
        let mut wait = INTERVAL;
        for cluster in clusters.iter() {
            if let Err(error) = cluster.api().publish(&namespace, &name, &published).await {
                wait = RETRY;
                tracing::warn!(cluster = cluster.name(), %error, "trust bundle not written");
            }
        }
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(wait) => {}
            changed = bundles.changed() => if changed.is_err() { return },
        }
    }
}
