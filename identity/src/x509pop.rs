//! Proof of possession of a node's own X.509 certificate: its private key signs a challenge of
//! the CA together with the request for the agent's SVID.

use rustls::SignatureScheme;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use spiffe::TrustDomain;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;
use time::OffsetDateTime;
use webpki::EndEntityCert;

use crate::crypto;
use crate::verify::{self, VerifyError};

/// Bytes of a challenge.
pub const CHALLENGE_BYTES: usize = 32;

/// Longest signature, bytes: RSA of 8192 bits.
pub const MAX_SIGNATURE: usize = 1024;

/// What is signed begins with this, so that no signature made for another purpose counts.
const CONTEXT: &[u8] = b"citadel x509pop 1\0";

/// The schemes that count (RFC 8446, section 4.2.3), the one that is preferred first.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum X509PopError {
    /// The chain is not one of the operator's roots, or not valid.
    #[error("{0}")]
    Chain(#[from] VerifyError),
    /// A signature that is not taken.
    #[error("the signature scheme {0:#06x} is not accepted")]
    Scheme(u16),
    /// The private key of the certificate was not proven.
    #[error("the signature over the challenge is not one of the certificate's key")]
    Signature,
    /// The private key can't be used.
    #[error("the private key: {0}")]
    Key(String),
}

/// Whose certificate it is, as far as its issuer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// SHA-256 of its DER.
    pub sha256: [u8; 32],
    /// Its DNS names.
    pub dns_names: Vec<String>,
    /// The common name of its subject.
    pub common_name: Option<String>,
}

/// What a proof consists of.
#[derive(Debug, Clone, Copy)]
pub struct Proof<'p> {
    /// Leaf first.
    pub chain: &'p [CertificateDer<'p>],
    /// The CA's own challenge.
    pub challenge: &'p [u8; CHALLENGE_BYTES],
    /// The request for the agent's SVID.
    pub csr: &'p [u8],
    /// TLS `SignatureScheme`.
    pub scheme: u16,
    /// Over all of it.
    pub signature: &'p [u8],
}

/// Verifies path, validity and usage of the chain under these roots, then the signature.
///
/// # Errors
/// Why it proves nothing.
pub fn verify(
    proof: Proof<'_>,
    roots: &[CertificateDer<'static>],
    trust_domain: &TrustDomain,
    now: OffsetDateTime,
) -> Result<NodeCertificate, X509PopError> {
    let names = verify::verify_client(proof.chain, roots, trust_domain, now)?;
    let scheme = SignatureScheme::from(proof.scheme);
    let provider = crypto::provider();
    let algorithms = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .find(|(known, _)| *known == scheme && SCHEMES.contains(known))
        .map(|(_, algorithms)| *algorithms)
        .ok_or(X509PopError::Scheme(proof.scheme))?;
    let leaf = proof.chain.first().ok_or(VerifyError::Empty)?;
    let certificate = EndEntityCert::try_from(leaf).map_err(|_| X509PopError::Signature)?;
    let message = message(proof.challenge, proof.csr);
    let proven = algorithms.iter().any(|algorithm| {
        certificate
            .verify_signature(*algorithm, &message, proof.signature)
            .is_ok()
    });
    if !proven {
        return Err(X509PopError::Signature);
    }
    Ok(NodeCertificate {
        sha256: crypto::sha256(leaf),
        dns_names: names.dns_names,
        common_name: names.common_name,
    })
}

fn message(challenge: &[u8; CHALLENGE_BYTES], csr: &[u8]) -> Vec<u8> {
    [CONTEXT, challenge, &crypto::sha256(csr)].concat()
}

/// The private key of a node's certificate. Prints nothing of it.
#[derive(Clone)]
pub struct NodeKey(Arc<dyn SigningKey>);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(redacted)")
    }
}

impl NodeKey {
    /// From PEM: PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// It holds no key that can be used.
    pub fn from_pem(text: &[u8]) -> Result<Self, X509PopError> {
        let der = PrivateKeyDer::from_pem_slice(text)
            .map_err(|_| X509PopError::Key("no private key in PEM".into()))?;
        crypto::provider()
            .key_provider
            .load_private_key(der)
            .map(Self)
            .map_err(|error| X509PopError::Key(error.to_string()))
    }

    /// Signs a challenge with a request; the scheme and the signature.
    ///
    /// # Errors
    /// The key is of a kind that is not accepted, or fails.
    pub fn sign(
        &self,
        challenge: &[u8; CHALLENGE_BYTES],
        csr: &[u8],
    ) -> Result<(u16, Vec<u8>), X509PopError> {
        let failed = |text: &str| X509PopError::Key(text.to_owned());
        let signer = self
            .0
            .choose_scheme(&SCHEMES)
            .ok_or_else(|| failed("its kind is not accepted; take P-256, P-384, Ed25519 or RSA"))?;
        let signature = signer
            .sign(&message(challenge, csr))
            .map_err(|error| failed(&error.to_string()))?;
        Ok((signer.scheme().into(), signature))
    }
}
