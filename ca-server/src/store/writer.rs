//! The one writer of a store: group commit, whatever the engine.
//!
//! It takes what waited while the last commit ran, hands it to the engine as one commit,
//! and answers.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Growth, NewEntry, NodeChange, StoreError, StoreHealth,
    queue::{Append, Batch, BatchOptions, Command, Gatherer},
    shared::Shared,
};

/// How often a writer that failed finds out whether writing works again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The log of one engine, as its one writer sees it.
#[async_trait]
pub(super) trait Log: Send {
    /// One commit of all these entries. Returns the index of the first once they are
    /// durable; on an error the caller answers that nothing was recorded.
    async fn write(&mut self, appends: &[Append], entries: usize) -> Result<u64, Failure>;

    /// The append was committed at `first` and is about to be answered.
    fn recorded(&mut self, _first: u64, _append: &mut Append) {}

    /// One commit of the change and its entry; the entry's index once both are durable.
    /// [`StoreError::NotApplied`] where it does not apply.
    async fn change_nodes(
        &mut self,
        change: &NodeChange,
        entry: &NewEntry,
    ) -> Result<u64, StoreError>;

    /// Writes a few bytes to find out whether writing works again.
    async fn probe(&mut self) -> Result<(), StoreError>;

    /// See [`super::Store::bind_issuer`].
    async fn bind_issuer(
        &mut self,
        key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError>;

    /// See [`super::Store::integrate`].
    async fn integrate(&mut self, growth: &Growth) -> Result<(), StoreError>;

    /// One small step of [`super::Store::prune`]: the entries that went, 0 at the end.
    async fn prune(&mut self, minimum: u64) -> Result<u64, StoreError>;

    /// See [`super::Store::lease`].
    async fn lease(&mut self, holder: &str, time: Duration) -> Result<bool, StoreError>;

    /// Lets go of the database in good order.
    async fn finish(&mut self);
}

/// Why a commit failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// One of its serials is in the log already; engines do not say which.
    DuplicateSerial,
    Store(StoreError),
}

pub(super) struct Writer<L> {
    log: L,
    gatherer: Gatherer,
    inbox: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
}

// === impl Writer ===

