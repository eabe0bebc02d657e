//! Private keys: a workload's, and a CA's. Both wipe themselves and print nothing.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SigningKey};
use rustls_pki_types::alg_id;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::crypto::{self, CryptoError, PrivateKey};
use crate::der::{self, DerError, Reader};
use crate::limits;
use crate::pem::{self, PemError};
use crate::spki::{self, KeyType, SpkiError};

/// How a CA signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SigningAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RsaPkcs1Sha256,
}

impl SigningAlgorithm {
    /// The content of the signature's `AlgorithmIdentifier`.
    pub(crate) fn identifier(self) -> &'static [u8] {
        const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        const ECDSA_SHA384: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
        const RSA_SHA256: &[u8] = &[
            0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00,
        ];
        match self {
            Self::EcdsaP256Sha256 => ECDSA_SHA256,
            Self::EcdsaP384Sha384 => ECDSA_SHA384,
            Self::RsaPkcs1Sha256 => RSA_SHA256,
        }
    }

    pub(crate) fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::EcdsaP256Sha256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::EcdsaP384Sha384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::RsaPkcs1Sha256 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

/// Why a private key is not accepted, or did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The text is not PEM.
    #[error("{0}")]
    Pem(#[from] PemError),
    /// There is no private key, or more than one.
    #[error("one private key (PKCS#8, SEC1 or PKCS#1) is expected; the file has {0}")]
    Count(usize),
    /// The key is not encoded as PKCS#8, SEC1 or PKCS#1.
    #[error("the private key is not encoded as its PEM label says")]
    Encoding,
    /// The key's kind is not accepted.
    #[error("{0}")]
    Kind(#[from] SpkiError),
    /// The crypto library refuses.
    #[error("{0}")]
    Crypto(#[from] CryptoError),
    /// A CSR could not be made.
    #[error("the certificate signing request could not be built: {0}")]
    Csr(String),
}

impl From<DerError> for KeyError {
    fn from(_: DerError) -> Self {
        Self::Encoding
    }
}

/// A workload's key: ECDSA on P-256, which every proxy accepts.
///
/// `Debug` shows nothing of it, and its encoding is wiped when it is dropped.
pub struct WorkloadKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key: PrivateKey,
    spki: Vec<u8>,
}

impl WorkloadKey {
    /// A fresh key.
    pub fn generate() -> Result<Self, KeyError> {
        let (key, pkcs8) = crypto::generate_p256()?;
        Ok(Self::new(key, pkcs8))
    }

    /// From unencrypted PKCS#8 DER (RFC 5208).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pkcs8 = Zeroizing::new(der.to_vec());
        Ok(Self::new(PrivateKey::p256(&pkcs8)?, pkcs8))
    }

    fn new(key: PrivateKey, pkcs8: Zeroizing<Vec<u8>>) -> Self {
        let spki = spki::encode(&alg_id::ECDSA_P256, key.public_bits());
        Self { pkcs8, key, spki }
    }

    /// The key as unencrypted PKCS#8 DER, as the Workload API and SDS hand it out.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key as `SubjectPublicKeyInfo` DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// A certificate signing request (RFC 2986) in DER with an empty subject and no
    /// extensions: the CA takes nothing but the key from it.
    pub fn csr(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(self)
            .map_err(|e| KeyError::Csr(e.to_string()))?;
        Ok(request.der().to_vec())
    }
}

/// Whether the public half of an `RSAPrivateKey` (RFC 8017 A.1.2) has a size and an
/// exponent that we accept.
fn check_rsa(key: &[u8]) -> Result<(), KeyError> {
    let mut numbers = Reader::new(der::single(key, der::SEQUENCE)?.content);
    numbers.expect(der::INTEGER)?;
    let modulus = numbers.expect(der::INTEGER)?.whole;
    let exponent = numbers.expect(der::INTEGER)?.whole;
    let public = der::value(der::SEQUENCE, &[modulus, exponent]);
    spki::parse(&spki::encode(alg_id::RSA_ENCRYPTION.as_ref(), &public))?;
    Ok(())
}

impl fmt::Debug for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadKey(redacted)")
    }
}

