//! gRPC channels over TLS: several addresses, and whatever TLS configuration counts at the
//! time of each connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::http::{Uri, uri::Authority};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// `host:port` of a server: a DNS name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why a text is no address, or a channel can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `host:port`.
    #[error(
        "`{0}` is not an address; write host:port, such as ca.example.org:15012 or [::1]:15012"
    )]
    Address(String),
    /// A channel needs at least one address.
    #[error("no address is given")]
    NoAddress,
}

/// Bounds of a channel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelOptions {
    /// How long one address may take for TCP and TLS together before the next is tried.
    pub connect_timeout: Duration,
    /// How often an idle connection is checked (HTTP/2 PING).
    pub keepalive_interval: Duration,
    /// How long the answer to that may take.
    pub keepalive_timeout: Duration,
}

/// Gives the TLS configuration of the moment, asked once for each new connection.
pub type TlsSource = Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// A channel that connects when it is first used, and again whenever its connection breaks:
/// to the address that worked last, else to each of the others in turn.
///
/// A changed configuration counts for new connections; the one that stands keeps the
/// certificate it began with. Make a new channel to use a new certificate at once; the old
/// one closes when its last request is done.
///
/// # Errors
/// `addresses` is empty.
pub fn channel(
    addresses: Vec<Address>,
    tls: TlsSource,
    options: ChannelOptions,
) -> Result<Channel, ClientError> {
    let first = addresses.first().ok_or(ClientError::NoAddress)?;
    let authority = first.to_string();
    let uri = |scheme: &str| {
        Uri::builder()
            .scheme(scheme)
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
            .map_err(|_| ClientError::Address(authority.clone()))
    };
    // The endpoint says http because TLS is the connector's work here: with https tonic would
    // insist on its own. The requests say https, which is what they travel over.
    let endpoint = Endpoint::from(uri("http")?)
        .origin(uri("https")?)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    let connector = Connector {
        addresses: addresses.into(),
        last: Arc::default(),
        tls,
        options,
    };
    Ok(endpoint.connect_with_connector_lazy(connector))
}

#[derive(Clone)]
struct Connector {
    addresses: Arc<[Address]>,
    /// Index of the address that worked last.
    last: Arc<AtomicUsize>,
    tls: TlsSource,
    options: ChannelOptions,
}

impl Connector {
    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from((self.tls)());
        let first = self.last.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for offset in 0..self.addresses.len() {
            let index = (first + offset) % self.addresses.len();
            let address = &self.addresses[index];
            let attempt = address.connect(&connector);
            let error = match tokio::time::timeout(self.options.connect_timeout, attempt).await {
                Ok(Ok(stream)) => {
                    self.last.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection within {:?}", self.options.connect_timeout),
                ),
            };
            tracing::debug!(%address, %error, "cannot connect");
            failures.push(format!("{address}: {error}"));
        }
        Err(io::Error::new(
            io::ErrorKind::NotConnected,
            failures.join("; "),
        ))
    }
}

// === impl Address ===

impl Address {
    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    async fn connect(&self, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
        // Resolves the name anew each time and tries all its addresses.
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        tls.connect(self.name.clone(), stream).await
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let error = || ClientError::Address(text.chars().take(256).collect());
        let authority = Authority::from_str(text).map_err(|_| error())?;
        let port = authority
            .port_u16()
            .filter(|port| *port != 0)
            .ok_or_else(error)?;
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if text.contains('@') {
            return Err(error());
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| error())?;
        Ok(Self {
            host: host.to_owned(),
            port,
            name,
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

// === impl Connector ===

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests;
