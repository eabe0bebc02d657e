//! HTTP/2 connections with a gRPC service on them.

use std::{convert::Infallible, io, pin::pin, time::Duration};

use futures::{Stream, StreamExt as _};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, transport::server::Connected};
use tower::Service;

/// The most that the headers of a request may hold, in bytes as HTTP/2 counts them.
const MAX_HEADERS: u32 = 16 * 1024;

/// Limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Http2 {
    /// Requests at once.
    pub streams: u32,
    /// How often the other end is asked whether it is there.
    pub keepalive: Duration,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            streams: 200,
            keepalive: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Serves connections until `incoming` ends, or `until` resolves. Then each is told to go away
/// (GOAWAY), what was accepted on it is finished, and this ends with the last of them.
///
/// The extensions of each request hold what [`Connected`] says of its connection. The service
/// has to be ready at any time.
pub async fn serve<IO, S>(
    incoming: impl Stream<Item = io::Result<IO>>,
    service: S,
    http2: Http2,
    until: impl Future<Output = ()>,
) where
    IO: Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut http = Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(http2.streams)
        .keep_alive_interval(http2.keepalive)
        .keep_alive_timeout(http2.keepalive_timeout)
        .max_header_list_size(MAX_HEADERS)
        // gRPC has no use for it.
        .auto_date_header(false);
    let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
    let mut until = pin!(until);
    {
        // Dropped before the drain, and with it the listener: who connects from then on goes
        // elsewhere at once.
        let mut incoming = pin!(incoming);
        loop {
            let connection = tokio::select! {
                biased;
                () = &mut until => break,
                connection = incoming.next() => connection,
            };
            match connection {
                None => break,
                Some(Ok(connection)) => {
                    let served = answer(connection, service.clone(), http.clone(), stop.clone());
                    connections.spawn(served);
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection failed"),
            }
        }
    }
    stop.cancel();
    connections.close();
    connections.wait().await;
}

async fn answer<IO, S>(
    connection: IO,
    service: S,
    http: Builder<TokioExecutor>,
    stop: CancellationToken,
) where
    IO: Connected + AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let info = connection.connect_info();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(info.clone());
        service.clone().call(request)
    });
    let mut served = pin!(http.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
