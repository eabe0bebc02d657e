//! Whether a certificate is what it should be, and no more.

use std::path::Path;

use citadel_tests::client::{Grants, Identity};
use citadel_tests::dir::TestDir;
use citadel_tests::pki::openssl;

/// Panics unless the leaf is an X.509-SVID of this ID for the request's key,
/// and grants nothing else.
pub(crate) fn check_leaf(identity: &Identity, spiffe_id: &str, key_pem: &str) {
    let leaf = identity.leaf();
    assert_eq!(leaf.grants(), Grants::of_leaf(spiffe_id));
    assert_eq!(
        leaf.spki(),
        public_key(key_pem),
        "the key is not the request's"
    );
    assert!(leaf.not_before() < leaf.not_after());
    let serial = hex::decode(leaf.serial()).expect("hex");
    assert!(
        serial.len() <= 20 && serial[0] < 0x80,
        "serial {}",
        leaf.serial()
    );
}

/// The public half of a private key, as `SubjectPublicKeyInfo` in DER.
fn public_key(key_pem: &str) -> Vec<u8> {
    openssl::run(&["pkey", "-pubout", "-outform", "DER"], key_pem.as_bytes())
}

/// `openssl verify -x509_strict` of a leaf with what was sent along with it,
/// for both ends of TLS. What openssl objects to, if it does.
pub(crate) fn verify_with_openssl(
    dir: &TestDir,
    identity: &Identity,
    roots: &Path,
) -> Result<(), String> {
    let (svid, _) = identity.write(dir, "svid");
    let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let (svid, roots) = (path(&svid), path(roots));
    for purpose in ["sslserver", "sslclient"] {
        let args = [
            "verify",
            "-x509_strict",
            "-no-CApath",
            "-no-CAstore",
            "-purpose",
            purpose,
            "-CAfile",
            &roots,
            "-untrusted",
            &svid,
            &svid,
        ];
        let (accepted, output, errors) = openssl::attempt(&args, b"");
        if !accepted {
            return Err(format!("{}{errors}", String::from_utf8_lossy(&output)));
        }
    }
    Ok(())
}
