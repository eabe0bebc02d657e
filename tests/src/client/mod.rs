//! A client of the CA's services, over TLS and HTTP/2, that shares no code with
//! ours but the generated messages.

mod admin;
mod certificate;
mod identity;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use citadel_proto::istio::istio_certificate_service_client::IstioCertificateServiceClient;
use citadel_proto::istio::{IstioCertificateRequest, IstioCertificateResponse};
use citadel_proto::v1::admin_service_client::AdminServiceClient;
use citadel_proto::v1::agent_service_client::AgentServiceClient;
use citadel_proto::v1::workload_service_client::WorkloadServiceClient;
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, EntriesUpdate, GetChallengeRequest,
    GetServerInfoRequest, HoldersReport, IssueBatchRequest, IssueBatchResponse, IssueItem,
    IssueSvidRequest, IssueSvidResponse, ListHoldersRequest, ListHoldersResponse,
    ReportHoldersRequest, ServerInfo, StreamEntriesRequest, StreamTrustBundlesRequest,
    TrustBundlesUpdate,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

pub use admin::{Admin, Record};
pub use certificate::{Certificate, Grants, to_pem};
pub use identity::Identity;
pub use tls::{Handshake, Seen, Versions};

use crate::citadel::Ca;
use crate::pki::csr::Csr;

/// What a client presents, and where it comes from.
#[derive(Clone)]
pub struct ClientBuilder {
    server: SocketAddr,
    root_pem: Vec<u8>,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    identity: Option<Identity>,
    source: Option<IpAddr>,
    versions: Versions,
}

/// A client with one connection, made at its first request and again when it
/// breaks. A clone shares it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    headers: Vec<(&'static str, AsciiMetadataValue)>,
    seen: Arc<Seen>,
}

impl ClientBuilder {
    /// A client of this CA, without any credential.
    pub fn new(ca: &Ca) -> Self {
        let root_pem = std::fs::read(ca.bundle_file()).expect("the CA's trust bundle");
        Self::at(ca.grpc(), &root_pem)
    }

    /// A client of a CA whose root this is.
    pub fn at(server: SocketAddr, root_pem: &[u8]) -> Self {
        Self {
            server,
            root_pem: root_pem.to_vec(),
            token: None,
            headers: Vec::new(),
            identity: None,
            source: None,
            versions: Versions::All,
        }
    }

    /// Presents a bearer token with each request.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Adds a header to each request; one may be there twice.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Presents a client certificate.
    #[must_use]
    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// Connects from this address, which must be one of the machine's own.
    #[must_use]
    pub fn from(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Restricts the versions of TLS.
    #[must_use]
    pub fn versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// The client.
    pub fn build(&self) -> Client {
        let seen = Arc::new(Seen::default());
        let connector = tls::Connector::new(
            self.server,
            self.source,
            tls::config(&self.root_pem, self.identity.as_ref(), self.versions),
            seen.clone(),
        );
        // TLS is the connector's work; with https tonic would insist on its own.
        let channel = Endpoint::from_shared(format!("http://{}", self.server))
            .expect("an address is an authority")
            .connect_with_connector_lazy(connector.into_service());
        let bearer = self
            .token
            .as_ref()
            .map(|token| ("authorization", format!("Bearer {token}")));
        let headers = self.headers.iter().cloned().chain(bearer);
        Client {
            channel,
            headers: headers
                .map(|(name, value)| (name, value.parse().expect("a header's value")))
                .collect(),
            seen,
        }
    }
}

impl Client {
    /// `citadel.v1.WorkloadService/IssueSvid` with a default lifetime.
    pub async fn issue(&self, csr: &Csr) -> Result<IssueSvidResponse, Status> {
        self.issue_with(IssueSvidRequest {
            csr: csr.der.clone(),
            ..Default::default()
        })
        .await
    }

    /// `citadel.v1.WorkloadService/IssueSvid`.
    pub async fn issue_with(&self, request: IssueSvidRequest) -> Result<IssueSvidResponse, Status> {
        let mut service = WorkloadServiceClient::new(self.channel.clone());
        Ok(service
            .issue_svid(self.request(request))
            .await?
            .into_inner())
    }

