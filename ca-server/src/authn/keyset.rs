//! The verification keys of one cluster, parsed once for each JWKS.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use citadel_identity::crypto::{self, JwsKey};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};

use super::claims::Unverified;

/// Why a JWKS can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// Not a JWK set.
    #[error("the JWKS can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// No key in it is of a kind that we can check.
    #[error("the JWKS holds no RSA, P-256 or P-384 key with a kid")]
    Empty,
}

/// Why a signature was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// It names none of these keys.
    #[error("the token names no key of its cluster")]
    NoKey,
    /// The key decides the algorithm; `alg` can only agree.
    #[error("algorithm {alg:.20} is not that of key {kid:.100}")]
    Algorithm {
        /// What the header says.
        alg: String,
        /// The key.
        kid: String,
    },
    /// It is not of this key and these claims.
    #[error("the token's signature does not verify with key {0:.100}")]
    Signature(String),
}

/// The public key itself, however it is written and named: SHA-256 of its numbers.
type Material = [u8; 32];

/// Keys by `kid`. Each key allows one algorithm, so that a token can't choose another.
pub struct KeySet {
    keys: HashMap<String, JwsKey>,
    /// Of all keys by `kid`, also of those whose algorithm we can't check.
    materials: HashMap<String, Material>,
}

impl KeySet {
    /// Parses a JWK set. Keys of other kinds (P-521, Ed25519) are remembered by `kid` only.
    pub fn parse(json: &str) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_str(json)?;
        let mut keys = HashMap::new();
        let mut materials = HashMap::new();
        for jwk in &set.keys {
            let Some(kid) = jwk.common.key_id.clone() else {
                continue;
            };
            // Of two keys of one name the last counts.
            materials.insert(kid.clone(), material(&jwk.algorithm));
            match verifier(&jwk.algorithm) {
                Some(key) => keys.insert(kid, key),
                None => keys.remove(&kid),
            };
        }
        if materials.is_empty() {
            return Err(KeySetError::Empty);
        }
        Ok(Self { keys, materials })
    }

    /// Whether the JWKS names `kid`, but with a key that we can't check with: its tokens
    /// are not ours to judge.
    pub fn is_unsupported(&self, kid: &str) -> bool {
        self.contains(kid) && !self.keys.contains_key(kid)
    }

    /// Whether the JWKS names `kid`, with any algorithm.
    pub fn contains(&self, kid: &str) -> bool {
        self.materials.contains_key(kid)
    }

    /// All key ids.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.materials.keys().map(String::as_str)
    }

    /// Whether the other set has a key of this name, or this key by another name. Whoever
    /// holds a key signs for every set that it is in, and chooses the name.
    pub fn shares(&self, kid: &str, other: &Self) -> bool {
        let own = self.materials.get(kid);
        other.materials.contains_key(kid)
            || own.is_some_and(|own| other.materials.values().any(|theirs| theirs == own))
    }

    /// Checks the signature of a token with the key that its header names. Times and
    /// audience are not looked at.
    pub fn verify(&self, token: &Unverified<'_>) -> Result<(), VerifyError> {
        let kid = token.header.kid.as_deref().unwrap_or_default();
        let key = self.keys.get(kid).ok_or(VerifyError::NoKey)?;
        if key.algorithm().name() != token.header.alg {
            return Err(VerifyError::Algorithm {
                alg: token.header.alg.clone().into_owned(),
                kid: kid.to_owned(),
            });
        }
        key.verify(token.signing_input, token.signature)
            .map_err(|_| VerifyError::Signature(kid.to_owned()))
    }
}

/// The key as the provider verifies with it; `None` if it can't.
fn verifier(parameters: &AlgorithmParameters) -> Option<JwsKey> {
    let number = |text: &String| URL_SAFE_NO_PAD.decode(text).ok();
    match parameters {
        AlgorithmParameters::RSA(rsa) => JwsKey::rsa(&number(&rsa.n)?, &number(&rsa.e)?).ok(),
        AlgorithmParameters::EllipticCurve(ec) => {
            let (x, y) = (number(&ec.x)?, number(&ec.y)?);
            match ec.curve {
                EllipticCurve::P256 => JwsKey::p256(&x, &y).ok(),
                EllipticCurve::P384 => JwsKey::p384(&x, &y).ok(),
                _ => None,
            }
        }
        _ => None,
    }
}

fn material(parameters: &AlgorithmParameters) -> Material {
    let parts: Vec<&str> = match parameters {
        AlgorithmParameters::RSA(rsa) => vec![&rsa.n, &rsa.e],
        AlgorithmParameters::EllipticCurve(ec) => vec![&ec.x, &ec.y],
        AlgorithmParameters::OctetKeyPair(pair) => vec![&pair.x],
        // Of no kind that an API server signs with: as it stands there.
        other => return crypto::sha256(format!("{other:?}").as_bytes()),
    };
    let mut text = Vec::new();
    for part in parts {
        // Leading zeros change no number. What is not base64 is no key anyway.
        let bytes = URL_SAFE_NO_PAD
            .decode(part)
            .unwrap_or_else(|_| part.as_bytes().to_vec());
        let number: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
        text.extend_from_slice(hex::encode(number).as_bytes());
        text.push(b' ');
    }
    crypto::sha256(&text)
}
