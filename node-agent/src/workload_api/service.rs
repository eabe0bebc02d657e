//! The Workload API as a gRPC service.

use citadel_proto::workload::{
    X509BundlesResponse, X509svidResponse, spiffe_workload_api_server::SERVICE_NAME,
};
use citadel_runtime::grpc::{self, Handler};
use http::{Request, Response};
use tonic::{Status, body::Body};

use super::{Responses, WorkloadApi, answer::Answer, check_header};
use crate::gate;

/// [`WorkloadApi`], and its limit.
#[derive(Clone)]
pub(crate) struct WorkloadApiService {
    api: WorkloadApi,
    max_request: usize,
}

impl WorkloadApiService {
    /// It refuses requests longer than `max_request` bytes.
    pub(crate) fn new(api: WorkloadApi, max_request: usize) -> Self {
        Self { api, max_request }
    }

    async fn follow<T: Answer>(self, request: Request<Body>) -> Result<Responses<T>, Status> {
        let call = gate::call(request, self.max_request)?;
        self.api.follow(call).await
    }

    fn no_jwt(&self, request: Request<Body>) -> Status {
        let headers = gate::call::<()>(request, self.max_request)
            .and_then(|call| check_header(&call.metadata));
        match headers {
            Ok(()) => Status::unimplemented("this agent serves X.509-SVIDs only"),
            Err(status) => status,
        }
    }
}

impl Handler for WorkloadApiService {
    const NAME: &'static str = SERVICE_NAME;

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        match grpc::method(&request) {
            "FetchX509SVID" => grpc::answer(self.follow::<X509svidResponse>(request).await),
            "FetchX509Bundles" => grpc::answer(self.follow::<X509BundlesResponse>(request).await),
            "FetchJWTSVID" | "FetchJWTBundles" | "ValidateJWTSVID" => {
                self.no_jwt(request).into_http()
            }
            _ => Status::unimplemented("the Workload API has no such method").into_http(),
        }
    }
}
