//! Trust bundles as PEM and as SPIFFE's JWKS.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use citadel_identity::TrustDomain;
use citadel_identity::bundle::{Bundle, BundleError, BundleSet, DEFAULT_REFRESH_HINT};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::support::{Authority, OpenSsl, ca_params, td};

fn root() -> CertificateDer<'static> {
    Authority::root(ca_params("root")).der
}

fn x5c(der: &[u8]) -> String {
    BASE64_STANDARD.encode(der)
}

fn decode(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_jwks(td(), document.to_string().as_bytes())
}

/// A key as others may write it, to be bent.
fn jwk(der: &[u8]) -> Value {
    json!({"kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "x5c": [x5c(der)]})
}

#[test]
fn spiffe_req_14_authorities_are_written_with_use_x5c_and_no_kid() {
    let openssl = OpenSsl::new();
    let mut authorities = Vec::new();
    for (kind, kty, parameters) in [
        ("ec:P-256", "EC", &["crv", "x", "y"][..]),
        ("ec:P-384", "EC", &["crv", "x", "y"]),
        ("rsa:2048", "RSA", &["e", "n"]),
    ] {
        openssl.key("ca", kind);
        openssl.run("req -new -x509 -key ca.key -subj /CN=root -days 30 -out ca.pem");
        let der = CertificateDer::from(openssl.der("ca.pem"));
        authorities.push(der.clone());
        let text = Bundle::new(td(), vec![der.clone()]).to_jwks().unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let key = document["keys"][0].as_object().unwrap();
        assert_eq!(key["use"], "x509-svid");
        assert_eq!(key["kty"], kty);
        assert_eq!(key["x5c"], json!([x5c(&der)]));
        assert!(!key.contains_key("kid"));
        assert!(
            parameters.iter().all(|name| key[*name].is_string()),
            "{key:?}"
        );
        if kty == "RSA" {
            assert_eq!(key["e"], "AQAB");
        }
    }
    let bundle = Bundle {
        sequence: 7,
        refresh_hint: Duration::from_secs(30),
        ..Bundle::new(td(), authorities)
    };
    assert_eq!(
        Bundle::from_jwks(td(), bundle.to_jwks().unwrap().as_bytes()).unwrap(),
        bundle
    );
}

#[test]
fn spiffe_req_14_entries_without_x5c_and_all_but_its_first_value_are_ignored() {
    let (one, two) = (root(), root());
    let mut without = jwk(&one);
    without.as_object_mut().unwrap().remove("x5c");
    let mut several = jwk(&one);
    several["x5c"] = json!([x5c(&one), x5c(&two), "junk"]);
    let bundle = decode(&json!({"keys": [without, several]})).unwrap();
    assert_eq!(bundle.authorities, [one]);
}

#[test]
fn spiffe_req_15_undefined_parameters_are_not_required_and_do_no_harm() {
    let one = root();
    let mut key = jwk(&one);
    for name in ["crv", "x", "y"] {
        key.as_object_mut().unwrap().remove(name);
    }
    key["kid"] = json!("ignored");
    key["future"] = json!({"nested": [1, 2]});
    let bundle = decode(&json!({"keys": [key], "spiffe_future": true})).unwrap();
    assert_eq!(bundle.authorities, [one]);
    assert_eq!(
        (bundle.sequence, bundle.refresh_hint),
        (0, DEFAULT_REFRESH_HINT)
    );
}

#[test]
fn spiffe_req_16_the_sequence_is_an_integer_and_grows_with_every_change() {
    let bundle = Bundle {
        sequence: 41,
        ..Bundle::new(td(), vec![root()])
    };
    assert_eq!(
        bundle.with_authorities(bundle.authorities.clone()).sequence,
        41
    );
    assert_eq!(bundle.with_authorities(vec![root()]).sequence, 42);
    assert_eq!(
        decode(&json!({"keys": [], "spiffe_sequence": 41}))
            .unwrap()
            .sequence,
        41
    );
    for wrong in [json!("41"), json!(4.5), json!(-1)] {
        let document = json!({"keys": [], "spiffe_sequence": wrong});
        assert!(
            matches!(decode(&document), Err(BundleError::Json(_))),
            "{document}"
        );
    }
}

#[test]
fn spiffe_req_17_the_refresh_hint_is_in_whole_seconds() {
    let bundle = decode(&json!({"keys": [], "spiffe_refresh_hint": 60})).unwrap();
    assert_eq!(bundle.refresh_hint, Duration::from_mins(1));
    let short = Bundle {
        refresh_hint: Duration::from_millis(1500),
        ..bundle
    };
    let text = short.to_jwks().unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["spiffe_refresh_hint"], 1);
    let wrong = json!({"keys": [], "spiffe_refresh_hint": "60"});
    assert!(matches!(decode(&wrong), Err(BundleError::Json(_))));
}

#[test]
fn spiffe_req_18_keys_exist_and_may_be_empty() {
    assert_eq!(decode(&json!({})), Err(BundleError::NoKeys));
    assert_eq!(decode(&json!({"keys": null})), Err(BundleError::NoKeys));
    assert!(decode(&json!({"keys": []})).unwrap().authorities.is_empty());
    let empty = Bundle::new(td(), Vec::new());
    let text = empty.to_jwks().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap()["keys"],
        json!([])
    );
}

