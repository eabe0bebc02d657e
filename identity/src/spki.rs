//! Public keys as `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7): which kinds we
//! accept, and the one encoding that we accept them in.

use std::fmt;

use rustls_pki_types::alg_id;
use thiserror::Error;

use crate::der::{self, DerError, Reader};
use crate::limits;

/// A kind of key that Citadel issues for and signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA with a modulus of this many bits, 2048 to 4096, and e = 65537.
    Rsa {
        /// Size of the modulus in bits.
        bits: u16,
    },
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("ECDSA P-256"),
            Self::P384 => f.write_str("ECDSA P-384"),
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
        }
    }
}

/// Why a public key is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpkiError {
    /// The key is of a kind, or on a curve, that is not accepted.
    #[error("{0} keys are not accepted; use ECDSA P-256, ECDSA P-384 or RSA 2048 to 4096")]
    Unsupported(String),
    /// The RSA modulus is too small or too large.
    #[error("the RSA key has {bits} bits; 2048 to 4096 are accepted")]
    RsaSize {
        /// Size of the modulus in bits.
        bits: usize,
    },
    /// The RSA public exponent is not 65537.
    #[error("the RSA key's public exponent is not 65537")]
    RsaExponent,
    /// The key is not encoded as its standard says (RFC 5480, RFC 3279).
    #[error("the public key is not encoded as its standard demands: {0}")]
    Encoding(&'static str),
}

impl From<DerError> for SpkiError {
    fn from(_: DerError) -> Self {
        Self::Encoding("it is not DER")
    }
}

/// A public key taken apart. Whether an EC point is on its curve is for the crypto
/// library to say, when it verifies a signature with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublicKey<'a> {
    pub(crate) key_type: KeyType,
    /// The `AlgorithmIdentifier`'s content.
    pub(crate) algorithm: &'a [u8],
    /// The `subjectPublicKey` bits: an uncompressed point or an `RSAPublicKey`.
    pub(crate) bits: &'a [u8],
}

const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];
const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA_ENCRYPTION: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
];
const E_65537: &[u8] = &[1, 0, 1];

/// The `AlgorithmIdentifier`'s content and the key's bits, of any kind of key.
pub(crate) fn parts(spki: &[u8]) -> Result<(&[u8], &[u8]), DerError> {
    let mut outer = Reader::new(der::single(spki, der::SEQUENCE)?.content);
    let algorithm = outer.expect(der::SEQUENCE)?.content;
    let bits = outer.bit_string()?;
    outer.finish()?;
    Ok((algorithm, bits))
}

/// Reads a whole `SubjectPublicKeyInfo`. Only the canonical encoding passes, so two
/// equal keys have equal bytes.
pub(crate) fn parse(spki: &[u8]) -> Result<PublicKey<'_>, SpkiError> {
    let (algorithm, bits) = parts(spki)?;
    let key_type = if algorithm == alg_id::ECDSA_P256.as_ref() {
        uncompressed(bits, 32)?;
        KeyType::P256
    } else if algorithm == alg_id::ECDSA_P384.as_ref() {
        uncompressed(bits, 48)?;
        KeyType::P384
    } else if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        KeyType::Rsa {
            bits: rsa_bits(bits)?,
        }
    } else {
        return Err(SpkiError::Unsupported(name_of(algorithm)));
    };
    Ok(PublicKey {
        key_type,
        algorithm,
        bits,
    })
}

fn uncompressed(point: &[u8], coordinate: usize) -> Result<(), SpkiError> {
    if point.len() == 1 + 2 * coordinate && point[0] == 4 {
        Ok(())
    } else {
        Err(SpkiError::Encoding(
            "the curve point is not in uncompressed form",
        ))
    }
}

fn rsa_bits(key: &[u8]) -> Result<u16, SpkiError> {
    let (modulus, exponent) = rsa_parts(key)?;
    let bits = modulus.len() * 8
        - modulus
            .first()
            .map_or(0, |first| first.leading_zeros() as usize);
    if !(limits::RSA_MIN_BITS..=limits::RSA_MAX_BITS).contains(&bits) {
        return Err(SpkiError::RsaSize { bits });
    }
    if exponent != E_65537 {
        return Err(SpkiError::RsaExponent);
    }
    u16::try_from(bits).map_err(|_| SpkiError::RsaSize { bits })
}

/// Modulus and exponent of an `RSAPublicKey` (RFC 8017 appendix A.1.1), without sign octets.
pub(crate) fn rsa_parts(key: &[u8]) -> Result<(&[u8], &[u8]), SpkiError> {
    let mut fields = Reader::new(der::single(key, der::SEQUENCE)?.content);
    let modulus = fields.positive_integer()?;
    let exponent = fields.positive_integer()?;
    fields.finish()?;
    Ok((modulus, exponent))
}

fn name_of(algorithm: &[u8]) -> String {
    if let Some(parameters) = algorithm.strip_prefix(EC_PUBLIC_KEY) {
        if parameters == P521 {
            "ECDSA P-521"
        } else {
            "Other ECDSA"
        }
        .to_owned()
    } else if algorithm.starts_with(RSA_ENCRYPTION) {
        "RSA (with unusual parameters)".to_owned()
    } else if algorithm == alg_id::ED25519.as_ref() {
        "Ed25519".to_owned()
    } else {
        "Such".to_owned()
    }
}

/// `SubjectPublicKeyInfo` from an `AlgorithmIdentifier`'s content and the key's bits.
pub(crate) fn encode(algorithm: &[u8], bits: &[u8]) -> Vec<u8> {
    let algorithm = der::value(der::SEQUENCE, &[algorithm]);
    let bits = der::value(der::BIT_STRING, &[&[0], bits]);
    der::value(der::SEQUENCE, &[&algorithm, &bits])
}