impl<L: Log> Writer<L> {
    pub(super) fn new(
        log: L,
        options: &BatchOptions,
        inbox: mpsc::UnboundedReceiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            log,
            gatherer: Gatherer::new(options),
            inbox,
            shared,
        }
    }

    /// Runs until the store is closed or dropped; then lets go of the log.
    pub(super) async fn run(mut self) {
        let mut closing = None;
        while let Some(command) = self.next_command().await {
            if let ControlFlow::Break(reply) = self.handle(command).await {
                closing = Some(reply);
                break;
            }
        }
        self.log.finish().await;
        drop(self);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    async fn handle(&mut self, command: Command) -> ControlFlow<oneshot::Sender<()>> {
        match command {
            Command::Append(first) => {
                let batch = self
                    .gatherer
                    .gather(first, &mut self.inbox, &self.shared)
                    .await;
                self.commit(batch).await;
            }
            Command::ChangeNodes { change, append } => self.change_nodes(&change, append).await,
            Command::BindIssuer {
                key_id,
                replaces,
                reply,
            } => {
                let outcome = self.log.bind_issuer(&key_id, replaces.as_deref()).await;
                let _ = reply.send(outcome);
            }
            Command::Integrate { growth, reply } => {
                let _ = reply.send(self.log.integrate(&growth).await);
            }
            Command::Prune { minimum, reply } => {
                let _ = reply.send(self.log.prune(minimum).await);
            }
            Command::Lease {
                holder,
                time,
                reply,
            } => {
                let _ = reply.send(self.log.lease(&holder, time).await);
            }
            Command::Close { reply } => return ControlFlow::Break(reply),
        }
        ControlFlow::Continue(())
    }

    /// The next command. While the store is not ready, probes it between commands.
    async fn next_command(&mut self) -> Option<Command> {
        loop {
            if self.shared.health.borrow().is_ready() {
                return self.gatherer.next(&mut self.inbox).await;
            }
            match timeout(PROBE_INTERVAL, self.gatherer.next(&mut self.inbox)).await {
                Ok(command) => return command,
                Err(_) => self.probe().await,
            }
        }
    }

    async fn commit(&mut self, batch: Batch) {
        if batch.appends.is_empty() {
            return;
        }
        match self.write(&batch.appends, batch.entries).await {
            Ok(first) => self.answer(batch.appends, first),
            Err(Failure::DuplicateSerial) if batch.appends.len() > 1 => {
                // Only the append with the duplicate may fail: write each by itself.
                for append in batch.appends {
                    let entries = append.entries.len();
                    match self.write(std::slice::from_ref(&append), entries).await {
                        Ok(first) => self.answer(vec![append], first),
                        Err(failure) => refuse(append, &failure),
                    }
                }
            }
            Err(failure) => {
                for append in batch.appends {
                    refuse(append, &failure);
                }
            }
        }
    }

    async fn change_nodes(&mut self, change: &NodeChange, append: Append) {
        let Some(entry) = append.entries.first() else {
            return;
        };
        let begun = Instant::now();
        match self.log.change_nodes(change, entry).await {
            Ok(index) => {
                self.shared.count_commit(1, begun.elapsed());
                self.shared.grown_to(index + 1);
                self.shared.set_health(StoreHealth::Ready);
                self.answer(vec![append], index);
            }
            Err(error) => {
                if error != StoreError::NotApplied {
                    self.shared.count_failure();
                    self.not_ready(&error);
                }
                append.answer(Err(error));
            }
        }
    }

    fn answer(&mut self, appends: Vec<Append>, mut first: u64) {
        for mut append in appends {
            let entries = append.entries.len() as u64;
            self.log.recorded(first, &mut append);
            append.answer(Ok(first));
            first += entries;
        }
    }

    /// One commit. Returns the index of its first entry once it is durable.
    async fn write(&mut self, appends: &[Append], entries: usize) -> Result<u64, Failure> {
        let begun = Instant::now();
        let outcome = self.log.write(appends, entries).await;
        match &outcome {
            Ok(first) => {
                self.shared.count_commit(entries, begun.elapsed());
                self.shared.grown_to(first + entries as u64);
                self.shared.set_health(StoreHealth::Ready);
            }
            Err(Failure::DuplicateSerial) => {}
            Err(Failure::Store(error)) => {
                self.shared.count_failure();
                self.not_ready(error);
            }
        }
        outcome
    }

    async fn probe(&mut self) {
        match self.log.probe().await {
            Ok(()) => {
                tracing::info!("the store can write again");
                self.shared.set_health(StoreHealth::Ready);
            }
            Err(error) => self.not_ready(&error),
        }
    }

    fn not_ready(&self, error: &StoreError) {
        let was_ready = self.shared.health.borrow().is_ready();
        if was_ready {
            tracing::error!(%error, "the store cannot write: nothing is issued until it can");
        }
        self.shared.set_health(StoreHealth::NotReady(error.clone()));
    }
}

fn refuse(append: Append, failure: &Failure) {
    let error = failure.for_append(&append);
    append.answer(Err(error));
}

// === impl Failure ===

impl Failure {
    fn for_append(&self, append: &Append) -> StoreError {
        match self {
            Self::Store(error) => error.clone(),
            Self::DuplicateSerial => {
                let serials: Vec<_> = append
                    .entries
                    .iter()
                    .filter_map(|entry| entry.serial.as_deref().map(hex::encode))
                    .collect();
                StoreError::DuplicateSerial {
                    serial: serials.join(", "),
                }
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Entries that one step of retention takes away: some 10 ms, for which appends wait.
pub(super) const PRUNE_STEP: i64 = 256;

/// The tree does not reach this minimum index.
pub(super) fn no_minimum(minimum: u64) -> StoreError {
    StoreError::Corrupt(format!("the tree can't have the minimum index {minimum}"))
}

/// An index as the databases keep it.
pub(super) fn to_row(index: u64) -> Result<i64, StoreError> {
    i64::try_from(index).map_err(|_| StoreError::Corrupt("the log's index is exhausted".into()))
}
