//! The SPIFFE Workload API: its X.509 part.

use std::{collections::HashMap, collections::HashSet, pin::Pin};

use citadel_identity::{TrustDomain, bundle::Bundle};
use citadel_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse, spiffe_workload_api_server::SpiffeWorkloadApi,
};
use citadel_runtime::ShutdownSignal;
use futures::Stream;
use rustls::pki_types::CertificateDer;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Extensions, Request, Response, Status, metadata::MetadataMap};

use crate::{
    gate::{self, Admitted, refuse},
    identities::{Identities, PATIENCE, Snapshot, Standing, View},
    metrics::Metrics,
};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct WorkloadApi {
    /// Whose identities.
    pub identities: Identities,
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
        self.follow(&metadata, &extensions, "FetchX509SVID", x509_svids)
            .await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        self.follow(&metadata, &extensions, "FetchX509Bundles", x509_bundles)
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
    /// Answers with the full set now, and again whenever `show` shows another one.
    async fn follow<T: Clone + PartialEq + Send + Sync + 'static>(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        rpc: &'static str,
        show: fn(&Snapshot, &TrustDomain) -> T,
    ) -> Result<Response<Responses<T>>, Status> {
        check_header(metadata)?;
        let Admitted { view, gone } =
            gate::admit(&self.identities, extensions, metadata, rpc).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (shutdown, counted) = (
            self.shutdown.clone(),
            self.metrics.streaming("workload_api"),
        );
        let own = self.identities.trust_domain.clone();
        tokio::spawn(async move {
            let _counted = counted;
            let hung_up = sender.clone();
            let ended = tokio::select! {
                ended = push(view, &sender, rpc, |snapshot| show(snapshot, &own)) => ended,
                () = hung_up.closed() => return,
                () = gone.cancelled() => Status::unavailable("the caller's process has ended"),
                () = shutdown.wait() => Status::unavailable("the agent is shutting down"),
            };
            let _ = sender.try_send(Err(ended));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Pushes until the caller has nothing any more, and says why.
async fn push<T: Clone + PartialEq>(
    mut view: View,
    sender: &mpsc::Sender<Result<T, Status>>,
    rpc: &'static str,
    show: impl Fn(&Snapshot) -> T,
) -> Status {
    let deadline = Instant::now() + PATIENCE;
    let mut shown: Option<T> = None;
    loop {
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
            let now = show(&snapshot);
            if shown.as_ref() != Some(&now) {
                if sender.send(Ok(now.clone())).await.is_err() {
                    return Status::cancelled("the caller hung up");
                }
                shown = Some(now);
            }
        }
        tokio::select! {
            () = view.changed() => {}
            () = tokio::time::sleep_until(deadline), if !impatient => {}
        }
    }
}

fn x509_svids(snapshot: &Snapshot, own: &TrustDomain) -> X509svidResponse {
    let bundle = snapshot
        .bundles
        .get(own)
        .map(concatenated)
        .unwrap_or_default();
    let mut hints = HashSet::new();
    let svids = snapshot.svids.iter().map(|svid| X509svid {
        spiffe_id: svid.id.to_string(),
        x509_svid: concatenate(&svid.chain),
        x509_svid_key: svid.key.pkcs8_der().to_vec(),
        bundle: bundle.clone(),
        // A hint that is taken would make the choice by hint ambiguous.
        hint: if hints.insert(&svid.hint) {
            svid.hint.clone()
        } else {
            String::new()
        },
    });
    let svids = svids.collect();
    let mut federated = bundles(snapshot);
    federated.remove(&own.id_string());
    X509svidResponse {
        svids,
        crl: Vec::new(),
        federated_bundles: federated,
    }
}

fn x509_bundles(snapshot: &Snapshot, _: &TrustDomain) -> X509BundlesResponse {
    X509BundlesResponse {
        crl: Vec::new(),
        bundles: bundles(snapshot),
    }
}

/// By the SPIFFE ID of the trust domain.
fn bundles(snapshot: &Snapshot) -> HashMap<String, Vec<u8>> {
    snapshot
        .bundles
        .iter()
        .map(|bundle| (bundle.trust_domain.id_string(), concatenated(bundle)))
        .collect()
}

fn concatenated(bundle: &Bundle) -> Vec<u8> {
    concatenate(&bundle.authorities)
}

fn concatenate(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates
        .iter()
        .flat_map(AsRef::as_ref)
        .copied()
        .collect()
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
