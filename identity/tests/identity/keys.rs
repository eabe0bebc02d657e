//! Private keys: the forms they come in, and that they print nothing.

use citadel_identity::KeyType;
use citadel_identity::key::{CaKey, KeyError, SigningAlgorithm, WorkloadKey};

use crate::support::OpenSsl;

#[test]
fn ca_keys_are_read_in_every_form_and_sign() {
    let openssl = OpenSsl::new();
    for (kind, key_type, algorithm, traditional) in [
        (
            "ec:P-256",
            KeyType::P256,
            SigningAlgorithm::EcdsaP256Sha256,
            "ec",
        ),
        (
            "ec:P-384",
            KeyType::P384,
            SigningAlgorithm::EcdsaP384Sha384,
            "ec",
        ),
        (
            "rsa:2048",
            KeyType::Rsa { bits: 2048 },
            SigningAlgorithm::RsaPkcs1Sha256,
            "rsa -traditional",
        ),
        (
            "rsa:4096",
            KeyType::Rsa { bits: 4096 },
            SigningAlgorithm::RsaPkcs1Sha256,
            "rsa -traditional",
        ),
    ] {
        openssl.key("ca", kind);
        openssl.run(&format!("{traditional} -in ca.key -out old.key"));
        let pkcs8 = CaKey::from_pem(&openssl.read("ca.key")).unwrap();
        let old = CaKey::from_pem(&openssl.read("old.key")).unwrap();
        let again = CaKey::from_pem(pkcs8.to_pkcs8_pem().as_bytes()).unwrap();
        let digest = if key_type == KeyType::P384 {
            "-sha384"
        } else {
            "-sha256"
        };
        openssl.run("pkey -in ca.key -pubout -out ca.pub");
        openssl.write("message", "what is signed");
        for key in [pkcs8, old, again] {
            assert_eq!(key.key_type(), key_type);
            assert_eq!(key.algorithm(), algorithm);
            assert_eq!(key.spki_der(), openssl.spki("ca"));
            openssl.write("signature", key.sign(b"what is signed").unwrap());
            openssl.run(&format!(
                "dgst {digest} -verify ca.pub -signature signature message"
            ));
            assert_eq!(format!("{key:?}"), format!("CaKey({key_type}, redacted)"));
        }
    }
}

#[test]
fn a_sec1_file_with_its_curve_parameters_is_read() {
    let openssl = OpenSsl::new();
    openssl.run("ecparam -name secp384r1 -genkey -out ca.key");
    let text = String::from_utf8(openssl.read("ca.key")).unwrap();
    assert!(text.contains("EC PARAMETERS") && text.contains("EC PRIVATE KEY"));
    assert_eq!(
        CaKey::from_pem(text.as_bytes()).unwrap().key_type(),
        KeyType::P384
    );
}

#[test]
fn ca_keys_that_are_refused() {
    let openssl = OpenSsl::new();
    let refused = |kind: &str| {
        openssl.key("ca", kind);
        CaKey::from_pem(&openssl.read("ca.key")).unwrap_err()
    };
    for kind in ["ec:P-521", "ed25519"] {
        assert!(matches!(refused(kind), KeyError::Kind(_)), "{kind}");
    }
    // Too small, or the wrong exponent: some libraries refuse by themselves.
    for kind in ["rsa:1024", "rsa:2048 -pkeyopt rsa_keygen_pubexp:3"] {
        assert!(
            matches!(refused(kind), KeyError::Kind(_) | KeyError::Crypto(_)),
            "{kind}"
        );
    }
    openssl.key("ca", "ec:P-256");
    let one = openssl.read("ca.key");
    assert_eq!(
        CaKey::from_pem(&[one.clone(), one].concat()).unwrap_err(),
        KeyError::Count(2)
    );
    assert_eq!(CaKey::from_pem(b"").unwrap_err(), KeyError::Count(0));
    openssl.run("pkey -in ca.key -aes128 -passout pass:secret -out sealed.key");
    assert_eq!(
        CaKey::from_pem(&openssl.read("sealed.key")).unwrap_err(),
        KeyError::Encoding
    );
}

#[test]
fn workload_keys_are_pkcs8_that_openssl_reads() {
    let openssl = OpenSsl::new();
    let key = WorkloadKey::generate().unwrap();
    openssl.write("key.der", key.pkcs8_der());
    let spki = openssl.run("pkey -inform DER -in key.der -pubout -outform DER");
    assert_eq!(spki, key.spki_der());
    let again = WorkloadKey::from_pkcs8(key.pkcs8_der()).unwrap();
    assert_eq!(again.spki_der(), key.spki_der());
    openssl.write("csr.der", key.csr().unwrap());
    let text = openssl.run("req -inform DER -in csr.der -noout -verify -subject");
    assert!(!String::from_utf8(text).unwrap().contains("CN"));
}

#[test]
fn a_workload_key_prints_nothing_of_itself() {
    let key = WorkloadKey::generate().unwrap();
    assert_eq!(format!("{key:?}"), "WorkloadKey(redacted)");
}
