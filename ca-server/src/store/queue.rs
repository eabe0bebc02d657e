//! The queue before the writer: bounded by entries, and gathered into batches.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use citadel_ledger::{Hash, leaf_hash};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Growth, LogIndex, MAX_APPEND, NewEntry, NodeChange, StoreError, shared::Shared, within,
};

/// How a store's writer batches. The defaults suit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Entries of one commit at most (up to [`MAX_APPEND`]).
    pub entries: usize,
    /// Bytes of one commit's entries at most; one append may exceed it.
    pub bytes: usize,
    /// Entries that may wait for a commit; more are refused as overload.
    pub queue: usize,
    /// How long a commit waits at most for appends that were announced. Zero: never.
    pub max_wait: Duration,
    /// A batch of this many entries does not wait for more.
    pub enough: usize,
}

/// What the writer is asked to do.
pub(super) enum Command {
    Append(Append),
    /// A change of nodes with its one entry.
    ChangeNodes {
        change: NodeChange,
        append: Append,
    },
    BindIssuer {
        key_id: Vec<u8>,
        replaces: Option<Vec<u8>>,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Integrate {
        growth: Growth,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// One step of [`super::Store::prune`]; answered with the entries that went.
    Prune {
        minimum: u64,
        reply: oneshot::Sender<Result<u64, StoreError>>,
    },
    Lease {
        holder: String,
        time: Duration,
        reply: oneshot::Sender<Result<bool, StoreError>>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// The way to the writer.
#[derive(Debug)]
pub(super) struct Commands {
    sender: mpsc::UnboundedSender<Command>,
    /// Entries that may wait.
    queue: usize,
}

/// One caller's entries. Counts them as queued for as long as it exists.
pub(super) struct Append {
    pub(super) entries: Vec<NewEntry>,
    /// Their leaf hashes: made by the caller's thread, not by the writer's.
    pub(super) leaves: Vec<Hash>,
    pub(super) queued_at: Instant,
    reply: Option<oneshot::Sender<Result<u64, StoreError>>>,
    shared: Arc<Shared>,
}

/// What one commit will hold.
pub(super) struct Batch {
    pub(super) appends: Vec<Append>,
    pub(super) entries: usize,
    bytes: usize,
}

/// Takes what waits, and waits a moment for what was announced.
pub(super) struct Gatherer {
    limits: BatchOptions,
    /// Waits in a row that nobody came to.
    fruitless: u32,
    /// Batches to let pass before the next wait.
    skip: u32,
    /// An append that did not fit into the last batch, or a command found behind it.
    held: Option<Command>,
}

// === impl BatchOptions ===

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            entries: MAX_APPEND,
            bytes: 4 << 20,
            queue: 8192,
            max_wait: Duration::from_millis(2),
            enough: 32,
        }
    }
}

// === impl Commands ===

impl Commands {
    /// The way, and the inbox that it leads to.
    pub(super) fn new(options: &BatchOptions) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let queue = options.queue;
        (Self { sender, queue }, inbox)
    }

    /// See [`super::Store::append`].
    pub(super) async fn append(
        &self,
        entries: Vec<NewEntry>,
        shared: &Arc<Shared>,
    ) -> Result<Vec<LogIndex>, StoreError> {
        within(
            "the number of entries of one append",
            entries.len(),
            MAX_APPEND,
        )?;
        entries.iter().try_for_each(NewEntry::check)?;
        let count = entries.len() as u64;
        if count == 0 {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let append = Append::new(entries, self.queue, shared, reply)?;
        self.send(Command::Append(append))?;
        let first = answer.await.map_err(|_| StoreError::Closed)??;
        Ok((first..first + count).map(LogIndex).collect())
    }

    /// See [`super::Store::change_nodes`].
    pub(super) async fn change_nodes(
        &self,
        change: NodeChange,
        entry: NewEntry,
        shared: &Arc<Shared>,
    ) -> Result<LogIndex, StoreError> {
        entry.check()?;
        let (reply, answer) = oneshot::channel();
        let append = Append::new(vec![entry], self.queue, shared, reply)?;
        self.send(Command::ChangeNodes { change, append })?;
        let index = answer.await.map_err(|_| StoreError::Closed)??;
        Ok(LogIndex(index))
    }

    /// See [`super::Store::bind_issuer`].
    pub(super) async fn bind_issuer(
        &self,
        key_id: &[u8],
        replaces: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::BindIssuer {
            key_id: key_id.to_vec(),
            replaces: replaces.map(<[u8]>::to_vec),
            reply,
        })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// See [`super::Store::integrate`].
    pub(super) async fn integrate(&self, growth: Growth) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Integrate { growth, reply })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The log's part of [`super::Store::prune`].
    pub(super) async fn prune(&self, minimum: u64) -> Result<u64, StoreError> {
        let mut gone = 0;
        loop {
            let (reply, answer) = oneshot::channel();
            self.send(Command::Prune { minimum, reply })?;
            match answer.await.map_err(|_| StoreError::Closed)?? {
                0 => return Ok(gone),
                step => gone += step,
            }
        }
    }

    /// See [`super::Store::lease`].
    pub(super) async fn lease(&self, holder: &str, time: Duration) -> Result<bool, StoreError> {
        let (reply, answer) = oneshot::channel();
        let holder = holder.to_owned();
        self.send(Command::Lease {
            holder,
            time,
            reply,
        })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Resolves when the writer has written what waited, and let go of its database.
    pub(super) async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Command::Close { reply }).is_ok() {
            let _ = done.await;
        }
    }

    fn send(&self, command: Command) -> Result<(), StoreError> {
        self.sender.send(command).map_err(|_| StoreError::Closed)
    }
}

