//! The services of the gRPC port by their names.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use citadel_runtime::grpc::{self, Handler, Served};
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::{IstioApi, WorkloadApi};

/// Those that issue one certificate a call are asked for most, and stand before tonic's router:
/// with its layers and the buffers of a generated server a call costs some percent more.
#[derive(Clone)]
pub(crate) struct Services {
    /// Workloads that ask for themselves.
    pub(crate) workloads: Served<WorkloadApi>,
    /// Proxies of Istio.
    pub(crate) istio: Served<IstioApi>,
    /// All others.
    pub(crate) others: Routes,
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.others, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match grpc::service(&request) {
            WorkloadApi::NAME => self.workloads.call(request),
            IstioApi::NAME => self.istio.call(request),
            _ => self.others.call(request).boxed(),
        }
    }
}