#[test]
fn spiffe_req_19_unknown_or_missing_kinds_and_uses_are_ignored() {
    let one = root();
    let bend = |name: &str, value: Option<&str>| {
        let mut key = jwk(&root());
        match value {
            Some(value) => key[name] = json!(value),
            None => drop(key.as_object_mut().unwrap().remove(name)),
        }
        key
    };
    let keys = json!([
        bend("use", Some("jwt-svid")),
        bend("use", Some("sig")),
        bend("use", None),
        bend("kty", Some("oct")),
        bend("kty", Some("XYZ")),
        bend("kty", None),
        "no object",
        jwk(&one),
    ]);
    assert_eq!(decode(&json!({"keys": keys})).unwrap().authorities, [one]);
}

#[test]
fn authorities_that_are_none_are_errors_not_gaps() {
    for x5c in [json!("text"), json!([]), json!([1]), json!(["not base64!"])] {
        let mut key = jwk(&root());
        key["x5c"] = x5c;
        assert_eq!(decode(&json!({"keys": [key]})), Err(BundleError::X5c(1)));
    }
    let key = jwk(&[1, 2, 3]);
    let error = decode(&json!({"keys": [jwk(&root()), key]})).unwrap_err();
    assert!(
        matches!(error, BundleError::Authority { position: 2, .. }),
        "{error}"
    );
    assert!(matches!(
        Bundle::from_jwks(td(), b"{"),
        Err(BundleError::Json(_))
    ));
    let many = vec![jwk(&root()); 129];
    assert_eq!(
        decode(&json!({"keys": many})),
        Err(BundleError::TooMany(129))
    );
    let size = 4 * 1024 * 1024 + 1;
    assert_eq!(
        Bundle::from_jwks(td(), &vec![b' '; size]),
        Err(BundleError::TooLarge { size })
    );
}

#[test]
fn spiffe_req_20_a_bundle_map_has_unique_names() {
    let other = TrustDomain::new("other.org").unwrap();
    let set: BundleSet = [
        Bundle::new(td(), vec![root()]),
        Bundle::new(other.clone(), vec![root()]),
    ]
    .into_iter()
    .collect();
    let text = set.to_json_map().unwrap();
    assert_eq!(BundleSet::from_json_map(text.as_bytes()).unwrap(), set);
    assert_eq!(set.iter().count(), 2);
    let decode = |text: &str| BundleSet::from_json_map(text.as_bytes());
    assert!(matches!(decode("{}"), Err(BundleError::Json(_))));
    assert!(decode(r#"{"trust_domains": {}}"#).unwrap().is_empty());
    for twice in [
        r#"{"trust_domains": {"a.org": {"keys": []}, "a.org": {"keys": []}}}"#,
        r#"{"trust_domains": {"a.org": {"keys": []}, "A.org": {"keys": []}}}"#,
    ] {
        assert!(matches!(decode(twice), Err(BundleError::Map(_))), "{twice}");
    }
    for name in ["spiffe://a.org", "a.org:8443", "", "a/b", "ä.org"] {
        let text = json!({"trust_domains": {name: {"keys": []}}}).to_string();
        assert!(matches!(decode(&text), Err(BundleError::Map(_))), "{name}");
    }
}

#[test]
fn spiffe_req_36_a_set_replaces_and_never_merges() {
    let (one, two) = (root(), root());
    let mut set: BundleSet = Bundle::new(td(), vec![one.clone()]).into();
    let old = set.insert(Bundle::new(td(), vec![two.clone()])).unwrap();
    assert_eq!(old.authorities, [one]);
    assert_eq!(set.len(), 1);
    assert_eq!(set.get(&td()).unwrap().authorities, [two]);
    assert!(set.remove(&td()).is_some());
    assert!(set.is_empty());
}

#[test]
fn pem_round_trip_and_mistakes() {
    let bundle = Bundle::new(td(), vec![root(), root()]);
    let text = bundle.to_pem();
    assert_eq!(Bundle::from_pem(td(), text.as_bytes()).unwrap(), bundle);
    // The same certificate twice counts once.
    let twice = format!("{text}{text}");
    assert_eq!(Bundle::from_pem(td(), twice.as_bytes()).unwrap(), bundle);
    assert_eq!(Bundle::from_pem(td(), b""), Err(BundleError::Empty));
    let key = citadel_identity::pem::encode("PRIVATE KEY", &[1, 2, 3]);
    assert_eq!(
        Bundle::from_pem(td(), format!("{text}{}", *key).as_bytes()),
        Err(BundleError::Label {
            position: 3,
            label: "PRIVATE KEY".into()
        })
    );
    let junk = citadel_identity::pem::encode("CERTIFICATE", &[1, 2, 3]);
    assert!(matches!(
        Bundle::from_pem(td(), junk.as_bytes()),
        Err(BundleError::Authority { position: 1, .. })
    ));
    let digests = bundle.root_sha256();
    assert_eq!(
        digests[1],
        citadel_identity::crypto::sha256(&bundle.authorities[1])
    );
}
