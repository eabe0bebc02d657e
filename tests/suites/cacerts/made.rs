//! Sets of `cacerts` files, good ones and bad ones.

use citadel_tests::dir::TestDir;
use citadel_tests::pki::openssl;
use citadel_tests::secrets;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// What goes into the files, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) root: String,
    /// What leads from the issuing certificate to the root, both included.
    pub(crate) chain: String,
}

/// A root and an issuing CA below it, to be changed before they are made.
pub(crate) struct Plan {
    pub(crate) root_key: String,
    pub(crate) root: CertificateParams,
    pub(crate) key: String,
    pub(crate) ca: CertificateParams,
}

/// A key that openssl makes: `RSA-2048`, `P-256`, …
pub(crate) fn key(kind: &str) -> String {
    let key = match kind.strip_prefix("RSA-") {
        Some(bits) => openssl::rsa_key(bits.parse().expect("a number")),
        None => openssl::ec_key(kind),
    };
    secrets::register_key_pem("plugged-in CA key", &key);
    key
}

impl Plan {
    /// A good one, with keys of this kind.
    pub(crate) fn new(kind: &str) -> Self {
        Self {
            root_key: key(kind),
            root: ca("root", None),
            key: key(kind),
            ca: ca("issuing", Some(0)),
        }
    }

    /// Makes the certificates.
    pub(crate) fn make(self) -> Set {
        let root_key = pair(&self.root_key);
        let root = self.root.self_signed(&root_key).expect("a root").pem();
        let issuer = Issuer::new(self.root, root_key);
        let key = pair(&self.key);
        let certificate = self
            .ca
            .signed_by(&key, &issuer)
            .expect("a certificate")
            .pem();
        Set {
            chain: format!("{certificate}{root}"),
            certificate,
            key: self.key,
            root,
        }
    }
}

impl Set {
    /// Istio's names.
    pub(crate) const ISTIO: [&'static str; 4] = [
        "ca-cert.pem",
        "ca-key.pem",
        "root-cert.pem",
        "cert-chain.pem",
    ];

    /// Writes the files as Istio names them.
    pub(crate) fn write(&self) -> TestDir {
        let dir = TestDir::new("cacerts");
        self.write_into(&dir);
        dir
    }

    /// Writes them over those of another set.
    pub(crate) fn write_into(&self, dir: &TestDir) {
        let contents = [&self.certificate, &self.key, &self.root, &self.chain];
        for (name, content) in Self::ISTIO.iter().zip(contents) {
            dir.write(name, content);
        }
    }
}

/// A CA's certificate in the making.
pub(crate) fn ca(name: &str, path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} of a test"));
    params.is_ca = IsCa::Ca(match path_length {
        Some(length) => BasicConstraints::Constrained(length),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::HOUR;
    params.not_after = now + time::Duration::days(30);
    params
}

pub(crate) fn pair(pem: &str) -> KeyPair {
    KeyPair::from_pem(pem).expect("a key that rcgen knows")
}
