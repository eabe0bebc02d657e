//! Trust bundles: the authorities of a trust domain, as PEM and as SPIFFE's JWKS
//! (requirements 14 to 20). Bundles of different trust domains are never merged
//! (requirement 36).

use std::collections::BTreeMap;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use thiserror::Error;

use crate::crypto;
use crate::facts::{Facts, FactsError};
use crate::limits;
use crate::pem::{self, PemError};

mod jwks;

/// How often a consumer looks for a new bundle where the bundle says nothing.
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_mins(5);

/// The X.509 authorities of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Whose authorities they are.
    pub trust_domain: TrustDomain,
    /// CA certificates in DER. Empty means: distrust every SVID of this trust domain.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Grows with every change of content; 0 where it is not known.
    pub sequence: u64,
    /// How often a consumer looks for a newer one; whole seconds.
    pub refresh_hint: Duration,
}

/// Why a document is not a trust bundle.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BundleError {
    /// The document is too large.
    #[error("the bundle has {size} bytes; at most {max} are read", max = limits::BUNDLE_BYTES)]
    TooLarge {
        /// Bytes in the document.
        size: usize,
    },
    /// The text is not PEM.
    #[error("{0}")]
    Pem(#[from] PemError),
    /// A PEM block is no certificate.
    #[error("a trust bundle holds certificates; block {position} is {label:?}")]
    Label {
        /// Place among the blocks, from 1.
        position: usize,
        /// What the block says it is.
        label: String,
    },
    /// There is no certificate in a PEM bundle.
    #[error("there is no PEM certificate in it")]
    Empty,
    /// An authority does not parse.
    #[error("authority {position}: {error}")]
    Authority {
        /// Place among the authorities, from 1.
        position: usize,
        /// What is wrong with it.
        error: FactsError,
    },
    /// There are too many authorities.
    #[error("{0} authorities are too many; at most {max} are read", max = limits::BUNDLE_AUTHORITIES)]
    TooMany(usize),
    /// The JSON is malformed.
    #[error("the bundle is not the JSON of RFC 7517: {0}")]
    Json(String),
    /// The member `keys` is missing (requirement 18).
    #[error("the bundle has no member \"keys\"")]
    NoKeys,
    /// A key's certificate is not base64.
    #[error("key {0}: its x5c is not a list of certificates in base64")]
    X5c(usize),
    /// An authority's key has no JWK form here.
    #[error("authority {0} has a kind of key that can't be written as a JWK")]
    KeyType(usize),
    /// A trust domain's name is none, or there twice (requirement 20).
    #[error("the bundle map is malformed: {0}")]
    Map(String),
}

impl Bundle {
    /// A bundle that has just been made.
    pub fn new(trust_domain: TrustDomain, authorities: Vec<CertificateDer<'static>>) -> Self {
        Self {
            trust_domain,
            authorities,
            sequence: 0,
            refresh_hint: DEFAULT_REFRESH_HINT,
        }
    }

    /// From PEM with at least one certificate and nothing else. A certificate that is
    /// there twice counts once.
    pub fn from_pem(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let authorities = certificates_from_pem(text)?;
        Ok(Self::new(trust_domain, checked(authorities)?))
    }

    /// All authorities as PEM, one after another.
    pub fn to_pem(&self) -> String {
        self.authorities
            .iter()
            .map(|der| certificate_pem(der))
            .collect()
    }

    /// From a SPIFFE bundle document (JWKS). Keys of other uses and unknown kinds are
    /// ignored (requirements 14, 15, 19), and an empty set is one (requirement 18).
    pub fn from_jwks(trust_domain: TrustDomain, json: &[u8]) -> Result<Self, BundleError> {
        jwks::decode(trust_domain, json)
    }

    /// As a SPIFFE bundle document.
    pub fn to_jwks(&self) -> Result<String, BundleError> {
        jwks::encode(self)
    }

