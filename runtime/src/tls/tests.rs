#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt;
use nix::errno::Errno;
use rustls::{
    ClientConfig, HandshakeKind,
    client::Resumption,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ConnectionLimits, ConnectionMetrics, ReloadingCertificate, TlsConn, TlsError, bind,
    incoming::{Accept, incoming_from},
    metrics::{Failure, Refused},
    server_config,
    testing::{Authority, Bench},
};
use crate::Shutdown;

/// Far above what anything here takes; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(30);

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(LONG, future).await.expect("it takes too long")
}

async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    soon(TlsConnector::from(config).connect(name, stream)).await
}

async fn taken(bench: &mut Bench) -> TlsConn {
    soon(bench.incoming.next()).await.unwrap().unwrap()
}

/// Sends a byte each way.
async fn ping(client: &mut TlsStream<TcpStream>, server: &mut TlsConn) {
    let mut byte = [0];
    client.write_all(b"?").await.unwrap();
    soon(server.read_exact(&mut byte)).await.unwrap();
    server.write_all(b"!").await.unwrap();
    server.flush().await.unwrap();
    soon(client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"!");
}

fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned()
}

#[tokio::test]
async fn a_new_certificate_counts_for_new_connections_and_drops_none() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let config = bench.authority.client_config(None);
    let mut old_client = connect(bench.address, config.clone()).await.unwrap();
    let mut old_server = taken(&mut bench).await;
    assert_eq!(vec![leaf(&old_client)], bench.certificate.chain());

    let (chain, key) = bench.authority.leaf();
    bench.certificate.replace(chain.clone(), &key).unwrap();
    let mut new_client = connect(bench.address, config).await.unwrap();
    let mut new_server = taken(&mut bench).await;
    assert_eq!(leaf(&new_client), chain[0]);
    assert_ne!(leaf(&new_client), leaf(&old_client));
    ping(&mut old_client, &mut old_server).await;
    ping(&mut new_client, &mut new_server).await;
}

#[test]
fn an_unusable_certificate_is_refused_and_the_old_one_stays() {
    let authority = Authority::new();
    let certificate = authority.certificate();
    let before = certificate.chain();
    let (chain, key) = authority.leaf();
    let (_, other_key) = authority.leaf();
    assert!(matches!(
        certificate.replace(vec![], &key),
        Err(TlsError::EmptyChain)
    ));
    assert!(matches!(
        certificate.replace(chain.clone(), &other_key),
        Err(TlsError::Certificate(_))
    ));
    assert!(matches!(
        certificate.replace(chain, b"no key"),
        Err(TlsError::Certificate(_))
    ));
    assert_eq!(certificate.chain(), before);
    assert!(!format!("{certificate:?}").contains("key"));
}

#[tokio::test]
async fn the_client_certificate_is_requested_not_required() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let own = bench.authority.certificate();
    let chain = own.chain();
    let with = connect(bench.address, bench.authority.client_config(Some(own)))
        .await
        .unwrap();
    let server = taken(&mut bench).await;
    assert_eq!(server.peer().client_chain.to_vec(), chain);
    assert_eq!(
        server.peer().address,
        with.get_ref().0.local_addr().unwrap()
    );

    // Without a certificate yet, a client presents none.
    let none = Some(Arc::new(ReloadingCertificate::empty()));
    let _without = connect(bench.address, bench.authority.client_config(none))
        .await
        .unwrap();
    assert!(taken(&mut bench).await.peer().client_chain.is_empty());

    let foreign = Some(Authority::new().certificate());
    // In TLS 1.3 the client learns of the refusal with its first read.
    if let Ok(mut refused) = connect(bench.address, bench.authority.client_config(foreign)).await {
        soon(refused.read_u8()).await.unwrap_err();
    }
    assert_eq!(bench.metrics.failed_so_far(Failure::Tls), 1);
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    for version in [&TLS13, &TLS12] {
        let mut config = (*bench.authority.client_config(None)).clone();
        config.resumption = Resumption::in_memory_sessions(8);
        let config = limited_to(version, &config);
        for _ in 0..3 {
            let mut client = connect(bench.address, config.clone()).await.unwrap();
            let mut server = taken(&mut bench).await;
            // Tickets come after the handshake: only a read shows them to the client.
            ping(&mut client, &mut server).await;
            let session = client.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version));
            let kind = session.handshake_kind().unwrap();
            assert!(
                matches!(
                    kind,
                    HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest
                ),
                "{kind:?}"
            );
        }
    }
}

/// The same verifier and session store for one protocol version.
fn limited_to(
    version: &'static rustls::SupportedProtocolVersion,
    config: &ClientConfig,
) -> Arc<ClientConfig> {
    let mut limited = ClientConfig::builder_with_provider(config.crypto_provider().clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    limited.alpn_protocols.clone_from(&config.alpn_protocols);
    limited.resumption = config.resumption.clone();
    Arc::new(limited)
}

/// For the question of resumption it does not matter who the server is.
#[derive(Debug)]
struct Anything;

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[tokio::test]
async fn http2_alone_is_negotiated_and_the_newest_key_exchange_preferred() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let client = connect(bench.address, bench.authority.client_config(None))
        .await
        .unwrap();
    drop(taken(&mut bench).await);
    let session = client.get_ref().1;
    assert_eq!(session.alpn_protocol(), Some(b"h2".as_slice()));
    if cfg!(feature = "crypto-aws-lc") {
        let group = session.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    }

    let mut http1 = (*bench.authority.client_config(None)).clone();
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    connect(bench.address, Arc::new(http1)).await.unwrap_err();
}

