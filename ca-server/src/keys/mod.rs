//! Where the CA's key and certificates come from: made by itself in the data directory, or
//! plugged in as Istio's `cacerts` files. Everything is checked before the first use.

mod cacerts;
mod error;
pub(crate) mod files;
mod own;
mod pem;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use citadel_identity::{
    TrustDomain,
    bundle::Bundle,
    key::{CaKey, SigningAlgorithm},
    profile::Issuer,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

pub use self::error::KeyError;
use crate::config::Config;

/// How long users of the trust bundle may wait before they ask for it again.
const REFRESH_HINT: Duration = Duration::from_mins(5);

/// The CA key did not sign.
#[derive(Debug, thiserror::Error)]
#[error("the CA key did not sign: {0}")]
pub struct SignError(pub String);

/// A CA key, wherever it is: in this process, in an HSM, in a KMS.
#[async_trait]
pub trait Signer: Send + Sync {
    /// Signs the bytes to be signed of a certificate.
    ///
    /// # Errors
    /// The key is out of reach or refuses.
    async fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, SignError>;

    /// How it signs.
    fn algorithm(&self) -> SigningAlgorithm;

    /// Whether the key is in this process: then a crash between signing and recording loses
    /// the signature too, and no intent need be recorded first.
    fn in_process(&self) -> bool;
}

/// The CA's issuing certificate with its chain, its key, and the trust bundle.
pub struct CaKeys {
    /// The issuing certificate and what leads from it to the root.
    pub issuer: Issuer,
    /// Its key.
    pub signer: Arc<dyn Signer>,
    /// The roots that workloads trust.
    pub bundle: Bundle,
    certificates: Vec<CaCertificate>,
}

/// Where a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It signs the leaves.
    Issuer,
    /// Between the issuer and the root.
    Intermediate,
    /// The root that the chain leads to; it may be the issuer itself.
    Root,
    /// Another root of the trust bundle.
    OtherRoot,
}

/// A certificate of the CA or of its trust bundle, as operators watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificate {
    /// Where it stands.
    pub place: Place,
    /// Its subject (RFC 4514).
    pub subject: String,
    /// Its serial in hex.
    pub serial: String,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
}

/// A key in this process. It signs where it stands: 12 µs with P-256, so that handing the
/// work to another thread would cost more than the work.
struct Local(Arc<CaKey>);

impl CaKeys {
    /// Loads the plugged-in files where `ca.cacerts_dir` is set. Else loads the CA's own
    /// from the data directory, or makes them there at the first start: a P-256 root for ten
    /// years and an intermediate for one, whose certificate is made anew, for the same key,
    /// at a start in the last third of its life.
    ///
    /// Blocks on file I/O: for the start of the program.
    ///
    /// # Errors
    /// [`KeyError`], which names the file and what to do. Nothing that exists is ever
    /// overwritten but the intermediate's certificate.
    pub fn load_or_create(config: &Config, now: OffsetDateTime) -> Result<Self, KeyError> {
        let material = match &config.ca.cacerts_dir {
            Some(directory) => cacerts::load(directory, now)?,
            None => own::load_or_create(&config.data_dir, &config.trust_domain, now)?,
        };
        material.into_keys(&config.trust_domain)
    }

    /// The whole chain, issuer first, then the root that it leads to, then the other roots
    /// of the trust bundle.
    pub fn certificates(&self) -> &[CaCertificate] {
        &self.certificates
    }
}

/// What a source gives: checked, but not against the trust domain.
struct Material {
    key: CaKey,
    issuer: Issuer,
    roots: Vec<CertificateDer<'static>>,
}

impl Material {
    fn into_keys(self, trust_domain: &TrustDomain) -> Result<CaKeys, KeyError> {
        if let Some(other) = self
            .issuer
            .trust_domain()
            .filter(|other| *other != trust_domain)
        {
            return Err(KeyError::TrustDomain {
                certificate: other.to_string(),
                configured: trust_domain.to_string(),
            });
        }
        let certificates = described(&self.issuer, &self.roots)?;
        Ok(CaKeys {
            bundle: Bundle {
                sequence: 1,
                refresh_hint: REFRESH_HINT,
                ..Bundle::new(trust_domain.clone(), self.roots)
            },
            issuer: self.issuer,
            signer: Arc::new(Local(Arc::new(self.key))),
            certificates,
        })
    }
}

fn described(
    issuer: &Issuer,
    roots: &[CertificateDer<'static>],
) -> Result<Vec<CaCertificate>, KeyError> {
    let above_issuer = std::iter::repeat(Place::Intermediate);
    let chain = issuer
        .chain()
        .iter()
        .zip(std::iter::once(Place::Issuer).chain(above_issuer));
    let others = roots.iter().filter(|root| *root != issuer.root());
    chain
        .chain(std::iter::once((issuer.root(), Place::Root)))
        .chain(others.map(|root| (root, Place::OtherRoot)))
        .map(|(certificate, place)| pem::describe(certificate, place))
        .collect()
}

// === impl Place ===

impl Place {
    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Issuer => "issuer",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
            Self::OtherRoot => "other_root",
        }
    }
}

// === impl Local ===

#[async_trait]
impl Signer for Local {
    async fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, SignError> {
        self.0
            .sign(tbs)
            .map_err(|error| SignError(error.to_string()))
    }

    fn algorithm(&self) -> SigningAlgorithm {
        self.0.algorithm()
    }

    fn in_process(&self) -> bool {
        true
    }
}

// === impl CaKeys ===

impl fmt::Debug for CaKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaKeys")
            .field("algorithm", &self.signer.algorithm())
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
