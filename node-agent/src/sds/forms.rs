//! The two forms that SDS comes in, in Envoy's messages: state of the world and delta.

use std::mem;

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
    },
    google::rpc,
};
use prost::Message;
use tonic::Status;

use super::{
    content::{Content, type_url},
    delta,
    protocol::{self, Push},
};

/// The longest reason of a proxy's refusal that is kept, in characters.
const MAX_REASON: usize = 512;

/// Names with their versions.
pub(super) type Versions = Vec<(String, String)>;

/// One stream's protocol, in the messages of its RPC.
pub(super) trait Form: Send + 'static {
    type Request: Message + Default + 'static;
    type Response: Message + 'static;

    /// For logs.
    const RPC: &'static str;
    /// For metrics.
    const PROTOCOL: &'static str;

    /// A new stream. Nonces are made from `seed`.
    fn new(seed: [u8; 4]) -> Self;

    /// Takes a request.
    fn request(&mut self, request: Self::Request) -> Result<Heard, Status>;

    /// The response that is due, if any, and what it tells the client.
    fn push(&mut self, content: &Content<'_>) -> Option<(Self::Response, Told)>;

    /// What the client holds since an earlier stream and is not sent on this one. Each is
    /// told once.
    fn brought(&mut self, content: &Content<'_>) -> Versions;

    /// The names asked for.
    fn subscribed(&self) -> impl Iterator<Item = &str>;

    /// Whether `name` is asked for.
    fn asks_for(&self, name: &str) -> bool;
}

/// What a request says, beside what it asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing.
    Subscribed,
    /// It answers something else than what is awaited: nothing was done.
    Stale,
    /// These were taken.
    Acknowledged(Versions),
    /// These were refused, for this reason.
    Refused(Versions, String),
}

/// What a response tells.
#[derive(Debug)]
pub(super) struct Told {
    pub version: String,
    pub resources: Versions,
    pub removed: Vec<String>,
}

/// State of the world.
pub(super) struct World(protocol::Stream);

/// Delta.
pub(super) struct Delta(delta::Stream);

impl Form for World {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    const RPC: &'static str = "StreamSecrets";
    const PROTOCOL: &'static str = "sds";

    fn new(seed: [u8; 4]) -> Self {
        Self(protocol::Stream::new(seed))
    }

    fn request(&mut self, request: DiscoveryRequest) -> Result<Heard, Status> {
        check_type(&request.type_url)?;
        let meaning = self.0.request(of_world(request)).map_err(invalid)?;
        let sent = || owned(self.0.last_sent());
        Ok(match meaning {
            protocol::Meaning::Subscribed => Heard::Subscribed,
            protocol::Meaning::Stale => Heard::Stale,
            protocol::Meaning::Acknowledged => Heard::Acknowledged(sent()),
            protocol::Meaning::Refused(reason) => Heard::Refused(sent(), reason),
        })
    }

    fn push(&mut self, content: &Content<'_>) -> Option<(DiscoveryResponse, Told)> {
        let push = self.0.push(content)?;
        let response = whole(&push, content);
        let told = Told {
            version: push.version,
            resources: owned(self.0.last_sent()),
            removed: Vec::new(),
        };
        Some((response, told))
    }

    fn brought(&mut self, _: &Content<'_>) -> Versions {
        // On a new stream the state of the world is always sent.
        Vec::new()
    }

    fn subscribed(&self) -> impl Iterator<Item = &str> {
        self.0.subscribed()
    }

    fn asks_for(&self, name: &str) -> bool {
        self.0.asks_for(name)
    }
}

impl Form for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    const RPC: &'static str = "DeltaSecrets";
    const PROTOCOL: &'static str = "sds_delta";

    fn new(seed: [u8; 4]) -> Self {
        Self(delta::Stream::new(seed))
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Status> {
        check_type(&request.type_url)?;
        let request = delta::Request {
            nonce: request.response_nonce,
            subscribe: request.resource_names_subscribe,
            unsubscribe: request.resource_names_unsubscribe,
            held: request.initial_resource_versions,
            refused: request.error_detail.as_ref().map(reason),
        };
        Ok(match self.0.request(request).map_err(invalid)? {
            delta::Meaning::Subscribed => Heard::Subscribed,
            delta::Meaning::Acknowledged(taken) => Heard::Acknowledged(taken.into_iter().collect()),
            delta::Meaning::Refused(refused, reason) => {
                Heard::Refused(refused.into_iter().collect(), reason)
            }
        })
    }

    fn push(&mut self, content: &Content<'_>) -> Option<(DeltaDiscoveryResponse, Told)> {
        let push = self.0.push(content)?;
        let resource = |(name, version): (&String, &String)| Resource {
            name: name.clone(),
            version: version.clone(),
            resource: content.resource(name),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            system_version_info: push.version.clone(),
            resources: push.resources.iter().map(resource).collect(),
            type_url: type_url(),
            removed_resources: push.removed.clone(),
            nonce: push.nonce,
            ..DeltaDiscoveryResponse::default()
        };
        let told = Told {
            version: push.version,
            resources: push.resources.into_iter().collect(),
            removed: push.removed,
        };
        Some((response, told))
    }

    fn brought(&mut self, content: &Content<'_>) -> Versions {
        self.0.brought(content).into_iter().collect()
    }

    fn subscribed(&self) -> impl Iterator<Item = &str> {
        self.0.subscribed()
    }

    fn asks_for(&self, name: &str) -> bool {
        self.0.asks_for(name)
    }
}

/// A request of the state of the world, without Envoy's types.
pub(super) fn of_world(mut request: DiscoveryRequest) -> protocol::Request {
    protocol::Request {
        version: mem::take(&mut request.version_info),
        nonce: mem::take(&mut request.response_nonce),
        names: mem::take(&mut request.resource_names),
        refused: request.error_detail.as_ref().map(reason),
    }
}

/// A response with all that a push names.
pub(super) fn whole(push: &Push, content: &Content<'_>) -> DiscoveryResponse {
    let names = push.names.iter();
    DiscoveryResponse {
        version_info: push.version.clone(),
        resources: names.filter_map(|name| content.resource(name)).collect(),
        type_url: type_url(),
        nonce: push.nonce.clone(),
        ..DiscoveryResponse::default()
    }
}

pub(super) fn check_type(asked: &str) -> Result<(), Status> {
    if asked.is_empty() || asked == type_url() {
        return Ok(());
    }
    let only = format!("only resources of type {} are here", type_url());
    Err(Status::invalid_argument(only))
}

pub(super) fn invalid(error: protocol::ProtocolError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Envoy's words, which are as long as it likes and hold what it likes.
fn reason(status: &rpc::Status) -> String {
    let plain = status.message.chars().filter(|c| !c.is_control());
    plain.take(MAX_REASON).collect()
}

fn owned<'a>(versions: impl Iterator<Item = (&'a str, &'a str)>) -> Versions {
    versions
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}
