//! SDS as a gRPC service.

use std::sync::Arc;

use citadel_runtime::grpc::{self, Handler};
use envoy_types::pb::envoy::service::{
    discovery::v3::DiscoveryResponse, secret::v3::secret_discovery_service_server::SERVICE_NAME,
};
use http::{Request, Response};
use tonic::{Status, body::Body};

use super::{
    Sds,
    forms::{Delta, Form, World},
    session::Responses,
};
use crate::gate;

/// [`Sds`], of which each stream holds what all have.
#[derive(Clone)]
pub(crate) struct SdsService(Arc<Sds>);

impl SdsService {
    pub(crate) fn new(sds: Sds) -> Self {
        Self(Arc::new(sds))
    }

    async fn stream<F: Form>(
        self,
        request: Request<Body>,
    ) -> Result<Responses<F::Response>, Status> {
        self.0.stream::<F>(gate::call(request)?).await
    }

    async fn fetch(self, request: Request<Body>) -> Result<DiscoveryResponse, Status> {
        self.0.fetch(gate::call(request)?).await
    }
}

impl Handler for SdsService {
    const NAME: &'static str = SERVICE_NAME;

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        match grpc::method(&request) {
            "StreamSecrets" => grpc::answer(self.stream::<World>(request).await),
            "DeltaSecrets" => grpc::answer(self.stream::<Delta>(request).await),
            "FetchSecrets" => grpc::answer_once(self.fetch(request).await),
            _ => Status::unimplemented("SDS has no such method").into_http(),
        }
    }
}
