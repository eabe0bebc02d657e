//! The certificates of an API server: its own, and its clients'.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::dir::TestDir;
use crate::secrets;

/// The root of one cluster.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What verifies its certificates, PEM.
    pub(super) root_pem: String,
}

impl Authority {
    /// Makes the root, and `root.crt`, `serving.crt` and `serving.key` in `dir`.
    pub(super) fn make(dir: &TestDir) -> Self {
        let root_key = KeyPair::generate().expect("a key");
        let mut root = CertificateParams::default();
        root.distinguished_name
            .push(DnType::CommonName, "API server root of this test");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&root_key).expect("a root").pem();
        let issuer = Issuer::new(root, root_key);
        let made = Self { issuer, root_pem };
        let names = [
            "127.0.0.1",
            "10.96.0.1",
            "localhost",
            "kubernetes.default.svc",
        ]
        .map(str::to_owned);
        let params = CertificateParams::new(names).expect("names");
        let (certificate, key) = made.sign(&params, "API server TLS key");
        dir.write("root.crt", &made.root_pem);
        dir.write("serving.crt", certificate);
        dir.write("serving.key", key);
        made
    }

    /// A server's certificate and key for an address, PEM.
    pub(super) fn server(&self, address: &str) -> (String, String) {
        let params = CertificateParams::new([address.to_owned()]).expect("names");
        self.sign(&params, &format!("TLS key of {address}"))
    }

    /// A client's certificate and key, PEM: the API server reads its name and its group.
    pub(super) fn client(&self, name: &str, group: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        self.sign(&params, &format!("TLS key of {name}"))
    }

    fn sign(&self, params: &CertificateParams, label: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params
            .clone()
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        secrets::register_key(label, key.serialized_der());
        (certificate.pem(), key.serialize_pem())
    }
}
