//! The verification keys of one cluster, parsed once for each JWKS.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use citadel_identity::crypto;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, JwkSet},
};

use super::claims::{Claims, LEEWAY_SECONDS};

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

/// Why a signature or a time claim was refused.
#[derive(Debug, thiserror::Error)]
#[error("token refused: {0}")]
pub struct VerifyError(#[from] jsonwebtoken::errors::Error);

struct Key {
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The public key itself, however it is written and named: SHA-256 of its numbers.
type Material = [u8; 32];

/// Keys by `kid`. Each key allows one algorithm, so that a token can't choose another.
pub struct KeySet {
    keys: HashMap<String, Key>,
    /// Keys in the JWKS whose algorithm we can't check: their tokens are not ours to judge.
    unsupported: Vec<String>,
    /// Of all keys above, by `kid`.
    materials: HashMap<String, Material>,
}

impl KeySet {
    /// Parses a JWK set. Keys of other kinds (P-521, Ed25519) are remembered by `kid` only.
    pub fn parse(json: &str) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_str(json)?;
        let mut keys = HashMap::new();
        let mut unsupported = Vec::new();
        let mut materials = HashMap::new();
        for jwk in &set.keys {
            let Some(kid) = jwk.common.key_id.clone() else {
                continue;
            };
            // Of two keys of one name the last counts, here as below.
            materials.insert(kid.clone(), material(&jwk.algorithm));
            let algorithm = match &jwk.algorithm {
                AlgorithmParameters::RSA(_) => Some(Algorithm::RS256),
                AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                    EllipticCurve::P256 => Some(Algorithm::ES256),
                    EllipticCurve::P384 => Some(Algorithm::ES384),
                    _ => None,
                },
                _ => None,
            };
            match (algorithm, DecodingKey::from_jwk(jwk)) {
                (Some(algorithm), Ok(key)) => {
                    keys.insert(kid, Key { algorithm, key });
                }
                _ => unsupported.push(kid),
            }
        }
        if keys.is_empty() && unsupported.is_empty() {
            return Err(KeySetError::Empty);
        }
        Ok(Self {
            keys,
            unsupported,
            materials,
        })
    }

    /// The one algorithm that the key `kid` allows; `None` if there is no such key.
    pub fn algorithm(&self, kid: &str) -> Option<Algorithm> {
        self.keys.get(kid).map(|key| key.algorithm)
    }

    /// Whether the JWKS names `kid`, but with an algorithm that we can't check.
    pub fn is_unsupported(&self, kid: &str) -> bool {
        self.unsupported.iter().any(|known| known == kid)
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

    /// Checks signature, `exp`, `nbf` and `aud` of a token with the key `kid`.
    pub fn verify(
        &self,
        token: &str,
        kid: &str,
        audiences: &[String],
    ) -> Result<Claims, VerifyError> {
        let Some(key) = self.keys.get(kid) else {
            return Err(VerifyError(
                jsonwebtoken::errors::ErrorKind::InvalidKeyFormat.into(),
            ));
        };
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = u64::try_from(LEEWAY_SECONDS).unwrap_or_default();
        validation.validate_nbf = true;
        validation.set_audience(audiences);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        Ok(jsonwebtoken::decode::<Claims>(token, &key.key, &validation)?.claims)
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
