//! New connections, one after the other, and what was seen on the wire.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use citadel_tests::client::Certificate;
use citadel_tests::pki::openssl;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::mesh::{Mesh, ask};

/// Between two connections: each is two handshakes for the Envoys.
const PAUSE: Duration = Duration::from_millis(50);

/// How often the server's certificate is looked at; often enough for one of 15 s.
const PROBE: Duration = Duration::from_millis(1500);

/// Traffic that runs.
pub(crate) struct Traffic {
    stop: watch::Sender<bool>,
    requests: JoinHandle<Seen>,
    probes: JoinHandle<BTreeSet<String>>,
}

/// What it has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Connections that brought an answer.
    pub(crate) answers: u64,
    /// The others: when, and what happened.
    pub(crate) failures: Vec<(Duration, String)>,
    /// Serials of the client's certificate, as the server saw them.
    pub(crate) client_serials: BTreeSet<String>,
    /// Serials of the server's certificate, from handshakes with it.
    pub(crate) server_serials: BTreeSet<String>,
}

impl Traffic {
    /// Starts it.
    pub(crate) fn start(mesh: &Mesh) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (plain, mtls) = (mesh.pair.plain, mesh.pair.mtls);
        let requests = tokio::spawn(requests(plain, mesh.client_id.clone(), stopped.clone()));
        let probes = tokio::spawn(probes(mtls, stopped));
        Self {
            stop,
            requests,
            probes,
        }
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> Seen {
        self.stop.send_replace(true);
        let mut seen = self.requests.await.expect("the traffic");
        seen.server_serials = self.probes.await.expect("the probes");
        seen
    }
}

impl Seen {
    /// Panics if a connection failed.
    pub(crate) fn none_failed(&self) {
        let failures = &self.failures;
        assert!(
            failures.is_empty(),
            "{} of {} connections failed, the first of them: {:#?}",
            failures.len(),
            failures.len() as u64 + self.answers,
            &failures[..failures.len().min(5)],
        );
    }
}

async fn requests(plain: SocketAddr, client_id: String, stop: watch::Receiver<bool>) -> Seen {
    let (mut seen, begun) = (Seen::default(), Instant::now());
    while !*stop.borrow() {
        match ask(plain).await {
            Ok(answer) => {
                assert_eq!(answer.header("x-client-id"), Some(client_id.as_str()));
                let serial = answer
                    .header("x-client-serial")
                    .expect("the server's file adds it");
                seen.client_serials.insert(serial.to_owned());
                seen.answers += 1;
            }
            Err(problem) => seen.failures.push((begun.elapsed(), problem)),
        }
        sleep(PAUSE).await;
    }
    seen
}

/// Handshakes that end when the server asks for a certificate: its own is known then.
async fn probes(mtls: SocketAddr, stop: watch::Receiver<bool>) -> BTreeSet<String> {
    let mut serials = BTreeSet::new();
    while !*stop.borrow() {
        let probe = tokio::task::spawn_blocking(move || server_serial(mtls)).await;
        serials.extend(probe.expect("a probe"));
        sleep(PROBE).await;
    }
    serials
}

fn server_serial(mtls: SocketAddr) -> Option<String> {
    let (_, shown, _) = openssl::attempt(&["s_client", "-connect", &mtls.to_string()], b"");
    // Nothing but the certificate of a server that answered.
    let (accepted, der, _) = openssl::attempt(&["x509", "-outform", "DER"], &shown);
    accepted.then(|| Certificate::of_der(&der).serial())
}
