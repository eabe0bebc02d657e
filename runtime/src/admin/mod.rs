//! The admin port: `/livez`, `/readyz` and `/metrics` over plain HTTP, nothing that needs
//! credentials.

mod readiness;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

pub use self::readiness::{PartHandle, PartStatus, Readiness};
use crate::{ShutdownSignal, tls::accept::Backoff};

/// Connections at once; one more is closed at once. A scraper and a few probes need fewer
/// than ten.
const MAX_CONNECTIONS: usize = 64;
/// A client that has not sent its request's headers by then is cut off.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long requests in flight may take once the shutdown has begun.
const DRAIN: Duration = Duration::from_secs(2);

const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// A bound admin port that does not answer yet.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

#[derive(Clone, Debug)]
struct Shared {
    readiness: Readiness,
    registry: Arc<Registry>,
}

impl AdminServer {
    /// Binds the port. `[::]` takes IPv4 as well, where the system has both.
    ///
    /// # Errors
    /// The address can't be bound; the error names it.
    pub async fn bind(
        address: SocketAddr,
        readiness: Readiness,
        registry: Arc<Registry>,
    ) -> io::Result<Self> {
        Self::on(crate::tls::bind(address).await?, readiness, registry)
    }

    /// On a port that is bound already.
    ///
    /// # Errors
    /// The system does not tell which one it is.
    pub fn on(
        listener: TcpListener,
        readiness: Readiness,
        registry: Arc<Registry>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Shared {
                readiness,
                registry,
            });
        Ok(Self {
            listener,
            address,
            router,
        })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another descriptor of the port, for a process that goes on with it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Answers until the shutdown begins, then finishes what is in flight.
    pub async fn serve(self, shutdown: ShutdownSignal) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        let mut backoff = Backoff::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.wait() => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    backoff.after("admin", &error).await;
                    continue;
                }
            };
            backoff.reset();
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                continue;
            };
            let connection = answer(stream, self.router.clone(), shutdown.clone());
            connections.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
        drop(self.listener);
        connections.close();
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    }
}

async fn answer(stream: TcpStream, router: Router, shutdown: ShutdownSignal) {
    let _ = stream.set_nodelay(true);
    let service =
        TowerToHyperService::new(router.map_request(|r: hyper::Request<_>| r.map(Body::new)));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection ended");
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let parts = shared.readiness.parts();
    let ready = parts.iter().all(PartStatus::serves);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let wants_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if wants_json {
        let body = axum::Json(serde_json::json!({ "ready": ready, "parts": parts }));
        return (status, body).into_response();
    }
    let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
    for part in &parts {
        text.push_str(&part.to_string());
        text.push('\n');
    }
    (status, text).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be written out");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests;
