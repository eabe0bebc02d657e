//! Certificate signing requests (RFC 2986). All that is taken from one is the public
//! key, and only after its signature has proven that the caller holds the private one.
//!
//! Subject and attributes are skipped as opaque bytes, so nothing in them can be
//! copied, and nothing in them can fail a request.

use rcgen::PublicKeyData;
use thiserror::Error;

use crate::crypto::{self, SignatureError};
use crate::der::{self, DerError, Reader};
use crate::limits;
use crate::pem::{self, PemError};
use crate::spki::{self, KeyType, SpkiError};

/// Why a certificate signing request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CsrError {
    /// The request is too large.
    #[error("the CSR has {size} bytes; at most {max} are accepted")]
    TooLarge {
        /// Bytes in the request.
        size: usize,
        /// Bytes that are accepted at most.
        max: usize,
    },
    /// The PEM text is broken.
    #[error("the CSR is not PEM: {0}")]
    Pem(PemError),
    /// The PEM text does not hold exactly one block.
    #[error("one PEM block is expected; the text has {0}")]
    Blocks(usize),
    /// The PEM block is something else than a request.
    #[error("a PEM block CERTIFICATE REQUEST is expected; this one is {0:?}")]
    Label(String),
    /// The request is not the DER of RFC 2986.
    #[error("the CSR is malformed: {0}")]
    Malformed(&'static str),
    /// Bytes follow the request.
    #[error("bytes follow the CSR")]
    TrailingBytes,
    /// The public key is not accepted.
    #[error("the CSR's key is refused: {0}")]
    Key(#[from] SpkiError),
    /// The signature algorithm is not accepted, or not one of the key's kind.
    #[error(
        "the CSR's signature algorithm is not accepted for a key of type {0}; \
         use ECDSA with SHA-256 or SHA-384, or RSA PKCS#1 with SHA-256, SHA-384 or SHA-512"
    )]
    Algorithm(KeyType),
    /// The signature is not one of the key in the request.
    #[error("the CSR's signature does not verify: its private key is not proven")]
    Proof(KeyType),
}

impl From<DerError> for CsrError {
    fn from(error: DerError) -> Self {
        match error {
            DerError::Trailing => Self::TrailingBytes,
            _ => Self::Malformed("it is not the DER of a PKCS#10 request"),
        }
    }
}

/// A public key whose private key the caller has proven to hold. Only
/// [`prove_possession`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenKey {
    spki: Vec<u8>,
    /// Where the `subjectPublicKey` bits start in `spki`; they reach to its end.
    bits_at: usize,
    sha256: [u8; 32],
    key_type: KeyType,
}

impl ProvenKey {
    /// The key as `SubjectPublicKeyInfo` DER, byte for byte as in the request.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of [`ProvenKey::spki_der`].
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The key's kind.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }
}

// rcgen writes the SubjectPublicKeyInfo again from these two; only canonical
// encodings get here, so the bytes come out the same.
impl PublicKeyData for ProvenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.spki[self.bits_at..]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.key_type {
            KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Rsa { .. } => &rcgen::PKCS_RSA_SHA256,
        }
    }

    fn subject_public_key_info(&self) -> Vec<u8> {
        self.spki.clone()
    }
}

/// The DER of a request in PEM: exactly one block, and that a CERTIFICATE REQUEST.
pub fn pem_to_der(text: &[u8]) -> Result<Vec<u8>, CsrError> {
    let blocks = pem::decode(text, limits::CSR_PEM_BYTES).map_err(|error| match error {
        PemError::TooLarge { size, max } => CsrError::TooLarge { size, max },
        other => CsrError::Pem(other),
    })?;
    let [block] = blocks.as_slice() else {
        return Err(CsrError::Blocks(blocks.len()));
    };
    if block.label != pem::CERTIFICATE_REQUEST {
        return Err(CsrError::Label(block.label.chars().take(64).collect()));
    }
    Ok(block.der.to_vec())
}

/// Checks a request in DER and takes its public key.
///
/// Accepted are P-256, P-384 and RSA 2048 to 4096 with e = 65537, with a signature of
/// the key's kind, in a request of at most 16 KB with nothing behind it.
pub fn prove_possession(csr: &[u8]) -> Result<ProvenKey, CsrError> {
    if csr.len() > limits::CSR_DER_BYTES {
        return Err(CsrError::TooLarge {
            size: csr.len(),
            max: limits::CSR_DER_BYTES,
        });
    }
    let signed = der::signed(csr)?;
    let spki = subject_public_key_info(signed.message)?;
    let key = spki::parse(spki)?;
    crypto::verify_signature(
        key.algorithm,
        key.bits,
        signed.algorithm,
        signed.message,
        signed.signature,
    )
    .map_err(|error| match error {
        SignatureError::Unsupported => CsrError::Algorithm(key.key_type),
        SignatureError::Invalid => CsrError::Proof(key.key_type),
    })?;
    Ok(ProvenKey {
        bits_at: spki.len() - key.bits.len(),
        sha256: crypto::sha256(spki),
        key_type: key.key_type,
        spki: spki.to_vec(),
    })
}

/// The key's place in a `CertificationRequestInfo`; what surrounds it is skipped.
fn subject_public_key_info(info: &[u8]) -> Result<&[u8], CsrError> {
    let mut fields = Reader::new(der::single(info, der::SEQUENCE)?.content);
    if fields.expect(der::INTEGER)?.content != [0] {
        return Err(CsrError::Malformed("its version is not 1"));
    }
    fields.expect(der::SEQUENCE)?;
    let spki = fields.expect(der::SEQUENCE)?.whole;
    // The attributes are not optional in RFC 2986, but some tools leave empty ones out.
    if !fields.is_empty() {
        fields.expect(der::CONTEXT_0)?;
    }
    if !fields.is_empty() {
        return Err(CsrError::Malformed(
            "there are unknown fields after its attributes",
        ));
    }
    Ok(spki)
}
