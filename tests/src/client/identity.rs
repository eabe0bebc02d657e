//! An SVID with its key.

use citadel_proto::v1::X509Svid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{Certificate, to_pem};
use crate::dir::TestDir;
use crate::pki::csr::Csr;

/// A certificate chain and the key of its leaf, as a client presents them.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Leaf first, in DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 in PEM.
    pub key_pem: String,
}

impl Identity {
    /// What the CA answered to this request.
    pub fn new(svid: &X509Svid, csr: &Csr) -> Self {
        Self {
            chain: svid.certificate_chain.clone(),
            key_pem: csr.key_pem.clone(),
        }
    }

    /// What Istio's service answered: the last element holds the roots.
    pub fn of_istio(cert_chain: &[String], csr: &Csr) -> Self {
        let (_, chain) = cert_chain.split_last().expect("at least the roots");
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        Self {
            chain: chain.iter().map(|pem| der(pem).to_vec()).collect(),
            key_pem: csr.key_pem.clone(),
        }
    }

    /// The leaf, taken apart.
    pub fn leaf(&self) -> Certificate<'_> {
        Certificate::of_der(&self.chain[0])
    }

    /// Writes leaf and intermediates, the key, into files of `dir`; their paths.
    pub fn write(&self, dir: &TestDir, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let chain: String = self.chain.iter().map(|der| to_pem(der)).collect();
        (
            dir.write(format!("{name}.pem"), chain),
            dir.write(format!("{name}_key.pem"), &self.key_pem),
        )
    }

    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect()
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("a key in PEM")
    }
}
