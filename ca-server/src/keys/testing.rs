//! CAs that somebody else made, for tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, process::Command, sync::OnceLock};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::{CaCertificate, CaKeys, Place};
use crate::config::Config;

/// The time of all tests: a whole second, since certificates count those.
pub(super) fn now() -> OffsetDateTime {
    static NOW: OnceLock<OffsetDateTime> = OnceLock::new();
    *NOW.get_or_init(|| OffsetDateTime::now_utc().replace_nanosecond(0).unwrap())
}

/// A configuration for `example.org` with these directories.
pub(super) fn config(data_dir: &Path, cacerts: Option<&Path>) -> Config {
    let data_dir = data_dir.display();
    let cacerts = cacerts.map_or_else(|| "null".to_owned(), |path| path.display().to_string());
    let text = format!(
        "trust_domain: example.org\ndata_dir: {data_dir}\nca: {{cacerts_dir: {cacerts}}}\n"
    );
    Config::from_yaml("test", &text).unwrap()
}

pub(super) struct Authority {
    pub(super) params: CertificateParams,
    pub(super) key: KeyPair,
    pub(super) pem: String,
}

/// Kinds of keys, as `openssl genpkey` has them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    P256,
    P384,
    Rsa(u32),
}

pub(super) fn key(kind: Kind) -> KeyPair {
    match kind {
        Kind::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        Kind::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        Kind::Rsa(bits) => KeyPair::from_pem(&openssl_rsa(bits)).unwrap(),
    }
}

pub(super) fn openssl_rsa(bits: u32) -> String {
    let bits = format!("rsa_keygen_bits:{bits}");
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits])
}

/// The root that the chain leads to.
pub(super) fn root_of(keys: &CaKeys) -> &CaCertificate {
    let mut all = keys.certificates().iter();
    all.find(|one| one.place == Place::Root).expect("a root")
}

/// What `openssl` prints.
pub(super) fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(args)
        .output()
        .expect("openssl is needed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A CA certificate, changed by `edit`, signed by `parent` or by itself.
pub(super) fn authority(
    name: &str,
    kind: Kind,
    parent: Option<&Authority>,
    edit: impl FnOnce(&mut CertificateParams),
) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now() - Duration::days(1);
    params.not_after = now() + Duration::days(90);
    params.use_authority_key_identifier_extension = parent.is_some();
    edit(&mut params);
    let key = key(kind);
    let certificate = match parent {
        Some(parent) => params
            .signed_by(&key, &Issuer::from_params(&parent.params, &parent.key))
            .unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Authority {
        pem: certificate.pem(),
        params,
        key,
    }
}

/// Istio's four files in a directory.
pub(super) struct Cacerts {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) chain: String,
    pub(super) root: String,
}

impl Cacerts {
    /// Of an issuing CA under a root.
    pub(super) fn of(issuing: &Authority, root: &Authority) -> Self {
        Self {
            certificate: issuing.pem.clone(),
            key: issuing.key.serialize_pem(),
            chain: format!("{}{}", issuing.pem, root.pem),
            root: root.pem.clone(),
        }
    }

    pub(super) fn write(&self, directory: &Path) {
        for (name, content) in [
            ("ca-cert.pem", &self.certificate),
            ("ca-key.pem", &self.key),
            ("cert-chain.pem", &self.chain),
            ("root-cert.pem", &self.root),
        ] {
            std::fs::write(directory.join(name), content).unwrap();
        }
    }
}
