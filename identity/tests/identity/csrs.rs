//! Requests: nothing but the proven key is taken, and hostile ones are refused.

use citadel_identity::csr::{CsrError, pem_to_der, prove_possession};
use citadel_identity::key::WorkloadKey;
use citadel_identity::{KeyType, SpkiError};

use crate::support::{OpenSsl, patch, tlv};

/// A request by openssl for a key of this kind.
fn request(openssl: &OpenSsl, kind: &str, more: &str) -> Vec<u8> {
    openssl.key("leaf", kind);
    openssl.run(&format!(
        "req -new -key leaf.key -subj /CN=ignored {more} -out leaf.csr"
    ));
    openssl.der("leaf.csr")
}

#[test]
fn our_own_requests_are_accepted() {
    let key = WorkloadKey::generate().unwrap();
    let proven = prove_possession(&key.csr().unwrap()).unwrap();
    assert_eq!(proven.spki_der(), key.spki_der());
    assert_eq!(proven.key_type(), KeyType::P256);
    assert_eq!(
        proven.spki_sha256(),
        citadel_identity::crypto::sha256(key.spki_der())
    );
}

#[test]
fn keys_and_signature_algorithms_that_are_accepted() {
    let openssl = OpenSsl::new();
    for (kind, digest, key_type) in [
        ("ec:P-256", "-sha256", KeyType::P256),
        ("ec:P-256", "-sha384", KeyType::P256),
        ("ec:P-384", "-sha256", KeyType::P384),
        ("ec:P-384", "-sha384", KeyType::P384),
        ("rsa:2048", "-sha256", KeyType::Rsa { bits: 2048 }),
        ("rsa:2048", "-sha384", KeyType::Rsa { bits: 2048 }),
        ("rsa:3072", "-sha512", KeyType::Rsa { bits: 3072 }),
        ("rsa:4096", "-sha256", KeyType::Rsa { bits: 4096 }),
    ] {
        let proven = prove_possession(&request(&openssl, kind, digest)).unwrap();
        assert_eq!(proven.key_type(), key_type, "{kind} {digest}");
        assert_eq!(proven.spki_der(), openssl.spki("leaf"), "{kind} {digest}");
    }
}

#[test]
fn keys_that_are_refused() {
    let openssl = OpenSsl::new();
    let refused = |kind: &str| prove_possession(&request(&openssl, kind, "")).unwrap_err();
    assert_eq!(
        refused("ec:P-521"),
        CsrError::Key(SpkiError::Unsupported("ECDSA P-521".into()))
    );
    assert!(matches!(
        refused("ec:secp256k1"),
        CsrError::Key(SpkiError::Unsupported(_))
    ));
    assert_eq!(
        refused("ed25519"),
        CsrError::Key(SpkiError::Unsupported("Ed25519".into()))
    );
    assert_eq!(
        refused("rsa:1024"),
        CsrError::Key(SpkiError::RsaSize { bits: 1024 })
    );
    assert_eq!(
        refused("rsa:2047"),
        CsrError::Key(SpkiError::RsaSize { bits: 2047 })
    );
    let e3 = refused("rsa:2048 -pkeyopt rsa_keygen_pubexp:3");
    assert_eq!(e3, CsrError::Key(SpkiError::RsaExponent));
    assert!(e3.to_string().contains("65537"), "{e3}");
}