    /// SHA-256 over all authorities in their order, in lowercase hex: by this a holder of
    /// the bundle says which one it holds. The same wherever it is computed.
    pub fn authorities_sha256(&self) -> String {
        let parts: Vec<&[u8]> = self.authorities.iter().map(AsRef::as_ref).collect();
        hex::encode(crypto::sha256_of(&parts))
    }

    /// SHA-256 of each authority's DER, in their order: what `root_sha256` in an agent's
    /// configuration names.
    pub fn root_sha256(&self) -> Vec<[u8; 32]> {
        self.authorities
            .iter()
            .map(|der| crypto::sha256(der))
            .collect()
    }

    /// The same bundle with other authorities. The sequence grows if, and only if, the
    /// content changes (requirement 16).
    #[must_use]
    pub fn with_authorities(&self, authorities: Vec<CertificateDer<'static>>) -> Self {
        let changed = authorities != self.authorities;
        Self {
            authorities,
            sequence: self.sequence + u64::from(changed),
            ..self.clone()
        }
    }
}

/// The bundles of several trust domains, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleSet {
    bundles: BTreeMap<TrustDomain, Bundle>,
}

impl BundleSet {
    /// The bundle of one trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.bundles.get(trust_domain)
    }

    /// Puts a bundle in place of the one that its trust domain had, which is returned.
    /// Nothing is ever merged.
    pub fn insert(&mut self, bundle: Bundle) -> Option<Bundle> {
        self.bundles.insert(bundle.trust_domain.clone(), bundle)
    }

    /// Takes a trust domain's bundle out.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> Option<Bundle> {
        self.bundles.remove(trust_domain)
    }

    /// All bundles, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.bundles.values()
    }

    /// How many trust domains have a bundle.
    pub fn len(&self) -> usize {
        self.bundles.len()
    }

    /// Whether there is no bundle at all.
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }

    /// From a SPIFFE bundle map: `{"trust_domains": {"<name>": <JWKS>, …}}`.
    pub fn from_json_map(json: &[u8]) -> Result<Self, BundleError> {
        jwks::decode_map(json)
    }

    /// As a SPIFFE bundle map.
    pub fn to_json_map(&self) -> Result<String, BundleError> {
        jwks::encode_map(self)
    }
}

impl From<Bundle> for BundleSet {
    fn from(bundle: Bundle) -> Self {
        let mut set = Self::default();
        set.insert(bundle);
        set
    }
}

impl FromIterator<Bundle> for BundleSet {
    /// Of two bundles with one name, the later counts.
    fn from_iter<I: IntoIterator<Item = Bundle>>(bundles: I) -> Self {
        let mut set = Self::default();
        for bundle in bundles {
            set.insert(bundle);
        }
        set
    }
}

/// All certificates of a PEM text that holds nothing else, in order. They are not parsed.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let blocks = pem::decode(text, limits::BUNDLE_BYTES)?;
    let certificate = |(at, block): (usize, pem::Block)| {
        if block.label == pem::CERTIFICATE {
            Ok(CertificateDer::from(block.der.to_vec()))
        } else {
            let label = block.label.chars().take(64).collect();
            Err(BundleError::Label {
                position: at + 1,
                label,
            })
        }
    };
    let certificates: Vec<_> = blocks
        .into_iter()
        .enumerate()
        .map(certificate)
        .collect::<Result<_, _>>()?;
    if certificates.is_empty() {
        Err(BundleError::Empty)
    } else {
        Ok(certificates)
    }
}

/// One certificate as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode(pem::CERTIFICATE, der).to_string()
}

/// Authorities that parse, each once.
fn checked(
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    if authorities.len() > limits::BUNDLE_AUTHORITIES {
        return Err(BundleError::TooMany(authorities.len()));
    }
    let mut once: Vec<CertificateDer<'static>> = Vec::with_capacity(authorities.len());
    for (at, der) in authorities.into_iter().enumerate() {
        Facts::parse(&der).map_err(|error| BundleError::Authority {
            position: at + 1,
            error,
        })?;
        if !once.contains(&der) {
            once.push(der);
        }
    }
    Ok(once)
}
