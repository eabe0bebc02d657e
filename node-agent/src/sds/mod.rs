//! Envoy's Secret Discovery Service, v3: state of the world, delta, and fetch.

pub mod content;
pub mod delta;
pub mod files;
pub mod folders;
mod forms;
pub mod protocol;
mod service;
mod session;

use std::sync::Arc;

use citadel_runtime::ShutdownSignal;
use envoy_types::pb::envoy::service::{
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    secret::v3::secret_discovery_service_server::SecretDiscoveryService,
};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};

pub use self::service::SdsService;
use self::{
    content::Content,
    files::Files,
    folders::FolderRule,
    forms::{Delta, Form, World, check_type, invalid, of_world, whole},
    protocol::{Push, version_of_all},
    session::Responses,
};
use crate::{
    gate::{self, Admitted, refuse},
    holders::Holders,
    identities::{Identities, PATIENCE, Standing},
    metrics::Metrics,
};

const FETCH: &str = "FetchSecrets";

/// The service.
#[derive(Clone)]
pub struct Sds {
    /// Whose secrets.
    pub identities: Identities,
    /// Which secrets in files may be had, and by whom.
    pub files: Arc<[FolderRule]>,
    /// Keeps count of who runs on what.
    pub holders: Holders,
    /// Counts streams, acknowledgements and refusals.
    pub metrics: Metrics,
    /// Ends the streams.
    pub shutdown: ShutdownSignal,
}

impl Sds {
    async fn stream<F: Form>(
        &self,
        request: Request<Streaming<F::Request>>,
    ) -> Result<Response<Responses<F::Response>>, Status> {
        let (metadata, extensions, requests) = request.into_parts();
        let admitted = gate::admit(&self.identities, &extensions, &metadata, F::RPC).await?;
        Ok(Response::new(session::serve::<F>(self, admitted, requests)))
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.stream::<World>(request).await
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.stream::<Delta>(request).await
    }

    /// Once, without a subscription; secrets in files are for streams alone.
    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let Admitted { mut view, gone } = gate::admit(
            &self.identities,
            request.extensions(),
            request.metadata(),
            FETCH,
        )
        .await?;
        let request = request.into_inner();
        check_type(&request.type_url)?;
        // The same limits as on a stream.
        let names = request.resource_names.clone();
        protocol::Stream::new([0; 4])
            .request(of_world(request))
            .map_err(invalid)?;
        let own = self.identities.trust_domain.clone();
        let files = Files::default();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = view.snapshot();
            let content = Content::new(&snapshot, &own, &files);
            let versions = content.versions(&names);
            let late = Instant::now() >= deadline;
            let reason = match &snapshot.standing {
                Standing::Denied(reason) => {
                    let peer = view.peer().describe();
                    return Err(refuse(Code::PermissionDenied, reason, &peer, FETCH));
                }
                Standing::Complete => None,
                Standing::Waiting(reason) => Some(reason),
            };
            if versions.len() == names.len() || late || reason.is_none() {
                if versions.is_empty() && !names.is_empty() {
                    return Err(match reason {
                        Some(reason) => Status::unavailable(reason.to_string()),
                        None => Status::not_found("no such secret for this caller"),
                    });
                }
                let push = Push {
                    version: version_of_all(&versions),
                    nonce: String::new(),
                    names: versions.into_keys().collect(),
                };
                return Ok(Response::new(whole(&push, &content)));
            }
            tokio::select! {
                () = view.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
                () = gone.cancelled() => {
                    return Err(Status::unavailable("the caller's process has ended"));
                }
            }
        }
    }
}

#[cfg(test)]
mod delta_stream_tests;
#[cfg(test)]
mod tests;
