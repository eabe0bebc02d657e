//! Keys that verify JSON Web Signatures (RFC 7515), parsed once: parsing an RSA key anew
//! costs a third of a verification.

use super::{CryptoError, SignatureError, backend};

#[cfg(feature = "crypto-aws-lc")]
use backend::signature::ParsedPublicKey;
use backend::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
use backend::signature::{EcdsaVerificationAlgorithm, UnparsedPublicKey};

/// The algorithms that are verified (RFC 7518, section 3.1). There is no symmetric one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JwsAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2048 to 8192 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
}

impl JwsAlgorithm {
    /// Its name in the `alg` header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }
}

/// A public key with the one algorithm that it verifies.
pub struct JwsKey {
    algorithm: JwsAlgorithm,
    key: Key,
}

#[cfg(feature = "crypto-aws-lc")]
type Key = ParsedPublicKey;

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
enum Key {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Ec(UnparsedPublicKey<Vec<u8>>),
}

impl JwsKey {
    /// An RSA key by modulus and exponent, big-endian (RFC 7518, section 6.3.1).
    pub fn rsa(n: &[u8], e: &[u8]) -> Result<Self, CryptoError> {
        // No signature verifies with a modulus of another size.
        let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
        if !(2048 / 8..=8192 / 8).contains(&n.len()) {
            return Err(CryptoError::Key);
        }
        Ok(Self {
            algorithm: JwsAlgorithm::Rs256,
            key: rsa(n, e)?,
        })
    }

    /// A P-256 key by its coordinates, 32 bytes each (RFC 7518, section 6.2.1).
    pub fn p256(x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        Ok(Self {
            algorithm: JwsAlgorithm::Es256,
            key: ec(&ECDSA_P256_SHA256_FIXED, &point::<32>(x, y)?)?,
        })
    }

    /// A P-384 key by its coordinates, 48 bytes each (RFC 7518, section 6.2.1).
    pub fn p384(x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        Ok(Self {
            algorithm: JwsAlgorithm::Es384,
            key: ec(&ECDSA_P384_SHA384_FIXED, &point::<48>(x, y)?)?,
        })
    }

    /// What it verifies.
    pub fn algorithm(&self) -> JwsAlgorithm {
        self.algorithm
    }

    /// Verifies `signature` over `signing_input` (RFC 7515, section 5.2).
    pub fn verify(&self, signing_input: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        self.verify_with_key(signing_input, signature)
            .map_err(|_| SignatureError::Invalid)
    }

    #[cfg(feature = "crypto-aws-lc")]
    fn verify_with_key(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), backend::error::Unspecified> {
        self.key.verify_sig(message, signature)
    }

    #[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
    fn verify_with_key(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), backend::error::Unspecified> {
        match &self.key {
            Key::Rsa(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Key::Ec(key) => key.verify(message, signature),
        }
    }
}

/// RFC 7518 wants none, and neither do the providers; they change no number.
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// An uncompressed point (SEC 1, section 2.3.3).
fn point<const N: usize>(x: &[u8], y: &[u8]) -> Result<Vec<u8>, CryptoError> {
    if x.len() != N || y.len() != N {
        return Err(CryptoError::Key);
    }
    Ok([&[4], x, y].concat())
}

#[cfg(feature = "crypto-aws-lc")]
fn rsa(n: &[u8], e: &[u8]) -> Result<Key, CryptoError> {
    RsaPublicKeyComponents { n, e }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .map_err(|_| CryptoError::Key)
}

#[cfg(feature = "crypto-aws-lc")]
fn ec(
    algorithm: &'static backend::signature::EcdsaVerificationAlgorithm,
    point: &[u8],
) -> Result<Key, CryptoError> {
    ParsedPublicKey::new(algorithm, point).map_err(|_| CryptoError::Key)
}

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
#[allow(clippy::unnecessary_wraps, reason = "the other provider parses here")]
fn rsa(n: &[u8], e: &[u8]) -> Result<Key, CryptoError> {
    let (n, e) = (n.to_vec(), e.to_vec());
    Ok(Key::Rsa(RsaPublicKeyComponents { n, e }))
}

#[cfg(all(feature = "crypto-ring", not(feature = "crypto-aws-lc")))]
#[allow(clippy::unnecessary_wraps, reason = "the other provider parses here")]
fn ec(algorithm: &'static EcdsaVerificationAlgorithm, point: &[u8]) -> Result<Key, CryptoError> {
    Ok(Key::Ec(UnparsedPublicKey::new(algorithm, point.to_vec())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    #[cfg(feature = "crypto-aws-lc")]
    use crate::der;
    use backend::rand::SystemRandom;
    use backend::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    #[cfg(feature = "crypto-aws-lc")]
    use backend::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

    #[cfg(feature = "crypto-aws-lc")]
    #[test]
    fn an_rsa_signature_is_of_its_key_and_message_alone() {
        let key = RsaKeyPair::generate(backend::rsa::KeySize::Rsa2048).unwrap();
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            b"a.b",
            &mut signature,
        )
        .unwrap();
        // RSAPublicKey (RFC 8017, appendix A.1.1).
        let sequence = der::single(key.public_key().as_ref(), der::SEQUENCE).unwrap();
        let mut numbers = der::Reader::new(sequence.content);
        let n = numbers.positive_integer().unwrap();
        let e = numbers.positive_integer().unwrap();
        for n in [n.to_vec(), [&[0], n].concat()] {
            let verifier = JwsKey::rsa(&n, e).unwrap();
            assert_eq!(verifier.algorithm().name(), "RS256");
            assert_eq!(verifier.verify(b"a.b", &signature), Ok(()));
            assert!(verifier.verify(b"a.c", &signature).is_err());
            assert!(verifier.verify(b"a.b", &signature[1..]).is_err());
        }
        assert!(JwsKey::rsa(&n[..128], e).is_err(), "1024 bits");
        assert!(JwsKey::rsa(&[], &[]).is_err());
    }

    #[test]
    fn an_ecdsa_signature_is_of_its_key_and_message_alone() {
        let (_, pkcs8) = super::super::generate_p256().unwrap();
        #[cfg(feature = "crypto-aws-lc")]
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).unwrap();
        #[cfg(not(feature = "crypto-aws-lc"))]
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &pkcs8,
            &SystemRandom::new(),
        )
        .unwrap();
        let signature = key.sign(&SystemRandom::new(), b"a.b").unwrap();
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let verifier = JwsKey::p256(x, y).unwrap();
        assert_eq!(verifier.algorithm().name(), "ES256");
        assert_eq!(verifier.verify(b"a.b", signature.as_ref()), Ok(()));
        assert!(verifier.verify(b"a.c", signature.as_ref()).is_err());
        let other = JwsKey::p256(y, x);
        assert!(other.is_err() || other.unwrap().verify(b"a.b", signature.as_ref()).is_err());
        assert!(JwsKey::p256(&x[1..], y).is_err());
        assert!(JwsKey::p384(x, y).is_err());
    }
}
