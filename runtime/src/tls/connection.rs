//! One accepted TLS connection, and what a request handler may know about it.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use citadel_identity::{SpiffeId, crypto, verify};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{
    limits::Slot,
    metrics::{Failure, Refused},
    watchdog::{LastUse, Verdict, Watchdog},
};

/// Who is at the other end. In the extensions of each request of the connection.
#[derive(Clone)]
pub struct PeerInfo {
    /// The peer's TCP address. An IPv4 address is an IPv4 address, also on a socket that
    /// listens on `[::]`.
    pub address: SocketAddr,
    /// The chain that the client presented, leaf first, verified in the handshake; empty if it
    /// presented none. The connection may outlive it: compare its validity with the clock
    /// wherever it counts.
    pub client_chain: Arc<[CertificateDer<'static>]>,
    /// The SPIFFE ID of that chain's leaf, read once for all requests.
    pub client_id: Option<SpiffeId>,
    last_use: Arc<LastUse>,
    unanswered: Arc<AtomicUsize>,
    challenge: Arc<Mutex<Option<Challenge>>>,
}

/// A request that is not answered yet, until it is dropped.
#[derive(Debug)]
pub struct Unanswered(Arc<AtomicUsize>);

/// What a client of one connection has to sign.
type Challenge = [u8; 32];

/// A connection whose handshake is complete. Its place among the limits is free again once
/// it is dropped.
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    /// Until nothing can end the connection but its two ends.
    watchdog: Option<Watchdog>,
    /// A write waits for what else is ready.
    gathers: bool,
    slot: Slot,
}

impl TlsConn {
    /// Takes over a connection whose handshake is complete, or says which limit it is over.
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        slot: Slot,
    ) -> Result<Self, Refused> {
        let (_, session) = stream.get_ref();
        let client_chain: Arc<[_]> = session
            .peer_certificates()
            .into_iter()
            .flatten()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        let slot = if client_chain.is_empty() {
            slot.without_certificate()?
        } else {
            slot
        };
        let limits = slot.limits();
        let peer = PeerInfo::new(address, client_chain);
        let idle = peer
            .client_chain
            .is_empty()
            .then(|| (limits.idle, peer.last_use.clone()));
        let watchdog = Watchdog::new(limits.handshake, idle);
        Ok(Self {
            stream,
            peer,
            watchdog: Some(watchdog),
            gathers: false,
            slot,
        })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    #[cfg(test)]
    pub(super) fn nodelay(&self) -> bool {
        self.stream.get_ref().0.nodelay().unwrap_or(false)
    }
}

// === impl PeerInfo ===

impl PeerInfo {
    /// A peer that connected just now, with its verified chain.
    pub fn new(address: SocketAddr, client_chain: Arc<[CertificateDer<'static>]>) -> Self {
        let client_id = client_chain
            .first()
            .and_then(|leaf| verify::spiffe_id(leaf).ok());
        Self {
            address,
            client_chain,
            client_id,
            last_use: Arc::new(LastUse::now()),
            unanswered: Arc::default(),
            challenge: Arc::default(),
        }
    }

    /// A new challenge for this connection, in place of the one before.
    pub fn new_challenge(&self) -> [u8; 32] {
        let challenge = crypto::random();
        *self.challenge() = Some(challenge);
        challenge
    }

    /// The connection's challenge, which is used up with this.
    pub fn take_challenge(&self) -> Option<[u8; 32]> {
        self.challenge().take()
    }

    fn challenge(&self) -> MutexGuard<'_, Option<Challenge>> {
        self.challenge
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called for each request: a connection without a client certificate is closed
    /// once none has begun for [`super::ConnectionLimits::idle`].
    ///
    /// The answer is not to be written alone while other requests wait for theirs: to be dropped
    /// when it is ready.
    pub fn request_began(&self) -> Unanswered {
        self.last_use.is_now();
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        Unanswered(Arc::clone(&self.unanswered))
    }

    fn waits_for_answers(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerInfo")
            .field("address", &self.address)
            .field(
                "client_chain",
                &format_args!("{} certificates", self.client_chain.len()),
            )
            .finish_non_exhaustive()
    }
}

// === impl TlsConn ===

impl Connected for TlsConn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(watchdog) = &mut this.watchdog else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        match watchdog.poll(cx) {
            None => {}
            Some(Verdict::NoPreface) => {
                this.slot.metrics().handshake_failed(Failure::Preface);
                tracing::debug!(peer = %this.peer.address, "no HTTP/2 preface in time");
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Some(Verdict::Idle) => {
                this.slot.metrics().idle_closed();
                tracing::debug!(peer = %this.peer.address, "closed for want of a request");
                // The end of the stream: the server closes in order.
                return Poll::Ready(Ok(()));
            }
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if polled.is_ready() && watchdog.has_read(buffer.filled().len().saturating_sub(before)) {
            this.watchdog = None;
        }
        polled
    }
}

/// Not vectored: TLS copies what it encrypts anyway, and HTTP/2 then gathers more before it
/// writes (1 KiB of a frame instead of 256 bytes).
///
/// Where several requests of a connection are at work, a write first lets every other task run
/// that can: one commit of the log answers many of them, and HTTP/2 gathers the answers meanwhile.
/// They then share a TLS record, a system call and a wakening of the client.
impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.gathers = !self.gathers && self.peer.waits_for_answers();
        if self.gathers {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for TlsConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConn")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use futures::{FutureExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::tls::{ConnectionLimits, testing::Bench};

    #[tokio::test]
    async fn a_write_lets_others_run_while_requests_wait_for_their_answers() {
        let mut bench = Bench::new(ConnectionLimits::default()).await;
        let stream = TcpStream::connect(bench.address).await.unwrap();
        let client = TlsConnector::from(bench.authority.client_config(None));
        let connecting = client.connect("localhost".try_into().unwrap(), stream);
        let (client, server) = tokio::join!(connecting, bench.incoming.next());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().unwrap());

        // Nobody waits: at once.
        let written = poll_fn(|cx| Pin::new(&mut server).poll_write(cx, b"a")).now_or_never();
        assert_eq!(written.unwrap().unwrap(), 1);
        let unanswered = server.peer().request_began();
        for (once, byte) in [b"b", b"c"].into_iter().enumerate() {
            let written = poll_fn(|cx| Pin::new(&mut server).poll_write(cx, byte)).now_or_never();
            assert!(written.is_none(), "write {once} does not wait");
            // Its task is woken by itself, and then it goes on.
            let written = poll_fn(|cx| Pin::new(&mut server).poll_write(cx, byte)).now_or_never();
            assert_eq!(written.unwrap().unwrap(), 1);
        }
        let written = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            server.write_all(b"d").await.unwrap();
            drop(unanswered);
            server.flush().await.unwrap();
            let mut read = [0; 4];
            client.read_exact(&mut read).await.unwrap();
            read
        });
        assert_eq!(&written.await.unwrap(), b"abcd");
        let written = poll_fn(|cx| Pin::new(&mut server).poll_write(cx, b"e")).now_or_never();
        assert!(written.is_some(), "all are answered");
    }
}
