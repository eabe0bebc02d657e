//! A CA of a few lines that knows two trust domains: what the real one can't be told yet.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use citadel_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use citadel_proto::v1::issue_result::Outcome;
use citadel_proto::v1::{
    AttestAgentRequest, AttestAgentResponse, EntriesUpdate, EntryRecord, GetChallengeRequest,
    GetChallengeResponse, IssueBatchRequest, IssueBatchResponse, IssueResult, ReportHoldersRequest,
    ReportHoldersResponse, StreamEntriesRequest, StreamTrustBundlesRequest, TrustBundle,
    TrustBundlesUpdate, X509Svid,
};
use citadel_tests::client::Identity;
use citadel_tests::dir::TestDir;
use citadel_tests::pki::{csr, openssl};
use citadel_tests::ports;
use futures::stream::{self, BoxStream, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

/// The identity of every process of user 0.
pub(crate) const WORKLOAD: &str = "spiffe://example.org/envoy";

/// The root of a trust domain, with its key, in files.
pub(crate) struct Root {
    dir: TestDir,
    /// DER.
    pub(crate) der: Vec<u8>,
    name: &'static str,
}

/// The CA. It ends with the test.
pub(crate) struct FederatedCa {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// `example.org`, the agents' own.
    pub(crate) own: Arc<Root>,
    /// `other.org`.
    pub(crate) other: Arc<Root>,
}

#[derive(Clone)]
struct Service {
    own: Arc<Root>,
    other: Arc<Root>,
}

impl Root {
    fn new(name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let id = format!("spiffe://{name}").try_into().expect("a name");
        params.subject_alt_names = vec![rcgen::SanType::URI(id)];
        let key = KeyPair::generate().expect("a key");
        let key_pem = key.serialize_pem();
        citadel_tests::secrets::register_key_pem("a root's key", &key_pem);
        let root = CertifiedIssuer::self_signed(params, key).expect("a root");
        let dir = TestDir::new("root");
        dir.write("cert.pem", root.pem());
        dir.write("key.pem", key_pem);
        Self {
            der: root.der().to_vec(),
            dir,
            name,
        }
    }

    /// The root certificate, in PEM.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    /// A certificate for any ID that this root is asked to vouch for, of whatever trust
    /// domain.
    pub(crate) fn identity(&self, id: &str) -> Identity {
        let csr = csr::plain();
        Identity {
            chain: vec![self.sign(id, &csr.der), self.der.clone()],
            key_pem: csr.key_pem,
        }
    }

    fn sign(&self, id: &str, csr: &[u8]) -> Vec<u8> {
        let dir = TestDir::new("signing");
        let request = dir.write("request.der", csr);
        let extensions = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:{id}\n\
             subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        );
        let extensions = dir.write("extensions", extensions);
        let text = |path: PathBuf| path.to_str().expect("a plain path").to_owned();
        let (request, extensions) = (text(request), text(extensions));
        let (cert, key) = (text(self.file()), text(self.dir.join("key.pem")));
        let args = [
            "x509",
            "-req",
            "-inform",
            "DER",
            "-in",
            &request,
            "-CA",
            &cert,
            "-CAkey",
            &key,
            "-set_serial",
            "0x1234567890abcdef",
            "-days",
            "1",
            "-extfile",
            &extensions,
            "-outform",
            "DER",
        ];
        openssl::run(&args, b"")
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: self.name.into(),
            x509_authorities: vec![self.der.clone()],
            sequence: 1,
            refresh_hint_seconds: 300,
        }
    }
}

