//! The TLS verifiers in real handshakes, in memory.

use std::sync::Arc;

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::csr::prove_possession;
use citadel_identity::key::WorkloadKey;
use citadel_identity::profile::{SvidRequest, SvidUse, assemble, prepare};
use citadel_identity::tls::{BundleHandle, ClientVerifier, ServerVerifier, Trust, certified_key};
use citadel_identity::verify::VerifyError;
use citadel_identity::{SpiffeId, TrustDomain, crypto, template};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
    SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use crate::support::{OwnCa, serial, td};

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Fixed {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn ca_server() -> SpiffeId {
    template::ca_id(&td())
}

/// An SVID with the chain that a server sends: the root too.
fn svid(ca: &OwnCa, id: &SpiffeId, use_: SvidUse) -> Arc<CertifiedKey> {
    let now = OffsetDateTime::now_utc();
    svid_until(ca, id, use_, now + Duration::HOUR)
}

fn svid_until(
    ca: &OwnCa,
    id: &SpiffeId,
    use_: SvidUse,
    not_after: OffsetDateTime,
) -> Arc<CertifiedKey> {
    let now = OffsetDateTime::now_utc();
    let key = WorkloadKey::generate().unwrap();
    let proven = prove_possession(&key.csr().unwrap()).unwrap();
    let request = SvidRequest {
        spiffe_id: id.clone(),
        dns_names: Vec::new(),
        not_before: now - Duration::minutes(5),
        not_after,
        serial: serial(now),
        use_,
    };
    let unsigned = prepare(&request, &proven, &ca.issuer, ca.key.algorithm()).unwrap();
    let signature = ca.key.sign(&unsigned.tbs).unwrap();
    let leaf = assemble(&unsigned.tbs, ca.key.algorithm(), &signature).unwrap();
    let chain = [CertificateDer::from(leaf)]
        .into_iter()
        .chain(ca.issuer.chain().iter().cloned())
        .chain([ca.root.clone()])
        .collect();
    Arc::new(certified_key(chain, &key).unwrap())
}

fn own_ca() -> OwnCa {
    OwnCa::at(OffsetDateTime::now_utc())
}

struct Peers {
    server: Arc<CertifiedKey>,
    client: Option<Arc<CertifiedKey>>,
    trust: Trust,
    clients: BundleHandle,
    version: &'static SupportedProtocolVersion,
}

impl Peers {
    /// Runs a handshake to its end: what the client says of the server, and the server of
    /// the client.
    fn shake(&self) -> (Result<(), rustls::Error>, Result<(), rustls::Error>) {
        let verifier = ServerVerifier::new(ca_server(), self.trust.clone());
        let builder = ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let client = match &self.client {
            Some(key) => builder.with_client_cert_resolver(Arc::new(Fixed(Arc::clone(key)))),
            None => builder.with_no_client_auth(),
        };
        let server = ServerConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_client_cert_verifier(Arc::new(ClientVerifier::new(td(), self.clients.clone())))
            .with_cert_resolver(Arc::new(Fixed(Arc::clone(&self.server))));
        let name = "any.name.at.all".try_into().unwrap();
        let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).unwrap());
        let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
        let (mut by_client, mut by_server) = (Ok(()), Ok(()));
        for _ in 0..8 {
            by_server = by_server.and(transfer(&mut client, &mut server));
            by_client = by_client.and(transfer(&mut server, &mut client));
        }
        if by_client.is_ok() && by_server.is_ok() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            assert_eq!(server.peer_certificates().is_some(), self.client.is_some());
        }
        (by_client, by_server)
    }
}

