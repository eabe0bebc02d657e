//! gRPC for connections and streams of which there are thousands.
//!
//! A stream of a workload waits for hours between two messages, and should hold nothing of the
//! last one until then. tonic keeps a buffer each way, as long as the longest message was: for
//! Envoy's first request that is tens of KiB, and of what was sent it is a copy of a key. Its
//! server wraps each request in a dozen layers that nobody here has set.

mod requests;
mod responses;
mod server;

use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt as _, Stream, future::BoxFuture, stream};
use http::{Extensions, HeaderValue, Request, Response, header::CONTENT_TYPE};
use prost::Message;
use tonic::{
    Status,
    body::Body,
    metadata::{MetadataMap, MetadataValue},
    server::NamedService,
};
use tower::Service;

use self::responses::Responses;
pub use self::{
    requests::{Requests, Unfinished},
    server::{Http2, serve},
};

/// Answers the calls of one gRPC service.
pub trait Handler: Clone + Send + 'static {
    /// The service's name, with its package.
    const NAME: &'static str;

    /// Answers one call.
    fn answer(self, request: Request<Body>) -> impl Future<Output = Response<Body>> + Send;
}

/// A [`Handler`] on a server's routes.
#[derive(Clone)]
pub struct Served<H>(pub H);

/// A call, before its handler has looked at it.
pub struct Call<M> {
    /// Its headers.
    pub metadata: MetadataMap,
    /// The connection's.
    pub extensions: Extensions,
    /// What the client sends.
    pub requests: Requests<M>,
}

/// The name of the RPC's service; nothing where the path is not `/service/method`.
pub fn service(request: &Request<Body>) -> &str {
    let path = request.uri().path().rsplit_once('/');
    path.and_then(|(service, _)| service.strip_prefix('/'))
        .unwrap_or("")
}

/// The RPC's name, without its service.
pub fn method(request: &Request<Body>) -> &str {
    let path = request.uri().path().rsplit_once('/');
    path.map_or("", |(_, method)| method)
}

impl<M: Message + Default> Call<M> {
    /// Messages may have `max_message` bytes, and all that are not whole yet as many as
    /// `unfinished` says; without it, whoever reads the body counts them. Fails where they would
    /// be compressed, which nobody was told is possible.
    pub fn new(
        request: Request<Body>,
        max_message: usize,
        unfinished: Option<Arc<Unfinished>>,
    ) -> Result<Self, Status> {
        let (head, body) = request.into_parts();
        let encoding = head.headers.get("grpc-encoding");
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let status = Status::unimplemented("compressed messages are not taken here");
            let mut metadata = MetadataMap::new();
            let taken = MetadataValue::from_static("identity");
            metadata.insert("grpc-accept-encoding", taken);
            return Err(Status::with_metadata(
                status.code(),
                status.message(),
                metadata,
            ));
        }
        Ok(Self {
            metadata: MetadataMap::from_headers(head.headers),
            extensions: head.extensions,
            requests: Requests::new(body, max_message, unfinished),
        })
    }
}

/// Messages to the client until their end, or the refusal of the call.
pub fn answer<S, M>(messages: Result<S, Status>) -> Response<Body>
where
    S: Stream<Item = Result<M, Status>> + Unpin + Send + 'static,
    M: Message + 'static,
{
    match messages {
        Ok(messages) => {
            let mut response = Response::new(Body::new(Responses::new(messages)));
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(CONTENT_TYPE, grpc);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// One message to the client, or the refusal of the call.
pub fn answer_once<M: Message + 'static>(message: Result<M, Status>) -> Response<Body> {
    answer(message.map(|message| stream::iter([Ok(message)])))
}

impl<H: Handler> NamedService for Served<H> {
    const NAME: &'static str = H::NAME;
}

impl<H: Handler> Service<Request<Body>> for Served<H> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.clone().answer(request).map(Ok))
    }
}

#[cfg(test)]
mod tests;