impl PublicKeyData for WorkloadKey {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for WorkloadKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key
            .sign(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A CA's key in this process: ECDSA on P-256 or P-384, or RSA 2048 to 4096 with
/// e = 65537. It signs from several threads at once.
///
/// `Debug` shows the kind alone, and its encoding is wiped when it is dropped.
pub struct CaKey {
    pkcs8: Zeroizing<Vec<u8>>,
    key: PrivateKey,
    key_type: KeyType,
    spki: Vec<u8>,
}

impl CaKey {
    /// A fresh P-256 key.
    pub fn generate_p256() -> Result<Self, KeyError> {
        Self::from_wiped(crypto::generate_p256()?.1)
    }

    /// From PEM with one PKCS#8, SEC1 or PKCS#1 key. Other blocks (curve parameters,
    /// certificates) are skipped.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let blocks = pem::decode(text, limits::KEY_BYTES)?;
        let keys: Vec<_> = blocks
            .iter()
            .filter(|block| block.label.ends_with(pem::PRIVATE_KEY))
            .collect();
        let [key] = keys.as_slice() else {
            return Err(KeyError::Count(keys.len()));
        };
        match key.label.as_str() {
            pem::PRIVATE_KEY => Self::from_pkcs8(&key.der),
            "EC PRIVATE KEY" => Self::from_wiped(wrap_sec1(&key.der)?),
            "RSA PRIVATE KEY" => Self::from_wiped(wrap_pkcs8(&alg_id::RSA_ENCRYPTION, &key.der)),
            _ => Err(KeyError::Encoding),
        }
    }

    /// From unencrypted PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_wiped(Zeroizing::new(der.to_vec()))
    }

    fn from_wiped(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let mut fields = Reader::new(der::single(&pkcs8, der::SEQUENCE)?.content);
        fields.expect(der::INTEGER)?;
        let algorithm = fields.expect(der::SEQUENCE)?.content;
        let key = if algorithm == alg_id::ECDSA_P256.as_ref() {
            PrivateKey::p256(&pkcs8)?
        } else if algorithm == alg_id::ECDSA_P384.as_ref() {
            PrivateKey::p384(&pkcs8)?
        } else if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
            // Before the provider, which calls a key of another size malformed.
            check_rsa(fields.expect(der::OCTET_STRING)?.content)?;
            PrivateKey::rsa(&pkcs8)?
        } else {
            return Err(SpkiError::Unsupported("Such".to_owned()).into());
        };
        let spki = spki::encode(algorithm, key.public_bits());
        // The same rules as for everybody's keys: size and exponent.
        let key_type = spki::parse(&spki)?.key_type;
        Ok(Self {
            pkcs8,
            key,
            key_type,
            spki,
        })
    }

    /// Signs the bytes to be signed of a certificate: ECDSA with the hash of the
    /// curve's size, RSA PKCS#1 v1.5 with SHA-256.
    pub fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.key.sign(tbs)?)
    }

    /// How [`CaKey::sign`] signs.
    pub fn algorithm(&self) -> SigningAlgorithm {
        match self.key_type {
            KeyType::P256 => SigningAlgorithm::EcdsaP256Sha256,
            KeyType::P384 => SigningAlgorithm::EcdsaP384Sha384,
            KeyType::Rsa { .. } => SigningAlgorithm::RsaPkcs1Sha256,
        }
    }

    /// The key's kind.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// The public key as `SubjectPublicKeyInfo` DER.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The key as PKCS#8 PEM, to be written to a file of mode 0600.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        pem::encode(pem::PRIVATE_KEY, &self.pkcs8)
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaKey({}, redacted)", self.key_type)
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        CaKey::algorithm(self).rcgen()
    }
}

/// A SEC1 key (RFC 5915) names its curve in its parameters; PKCS#8 wants it outside.
fn wrap_sec1(sec1: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut fields = Reader::new(der::single(sec1, der::SEQUENCE)?.content);
    fields.expect(der::INTEGER)?;
    fields.expect(der::OCTET_STRING)?;
    let curve = fields.expect(der::CONTEXT_0)?.content;
    let algorithm = [&alg_id::ECDSA_P256, &alg_id::ECDSA_P384]
        .into_iter()
        .find(|algorithm| algorithm.ends_with(curve) && !curve.is_empty())
        .ok_or_else(|| SpkiError::Unsupported("Other ECDSA".to_owned()))?;
    Ok(wrap_pkcs8(algorithm, sec1))
}

fn wrap_pkcs8(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let algorithm = der::value(der::SEQUENCE, &[algorithm]);
    let octets = Zeroizing::new(der::value(der::OCTET_STRING, &[key]));
    Zeroizing::new(der::value(
        der::SEQUENCE,
        &[&[der::INTEGER, 1, 0], &algorithm, &octets],
    ))
}
