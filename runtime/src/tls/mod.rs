//! TLS by hand on rustls: server and client configurations that speak HTTP/2 only, a
//! certificate that can change while connections live, and the accept loop.

pub(crate) mod accept;
mod certificate;
mod connection;
mod incoming;
mod limits;
mod metrics;
mod watchdog;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::{
    ClientConfig, ServerConfig,
    client::{Resumption, danger::ServerCertVerifier},
    server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier},
};
use tokio::net::{TcpListener, TcpSocket};

pub use self::{
    certificate::ReloadingCertificate,
    connection::{PeerInfo, TlsConn, Unanswered},
    incoming::{Incoming, incoming},
    limits::{ConnectionLimits, host_of},
    metrics::ConnectionMetrics,
};

/// HTTP/2, the only protocol that our gRPC endpoints speak.
const ALPN_H2: &[u8] = b"h2";
/// Connections that the kernel holds for us while the accept loop is busy.
const BACKLOG: u32 = 4096;

/// A certificate, key or configuration that TLS can't use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain has no certificate.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// The key is not a PKCS#8 key that the crypto provider knows, or it does not belong to
    /// the first certificate of the chain.
    #[error("the certificate and its key can't be used: {0}")]
    Certificate(#[source] rustls::Error),
    /// The crypto provider lacks what the configuration needs.
    #[error("TLS can't be set up: {0}")]
    Configuration(#[source] rustls::Error),
}

/// The configuration of a gRPC server: TLS 1.3 and 1.2, ALPN `h2`, no resumption.
///
/// # Errors
/// The crypto provider lacks a protocol version.
pub fn server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(citadel_identity::crypto::provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // No resumption, neither by ticket nor by session ID. A resumed session carries the client
    // certificate of the first handshake without verifying it anew, so it would outlive the
    // certificate's expiry, the trust bundle's change and our own rotation. Our connections
    // live long; what resumption saves is one signature per connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// As [`server_config`], for programs that speak HTTP/1.1 too.
///
/// # Errors
/// The crypto provider lacks a protocol version.
pub fn https_config(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = Arc::unwrap_or_clone(server_config(certificate, clients)?);
    config.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(config))
}

/// The configuration of a gRPC client: TLS 1.3 and 1.2, ALPN `h2`, no resumption, the server
/// judged by `server` alone. With `own`, its certificate of the moment is presented in each
/// new handshake.
///
/// # Errors
/// The crypto provider lacks a protocol version.
pub fn client_config(
    server: Arc<dyn ServerCertVerifier>,
    own: Option<Arc<ReloadingCertificate>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(citadel_identity::crypto::provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .dangerous()
        .with_custom_certificate_verifier(server);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // For the reason given in `server_config`, seen from the other side.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Binds a TCP port. `[::]` takes IPv4 too, and falls back to `0.0.0.0` on a host without
/// IPv6.
///
/// # Errors
/// The address can't be bound; the error names it.
#[allow(
    clippy::unused_async,
    reason = "a listener belongs to the runtime it is made in"
)]
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    };
    match listen(address) {
        Ok(listener) => Ok(listener),
        Err(error) if address.ip().is_unspecified() && address.is_ipv6() && no_ipv6(&error) => {
            let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::info!(%address, "this host has no IPv6: listening on IPv4 alone");
            listen(everywhere).map_err(named)
        }
        Err(error) => Err(named(error)),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    // A restart must not wait for connections of the process before it.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // The system's default may be otherwise (net.ipv6.bindv6only).
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn no_ipv6(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
