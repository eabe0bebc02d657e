//! The Workload API as a gRPC service.

use citadel_proto::workload::{
    X509BundlesResponse, X509svidResponse, spiffe_workload_api_server::SERVICE_NAME,
};
use citadel_runtime::grpc::{self, Handler};
use http::{Request, Response};
use tonic::{Status, body::Body};

use super::{Responses, WorkloadApi, answer::Answer, check_header};
use crate::gate;

impl Handler for WorkloadApi {
    const NAME: &'static str = SERVICE_NAME;

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        match grpc::method(&request) {
            "FetchX509SVID" => grpc::answer(self.followed::<X509svidResponse>(request).await),
            "FetchX509Bundles" => grpc::answer(self.followed::<X509BundlesResponse>(request).await),
            "FetchJWTSVID" | "FetchJWTBundles" | "ValidateJWTSVID" => no_jwt(request).into_http(),
            _ => Status::unimplemented("the Workload API has no such method").into_http(),
        }
    }
}

impl WorkloadApi {
    async fn followed<T: Answer>(self, request: Request<Body>) -> Result<Responses<T>, Status> {
        self.follow(gate::call(request)?).await
    }
}

fn no_jwt(request: Request<Body>) -> Status {
    let headers = gate::call::<()>(request).and_then(|call| check_header(&call.metadata));
    match headers {
        Ok(()) => Status::unimplemented("this agent serves X.509-SVIDs only"),
        Err(status) => status,
    }
}
