//! A proxy in front of the API server that answers `TokenReviews` itself.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use citadel_tests::dir::TestDir;
use citadel_tests::kubernetes::{Access, ApiServer};
use citadel_tests::ports;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// The largest request that is read.
const LIMIT: usize = 64 * 1024;

/// Makes an answer of a token: status line and content type, body.
pub(crate) type Answer = fn(&str) -> (&'static str, &'static str, String);

/// The proxy, over plain HTTP on loopback.
pub(crate) struct Proxy {
    answer: Arc<Mutex<Answer>>,
    /// A kubeconfig that leads here.
    pub(crate) kubeconfig: std::path::PathBuf,
}

struct Upstream {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Proxy {
    /// One in front of this API server, with these rights.
    pub(crate) async fn start(
        api: &ApiServer,
        access: &Access,
        dir: &TestDir,
        answer: Answer,
    ) -> Self {
        let text = std::fs::read_to_string(&access.kubeconfig).expect("a kubeconfig");
        let mut config: Value = serde_json::from_str(&text).expect("JSON, which YAML contains");
        let cluster = &mut config["clusters"][0]["cluster"];
        let root = STANDARD
            .decode(
                cluster["certificate-authority-data"]
                    .as_str()
                    .expect("a root"),
            )
            .expect("base64");
        let listener = TcpListener::bind(ports::address()).await.expect("a port");
        let here = listener.local_addr().expect("an address");
        *cluster = serde_json::json!({ "server": format!("http://{here}") });

        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&root).expect("PEM"))
            .expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let upstream = Arc::new(Upstream {
            address: api.address(),
            tls: TlsConnector::from(Arc::new(tls)),
        });
        let answer = Arc::new(Mutex::new(answer));
        let current = answer.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, current) = (upstream.clone(), current.clone());
                // A client that goes away in the midst of something is no news.
                tokio::spawn(async move { upstream.serve(client, &current).await });
            }
        });
        Self {
            answer,
            kubeconfig: dir.write("proxy.kubeconfig", config.to_string()),
        }
    }

    /// Answers like this from now on.
    pub(crate) fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("no panic while it is held") = answer;
    }
}

impl Upstream {
    /// One request a connection, which keeps this simple.
    async fn serve(&self, mut client: TcpStream, answer: &Mutex<Answer>) -> std::io::Result<()> {
        let Some((head, mut body)) = request(&mut client).await? else {
            return Ok(());
        };
        if !head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews") {
            let server = TcpStream::connect(self.address).await?;
            let name = ServerName::IpAddress(self.address.ip().into());
            let mut server = self.tls.connect(name, server).await?;
            server
                .write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())
                .await?;
            server.write_all(&body).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
            return Ok(());
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok());
        while body.len() < length.unwrap_or(0) {
            client.read_buf(&mut body).await?;
        }
        let review: Value = serde_json::from_slice(&body).expect("a TokenReview");
        let token = review["spec"]["token"].as_str().expect("a token");
        let make = *answer.lock().expect("no panic while it is held");
        let (status, kind, body) = make(token);
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(body.as_bytes()).await?;
        client.shutdown().await
    }
}

/// A request's head without its empty line, and what of the body came with it.
async fn request(
    stream: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    while bytes.len() < LIMIT {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            bytes.truncate(end);
            return Ok(Some((String::from_utf8_lossy(&bytes).into_owned(), body)));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    Ok(None)
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then_some(value.trim())
    })
}
