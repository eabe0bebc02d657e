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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::{Arc, Mutex};

    use futures::stream;
    use tokio::{
        io::{DuplexStream, duplex},
        sync::{Semaphore, oneshot},
        time::timeout,
    };
    use tonic::{
        Status,
        transport::{Channel, Endpoint},
    };
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn client(connection: DuplexStream) -> Channel {
        let once = Mutex::new(Some(connection));
        let connector = service_fn(move |_| {
            let connection = once.lock().unwrap().take();
            async {
                connection
                    .map(TokioIo::new)
                    .ok_or(io::Error::from(io::ErrorKind::NotFound))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    fn request() -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "http://localhost/a.Service/Method".parse().unwrap();
        request
    }

    #[tokio::test]
    async fn what_was_accepted_is_finished_and_then_the_connection_ends() {
        let (ours, theirs) = duplex(64 * 1024);
        let (asked, answers) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let service = {
            let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
            service_fn(move |request: Request<Body>| {
                let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
                async move {
                    assert!(request.extensions().get::<()>().is_some(), "who connected");
                    asked.add_permits(1);
                    answers.acquire().await.unwrap().forget();
                    Ok::<_, Infallible>(Status::not_found("of no interest").into_http())
                }
            })
        };
        let incoming = stream::iter([Ok(theirs)]).chain(stream::pending());
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = tokio::spawn(serve(incoming, service, Http2::default(), async {
            let _ = stopped.await;
        }));
        let client = client(ours).await;
        let asking = tokio::spawn(client.clone().oneshot(request()));
        timeout(LONG, asked.acquire())
            .await
            .unwrap()
            .unwrap()
            .forget();
        stop.send(()).unwrap();
        let early = timeout(Duration::from_millis(100), &mut server).await;
        assert!(early.is_err(), "one request is not answered yet");
        answers.add_permits(1);
        let answer = timeout(LONG, asking).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.headers()["grpc-status"], "5");
        assert!(!answer.headers().contains_key("date"));
        timeout(LONG, server).await.unwrap().unwrap();
        let late = timeout(LONG, client.oneshot(request())).await.unwrap();
        late.expect_err("there is no connection any more");
    }
}
