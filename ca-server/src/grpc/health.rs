//! `grpc.health.v1.Health`: what `/readyz` says, for those who ask over gRPC. While the server
//! drains it serves nobody new.

use std::pin::Pin;

use citadel_proto::{
    istio::istio_certificate_service_server,
    v1::{agent_service_server, workload_service_server},
};
use citadel_runtime::ShutdownSignal;
use futures::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

/// The empty name is the server as a whole.
const SERVICES: [&str; 4] = [
    "",
    agent_service_server::SERVICE_NAME,
    workload_service_server::SERVICE_NAME,
    istio_certificate_service_server::SERVICE_NAME,
];

/// The service. It holds no state of its own that could differ from `/readyz`.
pub(crate) struct HealthApi {
    /// Whether every part is ready.
    pub(crate) ready: watch::Receiver<bool>,
    /// Begins the drain.
    pub(crate) shutdown: ShutdownSignal,
}

type Statuses = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for HealthApi {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("there is no such service"));
        }
        let serves = !self.shutdown.is_triggered() && *self.ready.borrow();
        Ok(Response::new(answer(status(serves))))
    }

    type WatchStream = Statuses;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Statuses>, Status> {
        // Services come with a new version alone: of another name there is never more to say.
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            let unknown = stream::iter([Ok(answer(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(Box::pin(unknown)));
        }
        let changes = changes(self.ready.clone(), self.shutdown.clone());
        Ok(Response::new(Box::pin(changes)))
    }
}

/// The state now and each change of it. The drain is the last one: a stream that stayed open
/// would hold up the end of the server.
fn changes(
    ready: watch::Receiver<bool>,
    shutdown: ShutdownSignal,
) -> impl Stream<Item = Result<HealthCheckResponse, Status>> {
    stream::unfold((ready, None), move |(mut ready, last)| {
        let shutdown = shutdown.clone();
        async move {
            loop {
                let drains = shutdown.is_triggered();
                let serves = *ready.borrow_and_update() && !drains;
                if last != Some(serves) {
                    return Some((Ok(answer(status(serves))), (ready, Some(serves))));
                }
                if drains {
                    return None;
                }
                tokio::select! {
                    changed = ready.changed() => changed.ok()?,
                    () = shutdown.wait() => {}
                }
            }
        }
    })
}

fn status(serves: bool) -> ServingStatus {
    if serves {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use citadel_runtime::{Shutdown, admin::Readiness};
    use futures::StreamExt as _;

    use super::*;

    const NOT_SERVING: i32 = ServingStatus::NotServing as i32;
    const SERVING: i32 = ServingStatus::Serving as i32;

    fn asked(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.into(),
        })
    }

    #[tokio::test]
    async fn it_says_what_readiness_says_and_ends_with_the_drain() {
        let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
        let part = readiness.part("store");
        let api = HealthApi {
            ready: readiness.subscribe(),
            shutdown: shutdown.signal(),
        };
        let check = async |service: &str| api.check(asked(service)).await.unwrap();
        let mut seen = api.watch(asked("")).await.unwrap().into_inner();
        let mut next = async || Some(seen.next().await?.unwrap().status);

        assert_eq!(next().await, Some(NOT_SERVING));
        part.set_ready();
        assert_eq!(next().await, Some(SERVING));
        for service in SERVICES {
            assert_eq!(check(service).await.get_ref().status, SERVING, "{service}");
        }
        part.set_not_ready("full");
        assert_eq!(next().await, Some(NOT_SERVING));
        assert_eq!(check("").await.get_ref().status, NOT_SERVING);
        part.set_ready();
        assert_eq!(next().await, Some(SERVING));

        // Every part is ready still, but nobody new is served.
        shutdown.trigger();
        assert_eq!(next().await, Some(NOT_SERVING));
        assert_eq!(next().await, None);
        for service in SERVICES {
            let status = check(service).await.get_ref().status;
            assert_eq!(status, NOT_SERVING, "{service}");
        }
    }

    #[tokio::test]
    async fn another_service_is_unknown() {
        let api = HealthApi {
            ready: Readiness::new().subscribe(),
            shutdown: ShutdownSignal::never(),
        };
        let status = api.check(asked("citadel.v2.Other")).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound);
        let seen = api.watch(asked("citadel.v2.Other")).await.unwrap();
        let all: Vec<_> = seen.into_inner().collect().await;
        let [Ok(only)] = all.as_slice() else {
            panic!("{all:?}");
        };
        assert_eq!(only.status, i32::from(ServingStatus::ServiceUnknown));
    }
}
