//! The client's side of TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, NamedGroup, ProtocolVersion,
    RootCertStore, SignatureScheme,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;
use tower::Service;

use super::Identity;
use super::certificate::Certificate;

/// How long TCP and TLS may take together.
const DEADLINE: Duration = Duration::from_secs(10);

/// Which versions of TLS a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// 1.2 and 1.3.
    All,
    /// 1.2 alone.
    Only12,
    /// 1.3 alone, as ztunnel.
    Only13,
}

/// One handshake.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The client's own end of the connection.
    pub local: SocketAddr,
    /// What the server presented, leaf first, in DER.
    pub chain: Vec<Vec<u8>>,
    /// The version that was agreed on.
    pub version: ProtocolVersion,
    /// The key exchange that was agreed on.
    pub group: NamedGroup,
    /// The application protocol that was agreed on.
    pub alpn: Option<Vec<u8>>,
}

/// The handshakes of a client.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Vec<Handshake>>);

impl Seen {
    /// All of them, newest last.
    pub fn handshakes(&self) -> Vec<Handshake> {
        self.0.lock().expect("no panic while it is held").clone()
    }

    /// The only one. Panics when the connection was made again.
    pub fn only(&self) -> Handshake {
        let mut all = self.handshakes();
        assert_eq!(all.len(), 1, "one connection: {all:?}");
        all.remove(0)
    }

    fn add(&self, handshake: Handshake) {
        self.0
            .lock()
            .expect("no panic while it is held")
            .push(handshake);
    }
}

/// TLS as a client that trusts this root does it.
pub(super) fn config(
    root_pem: &[u8],
    identity: Option<&Identity>,
    versions: Versions,
) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        kx_group::X25519MLKEM768,
        kx_group::X25519,
        kx_group::SECP256R1,
    ];
    let provider = Arc::new(provider);
    let versions: &[_] = match versions {
        Versions::All => rustls::ALL_VERSIONS,
        Versions::Only12 => &[&rustls::version::TLS12],
        Versions::Only13 => &[&rustls::version::TLS13],
    };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root_pem) {
        roots.add(root.expect("PEM")).expect("a root");
    }
    let verifier = Verifier {
        roots,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider knows them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.certificates(), identity.private_key())
            .expect("a chain and its key"),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection is to show the server's certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    server: SocketAddr,
    source: Option<IpAddr>,
    config: Arc<ClientConfig>,
    seen: Arc<Seen>,
}

impl Connector {
    pub(super) fn new(
        server: SocketAddr,
        source: Option<IpAddr>,
        config: Arc<ClientConfig>,
        seen: Arc<Seen>,
    ) -> Self {
        Self {
            server,
            source,
            config,
            seen,
        }
    }

    /// As tonic takes it.
    pub(super) fn into_service(
        self,
    ) -> impl Service<
        Uri,
        Response = TokioIo<TlsStream<TcpStream>>,
        Error = std::io::Error,
        Future: Send,
    > + Send
    + 'static {
        tower::service_fn(move |_: Uri| {
            let connector = self.clone();
            async move {
                let stream = tokio::time::timeout(DEADLINE, connector.connect()).await;
                stream
                    .map_err(|_| std::io::ErrorKind::TimedOut)?
                    .map(TokioIo::new)
            }
        })
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        let stream = socket.connect(self.server).await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        // A name that no certificate of the CA holds: its SPIFFE ID is what counts.
        let name = ServerName::try_from("ca.invalid").expect("a name");
        let stream = TlsConnector::from(self.config.clone())
            .connect(name, stream)
            .await?;
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        self.seen.add(Handshake {
            local,
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            version: session.protocol_version().expect("the handshake is done"),
            group: session
                .negotiated_key_exchange_group()
                .expect("it is done")
                .name(),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        });
        Ok(stream)
    }
}

/// Wants a chain to the root and the CA's own SPIFFE ID; the host's name is
/// not looked at.
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let path = Certificate::of_der(leaf).uris().concat();
        if path.starts_with("spiffe://") && path.ends_with("/citadel/ca") {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
