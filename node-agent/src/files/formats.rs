//! What is in the files, and their names: those of spiffe-helper.

use citadel_identity::pem;
use p12_keystore::{
    Certificate, EncryptionAlgorithm, KeyStore, KeyStoreEntry, MacAlgorithm, PrivateKey,
    PrivateKeyChain,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::Material;

/// The chain, leaf first, PEM.
pub const CERTIFICATE: &str = "svid.pem";
/// The private key, PEM of PKCS#8.
pub const KEY: &str = "svid_key.pem";
/// The trust bundle, PEM.
pub const BUNDLE: &str = "svid_bundle.pem";
/// Chain and private key in one PEM file, as `HAProxy` wants them.
pub const COMBINED: &str = "svid_combined.pem";
/// Key, chain and trust bundle, PKCS#12 (RFC 7292).
pub const PKCS12: &str = "svid.p12";

/// The alias of the key in a PKCS#12 file; those of the authorities are `bundle-1` and so on.
pub const ALIAS: &str = "svid";

/// PBKDF2 rounds of a PKCS#12 file. The key lives an hour, and whoever can read the file can
/// read the password's as a rule: this is what other programs write, not more.
const ROUNDS: u32 = 10_000;

/// A P-256 key takes 250 bytes as PEM, the largest RSA key 3,300.
const MAX_KEY_PEM: usize = 4_096;

/// The longest password, in bytes: it is stretched with each write.
pub const MAX_PASSWORD: usize = 1_024;

/// A file that is to be written.
pub struct Content {
    /// Its name.
    pub name: &'static str,
    /// Whether it holds the private key.
    pub secret: bool,
    /// Its bytes.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// Why there is no PKCS#12 file.
#[derive(Debug, thiserror::Error)]
#[error("the PKCS#12 file can't be made: {0}")]
pub struct Pkcs12Error(#[from] p12_keystore::error::Error);

/// The three PEM files.
pub fn pem(material: &Material) -> Vec<Content> {
    let key = pem::encode(pem::PRIVATE_KEY, &material.key);
    vec![
        Content {
            name: CERTIFICATE,
            secret: false,
            bytes: certificates(&material.chain),
        },
        Content {
            name: KEY,
            secret: true,
            bytes: Zeroizing::new(key.as_bytes().to_vec()),
        },
        Content {
            name: BUNDLE,
            secret: false,
            bytes: certificates(&material.authorities),
        },
    ]
}

/// Chain and key in one file.
pub fn combined(material: &Material) -> Content {
    let key = pem::encode(pem::PRIVATE_KEY, &material.key);
    let mut bytes = certificates(&material.chain);
    bytes.extend_from_slice(key.as_bytes());
    Content {
        name: COMBINED,
        secret: true,
        bytes,
    }
}

/// Certificates one after another; with room for a key, so that appending one moves nothing.
fn certificates(ders: &[CertificateDer<'_>]) -> Zeroizing<Vec<u8>> {
    let size = ders.iter().map(|der| 2 * der.len()).sum::<usize>();
    let mut text = Vec::with_capacity(size + MAX_KEY_PEM);
    for der in ders {
        text.extend_from_slice(pem::encode(pem::CERTIFICATE, der).as_bytes());
    }
    Zeroizing::new(text)
}

/// Key, chain and authorities in one file that Java reads as key store and as trust store
/// alike: AES-256 with PBKDF2, and an HMAC over the whole, both on SHA-256.
///
/// # Errors
/// [`Pkcs12Error`], for what is no certificate or key.
pub fn pkcs12(material: &Material, password: &str) -> Result<Content, Pkcs12Error> {
    let mut store = KeyStore::new();
    let chain = material
        .chain
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKey::from_der(&material.key)?;
    let chain = PrivateKeyChain::new(ALIAS, key, chain);
    store.add_entry(ALIAS, KeyStoreEntry::PrivateKeyChain(chain));
    for (number, der) in (1..).zip(&material.authorities) {
        let authority = Certificate::from_der(der)?;
        store.add_entry(
            &format!("bundle-{number}"),
            KeyStoreEntry::Certificate(authority),
        );
    }
    let bytes = store
        .writer(password)
        .encryption_algorithm(EncryptionAlgorithm::PbeWithHmacSha256AndAes256)
        .encryption_iterations(ROUNDS)
        .mac_algorithm(MacAlgorithm::HmacSha256)
        .mac_iterations(ROUNDS)
        .write()?;
    Ok(Content {
        name: PKCS12,
        secret: true,
        bytes: Zeroizing::new(bytes),
    })
}

#[cfg(test)]
#[path = "formats_tests.rs"]
mod tests;
