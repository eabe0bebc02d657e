//! The one module that names a crypto provider: aws-lc-rs by default, ring with the
//! feature `crypto-ring`. Everything else asks here.

mod jws;
mod sealed;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls_pki_types::SignatureVerificationAlgorithm;
use thiserror::Error;
use zeroize::Zeroizing;

// aws-lc-rs wins where cargo has unified both features into one build.
#[cfg(feature = "crypto-aws-lc")]
use aws_lc_rs as backend;
#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
use ring as backend;
#[cfg(not(any(feature = "crypto-aws-lc", feature = "crypto-ring")))]
compile_error!("choose a crypto provider: the feature crypto-aws-lc (default) or crypto-ring");

#[cfg(feature = "crypto-aws-lc")]
use rustls::crypto::aws_lc_rs as rustls_backend;
#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
use rustls::crypto::ring as rustls_backend;

use backend::rand::SecureRandom as _;
use backend::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};

pub use jws::{JwsAlgorithm, JwsKey};
pub use sealed::{NotSealed, OneTimeKey, seal};

/// A cryptographic operation did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CryptoError {
    /// A private key does not parse, or its parts do not belong together.
    #[error("the private key is malformed or inconsistent")]
    Key,
    /// A key could not be made.
    #[error("no key could be generated")]
    Generate,
    /// A signature could not be made.
    #[error("signing failed")]
    Sign,
}

/// A signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// No supported algorithm goes with this key and this signature.
    #[error("the signature algorithm is not supported, or does not go with the key")]
    Unsupported,
    /// The signature is not one of this key over this message.
    #[error("the signature does not verify")]
    Invalid,
}

/// The process's provider. With aws-lc-rs the first key exchange is X25519MLKEM768.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls_backend::default_provider())))
}

/// Makes [`provider`] the process's default, for libraries that ask for it. Once is
/// enough; more does nothing.
pub fn install_default() {
    // The only error is that a default is installed already.
    let _ = CryptoProvider::clone(&provider()).install_default();
}

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(backend::digest::digest(&backend::digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of these parts, one after the other.
pub fn sha256_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = backend::digest::Context::new(&backend::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Whether two secrets are the same, in a time that tells nothing of where they differ.
pub fn same_secret(one: &[u8], other: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;
    one.ct_eq(other).into()
}

/// Random bytes from the provider's generator.
///
/// # Panics
/// When the operating system gives no random bytes: then nothing safe can be done.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = backend::rand::SystemRandom::new().fill(&mut bytes);
    assert!(filled.is_ok(), "the operating system gives no random bytes");
    bytes
}

/// All signature algorithms that chains are verified with.
pub(crate) fn signature_algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALGORITHMS: OnceLock<&'static [&'static dyn SignatureVerificationAlgorithm]> =
        OnceLock::new();
    ALGORITHMS.get_or_init(|| provider().signature_verification_algorithms.all)
}

/// Verifies `signature` over `message`. The algorithms are given as the contents of
/// their `AlgorithmIdentifier`s; key and signature algorithm must go together.
pub fn verify_signature(
    key_algorithm: &[u8],
    key: &[u8],
    signature_algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let algorithm = signature_algorithms()
        .iter()
        .find(|one| {
            one.public_key_alg_id().as_ref() == key_algorithm
                && one.signature_alg_id().as_ref() == signature_algorithm
        })
        .ok_or(SignatureError::Unsupported)?;
    algorithm
        .verify_signature(key, message, signature)
        .map_err(|_| SignatureError::Invalid)
}

/// Whether this is an Ed25519 signature (RFC 8032) of this public key.
pub fn verify_ed25519(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public.as_slice())
        .verify(message, signature)
        .is_ok()
}

/// An Ed25519 key. Its encoding is wiped when it is dropped.
pub struct Ed25519Key {
    pkcs8: Zeroizing<Vec<u8>>,
    key: Ed25519KeyPair,
    public: [u8; 32],
}

impl Ed25519Key {
    /// A fresh key.
    pub fn generate() -> Result<Self, CryptoError> {
        let random = backend::rand::SystemRandom::new();
        let document =
            Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| CryptoError::Generate)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// From unencrypted PKCS#8 DER with the public key inside (RFC 5958, RFC 8410).
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, CryptoError> {
        let key = Ed25519KeyPair::from_pkcs8(der).map_err(|_| CryptoError::Key)?;
        let public = key.public_key().as_ref().try_into();
        Ok(Self {
            pkcs8: Zeroizing::new(der.to_vec()),
            public: public.map_err(|_| CryptoError::Key)?,
            key,
        })
    }

    /// The key as PKCS#8 DER.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs the message; the same message always gets the same signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.key.sign(message).as_ref());
        signature
    }
}

/// A fresh P-256 key, and the same in PKCS#8 (RFC 5208) with its public key inside.
///
/// aws-lc-rs checks a key that it parses, at the price of a signature's verification: one
/// that it has just made is not parsed again.
#[cfg(feature = "crypto-aws-lc")]
pub(crate) fn generate_p256() -> Result<(PrivateKey, Zeroizing<Vec<u8>>), CryptoError> {
    let generate = || {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
        let document = key.to_pkcs8v1()?;
        Ok::<_, backend::error::Unspecified>((key, Zeroizing::new(document.as_ref().to_vec())))
    };
    let (key, pkcs8) = generate().map_err(|_| CryptoError::Generate)?;
    Ok((PrivateKey::P256(key), pkcs8))
}

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
pub(crate) fn generate_p256() -> Result<(PrivateKey, Zeroizing<Vec<u8>>), CryptoError> {
    let random = backend::rand::SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
        .map_err(|_| CryptoError::Generate)?;
    let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
    Ok((PrivateKey::p256(&pkcs8)?, pkcs8))
}

