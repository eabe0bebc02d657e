//! A client that says what the test says.

use std::time::Duration;

use citadel_tests::client::Certificate;
use citadel_tests::peer::channel_to;
use citadel_tests::secrets;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status as Refusal;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use prost::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::node::{Node, user_entry};

/// An answer that nothing holds up.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// A renewal of a certificate of 10 s, which is due after half of it.
pub(crate) const RENEWAL: Duration = Duration::from_secs(20);

/// The type of all that is asked for.
pub(crate) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The identity of this very process on a [`node`].
pub(crate) const ID: &str = "spiffe://example.org/unix/root";

/// A node on which user 0 has [`ID`], with certificates of this lifetime, and the first
/// of them is there.
pub(crate) async fn node(name: &str, ttl: &str) -> Node {
    let entry = user_entry("/unix/root", name, 0);
    let node = Node::with(
        name,
        |ca| ca.set("entries", vec![entry]),
        |agent| agent.set("svid_ttl", ttl),
    )
    .await;
    Script::open(&node, &["default"]).await.next().await;
    node
}

/// The service on the agent's socket, as this process.
pub(crate) fn service(node: &Node) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(channel_to(&node.agent.socket()))
}

/// A stream of secrets.
pub(crate) struct Script {
    requests: UnboundedSender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

/// A response, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub(crate) version: String,
    pub(crate) nonce: String,
    /// What is in it, sorted by name.
    pub(crate) names: Vec<String>,
    /// The serials of the certificates in it, in the order of their names.
    pub(crate) serials: Vec<String>,
}

/// A request for these names that answers nothing.
pub(crate) fn request(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: SECRET.into(),
        resource_names: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

impl Script {
    /// Opens a stream with a first request for these names.
    pub(crate) async fn open(node: &Node, names: &[&str]) -> Self {
        Self::try_open(node, request(names))
            .await
            .expect("a stream")
    }

    /// Opens a stream with any first request.
    pub(crate) async fn try_open(node: &Node, first: DiscoveryRequest) -> Result<Self, Status> {
        let (requests, inbox) = unbounded();
        requests.unbounded_send(first).expect("it is new");
        let responses = service(node).stream_secrets(inbox).await?.into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    /// Sends any request.
    pub(crate) fn send(&self, request: DiscoveryRequest) {
        self.requests
            .unbounded_send(request)
            .expect("the stream is open");
    }

    /// Acknowledges, and asks for these names from now on.
    pub(crate) fn ack(&self, pushed: &Pushed, names: &[&str]) {
        self.send(DiscoveryRequest {
            version_info: pushed.version.clone(),
            response_nonce: pushed.nonce.clone(),
            ..request(names)
        });
    }

    /// Refuses; `held` is the version that the client keeps.
    pub(crate) fn nack(&self, pushed: &Pushed, held: &str, names: &[&str], reason: &str) {
        self.send(DiscoveryRequest {
            version_info: held.into(),
            response_nonce: pushed.nonce.clone(),
            error_detail: Some(Refusal {
                code: 13,
                message: reason.into(),
                details: vec![],
            }),
            ..request(names)
        });
    }

    /// The next response, which must come promptly.
    pub(crate) async fn next(&mut self) -> Pushed {
        self.within(PROMPT).await
    }

    /// The next response, after a renewal or another event.
    pub(crate) async fn within(&mut self, deadline: Duration) -> Pushed {
        let message = tokio::time::timeout(deadline, self.responses.message()).await;
        let message = message
            .expect("a response in time")
            .expect("no error")
            .expect("no end");
        Pushed::read(message)
    }

    /// What the stream ends with, without a certificate before that. Bundles are nobody's
    /// secret: before the agent knows its entries it gives them to everybody.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            let ended = tokio::time::timeout(PROMPT, self.responses.message()).await;
            match ended.expect("an end in time") {
                Err(status) => return status,
                Ok(message) => {
                    let pushed = Pushed::read(message.expect("a reason for the end"));
                    assert!(pushed.serials.is_empty(), "not its end: {pushed:?}");
                }
            }
        }
    }
}

impl Pushed {
    /// Takes a response apart. Never shows it: Envoy's types print private keys.
    pub(crate) fn read(message: DiscoveryResponse) -> Self {
        assert_eq!(message.type_url, SECRET);
        let (names, serials) = contents(&message.resources);
        Self {
            version: message.version_info,
            nonce: message.nonce,
            names,
            serials,
        }
    }
}

/// The names of what is in these, sorted, and the serials of the certificates among them, in
/// the order of their names.
pub(crate) fn contents(resources: &[Any]) -> (Vec<String>, Vec<String>) {
    let mut found: Vec<_> = resources
        .iter()
        .map(|any| {
            assert_eq!(any.type_url, SECRET);
            let secret = Secret::decode(any.value.as_slice()).expect("a Secret");
            let serial = match secret.r#type.expect("a kind") {
                Type::TlsCertificate(certificate) => {
                    let key = inline(certificate.private_key.expect("a key").specifier);
                    secrets::register_key_pem("SDS key", &key);
                    let chain = certificate.certificate_chain.expect("a chain").specifier;
                    Some(first_serial(&inline(chain)))
                }
                Type::ValidationContext(context) => {
                    let roots = context.trusted_ca.expect("roots").specifier;
                    assert!(inline(roots).contains("BEGIN CERTIFICATE"));
                    None
                }
                _ => panic!("a secret of another kind"),
            };
            (secret.name, serial)
        })
        .collect();
    found.sort();
    let names = found.iter().map(|(name, _)| name.clone()).collect();
    (
        names,
        found.into_iter().filter_map(|(_, serial)| serial).collect(),
    )
}

fn inline(source: Option<Specifier>) -> String {
    match source {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).expect("PEM"),
        Some(Specifier::InlineString(text)) => text,
        _ => panic!("not inline"),
    }
}

fn first_serial(chain: &str) -> String {
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate");
    Certificate::of_der(&leaf).serial()
}
