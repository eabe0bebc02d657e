//! `citadel.v1.WorkloadService`: a workload asks for itself.

use std::pin::pin;

use citadel_proto::v1::{self, workload_service_server::SERVICE_NAME};
use citadel_runtime::grpc::{self, Handler};
use http::{Request, Response};
use time::OffsetDateTime;
use tonic::{Status, body::Body};

use super::{
    front::{Front, now_ms, single},
    refusal::Refusal,
};
use crate::{
    authz::{Ask, Wish},
    issuance::Item,
};

pub(super) const ISSUE_SVID: &str = "citadel.v1.WorkloadService/IssueSvid";

/// The service.
#[derive(Clone)]
pub(crate) struct WorkloadApi(pub(crate) Front);

impl Handler for WorkloadApi {
    const NAME: &'static str = SERVICE_NAME;

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        match grpc::method(&request) {
            "IssueSvid" => grpc::answer_once(self.issue_svid(request).await),
            _ => Status::unimplemented("the service has no such method").into_http(),
        }
    }
}

impl WorkloadApi {
    async fn issue_svid(&self, request: Request<Body>) -> Result<v1::IssueSvidResponse, Status> {
        let (credentials, request) = single::<v1::IssueSvidRequest>(request).await?;
        let front = &self.0;
        front
            .serve(
                ISSUE_SVID,
                &credentials,
                pin!(async {
                    let now = OffsetDateTime::now_utc();
                    front.metrics.csrs(1);
                    check_kind(request.kind)?;
                    let wish = wish(request.ttl_seconds, &request.previous_serial)?;
                    let caller = front.caller(&credentials, now).await?;
                    let item = Item {
                        ask: Ask::Own,
                        wish,
                        csr: request.csr,
                    };
                    let svid = front
                        .issuance
                        .issue(&caller, &item, now)
                        .await
                        .map_err(|error| Refusal::from(error).of(&caller))?;
                    Ok(v1::IssueSvidResponse {
                        svid: Some(front.svid(&svid)),
                        bundles: front.bundles(),
                        server_time_ms: now_ms(),
                    })
                }),
            )
            .await
    }
}

/// X.509-SVIDs are the one kind there is; another is refused, never answered with this one.
pub(super) fn check_kind(kind: i32) -> Result<(), Refusal> {
    match v1::CredentialKind::try_from(kind) {
        Ok(v1::CredentialKind::Unspecified | v1::CredentialKind::X509Svid) => Ok(()),
        Err(_) => Err(Refusal::invalid(format!(
            "kind: {kind} is unknown; use X509_SVID"
        ))),
    }
}

/// Lifetime and predecessor of a citadel.v1 request.
pub(super) fn wish(ttl_seconds: i64, previous_serial: &str) -> Result<Wish, Refusal> {
    let ttl = u64::try_from(ttl_seconds)
        .map_err(|_| Refusal::invalid("ttl_seconds: must not be negative; 0 is the default"))?;
    let previous_serial = match previous_serial {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Refusal::invalid("previous_serial: not a serial; give it as the CA did, in hex")
        })?),
    };
    Ok(Wish {
        ttl: (ttl > 0).then(|| std::time::Duration::from_secs(ttl)),
        default_ttl: None,
        previous_serial,
    })
}