#[test]
fn rsa_8192_is_refused_before_its_signature_is_checked() {
    // Generating such a key takes many seconds; a modulus of that size is enough.
    let modulus = [&[0x00, 0xc1][..], &[0x5a; 1022], &[0x01]].concat();
    let numbers = [tlv(2, &modulus), tlv(2, &[1, 0, 1])].concat();
    let bits = [&[0][..], &tlv(0x30, &numbers)].concat();
    let rsa = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
    ];
    let spki = tlv(0x30, &[tlv(0x30, &rsa), tlv(3, &bits)].concat());
    let info = tlv(
        0x30,
        &[tlv(2, &[0]), tlv(0x30, &[]), spki, tlv(0xa0, &[])].concat(),
    );
    let mut algorithm = rsa;
    algorithm[10] = 0x0b;
    let csr = tlv(
        0x30,
        &[info, tlv(0x30, &algorithm), tlv(3, &[0; 1025])].concat(),
    );
    assert_eq!(
        prove_possession(&csr),
        Err(CsrError::Key(SpkiError::RsaSize { bits: 8192 }))
    );
}

#[test]
fn hostile_content_neither_fails_a_request_nor_is_kept() {
    let openssl = OpenSsl::new();
    openssl.key("leaf", "ec:P-256");
    let long = "x".repeat(200);
    openssl.write(
        "hostile.cnf",
        format!(
            "[req]\ndistinguished_name=dn\n[dn]\n[ext]\n\
             basicConstraints=critical,CA:TRUE,pathlen:9\n\
             keyUsage=critical,keyCertSign,cRLSign\n\
             extendedKeyUsage=codeSigning\n\
             subjectAltName=URI:spiffe://other.org/admin,URI:spiffe://example.org/citadel/ca,\
             DNS:*.example.org,DNS:{long},email:root@example.org,IP:127.0.0.1\n\
             2.5.29.15=critical,DER:03:02:07:80\n\
             2.5.29.17=DER:ff:ff:ff\n\
             1.2.3.4=critical,DER:00\n"
        ),
    );
    openssl.run(
        "req -new -key leaf.key -subj /O=Evil/CN=spiffe:admin -config hostile.cnf \
         -reqexts ext -out leaf.csr",
    );
    let proven = prove_possession(&openssl.der("leaf.csr")).unwrap();
    assert_eq!(proven.spki_der(), openssl.spki("leaf"));
}

#[test]
fn attributes_that_no_parser_understands_are_skipped() {
    let key = rcgen::KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    // Subject and attributes with content that is not even DER.
    let junk = [0xff_u8; 40];
    let fields = [
        tlv(2, &[0]),
        tlv(0x30, &junk),
        spki.clone(),
        tlv(0xa0, &junk),
    ]
    .concat();
    let info = tlv(0x30, &fields);
    let signature = rcgen::SigningKey::sign(&key, &info).unwrap();
    let algorithm = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let bits = [&[0][..], &signature].concat();
    let csr = tlv(0x30, &[info, tlv(0x30, &algorithm), tlv(3, &bits)].concat());
    assert_eq!(prove_possession(&csr).unwrap().spki_der(), spki);
}

