//! The SPIFFE Workload API: its X.509 part.

mod answer;
pub(crate) mod reflection;
mod sent;

use std::pin::Pin;

use citadel_identity::TrustDomain;
use citadel_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest,
    X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
};
use citadel_runtime::ShutdownSignal;
use futures::{Stream, StreamExt as _};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Extensions, Request, Response, Status, metadata::MetadataMap};

use self::{
    answer::{Answer, Shown},
    sent::Sent,
};
use crate::{
    gate::{self, Admitted, refuse},
    holders::Holders,
    identities::{Identities, PATIENCE, Standing, View},
    metrics::Metrics,
};

/// In metrics, and in the count of who runs on what.
pub(crate) const PROTOCOL: &str = "workload_api";

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct WorkloadApi {
    /// Whose identities.
    pub identities: Identities,
    /// Keeps count of who runs on what.
    pub holders: Holders,
    /// Counts streams.
    pub metrics: Metrics,
    /// Ends the streams.
    pub shutdown: ShutdownSignal,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Responses<X509svidResponse>;
    type FetchX509BundlesStream = Responses<X509BundlesResponse>;
    type FetchJWTBundlesStream = Responses<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        self.follow(&metadata, &extensions, "FetchX509SVID").await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        self.follow(&metadata, &extensions, "FetchX509Bundles")
            .await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        check_header(request.metadata())?;
        Err(no_jwt())
    }
}

impl WorkloadApi {
    /// Answers with the full set now, and again whenever it is another one.
    async fn follow<T: Answer>(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        rpc: &'static str,
    ) -> Result<Response<Responses<T>>, Status> {
        check_header(metadata)?;
        let Admitted { mut view, gone } =
            gate::admit(&self.identities, extensions, metadata, rpc).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (shutdown, counted) = (self.shutdown.clone(), self.metrics.streaming(PROTOCOL));
        let own = self.identities.trust_domain.clone();
        let tracked = self.holders.stream(PROTOCOL, view.peer());
        let mut sent = Sent::new(tracked, T::WITH_SVIDS);
        tokio::spawn(async move {
            let _counted = counted;
            let hung_up = sender.clone();
            let ended = tokio::select! {
                biased;
                // What was asked before the end is answered before it.
                ended = push(&mut view, &sender, &mut sent, rpc, &own) => ended,
                () = hung_up.closed() => return,
                () = gone.cancelled() => Status::unavailable("the caller's process has ended"),
                () = shutdown.wait() => Status::unavailable("the agent is shutting down"),
            };
            let _ = sender.try_send(Box::new(Err(ended)));
        });
        let answers = ReceiverStream::new(receiver).map(|answer| *answer);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Pushes until the caller has nothing any more, and says why. By reference: what a future is
/// given by value it holds twice.
async fn push<T: Answer>(
    view: &mut View,
    // Boxed: a channel has room for 32 at once, whatever its capacity.
    sender: &mpsc::Sender<Box<Result<T, Status>>>,
    sent: &mut Sent,
    rpc: &'static str,
    own: &TrustDomain,
) -> Status {
    let deadline = Instant::now() + PATIENCE;
    let mut shown: Option<Shown> = None;
    loop {
        // Room first, content after: who reads late gets what is newest then.
        let Ok(room) = sender.reserve().await else {
            return Status::cancelled("the caller hung up");
        };
        let snapshot = view.snapshot();
        let impatient = Instant::now() >= deadline;
        let complete = match &snapshot.standing {
            Standing::Denied(reason) => {
                return refuse(Code::PermissionDenied, reason, &view.peer().describe(), rpc);
            }
            Standing::Waiting(reason) if impatient && snapshot.svids.is_empty() => {
                return Status::unavailable(reason.to_string());
            }
            Standing::Waiting(_) => impatient || shown.is_some(),
            Standing::Complete => true,
        };
        // Full sets only: what is still awaited is waited for a moment, and after that
        // what is there is better than nothing.
        if complete && !snapshot.svids.is_empty() && !snapshot.bundles.is_empty() {
            let now = T::shown(&snapshot);
            if shown.as_ref() != Some(&now) {
                room.send(Box::new(Ok(T::of(&snapshot, own))));
                sent.note(&snapshot, own);
                shown = Some(now);
            }
        }
        tokio::select! {
            () = view.changed() => {}
            () = tokio::time::sleep_until(deadline), if !impatient => {}
        }
    }
}

/// The header that a browser or a confused proxy would not send.
fn check_header(metadata: &MetadataMap) -> Result<(), Status> {
    let mut values = metadata.get_all("workload.spiffe.io").iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "the metadata `workload.spiffe.io: true` is missing",
        )),
    }
}

fn no_jwt() -> Status {
    Status::unimplemented("this agent serves X.509-SVIDs only")
}

#[cfg(test)]
mod tests;
