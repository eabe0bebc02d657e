//! TLS verifiers for rustls: a peer is known by its SPIFFE ID, never by a host name.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use spiffe::{SpiffeId, TrustDomain};
use time::OffsetDateTime;

use crate::bundle::{Bundle, BundleSet};
use crate::crypto;
use crate::key::WorkloadKey;
use crate::verify::{VerifiedSvid, VerifyError, verify_svid};

/// The bundles of the moment, shared: whoever holds a clone sees what was put in last.
#[derive(Clone, Default)]
pub struct BundleHandle {
    current: Arc<RwLock<Arc<BundleSet>>>,
}

impl BundleHandle {
    /// A handle on these bundles.
    pub fn new(bundles: impl Into<Arc<BundleSet>>) -> Self {
        Self {
            current: Arc::new(RwLock::new(bundles.into())),
        }
    }

    /// The bundles as they are now.
    pub fn current(&self) -> Arc<BundleSet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts others in their place. Handshakes that have begun end with the old ones.
    pub fn replace(&self, bundles: impl Into<Arc<BundleSet>>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = bundles.into();
    }
}

impl fmt::Debug for BundleHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.current();
        f.debug_set()
            .entries(current.iter().map(|bundle| bundle.trust_domain.as_str()))
            .finish()
    }
}

/// What a server's chain must lead to.
#[derive(Debug, Clone)]
pub enum Trust {
    /// An authority in the bundle of the expected ID's trust domain.
    Bundles(BundleHandle),
    /// The root whose DER has this SHA-256. The server must present it.
    RootSha256([u8; 32]),
}

/// A client's check of a server: a valid X509-SVID with exactly the expected SPIFFE ID.
/// The host name does not count.
#[derive(Debug, Clone)]
pub struct ServerVerifier {
    expected: SpiffeId,
    trust: Trust,
}

impl ServerVerifier {
    /// Accepts `expected` alone, as far as `trust` reaches.
    pub fn new(expected: SpiffeId, trust: Trust) -> Self {
        Self { expected, trust }
    }

    /// The check itself, on a chain with the leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<VerifiedSvid, VerifyError> {
        let verified = match &self.trust {
            Trust::Bundles(bundles) => verify_svid(chain, &bundles.current(), now)?,
            Trust::RootSha256(digest) => {
                let root = chain
                    .iter()
                    .find(|der| crypto::sha256(der) == *digest)
                    .ok_or_else(|| VerifyError::RootNotPresented(hex::encode(digest)))?;
                let trust_domain = self.expected.trust_domain().clone();
                let bundle = Bundle::new(trust_domain, vec![root.clone().into_owned()]);
                verify_svid(chain, &bundle.into(), now)?
            }
        };
        if verified.spiffe_id != self.expected {
            return Err(VerifyError::OtherId {
                expected: self.expected.clone(),
                found: verified.spiffe_id,
            });
        }
        Ok(verified)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = whole_chain(end_entity, intermediates);
        self.verify(&chain, date_time(now)).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// A server's check of its clients: a certificate is asked for, not demanded; one that
/// is presented must be a valid X509-SVID of the server's own trust domain.
#[derive(Debug, Clone)]
pub struct ClientVerifier {
    trust_domain: TrustDomain,
    bundles: BundleHandle,
}

impl ClientVerifier {
    /// Accepts SVIDs of `trust_domain` alone, whatever other bundles the handle has.
    pub fn new(trust_domain: TrustDomain, bundles: BundleHandle) -> Self {
        Self {
            trust_domain,
            bundles,
        }
    }

    /// The check itself, on a chain with the leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<VerifiedSvid, VerifyError> {
        let verified = verify_svid(chain, &self.bundles.current(), now)?;
        let found = verified.spiffe_id.trust_domain();
        if *found != self.trust_domain {
            return Err(VerifyError::OtherTrustDomain {
                expected: self.trust_domain.clone(),
                found: found.clone(),
            });
        }
        Ok(verified)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    // No hints: the authorities change while the server runs, and clients that choose by
    // them would keep an old choice.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = whole_chain(end_entity, intermediates);
        self.verify(&chain, date_time(now)).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Chain and key as rustls presents them. Fails if the key is not the leaf's.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: &WorkloadKey,
) -> Result<CertifiedKey, rustls::Error> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()));
    let signing_key = crypto::provider().key_provider.load_private_key(der)?;
    let certified = CertifiedKey::new(chain, signing_key);
    certified.keys_match()?;
    Ok(certified)
}

fn algorithms() -> rustls::crypto::WebPkiSupportedAlgorithms {
    crypto::provider().signature_verification_algorithms
}

fn whole_chain<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity)
        .chain(intermediates)
        .cloned()
        .collect()
}

fn date_time(now: UnixTime) -> OffsetDateTime {
    i64::try_from(now.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The reason travels to the log of whoever verifies.
fn refused(error: VerifyError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}
