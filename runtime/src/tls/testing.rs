//! Certificates, verifiers and a listener for tests.
#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::net::TcpListener;

use super::{
    ConnectionLimits, ConnectionMetrics, Incoming, ReloadingCertificate, client_config, incoming,
    server_config,
};
use crate::Shutdown;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test root");
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            roots: Arc::new(roots),
        }
    }

    /// A certificate and key for `localhost`, for servers and clients.
    pub(crate) fn certificate(&self) -> Arc<ReloadingCertificate> {
        let (chain, key) = self.leaf();
        Arc::new(ReloadingCertificate::new(chain, &key).unwrap())
    }

    pub(crate) fn leaf(&self) -> (Vec<CertificateDer<'static>>, Vec<u8>) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        (vec![leaf.der().clone()], key.serialize_der())
    }

    /// Requests a client certificate, does not require one.
    pub(crate) fn clients(&self) -> Arc<dyn ClientCertVerifier> {
        WebPkiClientVerifier::builder_with_provider(
            self.roots.clone(),
            citadel_identity::crypto::provider(),
        )
        .allow_unauthenticated()
        .build()
        .unwrap()
    }

    pub(crate) fn client_config(
        &self,
        own: Option<Arc<ReloadingCertificate>>,
    ) -> Arc<ClientConfig> {
        let server = WebPkiServerVerifier::builder_with_provider(
            self.roots.clone(),
            citadel_identity::crypto::provider(),
        )
        .build()
        .unwrap();
        client_config(server, own).unwrap()
    }
}

/// A listener on a free port of loopback with everything that belongs to it.
pub(crate) struct Bench {
    pub(crate) authority: Arc<Authority>,
    pub(crate) certificate: Arc<ReloadingCertificate>,
    pub(crate) metrics: ConnectionMetrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) address: SocketAddr,
    pub(crate) incoming: Incoming,
}

impl Bench {
    pub(crate) async fn new(limits: ConnectionLimits) -> Self {
        let listener = super::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        Self::on(listener, limits, Arc::new(Authority::new()))
    }

    pub(crate) fn on(
        listener: TcpListener,
        limits: ConnectionLimits,
        authority: Arc<Authority>,
    ) -> Self {
        let certificate = authority.certificate();
        let config = server_config(certificate.clone(), authority.clients()).unwrap();
        let metrics = ConnectionMetrics::default();
        let shutdown = Shutdown::new();
        let address = listener.local_addr().unwrap();
        let incoming = incoming(listener, config, limits, metrics.clone(), shutdown.signal());
        Self {
            authority,
            certificate,
            metrics,
            shutdown,
            address,
            incoming,
        }
    }
}
