//! The verification keys of one cluster, parsed once for each JWKS.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

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

/// Keys by `kid`. Each key allows one algorithm, so that a token can't choose another.
pub struct KeySet {
    keys: HashMap<String, Key>,
    /// Keys in the JWKS whose algorithm we can't check: their tokens are not ours to judge.
    unsupported: Vec<String>,
}

impl KeySet {
    /// Parses a JWK set. Keys of other kinds (P-521, Ed25519) are remembered by `kid` only.
    pub fn parse(json: &str) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_str(json)?;
        let mut keys = HashMap::new();
        let mut unsupported = Vec::new();
        for jwk in &set.keys {
            let Some(kid) = jwk.common.key_id.clone() else {
                continue;
            };
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
        Ok(Self { keys, unsupported })
    }

    /// The one algorithm that the key `kid` allows; `None` if there is no such key.
    pub fn algorithm(&self, kid: &str) -> Option<Algorithm> {
        self.keys.get(kid).map(|key| key.algorithm)
    }

    /// Whether the JWKS names `kid`, but with an algorithm that we can't check.
    pub fn is_unsupported(&self, kid: &str) -> bool {
        self.unsupported.iter().any(|known| known == kid)
    }

    /// All key ids: a key under two clusters is an error.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys
            .keys()
            .chain(&self.unsupported)
            .map(String::as_str)
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
