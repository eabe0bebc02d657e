//! From a listening socket to a stream of TLS connections.
//!
//! One task accepts and does nothing else; each handshake is a task of its own with a
//! deadline, so that a client that is slow, silent or malicious delays nobody.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    accept::Backoff,
    connection::TlsConn,
    limits::{ConnectionLimits, Places, Slot},
    metrics::{ConnectionMetrics, Failure, Refused},
};
use crate::{LineLimit, ShutdownSignal};

/// Connections whose handshake is complete and which the server has not taken yet.
const READY: usize = 64;
/// How long handshakes in progress may go on once the shutdown has begun.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

/// The connections of one listener, as [`crate::grpc::serve`] takes them.
///
/// It ends when the shutdown has begun and the handshakes in progress are done. Dropping it
/// closes the listener.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<io::Result<TlsConn>>,
    _stop: DropGuard,
}

/// Accepts TLS connections within `limits` until the shutdown begins.
///
/// For a shutdown that loses no request give [`crate::grpc::serve`] this stream and a signal that
/// never comes. It then drains when the stream ends, and every client whose handshake we had
/// begun to answer gets a GOAWAY rather than a reset.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: ConnectionLimits,
    metrics: ConnectionMetrics,
    shutdown: ShutdownSignal,
) -> Incoming {
    incoming_from(listener, config, limits, metrics, shutdown)
}

/// `accept()`, as a trait so that a test can let it fail.
pub(super) trait Accept: Send + 'static {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

pub(super) fn incoming_from(
    listener: impl Accept,
    config: Arc<ServerConfig>,
    limits: ConnectionLimits,
    metrics: ConnectionMetrics,
    shutdown: ShutdownSignal,
) -> Incoming {
    let (ready_sender, ready) = mpsc::channel(READY);
    let stop = CancellationToken::new();
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(config),
        deadline: limits.handshake,
        places: Places::new(&limits, metrics.clone()),
        metrics,
        failures: Arc::default(),
        ready: ready_sender,
    };
    tokio::spawn(acceptor.run(listener, shutdown, stop.clone()));
    Incoming {
        ready,
        _stop: stop.drop_guard(),
    }
}

#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    deadline: Duration,
    places: Arc<Places>,
    metrics: ConnectionMetrics,
    failures: Arc<FailureLog>,
    ready: mpsc::Sender<io::Result<TlsConn>>,
}

impl Acceptor {
    async fn run(
        self,
        mut listener: impl Accept,
        shutdown: ShutdownSignal,
        dropped: CancellationToken,
    ) {
        let handshakes = TaskTracker::new();
        let mut backoff = Backoff::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.wait() => break,
                () = dropped.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    backoff.reset();
                    self.admit(stream, address, &handshakes, &dropped);
                }
                Err(error) => {
                    self.metrics.accept_failed();
                    tokio::select! {
                        () = backoff.after("grpc", &error) => {}
                        () = shutdown.wait() => break,
                        () = dropped.cancelled() => break,
                    }
                }
            }
        }
        // Closed before the last handshakes: whoever connects now is refused at once and can
        // go to another replica.
        drop(listener);
        handshakes.close();
        let _ = tokio::time::timeout(LAST_HANDSHAKES, handshakes.wait()).await;
        // What is still shaking hands keeps a sender; without this the stream would not end.
        dropped.cancel();
    }

    /// Starts the handshake, or closes the connection if a limit is reached.
    fn admit(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        handshakes: &TaskTracker,
        dropped: &CancellationToken,
    ) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let slot = match self.places.take(address.ip()) {
            Ok(slot) => slot,
            Err(limit) => {
                self.refuse(address, limit);
                return;
            }
        };
        let acceptor = self.clone();
        let handshake = dropped.clone().run_until_cancelled_owned(async move {
            if let Some(connection) = acceptor.handshake(stream, address, slot).await {
                // An error means that the server has stopped taking connections.
                let _ = acceptor.ready.send(Ok(connection)).await;
            }
        });
        handshakes.spawn(handshake);
    }

    fn refuse(&self, address: SocketAddr, limit: Refused) {
        self.metrics.refused(limit);
        self.failures
            .log(address, &format_args!("connection limit reached: {limit}"));
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        slot: Slot,
    ) -> Option<TlsConn> {
        // Without it a small answer may wait 40 ms for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(peer = %address, %error, "TCP_NODELAY was refused");
        }
        match tokio::time::timeout(self.deadline, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => match TlsConn::new(stream, address, slot) {
                Ok(connection) => Some(connection),
                Err(limit) => {
                    self.refuse(address, limit);
                    None
                }
            },
            Ok(Err(error)) if is_disconnect(&error) => {
                // Port scans and TCP probes do this all day.
                self.metrics.handshake_failed(Failure::Closed);
                tracing::debug!(peer = %address, %error, "left during the TLS handshake");
                None
            }
            Ok(Err(error)) => {
                self.metrics.handshake_failed(Failure::Tls);
                self.failures
                    .log(address, &format_args!("TLS handshake failed: {error}"));
                None
            }
            Err(_) => {
                self.metrics.handshake_failed(Failure::Deadline);
                let deadline = self.deadline;
                self.failures.log(
                    address,
                    &format_args!("TLS handshake took longer than {deadline:?}"),
                );
                None
            }
        }
    }
}

fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe
    )
}

/// Logs refused connections, few lines a window: hostile clients must not fill the disk. What
/// is left out is counted in the next line, and always in the metrics.
#[derive(Debug, Default)]
struct FailureLog(Mutex<LineLimit>);

impl FailureLog {
    const LINES: u32 = 20;

    fn log(&self, peer: SocketAddr, reason: &std::fmt::Arguments<'_>) {
        let mut limit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(left_out) = limit.take(Instant::now(), Self::LINES) else {
            return;
        };
        drop(limit);
        tracing::warn!(
            target: "citadel::refused",
            %reason,
            code = "CONNECTION_REFUSED",
            %peer,
            rpc = "",
            left_out,
        );
    }
}

// === impl Incoming ===

impl Stream for Incoming {
    type Item = io::Result<TlsConn>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx)
    }
}
