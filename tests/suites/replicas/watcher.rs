//! Keeps every checkpoint that any replica shows, as an auditor on another host would.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use citadel_ca_server::log::Witness;
use citadel_ledger::{Checkpoint, VerifierKey};
use citadel_tests::citadel::Ca;
use citadel_tests::client::Admin;
use tokio::task::JoinHandle;

/// Between two looks: checkpoints are signed every second.
const INTERVAL: Duration = Duration::from_millis(200);

/// A replica that does not answer is asked again later.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Watcher {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    newest: AtomicU64,
    /// By their text, each with the replica that showed it first.
    notes: Mutex<BTreeMap<String, usize>>,
}

impl Watcher {
    /// Watches all of these.
    pub(super) fn start(cas: &[Ca]) -> Self {
        let shared = Arc::new(Shared::default());
        let tasks = cas
            .iter()
            .enumerate()
            .map(|(number, ca)| tokio::spawn(watch(number, Admin::of(ca), Arc::clone(&shared))))
            .collect();
        Self { shared, tasks }
    }

    /// What the newest of all covers.
    pub(super) fn newest(&self) -> u64 {
        self.shared.newest.load(Ordering::SeqCst)
    }

    /// All that were seen.
    pub(super) async fn stop(self) -> Vec<Witness> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("a replica's checkpoints never go back");
        }
        let notes = std::mem::take(&mut *self.shared.notes.lock().expect("no panic in there"));
        notes
            .into_iter()
            .map(|(note, replica)| Witness {
                from: format!("of replica {replica}"),
                note,
            })
            .collect()
    }
}

async fn watch(number: usize, admin: Admin, shared: Arc<Shared>) {
    let mut before = 0;
    while !shared.stopped.load(Ordering::SeqCst) {
        if let Ok(Ok(info)) = tokio::time::timeout(PATIENCE, admin.try_info()).await {
            let key: VerifierKey = info.log_key.parse().expect("a key");
            let checkpoint =
                Checkpoint::open(info.checkpoint.as_bytes(), &[key]).expect("the log's own");
            assert!(
                checkpoint.size >= before,
                "replica {number} went back from {before} to {}",
                checkpoint.size
            );
            before = checkpoint.size;
            shared.newest.fetch_max(checkpoint.size, Ordering::SeqCst);
            let mut notes = shared.notes.lock().expect("no panic in there");
            notes.entry(info.checkpoint).or_insert(number);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