    /// `istio.v1.auth.IstioCertificateService/CreateCertificate`.
    pub async fn create_certificate(
        &self,
        request: IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut service = IstioCertificateServiceClient::new(self.channel.clone());
        Ok(service
            .create_certificate(self.request(request))
            .await?
            .into_inner())
    }

    /// `citadel.v1.AgentService/AttestAgent`.
    pub async fn attest(&self, csr: &Csr) -> Result<AttestAgentResponse, Status> {
        self.attest_with(AttestAgentRequest {
            csr: csr.der.clone(),
            ..Default::default()
        })
        .await
    }

    /// `citadel.v1.AgentService/AttestAgent`.
    pub async fn attest_with(
        &self,
        request: AttestAgentRequest,
    ) -> Result<AttestAgentResponse, Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        Ok(service
            .attest_agent(self.request(request))
            .await?
            .into_inner())
    }

    /// `citadel.v1.AgentService/GetChallenge`.
    pub async fn challenge(&self) -> Result<Vec<u8>, Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        let request = self.request(GetChallengeRequest {});
        let answer = service.get_challenge(request).await?.into_inner();
        Ok(answer.challenge)
    }

    /// `citadel.v1.AgentService/IssueBatch`.
    pub async fn batch(&self, items: Vec<IssueItem>) -> Result<IssueBatchResponse, Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        Ok(service
            .issue_batch(self.request(IssueBatchRequest { items }))
            .await?
            .into_inner())
    }

    /// `citadel.v1.AgentService/StreamEntries`.
    pub async fn entries(&self) -> Result<Streaming<EntriesUpdate>, Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        Ok(service
            .stream_entries(self.request(StreamEntriesRequest {}))
            .await?
            .into_inner())
    }

    /// `citadel.v1.AgentService/StreamTrustBundles`.
    pub async fn bundles(&self) -> Result<Streaming<TrustBundlesUpdate>, Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        let request = self.request(StreamTrustBundlesRequest {});
        Ok(service.stream_trust_bundles(request).await?.into_inner())
    }

    /// `citadel.v1.AgentService/ReportHolders`.
    pub async fn report_holders(&self, report: HoldersReport) -> Result<(), Status> {
        let mut service = AgentServiceClient::new(self.channel.clone());
        let report = Some(report);
        let request = self.request(ReportHoldersRequest { report });
        service.report_holders(request).await.map(drop)
    }

    /// `citadel.v1.AdminService/ListHolders`, which is for administrators.
    pub async fn holders(&self) -> Result<ListHoldersResponse, Status> {
        let mut service = AdminServiceClient::new(self.channel.clone());
        let request = self.request(ListHoldersRequest {});
        Ok(service.list_holders(request).await?.into_inner())
    }

    /// `citadel.v1.AdminService/GetServerInfo`, which is for administrators.
    pub async fn server_info(&self) -> Result<ServerInfo, Status> {
        let mut service = AdminServiceClient::new(self.channel.clone());
        Ok(service
            .get_server_info(self.request(GetServerInfoRequest {}))
            .await?
            .into_inner())
    }

    /// `grpc.health.v1.Health/Check`; the empty name is the server as a whole.
    pub async fn health(&self, service: &str) -> Result<ServingStatus, Status> {
        let mut health = HealthClient::new(self.channel.clone());
        let service = service.into();
        let request = self.request(HealthCheckRequest { service });
        Ok(health.check(request).await?.into_inner().status())
    }

    /// `grpc.health.v1.Health/Watch` of the server as a whole.
    pub async fn watch_health(&self) -> Result<Streaming<HealthCheckResponse>, Status> {
        let mut health = HealthClient::new(self.channel.clone());
        let request = self.request(HealthCheckRequest::default());
        Ok(health.watch(request).await?.into_inner())
    }

    /// The same connection with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        let bearer = format!("Bearer {token}").parse().expect("a header's value");
        Self {
            headers: vec![("authorization", bearer)],
            ..self.clone()
        }
    }

    /// What its handshakes showed, newest last.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in &self.headers {
            request.metadata_mut().append(*name, value.clone());
        }
        request
    }
}
