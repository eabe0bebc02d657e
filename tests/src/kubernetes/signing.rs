//! Keys that sign service-account tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};

use crate::pki::openssl;
use crate::secrets;

/// What a key is, and so which JWT algorithm it signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// RSA of 2048 bits: RS256, what clusters use by default.
    Rsa2048,
    /// ES256.
    P256,
    /// ES384.
    P384,
    /// ES512, which our programs cannot check by themselves.
    P521,
}

/// A signing key, made at run time.
#[derive(Clone)]
pub struct SigningKey {
    kind: KeyType,
    private_pem: String,
    public_pem: String,
    kid: String,
}

/// Its name alone.
impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

impl SigningKey {
    /// Makes one.
    pub fn generate(kind: KeyType) -> Self {
        let private_pem = match kind {
            KeyType::Rsa2048 => openssl::rsa_key(2048),
            KeyType::P256 => openssl::ec_key("P-256"),
            KeyType::P384 => openssl::ec_key("P-384"),
            KeyType::P521 => openssl::ec_key("P-521"),
        };
        secrets::register_key_pem("token signing key", &private_pem);
        let public_der = openssl::run(
            &["pkey", "-pubout", "-outform", "DER"],
            private_pem.as_bytes(),
        );
        let public_pem = openssl::run_text(&["pkey", "-pubout"], private_pem.as_bytes());
        // The API server names a key by the hash of its public half.
        let hash = openssl::run(&["dgst", "-sha256", "-binary"], &public_der);
        Self {
            kind,
            private_pem,
            public_pem,
            kid: URL_SAFE_NO_PAD.encode(hash),
        }
    }

    /// The name under which the API server publishes this key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The JWT algorithm's name.
    pub fn algorithm(&self) -> &'static str {
        match self.kind {
            KeyType::Rsa2048 => "RS256",
            KeyType::P256 => "ES256",
            KeyType::P384 => "ES384",
            KeyType::P521 => "ES512",
        }
    }

    /// PKCS#8 in PEM.
    pub fn private_pem(&self) -> &str {
        &self.private_pem
    }

    /// SPKI in PEM: the "secret" of the classic HS256 confusion.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// A JWS signature of `message`, in base64url.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        let der = |args: &[&str]| openssl::run(args, self.private_pem.as_bytes());
        let pkcs1 = || der(&["pkey", "-traditional", "-outform", "DER"]);
        let pkcs8 = || der(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"]);
        let (key, algorithm) = match self.kind {
            KeyType::Rsa2048 => (EncodingKey::from_rsa_der(&pkcs1()), Algorithm::RS256),
            KeyType::P256 => (EncodingKey::from_ec_der(&pkcs8()), Algorithm::ES256),
            KeyType::P384 => (EncodingKey::from_ec_der(&pkcs8()), Algorithm::ES384),
            KeyType::P521 => panic!("only the API server itself signs ES512"),
        };
        jsonwebtoken::crypto::sign(message, &key, algorithm).expect("a signature")
    }
}