impl FederatedCa {
    /// Starts one, with roots of its own.
    pub(crate) async fn start() -> Self {
        let own = Arc::new(Root::new("example.org"));
        let other = Arc::new(Root::new("other.org"));
        let identity = own.identity("spiffe://example.org/citadel/ca");
        let chain = identity.chain.iter();
        let chain = chain.map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider knows them")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("a chain and its key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = ports::address();
        let listener = TcpListener::bind(address).await.expect("a port of our own");
        let incoming = stream::unfold((listener, acceptor), |(listener, acceptor)| async move {
            let (stream, _) = listener.accept().await.ok()?;
            let accepted = acceptor.accept(stream).await.map(Connection);
            Some((accepted, (listener, acceptor)))
        });
        let service = Service {
            own: own.clone(),
            other: other.clone(),
        };
        let server = Server::builder()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(incoming.boxed());
        tokio::spawn(server);
        Self {
            address,
            own,
            other,
        }
    }
}

impl Service {
    fn svid(&self, id: &str, csr: &[u8]) -> X509Svid {
        X509Svid {
            spiffe_id: id.into(),
            certificate_chain: vec![self.own.sign(id, csr)],
            ..X509Svid::default()
        }
    }

    fn bundles(&self) -> Vec<TrustBundle> {
        vec![self.own.bundle(), self.other.bundle()]
    }
}

fn now_ms() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp() * 1000
}

/// The first answer, and none after it.
fn once<T: Send + 'static>(answer: T) -> Response<BoxStream<'static, Result<T, Status>>> {
    Response::new(stream::iter([Ok(answer)]).chain(stream::pending()).boxed())
}

#[tonic::async_trait]
impl AgentService for Service {
    type StreamEntriesStream = BoxStream<'static, Result<EntriesUpdate, Status>>;
    type StreamTrustBundlesStream = BoxStream<'static, Result<TrustBundlesUpdate, Status>>;

    async fn attest_agent(
        &self,
        request: Request<AttestAgentRequest>,
    ) -> Result<Response<AttestAgentResponse>, Status> {
        let id = "spiffe://example.org/citadel/agent/default/federated";
        Ok(Response::new(AttestAgentResponse {
            svid: Some(self.svid(id, &request.get_ref().csr)),
            bundles: self.bundles(),
            server_time_ms: now_ms(),
        }))
    }

    async fn get_challenge(
        &self,
        _: Request<GetChallengeRequest>,
    ) -> Result<Response<GetChallengeResponse>, Status> {
        Err(Status::unimplemented("no node joins by a certificate here"))
    }

    async fn issue_batch(
        &self,
        request: Request<IssueBatchRequest>,
    ) -> Result<Response<IssueBatchResponse>, Status> {
        let items = request.into_inner().items.into_iter();
        let results = items.map(|item| IssueResult {
            idempotency_key: item.idempotency_key,
            outcome: Some(Outcome::Svid(self.svid(WORKLOAD, &item.csr))),
        });
        Ok(Response::new(IssueBatchResponse {
            results: results.collect(),
            server_time_ms: now_ms(),
        }))
    }

    async fn stream_entries(
        &self,
        _: Request<StreamEntriesRequest>,
    ) -> Result<Response<Self::StreamEntriesStream>, Status> {
        let entry = EntryRecord {
            entry_id: "envoy".into(),
            spiffe_id: WORKLOAD.into(),
            selectors: vec!["unix:uid:0".into()],
            ..EntryRecord::default()
        };
        Ok(once(EntriesUpdate {
            entries: vec![entry],
            revision: 1,
        }))
    }

    async fn stream_trust_bundles(
        &self,
        _: Request<StreamTrustBundlesRequest>,
    ) -> Result<Response<Self::StreamTrustBundlesStream>, Status> {
        Ok(once(TrustBundlesUpdate {
            bundles: self.bundles(),
            server_time_ms: now_ms(),
        }))
    }

    async fn report_holders(
        &self,
        _: Request<ReportHoldersRequest>,
    ) -> Result<Response<ReportHoldersResponse>, Status> {
        // As a CA that does not know it yet.
        Err(Status::unimplemented("an earlier version"))
    }
}

/// For tonic, which would else want to make the TLS itself.
struct Connection(TlsStream<TcpStream>);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
