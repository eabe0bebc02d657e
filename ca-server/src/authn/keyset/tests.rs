//! Random and mutated key sets and tokens: an answer or an error, never a panic, and
//! nobody's token but the issuer's.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use citadel_identity::key::WorkloadKey;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::authn::claims;
use crate::mutation::{mutate, mutation};

const KID: &str = "ours";
const SUBJECT: &str = "system:serviceaccount:shop:web";

struct Samples {
    jwks: String,
    /// Signed by the key `ours` of that set.
    good: String,
    /// Tokens that say the same, and are made by whoever does not hold the key.
    forged: Vec<String>,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        citadel_identity::crypto::install_default();
        let (key, stranger) = (
            WorkloadKey::generate().unwrap(),
            WorkloadKey::generate().unwrap(),
        );
        let jwk = ec_jwk(&key);
        let token = |algorithm, key: &EncodingKey| {
            let header = Header {
                kid: Some(KID.into()),
                ..Header::new(algorithm)
            };
            jsonwebtoken::encode(&header, &said(), key).unwrap()
        };
        let good = token(
            Algorithm::ES256,
            &EncodingKey::from_ec_der(key.pkcs8_der()),
        );
        let mut forged = vec![token(
            Algorithm::ES256,
            &EncodingKey::from_ec_der(stranger.pkcs8_der()),
        )];
        // What is public about the key, taken for a shared secret.
        let point = point_of(&key);
        let x = jwk["x"].as_str().unwrap().as_bytes().to_vec();
        for secret in [key.spki_der().to_vec(), point, x, Vec::new()] {
            forged.push(token(
                Algorithm::HS256,
                &EncodingKey::from_secret(&secret),
            ));
        }
        // No signature, and a good one under another header.
        let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let unsigned = part(json!({ "alg": "none", "kid": KID }));
        forged.push(format!("{unsigned}.{}.", part(said())));
        let signature = good.rsplit('.').next().unwrap();
        let other = part(json!({ "alg": "ES256", "kid": KID, "typ": "at+jwt" }));
        forged.push(format!("{other}.{}.{signature}", part(said())));
        let jwks = json!({ "keys": [
            jwk,
            {
                "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "e": "AQAB",
                "n": URL_SAFE_NO_PAD.encode([0xc3; 256]),
            },
            { "kty": "OKP", "kid": "other", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([7; 32]) },
        ] });
        Samples {
            jwks: jwks.to_string(),
            good,
            forged,
        }
    })
}

fn said() -> Value {
    json!({
        "iss": "https://api", "sub": SUBJECT, "aud": ["citadel"], "exp": 32_503_680_000_i64,
    })
}

/// 4, then the two coordinates.
fn point_of(key: &WorkloadKey) -> Vec<u8> {
    let spki = key.spki_der();
    spki[spki.len() - 65..].to_vec()
}

fn ec_jwk(key: &WorkloadKey) -> Value {
    let point = point_of(key);
    json!({
        "kty": "EC", "kid": KID, "use": "sig", "alg": "ES256", "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]),
    })
}

fn accepts(set: &KeySet, token: &str, kid: &str) -> bool {
    let Ok(parts) = claims::Parts::decode(token) else {
        return false;
    };
    let Ok(mut token) = parts.read() else {
        return false;
    };
    token.header.kid = Some(claims::Text::from(kid));
    if set.verify(&token).is_err() {
        return false;
    }
    assert_eq!(
        (&*token.claims.sub, token.claims.aud.single()),
        (SUBJECT, Some("citadel"))
    );
    true
}

/// What holds of every key set, whatever it was read from.
fn check(text: &str) {
    let Ok(set) = KeySet::parse(text) else {
        return;
    };
    let ids: Vec<&str> = set.key_ids().collect();
    assert!(!ids.is_empty(), "a set without a key");
    for kid in ids {
        for token in &samples().forged {
            assert!(!accepts(&set, token, kid), "{kid} of {text}: {token}");
        }
        // It may have become useless; it says nothing new.
        accepts(&set, &samples().good, kid);
    }
    assert!(!accepts(&set, &samples().good, "no such key"));
}

#[test]
fn the_set_as_it_is_accepts_its_issuer_alone() {
    let set = KeySet::parse(&samples().jwks).unwrap();
    assert!(accepts(&set, &samples().good, KID));
    assert!(!accepts(&set, &samples().good, "rsa"));
    assert!(set.is_unsupported("other"));
    check(&samples().jwks);
}

/// A member of a JWK: one that means something, or anything.
fn member() -> impl Strategy<Value = (String, Value)> {
    const NAMES: &[&str] = &[
        "kty", "kid", "use", "alg", "crv", "x", "y", "n", "e", "k", "x5c", "key_ops", "d",
    ];
    const WORDS: &[&str] = &[
        "EC",
        "RSA",
        "oct",
        "OKP",
        "P-256",
        "P-384",
        "P-521",
        "secp256k1",
        "Ed25519",
        "HS256",
        "RS256",
        "ES256",
        "none",
        "sig",
        "enc",
        "",
        "AQAB",
        "AQ",
        "AA",
        "====",
    ];
    let value = prop_oneof![
        4 => prop::sample::select(WORDS).prop_map(Value::from),
        2 => prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| Value::from(URL_SAFE_NO_PAD.encode(bytes))),
        1 => ".{0,20}".prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({ "kty": "EC" })),
    ];
    (prop::sample::select(NAMES).prop_map(String::from), value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_are_no_keys(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(KeySet::parse(&text).is_err());
        let set = KeySet::parse(&samples().jwks).unwrap();
        prop_assert!(!accepts(&set, &text, KID));
    }

    #[test]
    fn mutated_sets_accept_nobody_else(mutations in prop::collection::vec(mutation(), 1..4)) {
        check(&String::from_utf8_lossy(&mutate(samples().jwks.as_bytes(), &mutations)));
    }

    #[test]
    fn members_of_other_kinds_accept_nobody_else(
        members in prop::collection::vec(member(), 1..6),
        keys in 1_usize..3,
    ) {
        let mut set: Value = serde_json::from_str(&samples().jwks).unwrap();
        for key in set["keys"].as_array_mut().unwrap().iter_mut().take(keys) {
            for (name, value) in &members {
                key[name] = value.clone();
            }
        }
        check(&set.to_string());
    }

    #[test]
    fn a_mutated_token_says_what_was_signed_or_nothing(
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let set = KeySet::parse(&samples().jwks).unwrap();
        let token = mutate(samples().good.as_bytes(), &mutations);
        let token = String::from_utf8_lossy(&token);
        if accepts(&set, &token, KID) {
            prop_assert_eq!(token, samples().good.as_str());
        }
    }
}
