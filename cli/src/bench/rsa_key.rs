//! The RSA key that signs the bench's tokens, made at start and kept in memory.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::exit::Failure;

/// An RS256 signing key of 2048 bits, parsed once for all tokens.
pub(crate) struct RsaKey {
    pair: KeyPair,
    kid: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaKey {
    pub(crate) fn generate() -> Result<Self, Failure> {
        let pair = generate_pair()
            .map_err(|error| Failure::local(format!("can't make an RSA key: {error}")))?;
        let spki = pair.subject_public_key_info();
        let unreadable = || Failure::local("can't read the RSA key that was just made");
        let (_, info) = SubjectPublicKeyInfo::from_der(&spki).map_err(|_| unreadable())?;
        let Ok(PublicKey::RSA(public)) = info.parsed() else {
            return Err(unreadable());
        };
        // DER integers are signed; a JWK's are not.
        let unsigned = |bytes: &[u8]| match bytes {
            [0, rest @ ..] => rest.to_vec(),
            bytes => bytes.to_vec(),
        };
        Ok(Self {
            kid: hex::encode(&citadel_identity::crypto::sha256(&spki)[..8]),
            modulus: unsigned(public.modulus),
            exponent: unsigned(public.exponent),
            pair,
        })
    }

    /// A compact JWS, RS256.
    pub(crate) fn token(&self, claims: &Value) -> Result<String, Failure> {
        let header = json!({ "alg": "RS256", "kid": self.kid });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.sign(token.as_bytes())?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }

    /// PKCS#1 v1.5 with SHA-256.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Failure> {
        self.pair
            .sign(message)
            .map_err(|error| Failure::local(format!("can't sign with RSA: {error}")))
    }

    pub(crate) fn spki_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// The public key as a JWKS, as `/openid/v1/jwks` serves it.
    pub(crate) fn jwks(&self) -> Value {
        json!({ "keys": [{
            "use": "sig", "kty": "RSA", "kid": self.kid, "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(&self.modulus),
            "e": URL_SAFE_NO_PAD.encode(&self.exponent),
        }] })
    }
}

#[cfg(feature = "crypto-aws-lc")]
fn generate_pair() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
}

/// The provider of this build can use RSA keys and not make them.
#[cfg(not(feature = "crypto-aws-lc"))]
fn generate_pair() -> Result<KeyPair, String> {
    use rsa::pkcs8::EncodePrivateKey as _;

    let text = |error: &dyn std::fmt::Display| error.to_string();
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).map_err(|e| text(&e))?;
    let der = key.to_pkcs8_der().map_err(|e| text(&e))?;
    KeyPair::try_from(der.as_bytes()).map_err(|e| text(&e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    #[test]
    fn tokens_verify_with_the_published_key_and_with_no_other() {
        let key = RsaKey::generate().unwrap();
        let token = key
            .token(&json!({ "aud": ["citadel"], "exp": 4_000_000_000_u64 }))
            .unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&["citadel"]);
        let decode = |key: &RsaKey| {
            let jwk = &key.jwks()["keys"][0];
            let part = |name: &str| jwk[name].as_str().unwrap().to_owned();
            let public = DecodingKey::from_rsa_components(&part("n"), &part("e")).unwrap();
            jsonwebtoken::decode::<Value>(&token, &public, &validation)
        };
        assert_eq!(decode(&key).unwrap().claims["aud"][0], "citadel");
        decode(&RsaKey::generate().unwrap()).unwrap_err();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(
            header.kid.unwrap(),
            key.jwks()["keys"][0]["kid"].as_str().unwrap()
        );
    }
}
