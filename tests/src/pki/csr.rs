//! Certificate signing requests.

use rcgen::{KeyPair, PublicKeyData, SigningKey};

use super::der::{self, tag};
use super::openssl;
use crate::secrets;

/// `extensionRequest` of PKCS#9.
const EXTENSION_REQUEST: &[u32] = &[1, 2, 840, 113_549, 1, 9, 14];
const ECDSA_WITH_SHA256: &[u32] = &[1, 2, 840, 10045, 4, 3, 2];
const COMMON_NAME: &[u32] = &[2, 5, 4, 3];

/// A request, and the key that it is for.
#[derive(Clone, Debug)]
pub struct Csr {
    /// The request.
    pub der: Vec<u8>,
    /// The private key, PKCS#8 PEM.
    pub key_pem: String,
}

impl Csr {
    /// The request in PEM.
    pub fn pem(&self) -> String {
        pem(&self.der)
    }
}

/// One PEM block with a request.
pub fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = body
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    )
}

/// A plain request for a new P-256 key: no subject, no extensions.
pub fn plain() -> Csr {
    Builder::default().build()
}

/// A plain request for this key (PKCS#8 PEM of any kind that openssl knows).
pub fn for_key(key_pem: &str) -> Csr {
    secrets::register_key_pem("workload key", key_pem);
    let file = tempfile::NamedTempFile::new().expect("a file for the key");
    std::fs::write(file.path(), key_pem).expect("a file for the key");
    let path = file.path().to_str().expect("a plain path");
    let der = openssl::run(
        &["req", "-new", "-key", path, "-subj", "/", "-outform", "DER"],
        b"",
    );
    Csr {
        der,
        key_pem: key_pem.into(),
    }
}

/// A request for a new P-256 key with whatever one wants in it.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    common_name: Option<String>,
    /// The outer list: attributes of kind `extensionRequest`, each with a list
    /// of extensions.
    extensions: Vec<Vec<u8>>,
    proof_by_another: bool,
}

impl Builder {
    /// Sets the subject's CN.
    #[must_use]
    pub fn common_name(mut self, name: &str) -> Self {
        self.common_name = Some(name.into());
        self
    }

    /// Adds an extension, as `der::extension` makes it; also one twice.
    #[must_use]
    pub fn extension(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Signs with another key than the one that is asked for.
    #[must_use]
    pub fn proof_by_another(mut self) -> Self {
        self.proof_by_another = true;
        self
    }

    /// Makes the key and the request.
    pub fn build(&self) -> Csr {
        let key = KeyPair::generate().expect("a key");
        let other = KeyPair::generate().expect("a key");
        secrets::register_key("workload key", key.serialized_der());
        let info = der::sequence(&[
            der::element(tag::INTEGER, &[0]),
            self.subject(),
            key.subject_public_key_info(),
            der::element(tag::CONTEXT_0, &self.attributes()),
        ]);
        let signer = if self.proof_by_another { &other } else { &key };
        let signature = signer.sign(&info).expect("a signature");
        let algorithm = der::sequence(&[der::oid(ECDSA_WITH_SHA256)]);
        let der = der::sequence(&[info, algorithm, der::bit_string(&signature)]);
        Csr {
            der,
            key_pem: key.serialize_pem(),
        }
    }

    fn subject(&self) -> Vec<u8> {
        let Some(name) = &self.common_name else {
            return der::sequence(&[]);
        };
        let pair = der::sequence(&[
            der::oid(COMMON_NAME),
            der::element(tag::UTF8_STRING, name.as_bytes()),
        ]);
        der::sequence(&[der::element(tag::SET, &pair)])
    }

    fn attributes(&self) -> Vec<u8> {
        if self.extensions.is_empty() {
            return Vec::new();
        }
        let value = der::element(tag::SET, &der::sequence(&self.extensions));
        der::sequence(&[der::oid(EXTENSION_REQUEST), value])
    }
}
