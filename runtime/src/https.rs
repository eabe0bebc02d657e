//! HTTP/1.1 and HTTP/2 over the connections of a TLS listener.

use std::{convert::Infallible, time::Duration};

use axum::{Router, body::Body};
use futures::StreamExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio_util::task::TaskTracker;
use tower::{ServiceExt as _, service_fn};

use crate::{
    ShutdownSignal,
    tls::{Incoming, TlsConn},
};

/// A client that has not sent its request's headers by then is cut off.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Requests of one connection at once.
const STREAMS: u32 = 32;
/// How long requests in flight may take once the shutdown has begun.
const DRAIN: Duration = Duration::from_secs(2);

/// Answers until the connections end, as they do when the shutdown begins. Each request has
/// the connection's [`crate::tls::PeerInfo`] among its extensions.
pub async fn serve(mut incoming: Incoming, router: Router, shutdown: ShutdownSignal) {
    let connections = TaskTracker::new();
    while let Some(connection) = incoming.next().await {
        match connection {
            Ok(connection) => {
                connections.spawn(answer(connection, router.clone(), shutdown.clone()));
            }
            Err(error) => tracing::debug!(%error, "https connection failed"),
        }
    }
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

async fn answer(connection: TlsConn, router: Router, shutdown: ShutdownSignal) {
    let peer = connection.peer().clone();
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let unanswered = peer.request_began();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let router = router.clone();
        async move {
            let answer = router.oneshot(request).await;
            drop(unanswered);
            Ok::<_, Infallible>(answer.unwrap_or_else(|n| match n {}))
        }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(16 * 1024);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 * 1024)
        .keep_alive_interval(Some(HEADER_DEADLINE));
    let service = TowerToHyperService::new(service);
    let mut served = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = shutdown.wait() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "https connection ended");
    }
}
