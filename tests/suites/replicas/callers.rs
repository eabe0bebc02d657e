//! Clients of one replica, and what they were told.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use citadel_tests::citadel::Ca;
use citadel_tests::client::{Client, ClientBuilder};
use citadel_tests::kubernetes::ApiServer;
use citadel_tests::pki::csr;
use tokio::task::JoinHandle;

use super::RETRYABLE;

/// Clients of each replica, each with a pod and a connection of its own.
const CALLERS: usize = 8;

/// A replica that was stopped answers nothing: its clients ask again after this.
const PATIENCE: Duration = Duration::from_secs(15);

/// After a refusal, so that it is no tight loop.
const PAUSE: Duration = Duration::from_millis(20);

/// Clients that ask again and again.
pub(super) struct Callers {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    answers: AtomicUsize,
    stopped: AtomicBool,
    seen: Mutex<Seen>,
}

/// What they saw.
#[derive(Default)]
pub(super) struct Seen {
    /// Of the certificates that arrived.
    pub(super) serials: Vec<String>,
    /// Refusals that a client may try again after, and how often.
    pub(super) retryable: BTreeMap<String, usize>,
    /// All others.
    pub(super) final_refusals: BTreeMap<String, usize>,
    /// Connections that broke, and answers that did not come.
    pub(super) broken: usize,
}

impl Callers {
    /// Starts those of this replica, whose pods have a namespace of this name.
    pub(super) async fn start(ca: &Ca, roots: &[u8], namespace: &str) -> Self {
        let api = ApiServer::shared().await;
        api.create_node(namespace).await;
        let shared = Arc::new(Shared::default());
        let mut tasks = Vec::new();
        for number in 0..CALLERS {
            let pod = format!("web-{number}");
            api.create_workload(namespace, "web", &pod, namespace).await;
            let token = api.token(namespace, "web", &pod).await;
            let client = ClientBuilder::at(ca.grpc(), roots).token(&token).build();
            tasks.push(tokio::spawn(call(client, Arc::clone(&shared))));
        }
        Self { shared, tasks }
    }

    /// Certificates that arrived.
    pub(super) fn answers(&self) -> usize {
        self.shared.answers.load(Ordering::SeqCst)
    }

    /// So many requests are in flight at most.
    pub(super) fn count(&self) -> usize {
        self.tasks.len()
    }

    /// Waits for what is in flight, and says what was seen.
    pub(super) async fn stop(self) -> Seen {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("a caller");
        }
        std::mem::take(&mut *self.shared.seen.lock().expect("no panic in there"))
    }
}

async fn call(client: Client, shared: Arc<Shared>) {
    let csr = csr::plain();
    while !shared.stopped.load(Ordering::SeqCst) {
        let answer = tokio::time::timeout(PATIENCE, client.issue(&csr)).await;
        let refused = {
            let mut seen = shared.seen.lock().expect("no panic in there");
            match answer {
                Ok(Ok(answer)) => {
                    seen.serials.push(answer.svid.expect("an SVID").serial);
                    shared.answers.fetch_add(1, Ordering::SeqCst);
                    false
                }
                // The connection's error, not the server's word.
                Ok(Err(status)) if status.source().is_some() => {
                    seen.broken += 1;
                    true
                }
                Ok(Err(status)) => {
                    let kind = format!("{:?}: {}", status.code(), status.message());
                    let of_its_kind = if RETRYABLE.contains(&status.code()) {
                        &mut seen.retryable
                    } else {
                        &mut seen.final_refusals
                    };
                    *of_its_kind.entry(kind).or_default() += 1;
                    true
                }
                Err(_) => {
                    seen.broken += 1;
                    false
                }
            }
        };
        if refused {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
