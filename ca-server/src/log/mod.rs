//! The log as something that proves what it holds: its key, its tree, its checkpoints, and
//! receipts. Off the issuance path: a certificate is recorded before any of this.

mod changes;
mod entries;
mod error;
mod facts;
mod grow;
mod guard;
mod prove;
mod retention;
#[cfg(test)]
mod tests;
mod verify;

use std::{path::PathBuf, sync::Arc, time::Duration};

use citadel_identity::{TrustDomain, crypto};
use citadel_ledger::{Builder, Checkpoint, LogKey, Receipt, VerifierKey};
use citadel_runtime::ShutdownSignal;
use tokio::sync::{Mutex, watch};

use crate::store::{LogIndex, Store};

pub use changes::{InForce, changes};
pub(crate) use entries::new_entry;
pub(crate) use entries::policy_changed;
pub use entries::{act_of, administrator_act, server_started, server_stopped};
pub use error::LogError;
pub use facts::{caller_facts, enum_name, without_empty};
pub use prove::{bundle, receipt, root_at};
pub use retention::{RetentionPlan, plan_retention};
pub use verify::{Broken, Verified, Witness, verify};

/// How often the tree takes in what was recorded.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the task of growing the tree is somebody's: another replica takes over this much
/// and [`INTERVAL`] after its last sign of life.
const LEASE: Duration = Duration::from_secs(3);

/// What to do with a store that is older than what was seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// Refuse to start.
    Refuse,
    /// An administrator says that it is meant to be so. It is recorded.
    Accept,
}

/// A checkpoint and its signed note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The note.
    pub note: String,
}

/// The log of a running server.
pub struct Log {
    store: Arc<dyn Store>,
    key: LogKey,
    /// Where the key and the guard file are.
    directory: PathBuf,
    /// Names this process among the replicas.
    holder: String,
    newest: watch::Sender<Option<Arc<Signed>>>,
    /// The tree's right edge; `None` when what it is has to be asked of the store.
    builder: Mutex<Option<Builder>>,
}

impl Log {
    /// Opens the log of this store with the key from the directory, which is made at the
    /// first start, and holds the store against the newest checkpoint that is known of it.
    ///
    /// Blocks on file I/O: for the start of the program.
    ///
    /// # Errors
    /// [`LogError`], which says what to do.
    pub async fn open(
        store: Arc<dyn Store>,
        directory: PathBuf,
        trust_domain: &TrustDomain,
        rollback: Rollback,
    ) -> Result<Arc<Self>, LogError> {
        let tree = store.tree().await?;
        let name = format!(
            "{trust_domain}/citadel/{}",
            hex::encode(store.log_id().await?)
        );
        let key = guard::key(&directory, &name, tree.checkpoint.is_some())?;
        let log = Self {
            newest: watch::Sender::new(None),
            builder: Mutex::new(None),
            store,
            key,
            directory,
            holder: hex::encode(crypto::random::<8>()),
        };
        // Read first: what it covers was recorded before it was written.
        let guard = log.guard()?;
        // Not kept yet: it may be older than the guard file's.
        let (tree, own) = log.resumed().await?;
        if let Some(own) = own {
            log.publish(own);
        }
        log.check_history(&tree, guard, rollback).await?;
        *log.builder.lock().await = Some(tree);
        log.grow().await?;
        Ok(Arc::new(log))
    }

    /// Where its entries and tiles are.
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// What verifies its checkpoints.
    pub fn verifier(&self) -> &VerifierKey {
        self.key.verifier()
    }

    /// The newest checkpoint; `None` while the log is empty.
    pub fn newest(&self) -> Option<Arc<Signed>> {
        self.newest.borrow().clone()
    }

    /// Follows the checkpoints.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Signed>>> {
        self.newest.subscribe()
    }

    /// The receipt of an entry; `None` until a checkpoint covers it.
    pub async fn receipt(&self, index: LogIndex) -> Result<Option<Receipt>, LogError> {
        receipt(self.store.as_ref(), index).await
    }

    /// Signs a checkpoint every second in which something was recorded, until the shutdown.
    /// What is recorded while the server drains is taken in by [`Self::close`].
    pub async fn run(self: Arc<Self>, shutdown: ShutdownSignal) {
        let mut failing = false;
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                _ = ticks.tick() => {}
            }
            match self.tick().await {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("the log's checkpoints are up to date again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "no checkpoint: issuance goes on, and can't be proven until this ends");
                    }
                }
            }
        }
    }

    /// Grows the tree, or follows the replica whose task that is.
    async fn tick(&self) -> Result<(), LogError> {
        if self.store.lease(&self.holder, LEASE).await? {
            self.grow().await
        } else {
            self.follow().await
        }
    }

    /// Records the stop, signs the last checkpoint and closes the store.
    pub async fn close(&self) {
        if let Err(error) = self.store.append(vec![server_stopped()]).await {
            tracing::warn!(%error, "the stop is not recorded");
        }
        if let Err(error) = self.grow().await {
            tracing::warn!(%error, "no last checkpoint; the next start makes it");
        }
        self.store.close().await;
    }

    fn open_checkpoint(&self, note: String) -> Result<Signed, LogError> {
        let checkpoint = Checkpoint::open(note.as_bytes(), &[self.verifier().clone()])?;
        Ok(Signed { checkpoint, note })
    }

    fn publish(&self, signed: Signed) {
        self.newest.send_replace(Some(Arc::new(signed)));
    }
}
