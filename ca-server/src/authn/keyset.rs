//! The verification keys of one cluster, parsed once for each JWKS.

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
    /// What each key is, whatever it is called.
    public: Vec<PublicKey>,
}

/// A key's name and its public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Its `kid`.
    pub kid: String,
    /// Type and parameters, as the JWKS spells them.
    material: Option<String>,
}

impl PublicKey {
    /// Whether a token could be of either: equal names or equal keys.
    pub fn clashes(&self, other: &Self) -> bool {
        self.kid == other.kid || (self.material.is_some() && self.material == other.material)
    }
}

impl KeySet {
    /// Parses a JWK set. Keys of other kinds (P-521, Ed25519) are remembered by `kid` only.
    pub fn parse(json: &str) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_str(json)?;
        let mut keys = HashMap::new();
        let (mut unsupported, mut public) = (Vec::new(), Vec::new());
        for jwk in &set.keys {
            let Some(kid) = jwk.common.key_id.clone() else {
                continue;
            };
            public.push(PublicKey {
                kid: kid.clone(),
                material: material(&jwk.algorithm),
            });
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
            public,
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
        self.keys.contains_key(kid) || self.is_unsupported(kid)
    }

    /// All keys, those too that we can't check: a key under two clusters is an error.
    pub fn public_keys(&self) -> &[PublicKey] {
        &self.public
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

/// `None` where there is no public half: a secret, or a kind that this version does not know.
fn material(key: &AlgorithmParameters) -> Option<String> {
    match key {
        AlgorithmParameters::RSA(rsa) => Some(format!("RSA {} {}", rsa.n, rsa.e)),
        AlgorithmParameters::EllipticCurve(ec) => {
            Some(format!("EC {:?} {} {}", ec.curve, ec.x, ec.y))
        }
        AlgorithmParameters::OctetKeyPair(okp) => Some(format!("OKP {:?} {}", okp.curve, okp.x)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn keys(jwks: &str) -> Vec<PublicKey> {
        KeySet::parse(jwks).unwrap().public_keys().to_vec()
    }

    #[test]
    fn a_key_under_another_name_is_the_same_key() {
        let one = keys(r#"{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}]}"#);
        let renamed = keys(r#"{"keys":[{"kty":"RSA","kid":"b","n":"AQAB","e":"AQAB"}]}"#);
        let other = keys(r#"{"keys":[{"kty":"RSA","kid":"b","n":"AQAD","e":"AQAB"}]}"#);
        let namesake = keys(r#"{"keys":[{"kty":"RSA","kid":"a","n":"AQAD","e":"AQAB"}]}"#);
        assert!(one[0].clashes(&renamed[0]));
        assert!(one[0].clashes(&namesake[0]));
        assert!(!one[0].clashes(&other[0]));
    }
}