#[test]
fn a_request_without_proof_of_possession_is_refused() {
    let key = WorkloadKey::generate().unwrap();
    let other = WorkloadKey::generate().unwrap();
    let csr = key.csr().unwrap();
    // Somebody else's public key under one's own signature.
    let stolen = patch(&csr, &key.spki_der()[27..], &other.spki_der()[27..]);
    assert_eq!(
        prove_possession(&stolen),
        Err(CsrError::Proof(KeyType::P256))
    );
    // A point that is not on the curve.
    let mut off_curve = key.spki_der()[27..].to_vec();
    off_curve[40] ^= 1;
    let off_curve = patch(&csr, &key.spki_der()[27..], &off_curve);
    assert_eq!(
        prove_possession(&off_curve),
        Err(CsrError::Proof(KeyType::P256))
    );
    // Any changed byte of what is signed, or of the signature.
    for at in [8, 30, csr.len() - 1] {
        let mut changed = csr.clone();
        changed[at] ^= 0x55;
        assert!(prove_possession(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn the_signature_algorithm_must_be_one_of_the_keys_kind() {
    let key = WorkloadKey::generate().unwrap();
    let ecdsa_sha256 = [
        0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
    ];
    let mut sha1 = ecdsa_sha256;
    sha1[10] = 0x01;
    sha1[11] = 0x01;
    let csr = patch(&key.csr().unwrap(), &ecdsa_sha256, &sha1);
    assert_eq!(
        prove_possession(&csr),
        Err(CsrError::Algorithm(KeyType::P256))
    );
    let openssl = OpenSsl::new();
    let pss = request(&openssl, "rsa:2048", "-sigopt rsa_padding_mode:pss");
    // An RSA key that signs with PSS is still proven, where the provider verifies that.
    match prove_possession(&pss) {
        Ok(proven) => assert_eq!(proven.spki_der(), openssl.spki("leaf")),
        Err(error) => assert_eq!(error, CsrError::Algorithm(KeyType::Rsa { bits: 2048 })),
    }
}

#[test]
fn other_encodings_of_a_key_are_refused() {
    let openssl = OpenSsl::new();
    openssl.key("leaf", "ec:P-256");
    openssl.run("ec -in leaf.key -conv_form compressed -out compressed.key");
    openssl.run("req -new -key compressed.key -subj / -out compressed.csr");
    assert!(matches!(
        prove_possession(&openssl.der("compressed.csr")),
        Err(CsrError::Key(SpkiError::Encoding(_)))
    ));
    openssl.run("ecparam -name prime256v1 -param_enc explicit -genkey -noout -out explicit.key");
    openssl.run("req -new -key explicit.key -subj / -out explicit.csr");
    assert!(matches!(
        prove_possession(&openssl.der("explicit.csr")),
        Err(CsrError::Key(SpkiError::Unsupported(_)))
    ));
}

#[test]
fn size_and_shape() {
    let key = WorkloadKey::generate().unwrap();
    let csr = key.csr().unwrap();
    let trailing = [csr.as_slice(), &[0]].concat();
    assert_eq!(prove_possession(&trailing), Err(CsrError::TrailingBytes));
    for size in [16 * 1024 + 1, 1 << 20] {
        assert_eq!(
            prove_possession(&vec![0x30; size]),
            Err(CsrError::TooLarge {
                size,
                max: 16 * 1024
            })
        );
    }
    assert!(matches!(prove_possession(&[]), Err(CsrError::Malformed(_))));
    assert!(matches!(
        prove_possession(&csr[..csr.len() - 1]),
        Err(CsrError::Malformed(_))
    ));
    // A BER length, which DER does not have.
    let ber = [&[0x30, 0x83, 0x00], &csr[2..]].concat();
    assert!(matches!(
        prove_possession(&ber),
        Err(CsrError::Malformed(_))
    ));
}

#[test]
fn pem_holds_exactly_one_request() {
    let key = WorkloadKey::generate().unwrap();
    let csr = key.csr().unwrap();
    let pem = citadel_identity::pem::encode("CERTIFICATE REQUEST", &csr);
    assert_eq!(pem_to_der(pem.as_bytes()).unwrap(), csr);
    let twice = format!("{}{}", *pem, *pem);
    assert_eq!(pem_to_der(twice.as_bytes()), Err(CsrError::Blocks(2)));
    let beside = citadel_identity::pem::encode("CERTIFICATE", &csr);
    let both = format!("{}{}", *beside, *pem);
    assert_eq!(pem_to_der(both.as_bytes()), Err(CsrError::Blocks(2)));
    assert_eq!(
        pem_to_der(beside.as_bytes()),
        Err(CsrError::Label("CERTIFICATE".into()))
    );
    assert_eq!(pem_to_der(b"no PEM at all"), Err(CsrError::Blocks(0)));
    assert!(matches!(pem_to_der(&csr), Err(CsrError::Pem(_))));
    let size = 1 << 20;
    let max = citadel_identity::limits::CSR_PEM_BYTES;
    assert_eq!(
        pem_to_der(&vec![b'x'; size]),
        Err(CsrError::TooLarge { size, max })
    );
}