/// A parsed private key. aws-lc-rs wipes its memory when it is dropped; ring does not.
pub(crate) enum PrivateKey {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl PrivateKey {
    pub(crate) fn p256(pkcs8: &[u8]) -> Result<Self, CryptoError> {
        ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).map(Self::P256)
    }

    pub(crate) fn p384(pkcs8: &[u8]) -> Result<Self, CryptoError> {
        ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, pkcs8).map(Self::P384)
    }

    pub(crate) fn rsa(pkcs8: &[u8]) -> Result<Self, CryptoError> {
        RsaKeyPair::from_pkcs8(pkcs8)
            .map(Self::Rsa)
            .map_err(|_| CryptoError::Key)
    }

    /// The `subjectPublicKey` bits.
    pub(crate) fn public_bits(&self) -> &[u8] {
        match self {
            Self::P256(key) | Self::P384(key) => key.public_key().as_ref(),
            Self::Rsa(key) => key.public_key().as_ref(),
        }
    }

    /// ECDSA with the hash of the curve's size, or RSA PKCS#1 v1.5 with SHA-256.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let random = backend::rand::SystemRandom::new();
        match self {
            Self::P256(key) | Self::P384(key) => key
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| CryptoError::Sign),
            Self::Rsa(key) => {
                let mut signature = vec![0; modulus_len(key)];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| CryptoError::Sign)?;
                Ok(signature)
            }
        }
    }
}

#[cfg(feature = "crypto-aws-lc")]
fn ecdsa(
    algorithm: &'static backend::signature::EcdsaSigningAlgorithm,
    pkcs8: &[u8],
) -> Result<EcdsaKeyPair, CryptoError> {
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8).map_err(|_| CryptoError::Key)
}

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
fn ecdsa(
    algorithm: &'static backend::signature::EcdsaSigningAlgorithm,
    pkcs8: &[u8],
) -> Result<EcdsaKeyPair, CryptoError> {
    let random = backend::rand::SystemRandom::new();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &random).map_err(|_| CryptoError::Key)
}

#[cfg(feature = "crypto-aws-lc")]
fn modulus_len(key: &RsaKeyPair) -> usize {
    key.public_modulus_len()
}

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
fn modulus_len(key: &RsaKeyPair) -> usize {
    key.public().modulus_len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use rustls_pki_types::alg_id;

    use super::*;

    #[test]
    fn the_post_quantum_key_exchange_comes_first_where_there_is_one() {
        let first = provider().kx_groups[0].name();
        if cfg!(feature = "crypto-aws-lc") {
            assert_eq!(first, rustls::NamedGroup::X25519MLKEM768);
        } else {
            assert_eq!(first, rustls::NamedGroup::X25519);
        }
    }

    #[test]
    fn installing_twice_is_fine() {
        install_default();
        install_default();
        assert!(CryptoProvider::get_default().is_some());
    }

    #[test]
    fn secrets_are_the_same_in_every_byte() {
        assert!(same_secret(b"secret", b"secret"));
        for other in [&b"Secret"[..], b"secreT", b"secre", b"secrets", b""] {
            assert!(!same_secret(b"secret", other));
        }
    }

    #[test]
    fn sha256_of_abc() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(sha256(b"abc")), expected);
        assert_eq!(hex::encode(sha256_of(&[b"a", b"", b"bc"])), expected);
    }

    #[test]
    fn an_ed25519_signature_is_of_its_key_and_message_alone() {
        let key = Ed25519Key::generate().unwrap();
        let again = Ed25519Key::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(again.public(), key.public());
        let signature = again.sign(b"message");
        assert_eq!(signature, key.sign(b"message"));
        assert!(verify_ed25519(key.public(), b"message", &signature));
        assert!(!verify_ed25519(key.public(), b"massage", &signature));
        assert!(!verify_ed25519(key.public(), b"message", &signature[1..]));
        let other = Ed25519Key::generate().unwrap();
        assert!(!verify_ed25519(other.public(), b"message", &signature));
        assert!(Ed25519Key::from_pkcs8(&key.pkcs8()[1..]).is_err());
    }

    #[test]
    fn a_signature_verifies_with_its_key_message_and_algorithm_alone() {
        let (key, _) = generate_p256().unwrap();
        let signature = key.sign(b"message").unwrap();
        let verify = |bits: &[u8], algorithm: &[u8], message: &[u8], signature: &[u8]| {
            verify_signature(&alg_id::ECDSA_P256, bits, algorithm, message, signature)
        };
        let bits = key.public_bits();
        assert_eq!(
            verify(bits, &alg_id::ECDSA_SHA256, b"message", &signature),
            Ok(())
        );
        let invalid = Err(SignatureError::Invalid);
        assert_eq!(
            verify(bits, &alg_id::ECDSA_SHA384, b"message", &signature),
            invalid
        );
        assert_eq!(
            verify(bits, &alg_id::ECDSA_SHA256, b"massage", &signature),
            invalid
        );
        assert_eq!(
            verify(&bits[1..], &alg_id::ECDSA_SHA256, b"message", &signature),
            invalid
        );
        assert_eq!(
            verify(bits, &alg_id::RSA_PKCS1_SHA256, b"message", &signature),
            Err(SignatureError::Unsupported)
        );
    }
}
