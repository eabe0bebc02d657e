//! Envoy's Secret Discovery Service, v3: state of the world, and fetch.

pub mod content;
pub mod protocol;

use std::pin::Pin;

use citadel_runtime::ShutdownSignal;
use envoy_types::pb::envoy::service::{
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    secret::v3::secret_discovery_service_server::SecretDiscoveryService,
};
use futures::{Stream, StreamExt};
use rand::Rng;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use self::{
    content::{Content, type_url},
    protocol::{Meaning, Push, version_of_all},
};
use crate::{
    gate::{self, Admitted, refuse},
    identities::{Identities, PATIENCE, Standing, View},
    metrics::Metrics,
};

const STREAM: &str = "StreamSecrets";
const FETCH: &str = "FetchSecrets";

/// The longest reason of a proxy's refusal that is logged, in characters.
const MAX_REASON: usize = 512;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct Sds {
    /// Whose secrets.
    pub identities: Identities,
    /// Counts streams, acknowledgements and refusals.
    pub metrics: Metrics,
    /// Ends the streams.
    pub shutdown: ShutdownSignal,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Responses<DiscoveryResponse>;
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let Admitted { view, gone } = gate::admit(
            &self.identities,
            request.extensions(),
            request.metadata(),
            STREAM,
        )
        .await?;
        // One response at a time: the next waits until the proxy reads.
        let (sender, receiver) = mpsc::channel(1);
        let stream = SecretStream {
            sds: self.clone(),
            view,
            protocol: protocol::Stream::new(rand::rng().random()),
            sender,
        };
        let requests = request.into_inner();
        tokio::spawn(async move {
            let counted = stream.sds.metrics.streaming("sds");
            let shutdown = stream.sds.shutdown.clone();
            let sender = stream.sender.clone();
            let ended = tokio::select! {
                ended = stream.run(requests) => ended,
                () = gone.cancelled() => Err(Status::unavailable("the caller's process has ended")),
                () = shutdown.wait() => Err(Status::unavailable("the agent is shutting down")),
            };
            if let Err(status) = ended {
                // Not waiting for a client that reads nothing any more.
                let _ = sender.try_send(Err(status));
            }
            drop(counted);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("use StreamSecrets (api_type GRPC)"))
    }

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
        check_type(&request)?;
        // The same limits as on a stream.
        let names = request.resource_names.clone();
        protocol::Stream::new([0; 4])
            .request(into_request(request))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = self.identities.trust_domain.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = view.snapshot();
            let content = Content::new(&snapshot, &own);
            let versions = content.versions(&names);
            let late = Instant::now() >= deadline;
            let reason = match &snapshot.standing {
                Standing::Denied(reason) => {
                    return Err(denied(reason, &view, FETCH));
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
                return Ok(Response::new(response(&push, &content)));
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

struct SecretStream {
    sds: Sds,
    view: View,
    protocol: protocol::Stream,
    sender: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

impl SecretStream {
    async fn run(mut self, mut requests: Streaming<DiscoveryRequest>) -> Result<(), Status> {
        let mut subscribed = false;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request else { return Ok(()) };
                    let request = request?;
                    check_type(&request)?;
                    let meaning = self
                        .protocol
                        .request(into_request(request))
                        .map_err(|error| Status::invalid_argument(error.to_string()))?;
                    subscribed = true;
                    if !self.note(meaning) {
                        continue;
                    }
                }
                () = self.view.changed() => {}
            }
            // A caller that may have nothing is told so once it has asked for something.
            if subscribed {
                self.push().await?;
            }
        }
    }

    async fn push(&mut self) -> Result<(), Status> {
        let snapshot = self.view.snapshot();
        if let Standing::Denied(reason) = &snapshot.standing {
            return Err(denied(reason, &self.view, STREAM));
        }
        let own = self.sds.identities.trust_domain.clone();
        let content = Content::new(&snapshot, &own);
        if let Some(push) = self.protocol.push(&content) {
            tracing::debug!(
                peer = self.view.peer().describe(),
                version = push.version,
                names = ?push.names,
                "secrets pushed"
            );
            let response = response(&push, &content);
            // The client hung up: the stream of requests ends next.
            let _ = self.sender.send(Ok(response)).await;
        }
        Ok(())
    }

    /// Returns whether there may be something to say.
    fn note(&self, meaning: Meaning) -> bool {
        match meaning {
            Meaning::Stale => return false,
            Meaning::Subscribed => {}
            Meaning::Acknowledged => self.sds.metrics.acknowledged(),
            Meaning::Refused(reason) => {
                self.sds.metrics.refused();
                tracing::warn!(
                    peer = self.view.peer().describe(),
                    reason,
                    "a proxy refused its secrets and keeps the ones before them"
                );
            }
        }
        true
    }
}

fn denied(reason: &str, view: &View, rpc: &'static str) -> Status {
    refuse(Code::PermissionDenied, reason, &view.peer().describe(), rpc)
}

fn check_type(request: &DiscoveryRequest) -> Result<(), Status> {
    if request.type_url.is_empty() || request.type_url == type_url() {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "only resources of type {} are here",
        type_url()
    )))
}

fn into_request(request: DiscoveryRequest) -> protocol::Request {
    protocol::Request {
        version: request.version_info,
        nonce: request.response_nonce,
        names: request.resource_names,
        refused: request.error_detail.map(|status| {
            status
                .message
                .chars()
                .filter(|c| !c.is_control())
                .take(MAX_REASON)
                .collect()
        }),
    }
}

fn response(push: &Push, content: &Content<'_>) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: push.version.clone(),
        resources: push
            .names
            .iter()
            .filter_map(|name| content.resource(name))
            .collect(),
        type_url: type_url(),
        nonce: push.nonce.clone(),
        ..DiscoveryResponse::default()
    }
}

#[cfg(test)]
mod tests;
