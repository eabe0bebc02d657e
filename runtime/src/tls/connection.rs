//! One accepted TLS connection, and what a request handler may know about it.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::limits::Slot;

/// Who is at the other end. In the extensions of each request of the connection.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer's TCP address. An IPv4 address is an IPv4 address, also on a socket that
    /// listens on `[::]`.
    pub address: SocketAddr,
    /// The chain that the client presented, leaf first, verified in the handshake; empty if it
    /// presented none. The connection may outlive it: compare its validity with the clock
    /// wherever it counts.
    pub client_chain: Arc<[CertificateDer<'static>]>,
}

/// A connection whose handshake is complete. Its place among the limits is free again once
/// it is dropped.
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    _slot: Slot,
}

impl TlsConn {
    pub(super) fn new(stream: TlsStream<TcpStream>, address: SocketAddr, slot: Slot) -> Self {
        let (_, session) = stream.get_ref();
        let client_chain = session
            .peer_certificates()
            .into_iter()
            .flatten()
            .map(|certificate| certificate.clone().into_owned())
            .collect();
        Self {
            stream,
            peer: PeerInfo {
                address,
                client_chain,
            },
            _slot: slot,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    #[cfg(test)]
    pub(super) fn nodelay(&self) -> bool {
        self.stream.get_ref().0.nodelay().unwrap_or(false)
    }
}

// === impl PeerInfo ===

impl fmt::Debug for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerInfo")
            .field("address", &self.address)
            .field(
                "client_chain",
                &format_args!("{} certificates", self.client_chain.len()),
            )
            .finish()
    }
}

// === impl TlsConn ===

impl Connected for TlsConn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for TlsConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConn")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
