//! Accepts workloads: each connection is attested once, before any request is read, and
//! ends when the process that opened it does.
//!
//! Who is refused holds no place that others need: it is told so for a moment, in a
//! small room of its own, and dropped where that is full.

mod backlog;
mod peers;
mod reasons;

use std::{
    io,
    os::{fd::AsFd as _, unix::net::UnixStream as StdStream},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use citadel_runtime::{ShutdownSignal, grpc::Unfinished};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

pub(crate) use self::reasons::REASONS;
use self::{
    backlog::Backlog,
    peers::{PeerSlot, Peers},
};
use crate::{
    attest::{AttestError, Attestor, Peer},
    metrics::{Counted, Metrics},
};

/// How long a connection outlives its process, so that its streams can say why they end
/// to whoever holds the other end now.
const FAREWELL: Duration = Duration::from_secs(2);

/// Connections of one process that are not attested yet, unless it may have more than that
/// afterwards: one that opens thousands at once would keep others out until it is known who it is.
const NOT_YET_ATTESTED: usize = 256;

/// Bytes of requests that are not whole yet, over all connections of a caller: of several
/// hundred first requests of an Envoy, which have 61 KiB each.
const UNFINISHED: usize = 64 * 1024 * 1024;

/// How often it is said that connections are dropped, at most.
const QUIET: Duration = Duration::from_secs(10);

/// The limits of the socket.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, those included that are being attested.
    pub connections: usize,
    /// Connections of one pod, or of one user outside of pods.
    pub connections_per_peer: usize,
    /// Streams of one connection.
    pub streams_per_connection: u32,
    /// Attestations at once.
    pub attestations: usize,
    /// How long one may take.
    pub attestation_deadline: Duration,
    /// Refused connections at once that are still told why.
    pub refusals: usize,
    /// How long one is. Then it is closed, and its client may connect anew.
    pub refusal_lasts: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_peer: 256,
            streams_per_connection: 256,
            attestations: 32,
            attestation_deadline: Duration::from_secs(5),
            refusals: 64,
            refusal_lasts: Duration::from_secs(3),
        }
    }
}

/// Who opened a connection; in the extensions of each of its requests.
#[derive(Debug, Clone)]
pub struct Caller {
    attested: Arc<Result<Arc<Peer>, AttestError>>,
    gone: CancellationToken,
    unfinished: Arc<Unfinished>,
}

impl Caller {
    /// The peer, or why it gets nothing.
    pub fn peer(&self) -> Result<&Arc<Peer>, &AttestError> {
        (*self.attested).as_ref()
    }

    /// What all connections of this caller hold of requests that are not whole yet.
    pub fn unfinished(&self) -> &Arc<Unfinished> {
        &self.unfinished
    }

