#![allow(clippy::unwrap_used)]
use std::process::Command;

use citadel_identity::key::WorkloadKey;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::testing::Pki;

fn material() -> Material {
    let (pki, other) = (Pki::new(), Pki::new());
    let key = WorkloadKey::generate().unwrap();
    let now = OffsetDateTime::now_utc();
    let (leaf, _) = pki.leaf(
        "spiffe://example.org/db",
        &key.csr().unwrap(),
        now,
        now + Duration::HOUR,
    );
    Material {
        chain: vec![leaf.into()],
        key: Zeroizing::new(key.pkcs8_der().to_vec()),
        authorities: vec![pki.root(), other.root()],
    }
}

#[test]
fn pem_files_hold_what_they_should() {
    let material = material();
    let files = pem(&material);
    let blocks = |name: &str| {
        let file = files.iter().find(|file| file.name == name).unwrap();
        let blocks = pem::decode(&file.bytes, 65_536).unwrap();
        blocks.into_iter().map(|block| block.der.to_vec())
    };
    assert!(blocks(CERTIFICATE).eq(material.chain.iter().map(|der| der.to_vec())));
    assert!(blocks(BUNDLE).eq(material.authorities.iter().map(|der| der.to_vec())));
    assert!(blocks(KEY).eq([material.key.to_vec()]));
    let one = combined(&material);
    assert!(one.secret && one.bytes.starts_with(&files[0].bytes));
    assert!(one.bytes.ends_with(&files[1].bytes));
    let secret: Vec<_> = files.iter().filter(|file| file.secret).collect();
    assert!(matches!(secret.as_slice(), [key] if key.name == KEY));
}

/// What another implementation reads: key, chain and authorities, with modern ciphers alone.
#[test]
fn openssl_reads_the_pkcs12_file() {
    let material = material();
    let content = pkcs12(&material, "changeit").unwrap();
    assert!(content.secret);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PKCS12);
    std::fs::write(&path, &*content.bytes).unwrap();
    let read = |options: &[&str]| {
        let output = Command::new("openssl")
            .args(["pkcs12", "-info", "-in"])
            .arg(&path)
            .args(options)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text, said)
    };
    let (good, text, said) = read(&["-nodes", "-passin", "pass:changeit"]);
    assert!(good, "{said}");
    let blocks = pem::decode(text.as_bytes(), 65_536).unwrap();
    let ders: Vec<&[u8]> = blocks.iter().map(|block| &block.der[..]).collect();
    let all = material.chain.iter().chain(&material.authorities);
    assert!(all.clone().all(|der| ders.contains(&der.as_ref())));
    let keys = blocks
        .iter()
        .filter(|block| block.label == pem::PRIVATE_KEY);
    assert_eq!(keys.count(), 1);
    assert_eq!(ders.len(), all.count() + 1);
    assert!(
        said.contains("AES-256-CBC") && said.contains("hmacWithSHA256"),
        "{said}"
    );
    let (good, ..) = read(&["-nodes", "-passin", "pass:wrong"]);
    assert!(!good, "any password opens it");
}
