//! SDS as a gRPC service. The generated one gives each stream two buffers of 8 KiB.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use citadel_proto::SmallBuffers;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SERVICE_NAME, SecretDiscoveryService,
};
use futures::future::BoxFuture;
use prost::Message;
use tonic::{
    Status,
    body::Body,
    server::{Grpc, NamedService},
};
use tower::{Service, service_fn};

use super::Sds;

/// [`Sds`] on a server's routes.
#[derive(Clone)]
pub struct SdsService {
    sds: Sds,
    max_request: usize,
}

impl SdsService {
    /// It refuses requests longer than `max_request` bytes.
    pub fn new(sds: Sds, max_request: usize) -> Self {
        Self { sds, max_request }
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let Self { sds, max_request } = self;
        let method = request.uri().path().rsplit_once('/');
        match method.map_or("", |(_, method)| method) {
            "StreamSecrets" => {
                let serve = service_fn(move |request| {
                    let sds = sds.clone();
                    async move { sds.stream_secrets(request).await }
                });
                grpc(max_request).streaming(serve, request).await
            }
            "DeltaSecrets" => {
                let serve = service_fn(move |request| {
                    let sds = sds.clone();
                    async move { sds.delta_secrets(request).await }
                });
                grpc(max_request).streaming(serve, request).await
            }
            "FetchSecrets" => {
                let serve = service_fn(move |request| {
                    let sds = sds.clone();
                    async move { sds.fetch_secrets(request).await }
                });
                grpc(max_request).unary(serve, request).await
            }
            _ => Status::unimplemented("SDS has no such method").into_http(),
        }
    }
}

fn grpc<T, U>(max_request: usize) -> Grpc<SmallBuffers<T, U>>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    Grpc::new(SmallBuffers::default()).max_decoding_message_size(max_request)
}

impl NamedService for SdsService {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for SdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(request).await) })
    }
}
