//! A TLS server that pretends to be the CA and keeps all that it is told.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use citadel_tests::client::Identity;
use citadel_tests::dir::TestDir;
use citadel_tests::pki::{csr, openssl};
use citadel_tests::ports;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// The server. Dropping it ends it.
pub(crate) struct Impostor {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What it was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Connections whose handshake has ended, well or not.
    pub(crate) connections: usize,
    /// Those that ended well.
    pub(crate) handshakes: usize,
    /// What came over them, decrypted.
    pub(crate) plain: Vec<u8>,
}

impl Impostor {
    /// Starts one that presents this chain.
    pub(crate) async fn start(identity: &Identity) -> Self {
        let chain = identity
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("a key");
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("the provider knows them")
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .expect("a chain and its key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let address = ports::address();
        let listener = TcpListener::bind(address).await.expect("a port of our own");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(config)),
            seen.clone(),
        ));
        Self {
            address,
            seen,
            task,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic while it is held").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen().connections
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, seen: Arc<Mutex<Seen>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        tokio::spawn(async move {
            let note = |change: &dyn Fn(&mut Seen)| change(&mut seen.lock().expect("no panic"));
            let accepted = acceptor.accept(stream).await;
            note(&|seen| {
                seen.connections += 1;
                seen.handshakes += usize::from(accepted.is_ok());
            });
            let Ok(mut stream) = accepted else { return };
            // The server's part of HTTP/2's start: empty settings. A client may wait for it.
            let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                note(&|seen| seen.plain.extend_from_slice(&buffer[..count]));
            }
        });
    }
}

/// A server's chain by the CA whose data folder this is, made behind its back.
pub(crate) fn ca_lookalike(data: &Path, id: &str) -> Identity {
    let dir = TestDir::new("lookalike");
    let csr = csr::plain();
    let request = dir.write("request.der", &csr.der);
    let extensions = dir.write("extensions", extensions(id));
    let (ca, key) = (data.join("ca-cert.pem"), data.join("ca-key.pem"));
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let args = [
        "x509",
        "-req",
        "-inform",
        "DER",
        "-in",
        &text(&request),
        "-CA",
        &text(&ca),
        "-CAkey",
        &text(&key),
        "-set_serial",
        "0x1234567890abcdef",
        "-days",
        "1",
        "-extfile",
        &text(&extensions),
        "-outform",
        "DER",
    ];
    let leaf = openssl::run(&args, b"");
    let root = der_of(&data.join("root-cert.pem"));
    Identity {
        chain: vec![leaf, der_of(&ca), root],
        key_pem: csr.key_pem,
    }
}

/// A certificate that nobody else vouches for.
pub(crate) fn self_signed(id: &str) -> Identity {
    let dir = TestDir::new("self-signed");
    let csr = csr::plain();
    let request = dir.write("request.der", &csr.der);
    let key = dir.write("key.pem", &csr.key_pem);
    let extensions = dir.write("extensions", extensions(id));
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let args = [
        "x509",
        "-req",
        "-inform",
        "DER",
        "-in",
        &text(&request),
        "-signkey",
        &text(&key),
        "-days",
        "1",
        "-extfile",
        &text(&extensions),
        "-outform",
        "DER",
    ];
    Identity {
        chain: vec![openssl::run(&args, b"")],
        key_pem: csr.key_pem,
    }
}

/// The first certificate of a PEM file.
pub(crate) fn der_of(path: &Path) -> Vec<u8> {
    let pem = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    openssl::run(&["x509", "-outform", "DER"], &pem)
}

fn extensions(id: &str) -> String {
    [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth,clientAuth",
        &format!("subjectAltName=critical,URI:{id}"),
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
        "",
    ]
    .join("\n")
}
