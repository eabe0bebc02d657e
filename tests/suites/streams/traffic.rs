//! Requests over new connections through all listeners and clusters in turn.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::mesh::{Mesh, PATHS, ask};

/// Between two requests: each is a handshake of both Envoys.
const PAUSE: Duration = Duration::from_millis(30);

/// Traffic that runs, one request at a time each way.
pub(crate) struct Traffic {
    stop: watch::Sender<bool>,
    ways: [JoinHandle<Seen>; 2],
}

/// What it has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answers: u64,
    /// The others: when, and what happened.
    pub(crate) failures: Vec<(Duration, String)>,
    /// Serials of each Envoy's certificate, as the other saw them.
    pub(crate) serials: Vec<BTreeSet<String>>,
}

impl Traffic {
    /// Starts it.
    pub(crate) fn start(mesh: &Mesh) -> Self {
        let (stop, stopped) = watch::channel(false);
        let way = |envoy: usize| {
            let id = mesh.ids[envoy].clone();
            tokio::spawn(requests(mesh.plain[envoy], id, stopped.clone()))
        };
        Self {
            ways: [way(0), way(1)],
            stop,
        }
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> Seen {
        self.stop.send_replace(true);
        let mut all = Seen::default();
        for way in self.ways {
            let seen = way.await.expect("the traffic");
            all.answers += seen.answers;
            all.failures.extend(seen.failures);
            all.serials.extend(seen.serials);
        }
        all
    }
}

impl Seen {
    /// Panics if a request failed.
    pub(crate) fn none_failed(&self) {
        let failures = &self.failures;
        assert!(
            failures.is_empty(),
            "{} of {} requests failed, the first of them: {:#?}",
            failures.len(),
            failures.len() as u64 + self.answers,
            &failures[..failures.len().min(5)],
        );
    }
}

async fn requests(plain: SocketAddr, id: String, stop: watch::Receiver<bool>) -> Seen {
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let mut serials = BTreeSet::new();
    for path in (0..PATHS).cycle() {
        if *stop.borrow() {
            break;
        }
        match ask(plain, path).await {
            Ok(answer) => {
                assert_eq!(answer.header("x-client-id"), Some(id.as_str()));
                let serial = answer.header("x-client-serial");
                serials.insert(serial.expect("the listener adds it").to_owned());
                seen.answers += 1;
            }
            Err(problem) => seen.failures.push((begun.elapsed(), problem)),
        }
        sleep(PAUSE).await;
    }
    seen.serials.push(serials);
    seen
}
