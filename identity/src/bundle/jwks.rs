//! SPIFFE bundle documents: JSON Web Key Sets (RFC 7517) with two members of SPIFFE's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use rustls_pki_types::{CertificateDer, alg_id};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use serde_json::Value;
use spiffe::TrustDomain;

use super::{Bundle, BundleError, BundleSet, DEFAULT_REFRESH_HINT, checked};
use crate::facts::Facts;
use crate::limits;
use crate::spki;

/// The use of an X.509 authority (requirement 14).
const USE: &str = "x509-svid";
/// Kinds of key that are known (requirement 19).
const KINDS: [&str; 3] = ["EC", "RSA", "OKP"];

#[derive(DeriveDeserialize)]
struct Document {
    keys: Option<Vec<Value>>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Serialize)]
struct DocumentOut {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: u64,
}

/// No `kid` (requirement 14).
#[derive(Serialize)]
struct Jwk {
    kty: &'static str,
    #[serde(rename = "use")]
    use_: &'static str,
    #[serde(flatten)]
    parameters: BTreeMap<&'static str, String>,
    x5c: [String; 1],
}

pub(super) fn decode(trust_domain: TrustDomain, json: &[u8]) -> Result<Bundle, BundleError> {
    check_size(json)?;
    let document = serde_json::from_slice(json).map_err(|e| BundleError::Json(e.to_string()))?;
    from_document(trust_domain, document)
}

fn check_size(json: &[u8]) -> Result<(), BundleError> {
    if json.len() > limits::BUNDLE_BYTES {
        return Err(BundleError::TooLarge { size: json.len() });
    }
    Ok(())
}

fn from_document(trust_domain: TrustDomain, document: Document) -> Result<Bundle, BundleError> {
    let keys = document.keys.ok_or(BundleError::NoKeys)?;
    let mut authorities = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        if let Some(der) = authority(at + 1, key)? {
            authorities.push(der);
        }
    }
    Ok(Bundle {
        trust_domain,
        authorities: checked(authorities)?,
        sequence: document.spiffe_sequence.unwrap_or(0),
        refresh_hint: document
            .spiffe_refresh_hint
            .map_or(DEFAULT_REFRESH_HINT, Duration::from_secs),
    })
}

/// The first certificate of a key that is an X.509 authority; `None` for keys that a
/// consumer ignores.
fn authority(position: usize, key: &Value) -> Result<Option<CertificateDer<'static>>, BundleError> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    if text("use") != Some(USE) || !text("kty").is_some_and(|kind| KINDS.contains(&kind)) {
        return Ok(None);
    }
    let Some(x5c) = key.get("x5c") else {
        return Ok(None);
    };
    let first = x5c
        .as_array()
        .and_then(|values| values.first())
        .and_then(Value::as_str)
        .ok_or(BundleError::X5c(position))?;
    let der = BASE64_STANDARD
        .decode(first)
        .map_err(|_| BundleError::X5c(position))?;
    Ok(Some(CertificateDer::from(der)))
}

pub(super) fn encode(bundle: &Bundle) -> Result<String, BundleError> {
    serde_json::to_string_pretty(&to_document(bundle)?)
        .map_err(|e| BundleError::Json(e.to_string()))
}

fn to_document(bundle: &Bundle) -> Result<DocumentOut, BundleError> {
    let jwk = |(at, der): (usize, &CertificateDer<'static>)| {
        let facts = Facts::parse(der).map_err(|error| BundleError::Authority {
            position: at + 1,
            error,
        })?;
        let (kty, parameters) = key_parameters(facts.spki).ok_or(BundleError::KeyType(at + 1))?;
        Ok(Jwk {
            kty,
            use_: USE,
            parameters,
            x5c: [BASE64_STANDARD.encode(der)],
        })
    };
    Ok(DocumentOut {
        keys: bundle
            .authorities
            .iter()
            .enumerate()
            .map(jwk)
            .collect::<Result<_, BundleError>>()?,
        spiffe_sequence: Some(bundle.sequence).filter(|sequence| *sequence > 0),
        spiffe_refresh_hint: bundle.refresh_hint.as_secs().max(1),
    })
}

/// A public key as RFC 7518 section 6 (and RFC 8037) writes it.
fn key_parameters(spki: &[u8]) -> Option<(&'static str, BTreeMap<&'static str, String>)> {
    let (algorithm, bits) = spki::parts(spki).ok()?;
    let base64 = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let curves = [
        (&alg_id::ECDSA_P256, "P-256", 32),
        (&alg_id::ECDSA_P384, "P-384", 48),
        (&alg_id::ECDSA_P521, "P-521", 66),
    ];
    if let Some((_, curve, size)) = curves.into_iter().find(|(id, ..)| id.as_ref() == algorithm) {
        let point = bits
            .strip_prefix(&[4])
            .filter(|point| point.len() == 2 * size)?;
        let (x, y) = point.split_at(size);
        let parameters = BTreeMap::from([
            ("crv", curve.to_owned()),
            ("x", base64(x)),
            ("y", base64(y)),
        ]);
        Some(("EC", parameters))
    } else if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        let (modulus, exponent) = spki::rsa_parts(bits).ok()?;
        Some((
            "RSA",
            BTreeMap::from([("n", base64(modulus)), ("e", base64(exponent))]),
        ))
    } else if algorithm == alg_id::ED25519.as_ref() {
        Some((
            "OKP",
            BTreeMap::from([("crv", "Ed25519".to_owned()), ("x", base64(bits))]),
        ))
    } else {
        None
    }
}

#[derive(DeriveDeserialize)]
struct MapDocument {
    trust_domains: UniqueNames,
}

/// A JSON object whose member names must differ (requirement 20); serde's own maps
/// would silently keep the last of two.
struct UniqueNames(Vec<(String, Document)>);

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a bundle for each trust domain")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueNames, A::Error> {
                let mut entries: Vec<(String, Document)> = Vec::new();
                while let Some((name, document)) = map.next_entry::<String, Document>()? {
                    if entries.len() == limits::BUNDLE_TRUST_DOMAINS {
                        return Err(A::Error::custom("there are too many trust domains"));
                    }
                    entries.push((name, document));
                }
                Ok(UniqueNames(entries))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

pub(super) fn decode_map(json: &[u8]) -> Result<BundleSet, BundleError> {
    check_size(json)?;
    let document: MapDocument =
        serde_json::from_slice(json).map_err(|error| BundleError::Json(error.to_string()))?;
    let mut set = BundleSet::default();
    for (name, document) in document.trust_domains.0 {
        let wrong =
            |what: &str| BundleError::Map(format!("{:?} {what}", name.get(..64).unwrap_or(&name)));
        // A name, not an ID that a name could be taken from.
        let trust_domain = TrustDomain::new(&name)
            .ok()
            .filter(|_| !name.contains(':'))
            .ok_or_else(|| wrong("is not the name of a trust domain"))?;
        if set.get(&trust_domain).is_some() {
            return Err(wrong("is there twice"));
        }
        set.insert(from_document(trust_domain, document)?);
    }
    Ok(set)
}

pub(super) fn encode_map(set: &BundleSet) -> Result<String, BundleError> {
    #[derive(Serialize)]
    struct Map<'a> {
        trust_domains: BTreeMap<&'a str, DocumentOut>,
    }
    let trust_domains = set
        .iter()
        .map(|bundle| Ok((bundle.trust_domain.as_str(), to_document(bundle)?)))
        .collect::<Result<_, BundleError>>()?;
    serde_json::to_string_pretty(&Map { trust_domains })
        .map_err(|error| BundleError::Json(error.to_string()))
}
