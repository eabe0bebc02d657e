//! Clients of the Workload API that go on: one that follows its stream, and one that
//! connects anew for each certificate.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use citadel_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use citadel_proto::workload::{X509svidRequest, X509svidResponse};
use citadel_tests::client::Certificate;
use citadel_tests::peer::channel_to;
use citadel_tests::secrets;
use time::OffsetDateTime;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, Streaming};

/// Between two fetches, two connects, two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Tries of one fetch, after the first.
const TRIES: usize = 10;

/// A message that nothing holds up.
const PROMPT: Duration = Duration::from_secs(10);

/// The certificate that a client holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) serial: String,
    not_after: i64,
}

/// Follows a stream, opens it again when it ends, and holds the newest certificate.
pub(super) struct Follower {
    held: watch::Receiver<Held>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Status>>,
    look: JoinHandle<Vec<String>>,
}

impl Follower {
    /// Starts it, and waits for its first certificate.
    pub(super) async fn start(socket: &Path) -> Self {
        let mut stream = open(socket).await.expect("a stream");
        let first = next(&mut stream).await.expect("a certificate");
        let (told, held) = watch::channel(first);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(follow(socket.to_owned(), stream, told, stopped.clone()));
        let look = tokio::spawn(look(held.clone(), stopped));
        Self {
            held,
            stop,
            task,
            look,
        }
    }

    /// What it holds now.
    pub(super) fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Waits for another certificate than it holds now.
    pub(super) async fn renewed(&self, deadline: Duration) -> Held {
        let (before, mut held) = (self.held(), self.held.clone());
        let renewed = timeout(deadline, held.wait_for(|held| *held != before)).await;
        renewed
            .expect("a renewal in time")
            .expect("it runs")
            .clone()
    }

    /// Ends it. Panics if what it held had ever expired. How its streams ended.
    pub(super) async fn end(self) -> Vec<Status> {
        self.stop.send_replace(true);
        let expired = self.look.await.expect("the look");
        assert!(expired.is_empty(), "held an expired one: {expired:?}");
        self.task.await.expect("the client")
    }

    /// The same. Panics also if it was ever told anything but to come again. How often
    /// its stream ended.
    pub(super) async fn stop(self) -> usize {
        let ends = self.end().await;
        let odd: Vec<_> = ends
            .iter()
            .filter(|status| status.code() != Code::Unavailable)
            .collect();
        assert!(odd.is_empty(), "{odd:#?}");
        ends.len()
    }
}

async fn follow(
    socket: PathBuf,
    mut stream: Streaming<X509svidResponse>,
    told: watch::Sender<Held>,
    mut stop: watch::Receiver<bool>,
) -> Vec<Status> {
    let mut ends = Vec::new();
    loop {
        let ended = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return ends,
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    told.send_replace(read(&message));
                    continue;
                }
                Ok(None) => Status::unavailable("it ended"),
                Err(status) => status,
            },
        };
        ends.push(ended);
        stream = loop {
            if *stop.borrow() {
                return ends;
            }
            match open(&socket).await {
                Ok(stream) => break stream,
                Err(status) => ends.push(status),
            }
            sleep(PAUSE).await;
        };
    }
}

/// Sees that what is held never expires.
async fn look(held: watch::Receiver<Held>, stop: watch::Receiver<bool>) -> Vec<String> {
    let mut expired = Vec::new();
    while !*stop.borrow() {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let held = held.borrow().clone();
        if held.not_after < now && !expired.contains(&held.serial) {
            expired.push(held.serial);
        }
        sleep(PAUSE).await;
    }
    expired
}

/// Connects, fetches a certificate and hangs up, again and again; and connects alone.
pub(super) struct Fetches {
    stop: watch::Sender<bool>,
    answers: Arc<AtomicU64>,
    task: JoinHandle<Fetched>,
    connects: JoinHandle<Vec<(Duration, String)>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub(super) answers: u64,
    /// Tries after one that was told to come again.
    pub(super) retried: u64,
    /// When, and what happened.
    pub(super) failures: Vec<(Duration, String)>,
    /// Connects that were refused.
    pub(super) refused: Vec<(Duration, String)>,
    pub(super) serials: BTreeSet<String>,
}