// === impl Append ===

impl Append {
    /// Queues the entries, or refuses them early when `limit` entries wait already.
    pub(super) fn new(
        entries: Vec<NewEntry>,
        limit: usize,
        shared: &Arc<Shared>,
        reply: oneshot::Sender<Result<u64, StoreError>>,
    ) -> Result<Self, StoreError> {
        let before = shared.queued.fetch_add(entries.len(), Ordering::Relaxed);
        let this = Self {
            leaves: entries
                .iter()
                .map(|entry| leaf_hash(&entry.bytes))
                .collect(),
            entries,
            queued_at: Instant::now(),
            reply: Some(reply),
            shared: Arc::clone(shared),
        };
        // One append always fits into an empty queue.
        if before > 0 && before + this.entries.len() > limit {
            return Err(StoreError::Overloaded { queued: before });
        }
        Ok(this)
    }

    /// Answers the caller with the index of its first entry.
    pub(super) fn answer(mut self, outcome: Result<u64, StoreError>) {
        if let Some(reply) = self.reply.take() {
            // A caller that has gone away is told nothing; its entries stay recorded.
            let _ = reply.send(outcome);
        }
    }

    /// True when the caller no longer waits, so that nothing need be recorded for it.
    fn is_withdrawn(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes.len()).sum()
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        self.shared
            .queued
            .fetch_sub(self.entries.len(), Ordering::Relaxed);
    }
}

// === impl Batch ===

impl Batch {
    fn empty() -> Self {
        Self {
            appends: Vec::new(),
            entries: 0,
            bytes: 0,
        }
    }

    fn push(&mut self, append: Append) {
        self.entries += append.entries.len();
        self.bytes += append.bytes();
        self.appends.push(append);
    }

    fn has_room_for(&self, append: &Append, limits: &BatchOptions) -> bool {
        self.appends.is_empty()
            || (self.entries + append.entries.len() <= limits.entries
                && self.bytes + append.bytes() <= limits.bytes)
    }
}

// === impl Gatherer ===

impl Gatherer {
    pub(super) fn new(options: &BatchOptions) -> Self {
        let mut limits = options.clone();
        limits.entries = limits.entries.clamp(1, MAX_APPEND);
        Self {
            limits,
            fruitless: 0,
            skip: 0,
            held: None,
        }
    }

    /// The next command; `None` when nobody can send one any more.
    pub(super) async fn next(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<Command> {
        match self.held.take() {
            Some(held) => Some(held),
            None => inbox.recv().await,
        }
    }

    /// The batch that begins with this append. Empty when its callers have all gone.
    pub(super) async fn gather(
        &mut self,
        first: Append,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
        shared: &Shared,
    ) -> Batch {
        let mut batch = Batch::empty();
        self.add(&mut batch, Command::Append(first));
        self.take_waiting(&mut batch, inbox);
        if self.may_wait(&batch, shared) {
            self.wait(&mut batch, inbox, shared).await;
        }
        batch
    }

    /// Adds a command to the batch if it is an append that fits; else keeps it for later.
    fn add(&mut self, batch: &mut Batch, command: Command) {
        match command {
            Command::Append(append) if append.is_withdrawn() => {}
            Command::Append(append) if batch.has_room_for(&append, &self.limits) => {
                batch.push(append);
            }
            other => self.held = Some(other),
        }
    }

    fn take_waiting(&mut self, batch: &mut Batch, inbox: &mut mpsc::UnboundedReceiver<Command>) {
        while self.held.is_none()
            && let Ok(command) = inbox.try_recv()
        {
            self.add(batch, command);
        }
    }

    /// Waiting pays when others are known to come and the batch is still small: a commit
    /// costs about as much CPU as fifteen rows.
    fn may_wait(&mut self, batch: &Batch, shared: &Shared) -> bool {
        if self.limits.max_wait.is_zero() || !self.wants_more(batch, shared) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        true
    }

    /// For half of those who are known to come: the others arrive while the commit runs, and
    /// waiting for the last one costs each of a few callers more than their commits do.
    fn wants_more(&self, batch: &Batch, shared: &Shared) -> bool {
        self.held.is_none()
            && !batch.appends.is_empty()
            && batch.entries < self.limits.enough
            && shared.announced.load(Ordering::Relaxed) > 2 * batch.appends.len()
    }

    async fn wait(
        &mut self,
        batch: &mut Batch,
        inbox: &mut mpsc::UnboundedReceiver<Command>,
        shared: &Shared,
    ) {
        shared.count_wait();
        let before = batch.appends.len();
        let begun = Instant::now();
        let deadline = begun + self.limits.max_wait;
        while self.wants_more(batch, shared) {
            match timeout_at(deadline, inbox.recv()).await {
                Ok(Some(command)) => self.add(batch, command),
                Ok(None) | Err(_) => break,
            }
            self.take_waiting(batch, inbox);
        }
        shared.count_waited(begun.elapsed());
        if batch.appends.len() > before {
            self.fruitless = 0;
        } else {
            // Whoever was announced hangs: wait for it ever more seldom.
            self.fruitless = (self.fruitless + 1).min(6);
            self.skip = (1 << self.fruitless) - 1;
        }
    }
}
