#![allow(clippy::unwrap_used)]

use citadel_identity::x509pop::{NodeKey, Proof, X509PopError, verify};
use citadel_identity::{TrustDomain, crypto};
use proptest::prelude::*;
use rcgen::{
    CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn root() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(root: &CertifiedIssuer<'static, KeyPair>) -> (Vec<CertificateDer<'static>>, NodeKey) {
    let mut params = CertificateParams::new(vec!["vm-1.example.org".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, root).unwrap();
    let node_key = NodeKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
    (vec![certificate.der().clone()], node_key)
}

#[test]
fn a_proof_is_of_its_challenge_its_request_and_its_key_alone() {
    let root = root();
    let (chain, key) = leaf(&root);
    let roots = [root.der().clone()];
    let now = OffsetDateTime::now_utc();
    let challenge = crypto::random();
    let (scheme, signature) = key.sign(&challenge, b"request").unwrap();
    let check = |challenge: &[u8; 32], csr: &[u8], scheme: u16, signature: &[u8]| {
        let proof = Proof {
            chain: &chain,
            challenge,
            csr,
            scheme,
            signature,
        };
        verify(proof, &roots, &trust_domain(), now)
    };
    let proven = check(&challenge, b"request", scheme, &signature).unwrap();
    assert_eq!(proven.dns_names, ["vm-1.example.org"]);
    assert_eq!(proven.sha256, crypto::sha256(&chain[0]));
    let wrong = Err(X509PopError::Signature);
    assert_eq!(
        check(&crypto::random(), b"request", scheme, &signature),
        wrong
    );
    assert_eq!(check(&challenge, b"another", scheme, &signature), wrong);
    assert_eq!(
        check(&challenge, b"request", scheme, &signature[1..]),
        wrong
    );
    // ECDSA with SHA-384, and RSA PKCS#1 with SHA-256, which nobody may use here.
    assert_eq!(check(&challenge, b"request", 0x0503, &signature), wrong);
    let refused = Err(X509PopError::Scheme(0x0401));
    assert_eq!(check(&challenge, b"request", 0x0401, &signature), refused);
    let (_, other) = leaf(&root);
    let (scheme, signature) = other.sign(&challenge, b"request").unwrap();
    assert_eq!(check(&challenge, b"request", scheme, &signature), wrong);
    assert!(!format!("{key:?}").contains("PRIVATE"));
}

proptest! {
    #[test]
    fn any_bytes_prove_nothing(
        der in prop::collection::vec(any::<u8>(), 0..200),
        scheme in any::<u16>(),
        signature in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let root = root();
        let chain = [CertificateDer::from(der)];
        let proof = Proof {
            chain: &chain,
            challenge: &[0; 32],
            csr: b"",
            scheme,
            signature: &signature,
        };
        let now = OffsetDateTime::now_utc();
        prop_assert!(verify(proof, &[root.der().clone()], &trust_domain(), now).is_err());
    }
}