impl Fetches {
    /// Starts it.
    pub(super) fn start(socket: &Path) -> Self {
        let (stop, stopped) = watch::channel(false);
        let answers = Arc::new(AtomicU64::new(0));
        let fetching = fetch(socket.to_owned(), stopped.clone(), Arc::clone(&answers));
        Self {
            stop,
            answers,
            task: tokio::spawn(fetching),
            connects: tokio::spawn(connect(socket.to_owned(), stopped)),
        }
    }

    /// How many there were.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub(super) async fn stop(self) -> Fetched {
        self.stop.send_replace(true);
        let mut fetched = self.task.await.expect("the client");
        fetched.refused = self.connects.await.expect("the connects");
        fetched
    }
}

impl Fetched {
    /// Panics if a fetch failed or a connect was refused.
    pub(super) fn none_failed(&self) {
        assert!(self.failures.is_empty(), "{self:#?}");
        assert!(self.refused.is_empty(), "{self:#?}");
        assert!(self.answers > 10, "{self:#?}");
    }
}

async fn fetch(socket: PathBuf, stop: watch::Receiver<bool>, answers: Arc<AtomicU64>) -> Fetched {
    let (mut seen, begun) = (Fetched::default(), Instant::now());
    while !*stop.borrow() {
        let mut fetched = one(&socket).await;
        // As the libraries do: they are told by GOAWAY that it was not looked at, or see a
        // connection end that has brought nothing yet.
        for _ in 0..TRIES {
            if !fetched.as_ref().is_err_and(may_be_tried_again) {
                break;
            }
            seen.retried += 1;
            sleep(PAUSE).await;
            fetched = one(&socket).await;
        }
        match fetched {
            Ok(held) if held.not_after < OffsetDateTime::now_utc().unix_timestamp() => {
                let failure = format!("an expired one: {held:?}");
                seen.failures.push((begun.elapsed(), failure));
            }
            Ok(held) => {
                seen.answers += 1;
                answers.fetch_add(1, Ordering::Relaxed);
                seen.serials.insert(held.serial);
            }
            Err(status) => seen.failures.push((begun.elapsed(), format!("{status:?}"))),
        }
        sleep(PAUSE).await;
    }
    seen
}

fn may_be_tried_again(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.message() == "transport error"
}

async fn connect(socket: PathBuf, stop: watch::Receiver<bool>) -> Vec<(Duration, String)> {
    let (mut refused, begun) = (Vec::new(), Instant::now());
    while !*stop.borrow() {
        match UnixStream::connect(&socket).await {
            // The queue is full: who may wait, waits; nobody was refused.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => refused.push((begun.elapsed(), error.to_string())),
            Ok(_) => {}
        }
        sleep(PAUSE / 4).await;
    }
    refused
}

/// One certificate over a connection of its own.
pub(super) async fn one(socket: &Path) -> Result<Held, Status> {
    next(&mut open(socket).await?).await
}

/// The roots that come with a certificate, in DER one after the other.
pub(super) async fn trusted(socket: &Path) -> Vec<u8> {
    let mut stream = open(socket).await.expect("a stream");
    let message = receive(&mut stream).await.expect("a certificate");
    message.svids[0].bundle.clone()
}

async fn open(socket: &Path) -> Result<Streaming<X509svidResponse>, Status> {
    let mut request = Request::new(X509svidRequest {});
    let header = "true".parse().expect("a value");
    request.metadata_mut().insert("workload.spiffe.io", header);
    let mut client = SpiffeWorkloadApiClient::new(channel_to(socket));
    Ok(client.fetch_x509svid(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<Held, Status> {
    Ok(read(&receive(stream).await?))
}

async fn receive(stream: &mut Streaming<X509svidResponse>) -> Result<X509svidResponse, Status> {
    let message = timeout(PROMPT, stream.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no answer"))??;
    message.ok_or_else(|| Status::unavailable("it ended"))
}

fn read(message: &X509svidResponse) -> Held {
    let svid = &message.svids[0];
    secrets::register_key("SVID key", &svid.x509_svid_key);
    // The leaf comes first; its length is in the two bytes after `30 82`.
    let chain = &svid.x509_svid;
    let length = 4 + usize::from(u16::from_be_bytes([chain[2], chain[3]]));
    let leaf = Certificate::of_der(&chain[..length]);
    Held {
        serial: leaf.serial(),
        not_after: leaf.not_after(),
    }
}