fn transfer(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// The verifier's own reason, out of rustls's error.
fn reason(result: Result<(), rustls::Error>) -> VerifyError {
    match result.unwrap_err() {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.0.downcast_ref::<VerifyError>().unwrap().clone()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn both_versions_with_and_without_a_client_certificate() {
    let ca = own_ca();
    let workload = SpiffeId::new("spiffe://example.org/web").unwrap();
    let handle = BundleHandle::new(ca.bundles());
    for version in [&TLS12, &TLS13] {
        for client in [None, Some(svid(&ca, &workload, SvidUse::Leaf))] {
            for trust in [
                Trust::Bundles(handle.clone()),
                Trust::RootSha256(crypto::sha256(&ca.root)),
            ] {
                let peers = Peers {
                    server: svid(&ca, &ca_server(), SvidUse::CaServer),
                    client: client.clone(),
                    trust,
                    clients: handle.clone(),
                    version,
                };
                let (by_client, by_server) = peers.shake();
                by_client.unwrap();
                by_server.unwrap();
            }
        }
    }
}

#[test]
fn a_server_must_have_exactly_the_expected_id() {
    let ca = own_ca();
    let handle = BundleHandle::new(ca.bundles());
    let workload = SpiffeId::new("spiffe://example.org/citadels/ca").unwrap();
    for trust in [
        Trust::Bundles(handle.clone()),
        Trust::RootSha256(crypto::sha256(&ca.root)),
    ] {
        let peers = Peers {
            server: svid(&ca, &workload, SvidUse::Leaf),
            client: None,
            trust,
            clients: handle.clone(),
            version: &TLS13,
        };
        let expected = VerifyError::OtherId {
            expected: ca_server(),
            found: workload.clone(),
        };
        assert_eq!(reason(peers.shake().0), expected);
    }
}

#[test]
fn a_server_outside_of_first_trust_is_refused() {
    let (ca, stranger) = (own_ca(), own_ca());
    let peers = |trust: Trust| Peers {
        server: svid(&stranger, &ca_server(), SvidUse::CaServer),
        client: None,
        trust,
        clients: BundleHandle::default(),
        version: &TLS13,
    };
    let error = reason(
        peers(Trust::Bundles(BundleHandle::new(ca.bundles())))
            .shake()
            .0,
    );
    assert!(
        matches!(error, VerifyError::UnknownAuthority { .. }),
        "{error}"
    );
    let digest = crypto::sha256(&ca.root);
    let error = reason(peers(Trust::RootSha256(digest)).shake().0);
    assert_eq!(error, VerifyError::RootNotPresented(hex::encode(digest)));
    // Presenting the pinned root beside a chain of one's own does not help.
    let mut forged = peers(Trust::RootSha256(digest));
    let mut chain = forged.server.cert.clone();
    chain.push(ca.root.clone());
    forged.server = Arc::new(CertifiedKey::new(chain, Arc::clone(&forged.server.key)));
    let error = reason(forged.shake().0);
    assert!(
        matches!(error, VerifyError::UnknownAuthority { .. }),
        "{error}"
    );
    // Nothing to go by: nobody is trusted.
    let error = reason(peers(Trust::Bundles(BundleHandle::default())).shake().0);
    assert_eq!(error, VerifyError::UnknownTrustDomain(td()));
}

#[test]
fn spiffe_req_09_a_ca_certificate_authenticates_nobody() {
    let ca = own_ca();
    let handle = BundleHandle::new(ca.bundles());
    let pem = ca.key.to_pkcs8_pem();
    let der = citadel_identity::pem::decode(pem.as_bytes(), 1 << 16)
        .unwrap()
        .remove(0)
        .der;
    let key = WorkloadKey::from_pkcs8(&der).unwrap();
    let chain = vec![ca.issuer.certificate().clone(), ca.root.clone()];
    let certified = Arc::new(certified_key(chain, &key).unwrap());
    let mut peers = Peers {
        server: Arc::clone(&certified),
        client: None,
        trust: Trust::Bundles(handle.clone()),
        clients: handle,
        version: &TLS13,
    };
    assert_eq!(reason(peers.shake().0), VerifyError::CaAsLeaf);
    peers.server = svid(&ca, &ca_server(), SvidUse::CaServer);
    peers.client = Some(certified);
    assert_eq!(reason(peers.shake().1), VerifyError::CaAsLeaf);
}

#[test]
fn spiffe_req_36_clients_of_other_trust_domains_are_refused_even_with_a_bundle() {
    let (ca, stranger) = (own_ca(), own_ca());
    let other = TrustDomain::new("other.org").unwrap();
    let foreign = SpiffeId::new("spiffe://other.org/web").unwrap();
    let set: BundleSet = [
        Bundle::new(td(), vec![ca.root.clone()]),
        Bundle::new(other.clone(), vec![stranger.root.clone()]),
    ]
    .into_iter()
    .collect();
    let handle = BundleHandle::new(set);
    let peers = Peers {
        server: svid(&ca, &ca_server(), SvidUse::CaServer),
        client: Some(svid(&stranger, &foreign, SvidUse::Leaf)),
        trust: Trust::Bundles(handle.clone()),
        clients: handle,
        version: &TLS13,
    };
    let expected = VerifyError::OtherTrustDomain {
        expected: td(),
        found: other,
    };
    assert_eq!(reason(peers.shake().1), expected);
}

#[test]
fn an_expired_client_certificate_is_refused_and_named() {
    let ca = own_ca();
    let handle = BundleHandle::new(ca.bundles());
    let workload = SpiffeId::new("spiffe://example.org/web").unwrap();
    let past = OffsetDateTime::now_utc() - Duration::MINUTE;
    let peers = Peers {
        server: svid(&ca, &ca_server(), SvidUse::CaServer),
        client: Some(svid_until(&ca, &workload, SvidUse::Leaf, past)),
        trust: Trust::Bundles(handle.clone()),
        clients: handle,
        version: &TLS13,
    };
    assert!(matches!(
        reason(peers.shake().1),
        VerifyError::Expired { .. }
    ));
}

#[test]
fn replaced_bundles_count_for_the_next_handshake() {
    let (ca, next) = (own_ca(), own_ca());
    let handle = BundleHandle::new(ca.bundles());
    let peers = Peers {
        server: svid(&next, &ca_server(), SvidUse::CaServer),
        client: None,
        trust: Trust::Bundles(handle.clone()),
        clients: BundleHandle::default(),
        version: &TLS13,
    };
    assert!(peers.shake().0.is_err());
    handle.replace(next.bundles());
    assert!(peers.shake().0.is_ok());
    assert_eq!(*handle.current(), next.bundles());
}

#[test]
fn a_key_that_is_not_the_leafs_makes_no_certified_key() {
    let ca = own_ca();
    let chain = svid(&ca, &ca_server(), SvidUse::CaServer).cert.clone();
    assert!(certified_key(chain, &WorkloadKey::generate().unwrap()).is_err());
}

#[test]
fn a_handshake_signature_by_another_key_is_refused() {
    let ca = own_ca();
    let handle = BundleHandle::new(ca.bundles());
    for version in [&TLS12, &TLS13] {
        let honest = svid(&ca, &ca_server(), SvidUse::CaServer);
        let thief = svid(&ca, &ca_server(), SvidUse::CaServer);
        // The honest chain, but the thief's key: no possession of the leaf's.
        let stolen = CertifiedKey::new(honest.cert.clone(), Arc::clone(&thief.key));
        let peers = Peers {
            server: Arc::new(stolen),
            client: None,
            trust: Trust::Bundles(handle.clone()),
            clients: handle.clone(),
            version,
        };
        let error = peers.shake().0.unwrap_err();
        assert_eq!(
            error,
            rustls::Error::InvalidCertificate(CertificateError::BadSignature)
        );
    }
}
