//! Accepts workloads: each connection is attested once, before any request is read, and
//! ends when the process that opened it does.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use citadel_runtime::ShutdownSignal;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{
    attest::{AttestError, Attestor, Peer},
    metrics::{Counted, Metrics},
};

/// The limits of the socket.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one pod, or of one user outside of pods.
    pub connections_per_peer: usize,
    /// Streams of one connection.
    pub streams_per_connection: u32,
    /// Attestations at once.
    pub attestations: usize,
    /// How long one may take.
    pub attestation_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_peer: 256,
            streams_per_connection: 256,
            attestations: 32,
            attestation_deadline: Duration::from_secs(5),
        }
    }
}

/// Who opened a connection; in the extensions of each of its requests.
#[derive(Debug, Clone)]
pub struct Caller {
    attested: Arc<Result<Arc<Peer>, AttestError>>,
    gone: CancellationToken,
}

impl Caller {
    /// The peer, or why it gets nothing.
    pub fn peer(&self) -> Result<&Arc<Peer>, &AttestError> {
        (*self.attested).as_ref()
    }

    /// Cancelled once the process that opened the connection has ended.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }
}

/// A connection, attested or refused.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    caller: Caller,
    watch: Option<AbortHandle>,
    _counted: Counted,
    _slot: OwnedSemaphorePermit,
    _peer_slot: Option<PeerSlot>,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// Accepts until the shutdown. The accept loop itself waits for no attestation.
pub fn accept(
    listener: UnixListener,
    attestor: Attestor,
    limits: &Limits,
    metrics: &Metrics,
    shutdown: ShutdownSignal,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(16);
    let acceptor = Acceptor {
        attestor: Arc::new(attestor),
        attestations: Arc::new(Semaphore::new(limits.attestations)),
        peers: Peers::new(limits.connections_per_peer),
        limits: limits.clone(),
        metrics: metrics.clone(),
        sender,
    };
    tokio::spawn(acceptor.run(listener, shutdown));
    ReceiverStream::new(receiver)
}

#[derive(Clone)]
struct Acceptor {
    attestor: Arc<Attestor>,
    attestations: Arc<Semaphore>,
    peers: Peers,
    limits: Limits,
    metrics: Metrics,
    sender: mpsc::Sender<io::Result<Connection>>,
}

impl Acceptor {
    async fn run(self, listener: UnixListener, shutdown: ShutdownSignal) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            // At the limit new connections wait in the kernel's queue.
            let accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                () = shutdown.wait() => return,
                accepted = accepted => accepted,
            };
            let Ok(slot) = slot else { return };
            match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().admit(stream, slot));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some will close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn admit(self, stream: UnixStream, slot: OwnedSemaphorePermit) {
        // Before anything waits: what started later than this is not who connected.
        let accepted = self.attestor.proc.now_ticks().unwrap_or(0);
        let attesting = async {
            let permit = Arc::clone(&self.attestations).acquire_owned().await;
            let attestor = Arc::clone(&self.attestor);
            let attested = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let attested = attestor.attest(&stream, accepted);
                (stream, attested)
            });
            attested.await
        };
        let deadline = self.limits.attestation_deadline;
        let attested = tokio::time::timeout(deadline, attesting).await;
        let Ok(Ok((stream, attested))) = attested else {
            // The stream went with the thread that is stuck: closed when it returns.
            self.metrics.peer(false);
            tracing::warn!(reason = %AttestError::Deadline, "a connection is dropped");
            return;
        };
        let (attested, peer_slot) = match attested {
            Ok(peer) => {
                if let Some(slot) = self.peers.enter(peer.principal()) {
                    (Ok(Arc::new(peer)), Some(slot))
                } else {
                    tracing::warn!(peer = peer.describe(), "{}", AttestError::TooMany);
                    (Err(AttestError::TooMany), None)
                }
            }
            Err(error) => (Err(error), None),
        };
        self.metrics.peer(attested.is_ok());
        let gone = CancellationToken::new();
        let watch = attested.as_ref().ok().map(|peer| {
            let (peer, gone) = (Arc::clone(peer), gone.clone());
            let watching = async move {
                peer.left().await;
                tracing::debug!(
                    peer = peer.describe(),
                    "the process has ended or left its pod"
                );
                gone.cancel();
            };
            tokio::spawn(watching).abort_handle()
        });
        match &attested {
            Ok(peer) => tracing::debug!(peer = peer.describe(), "attested"),
            // Each of its requests is refused, and said so, with this reason.
            Err(reason) => tracing::info!(%reason, "a peer could not be attested"),
        }
        let connection = Connection {
            stream,
            caller: Caller {
                attested: Arc::new(attested),
                gone,
            },
            watch,
            _counted: self.metrics.connected(),
            _slot: slot,
            _peer_slot: peer_slot,
        };
        let _ = self.sender.send(Ok(connection)).await;
    }
}

/// Counts connections by principal.
#[derive(Debug, Clone)]
struct Peers {
    limit: usize,
    open: Arc<Mutex<HashMap<String, usize>>>,
}

#[derive(Debug)]
struct PeerSlot {
    peers: Peers,
    principal: String,
}

impl Peers {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            open: Arc::default(),
        }
    }

    fn enter(&self, principal: String) -> Option<PeerSlot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(principal.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(open);
        Some(PeerSlot {
            peers: self.clone(),
            principal,
        })
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut open = self
            .peers
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.principal);
            }
        }
    }
}

// === impl Connection: bytes pass through ===

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