    /// Cancelled once the process that opened the connection has ended.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

/// A connection, attested or refused.
pub struct Connection {
    stream: UnixStream,
    caller: Caller,
    /// Resolves when the connection has had its time; none once it has.
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    watch: AbortHandle,
    _counted: Counted,
    _place: Place,
}

/// What a connection takes up until it is dropped.
enum Place {
    Served {
        _slot: OwnedSemaphorePermit,
        _of_peer: PeerSlot<Arc<str>, Unfinished>,
    },
    Refused {
        _room: OwnedSemaphorePermit,
    },
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Who connected, by the kernel's word; 0 where it names nobody, who is not attested either.
fn pid_of(stream: &StdStream) -> i32 {
    getsockopt(stream, sockopt::PeerCredentials).map_or(0, |credentials| credentials.pid())
}

fn unfinished() -> Unfinished {
    Unfinished::new(UNFINISHED)
}

/// Whether the other end is closed.
fn hung_up(stream: &StdStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let any = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
    any && fds[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Accepts until the shutdown. The accept loop itself waits for no attestation.
pub fn accept(
    listener: UnixListener,
    attestor: Attestor,
    limits: &Limits,
    metrics: &Metrics,
    shutdown: ShutdownSignal,
) -> io::Result<ReceiverStream<io::Result<Connection>>> {
    let (sender, receiver) = mpsc::channel(16);
    let clock = (!attestor.pidfds).then(|| attestor.proc.clone());
    let backlog = Backlog::new(listener, clock)?;
    let acceptor = Acceptor {
        attestor: Arc::new(attestor),
        attestations: Arc::new(Semaphore::new(limits.attestations)),
        peers: Peers::new(limits.connections_per_peer),
        processes: Peers::new(limits.connections_per_peer.max(NOT_YET_ATTESTED)),
        refusals: Arc::new(Semaphore::new(limits.refusals)),
        limits: limits.clone(),
        metrics: metrics.clone(),
        told: Arc::default(),
        sender,
    };
    tokio::spawn(acceptor.run(backlog, shutdown));
    Ok(ReceiverStream::new(receiver))
}

#[derive(Clone)]
struct Acceptor {
    attestor: Arc<Attestor>,
    attestations: Arc<Semaphore>,
    peers: Peers<Arc<str>, Unfinished>,
    /// By the pid that connected, before they are attested.
    processes: Peers<i32>,
    refusals: Arc<Semaphore>,
    limits: Limits,
    metrics: Metrics,
    /// When it was last said that connections are dropped.
    told: Arc<Mutex<Option<Instant>>>,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(self, mut backlog: Backlog, shutdown: ShutdownSignal) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let accepted = tokio::select! {
                () = shutdown.wait() => return,
                accepted = backlog.accept() => accepted,
            };
            match accepted {
                // Dropped above the limit: in the kernel's queue a connection would only
                // grow old, and outlive the process that made it.
                Ok((stream, after)) => {
                    let Some(process) = self.processes.enter(&pid_of(&stream), || ()) else {
                        self.metrics.peer_refused(reasons::TOO_MANY);
                        self.drop_one("a process connects faster than it can be attested");
                        continue;
                    };
                    let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                        self.metrics.peer_refused(reasons::FULL);
                        self.drop_one("the agent has as many connections as it may");
                        continue;
                    };
                    tokio::spawn(self.clone().admit(stream, after, slot, process));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some will close.
                    if self.may_tell() {
                        tracing::warn!(%error, "a connection could not be accepted");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn admit(
        self,
        stream: StdStream,
        after: Option<u64>,
        slot: OwnedSemaphorePermit,
        process: PeerSlot<i32>,
    ) {
        let attesting = async {
            let permit = Arc::clone(&self.attestations).acquire_owned().await;
            // Many that come and go at once must not keep the places of others meanwhile.
            if hung_up(&stream) {
                return None;
            }
            let attestor = Arc::clone(&self.attestor);
            let attested = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let attested = attestor.attest(&stream, after);
                (stream, attested)
            });
            Some(attested.await)
        };
        let deadline = self.limits.attestation_deadline;
        let (stream, attested) = match tokio::time::timeout(deadline, attesting).await {
            Ok(None) => return,
            Ok(Some(Ok(attested))) => attested,
            Ok(Some(Err(_))) | Err(_) => {
                // The stream went with the thread that is stuck: closed when it returns.
                self.metrics.peer_refused(reasons::DEADLINE);
                return self.drop_one("the peer could not be attested within the deadline");
            }
        };
        drop(process);
        let admitted =
            attested.and_then(
                |peer| match self.peers.enter(peer.principal(), unfinished) {
                    Some(of_peer) => Ok((Arc::new(peer), of_peer)),
                    None => Err(AttestError::TooMany(peer.describe())),
                },
            );
        let (attested, unfinished, place) = match admitted {
            Ok((peer, of_peer)) => {
                let unfinished = Arc::clone(of_peer.shared());
                tracing::debug!(peer = peer.describe(), "attested");
                let place = Place::Served {
                    _slot: slot,
                    _of_peer: of_peer,
                };
                (Ok(peer), unfinished, place)
            }
            Err(reason) => {
                drop(slot);
                self.metrics.peer_refused(reasons::of(&reason));
                let Some(room) = self.room_for(&reason) else {
                    return self.drop_one(&reason.to_string());
                };
                // Each of its requests is refused, and said so, with this reason.
                tracing::info!(%reason, "a peer could not be attested");
                let place = Place::Refused { _room: room };
                (Err(reason), Arc::new(unfinished()), place)
            }
        };
        let Ok(stream) = UnixStream::from_std(stream) else {
            return self.drop_one("the connection can't be watched");
        };
        self.metrics.peer(match &attested {
            Ok(_) => "attested",
            Err(_) => "refused",
        });
        let (gone, over) = (CancellationToken::new(), CancellationToken::new());
        let watching = {
            let (peer, gone, over) = (attested.as_ref().ok().cloned(), gone.clone(), over.clone());
            let lasts = self.limits.refusal_lasts;
            async move {
                if let Some(peer) = peer {
                    peer.left().await;
                    tracing::debug!(
                        peer = peer.describe(),
                        "the process has ended or left its pod"
                    );
                    gone.cancel();
                    tokio::time::sleep(FAREWELL).await;
                } else {
                    tokio::time::sleep(lasts).await;
                }
                over.cancel();
            }
        };
        let connection = Connection {
            stream,
            caller: Caller {
                attested: Arc::new(attested),
                gone,
                unfinished,
            },
            over: Some(Box::pin(over.cancelled_owned())),
            watch: tokio::spawn(watching).abort_handle(),
            _counted: self.metrics.connected(),
            _place: place,
        };
        let _ = self.sender.send(Ok(connection)).await;
    }

    /// A place to be told the reason in. One caller's flood leaves half of them to
    /// those who are refused for what they are.
    fn room_for(&self, reason: &AttestError) -> Option<OwnedSemaphorePermit> {
        let flood = matches!(reason, AttestError::TooMany(_));
        if flood && self.refusals.available_permits() <= self.limits.refusals / 2 {
            return None;
        }
        Arc::clone(&self.refusals).try_acquire_owned().ok()
    }

    fn drop_one(&self, reason: &str) {
        self.metrics.peer("dropped");
        if self.may_tell() {
            tracing::warn!(reason, "a connection is dropped");
        }
    }

    /// A flood is one line now and then; the metric counts.
    fn may_tell(&self) -> bool {
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = told.is_some_and(|at| now.saturating_duration_since(at) < QUIET);
        if !quiet {
            *told = Some(now);
        }
        !quiet
    }
}

impl Connection {
    /// An error once the connection has had its time: the server then drops it, whatever
    /// its client still holds open.
    fn check_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(over) = &mut self.over {
            if over.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            self.over = None;
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

// === impl Connection: bytes pass through until its time is over ===

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_time(cx)?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
