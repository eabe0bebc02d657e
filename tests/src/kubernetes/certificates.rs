//! The API server's serving certificate.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::dir::TestDir;
use crate::secrets;

/// Makes `serving.crt`, `serving.key`, and returns the PEM that verifies them.
pub(super) fn make(dir: &TestDir) -> String {
    let root_key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "API server root of this test");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).expect("a root").pem();

    let key = KeyPair::generate().expect("a key");
    let names = [
        "127.0.0.1",
        "10.96.0.1",
        "localhost",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned);
    let params = CertificateParams::new(names).expect("names");
    let certificate = params
        .signed_by(&key, &Issuer::new(root, root_key))
        .expect("a certificate");
    secrets::register_key("API server TLS key", key.serialized_der());
    dir.write("serving.crt", certificate.pem());
    dir.write("serving.key", key.serialize_pem());
    root_pem
}