#[tokio::test]
async fn a_silent_client_delays_nobody_and_is_cut_off() {
    let limits = ConnectionLimits {
        handshake: Duration::from_millis(300),
        ..Default::default()
    };
    let mut bench = Bench::new(limits).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(bench.address).await.unwrap());
    }
    let mut client = connect(bench.address, bench.authority.client_config(None))
        .await
        .unwrap();
    let mut server = taken(&mut bench).await;
    client.write_all(PREFACE).await.unwrap();
    soon(server.read_exact(&mut [0; 24])).await.unwrap();
    for mut stream in silent {
        assert_eq!(soon(stream.read(&mut [0])).await.unwrap_or(0), 0);
    }
    assert_eq!(bench.metrics.failed_so_far(Failure::Deadline), 20);
    assert_eq!(bench.metrics.open(), 1);
    // The deadline is the handshake's and the preface's alone.
    ping(&mut client, &mut server).await;
}

#[tokio::test]
async fn connections_over_a_limit_are_closed_at_once_and_counted() {
    let limits = ConnectionLimits {
        per_address: 2,
        ..Default::default()
    };
    let mut bench = Bench::new(limits).await;
    let config = bench.authority.client_config(None);
    let _first = connect(bench.address, config.clone()).await.unwrap();
    let first_server = taken(&mut bench).await;
    let _second = connect(bench.address, config.clone()).await.unwrap();
    let _second_server = taken(&mut bench).await;
    let mut third = TcpStream::connect(bench.address).await.unwrap();
    assert_eq!(soon(third.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(bench.metrics.refused_so_far(Refused::PerAddress), 1);
    drop(first_server);
    let _fourth = connect(bench.address, config).await.unwrap();
    let _fourth_server = taken(&mut bench).await;
    assert_eq!(bench.metrics.open(), 2);
}

#[tokio::test]
async fn the_limit_of_all_connections_holds() {
    let mut bench = Bench::new(ConnectionLimits {
        total: 1,
        ..Default::default()
    })
    .await;
    let _first = connect(bench.address, bench.authority.client_config(None))
        .await
        .unwrap();
    let _server = taken(&mut bench).await;
    let mut second = TcpStream::connect(bench.address).await.unwrap();
    assert_eq!(soon(second.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(bench.metrics.refused_so_far(Refused::Total), 1);
}

/// Fails some times, then accepts for real.
struct Failing {
    errors: Vec<Errno>,
    listener: TcpListener,
}

impl Accept for Failing {
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        match self.errors.pop() {
            Some(error) => Err(error.into()),
            None => self.listener.accept().await,
        }
    }
}

#[tokio::test]
async fn errors_of_accept_never_end_the_loop() {
    let authority = Authority::new();
    let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = ConnectionMetrics::default();
    let shutdown = Shutdown::new();
    let mut incoming = incoming_from(
        Failing {
            errors: vec![
                Errno::EMFILE,
                Errno::ECONNABORTED,
                Errno::ENFILE,
                Errno::ENOMEM,
            ],
            listener,
        },
        server_config(authority.certificate(), authority.clients()).unwrap(),
        ConnectionLimits::default(),
        metrics.clone(),
        shutdown.signal(),
    );
    let _client = connect(address, authority.client_config(None))
        .await
        .unwrap();
    soon(incoming.next()).await.unwrap().unwrap();
    assert_eq!(metrics.accept_errors_so_far(), 4);
}

#[tokio::test]
async fn a_shutdown_closes_the_port_and_lets_handshakes_in_progress_finish() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let config = bench.authority.client_config(None);
    let mut standing = connect(bench.address, config.clone()).await.unwrap();
    let mut standing_server = taken(&mut bench).await;

    // Accepted, with the handshake still to come.
    let begun = TcpStream::connect(bench.address).await.unwrap();
    while bench.metrics.open() < 2 {
        tokio::task::yield_now().await;
    }
    bench.shutdown.trigger();
    while TcpStream::connect(bench.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let name = ServerName::try_from("localhost").unwrap();
    let finished = TlsConnector::from(config).connect(name, begun);
    let (finished, server) = soon(async { tokio::join!(finished, bench.incoming.next()) }).await;
    let (mut finished, mut server) = (finished.unwrap(), server.unwrap().unwrap());
    ping(&mut finished, &mut server).await;
    ping(&mut standing, &mut standing_server).await;
    assert!(soon(bench.incoming.next()).await.is_none());
}

#[tokio::test]
async fn a_silent_client_does_not_keep_the_stream_from_ending() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let _silent = TcpStream::connect(bench.address).await.unwrap();
    while bench.metrics.open() < 1 {
        tokio::task::yield_now().await;
    }
    bench.shutdown.trigger();
    assert!(soon(bench.incoming.next()).await.is_none());
}

#[tokio::test]
async fn dropping_the_stream_closes_the_port() {
    let bench = Bench::new(ConnectionLimits::default()).await;
    drop(bench.incoming);
    soon(async {
        while TcpStream::connect(bench.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_on_all_addresses_takes_ipv4_and_says_so() {
    let Ok(listener) = bind("[::]:0".parse().unwrap()).await else {
        panic!("[::] must fall back to IPv4 where IPv6 is missing");
    };
    let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
    let mut bench = Bench::on(
        listener,
        ConnectionLimits::default(),
        Arc::new(Authority::new()),
    );
    let _client = connect(address, bench.authority.client_config(None))
        .await
        .unwrap();
    let server = taken(&mut bench).await;
    assert!(server.peer().address.is_ipv4(), "{:?}", server.peer());

    let error = bind(address).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("cannot listen on {address}")),
        "{error}"
    );
}

#[tokio::test]
async fn sockets_do_not_delay_small_writes() {
    let mut bench = Bench::new(ConnectionLimits::default()).await;
    let _client = connect(bench.address, bench.authority.client_config(None))
        .await
        .unwrap();
    assert!(taken(&mut bench).await.nodelay());
}

/// Reads until the connection ends, as a server does.
async fn read_on(mut server: TlsConn) -> io::Result<()> {
    while server.read(&mut [0; 64]).await? > 0 {}
    Ok(())
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test]
async fn a_client_that_sends_no_http2_preface_is_cut_off_certificate_or_not() {
    let limits = ConnectionLimits {
        handshake: Duration::from_millis(300),
        ..Default::default()
    };
    let mut bench = Bench::new(limits).await;
    for own in [None, Some(bench.authority.certificate())] {
        let mut client = connect(bench.address, bench.authority.client_config(own))
            .await
            .unwrap();
        // All of it but the last byte.
        client.write_all(&PREFACE[..23]).await.unwrap();
        let error = soon(read_on(taken(&mut bench).await)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(soon(client.read(&mut [0])).await.unwrap_or(0), 0);
    }
    assert_eq!(bench.metrics.failed_so_far(Failure::Preface), 2);
    assert_eq!(bench.metrics.open(), 0);
}

#[tokio::test]
async fn a_connection_without_a_certificate_ends_once_it_asks_for_nothing() {
    let limits = ConnectionLimits {
        handshake: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        ..Default::default()
    };
    let mut bench = Bench::new(limits).await;
    let config = bench.authority.client_config(None);
    let mut idle = connect(bench.address, config.clone()).await.unwrap();
    idle.write_all(PREFACE).await.unwrap();
    let idle_server = taken(&mut bench).await;
    let mut busy = connect(bench.address, config).await.unwrap();
    busy.write_all(PREFACE).await.unwrap();
    let busy_server = taken(&mut bench).await;
    let mut proven = connect(
        bench.address,
        bench
            .authority
            .client_config(Some(bench.authority.certificate())),
    )
    .await
    .unwrap();
    proven.write_all(PREFACE).await.unwrap();
    let proven_server = taken(&mut bench).await;

    let peer = busy_server.peer().clone();
    let busy_server = tokio::spawn(read_on(busy_server));
    let proven_server = tokio::spawn(read_on(proven_server));
    // Bytes are no use of it: only requests count.
    let idle_server = soon(async {
        let server = read_on(idle_server);
        tokio::pin!(server);
        loop {
            tokio::select! {
                ended = &mut server => return ended,
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    idle.write_all(b"ping").await.unwrap();
                    drop(peer.request_began());
                }
            }
        }
    });
    idle_server.await.unwrap();
    assert_eq!(bench.metrics.idle_closed_so_far(), 1);
    assert!(!busy_server.is_finished(), "a connection in use was closed");
    soon(busy_server).await.unwrap().unwrap();
    assert_eq!(bench.metrics.idle_closed_so_far(), 2);
    assert!(!proven_server.is_finished(), "a proven one was closed");
    drop(proven);
}

#[tokio::test]
async fn places_are_kept_for_connections_with_a_certificate() {
    let limits = ConnectionLimits {
        total: 4,
        ..Default::default()
    };
    let mut bench = Bench::new(limits).await;
    let without = bench.authority.client_config(None);
    let mut held = Vec::new();
    for _ in 0..3 {
        let client = connect(bench.address, without.clone()).await.unwrap();
        held.push((client, taken(&mut bench).await));
    }
    if let Ok(mut refused) = connect(bench.address, without).await {
        assert_eq!(soon(refused.read(&mut [0])).await.unwrap_or(0), 0);
    }
    assert_eq!(bench.metrics.refused_so_far(Refused::WithoutCertificate), 1);
    let own = bench.authority.certificate();
    let mut proven = connect(bench.address, bench.authority.client_config(Some(own)))
        .await
        .unwrap();
    let mut server = taken(&mut bench).await;
    ping(&mut proven, &mut server).await;
}
