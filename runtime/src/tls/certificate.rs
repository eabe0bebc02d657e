//! A certificate and key that can be replaced at any time.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::TlsError;

/// The certificate chain and key of new handshakes. [`Self::replace`] changes neither nor
/// drops any connection that exists: a certificate counts at the handshake alone.
///
/// Serves as server certificate and as client certificate.
#[derive(Default)]
pub struct ReloadingCertificate {
    current: ArcSwapOption<CertifiedKey>,
}

impl ReloadingCertificate {
    /// Without a certificate yet: as a server every handshake fails, as a client none is
    /// presented.
    pub fn empty() -> Self {
        Self::default()
    }

    /// With a chain, leaf first, and the leaf's key in PKCS#8 (DER).
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn new(chain: Vec<CertificateDer<'static>>, key_pkcs8: &[u8]) -> Result<Self, TlsError> {
        let certificate = Self::empty();
        certificate.replace(chain, key_pkcs8)?;
        Ok(certificate)
    }

    /// Takes a chain, leaf first, and the leaf's key in PKCS#8 (DER) for all handshakes from
    /// now on.
    ///
    /// # Errors
    /// The chain is empty, the key is unusable, or it is not the leaf's. Then the certificate
    /// of before stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key_pkcs8: &[u8],
    ) -> Result<(), TlsError> {
        if chain.is_empty() {
            return Err(TlsError::EmptyChain);
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.to_vec()));
        let certified = CertifiedKey::from_der(chain, key, &citadel_identity::crypto::provider())
            .map_err(TlsError::Certificate)?;
        self.current.store(Some(Arc::new(certified)));
        Ok(())
    }

    /// The chain of new handshakes, leaf first; empty before the first certificate.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current
            .load()
            .as_ref()
            .map(|certified| certified.cert.clone())
            .unwrap_or_default()
    }
}

// === impl ReloadingCertificate ===

impl ResolvesServerCert for ReloadingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ResolvesClientCert for ReloadingCertificate {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // The server's hints of CA names are ignored: we have one identity, and the server
        // judges it. A key that can sign with none of its schemes would only fail later.
        self.current
            .load_full()
            .filter(|own| own.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}

impl fmt::Debug for ReloadingCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadingCertificate")
            .field("set", &self.has_certs())
            .finish_non_exhaustive()
    }
}
