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

use citadel_runtime::{ShutdownSignal, grpc::Call};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

pub(crate) use self::service::SdsService;
use self::{
    content::Content,
    files::Files,
    folders::FolderRule,
    forms::{Form, check_type, invalid, of_world, whole},
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
    /// A stream of either form.
    async fn stream<F: Form>(
        self: &Arc<Self>,
        call: Call<F::Request>,
    ) -> Result<Responses<F::Response>, Status> {
        let (metadata, extensions) = (&call.metadata, &call.extensions);
        let admitted = gate::admit(&self.identities, extensions, metadata, F::RPC).await?;
        Ok(session::serve::<F>(self, admitted, call.requests))
    }

    /// Once, without a subscription; secrets in files are for streams alone.
    async fn fetch(&self, mut call: Call<DiscoveryRequest>) -> Result<DiscoveryResponse, Status> {
        let (metadata, extensions) = (&call.metadata, &call.extensions);
        let Admitted { mut view, gone } =
            gate::admit(&self.identities, extensions, metadata, FETCH).await?;
        let request = call.requests.only().await?;
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
                return Ok(whole(&push, &content));
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
