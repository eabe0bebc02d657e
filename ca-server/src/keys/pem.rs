//! Certificates and keys from PEM files.

use std::path::Path;

use citadel_identity::{key::CaKey, limits, pem};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CaCertificate, KeyError, Place};

/// The certificates of a file; at least one, and nothing else in it.
pub(super) fn certificates(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let bad = |problem: String| KeyError::Certificates {
        path: path.to_owned(),
        problem,
    };
    let blocks = pem::decode(text, limits::BUNDLE_BYTES).map_err(|e| bad(e.to_string()))?;
    if let Some(other) = blocks.iter().find(|block| block.label != pem::CERTIFICATE) {
        return Err(bad(format!(
            "holds a PEM block {:?} instead of a certificate",
            other.label
        )));
    }
    if blocks.is_empty() {
        return Err(bad("holds no certificate".to_owned()));
    }
    Ok(blocks
        .into_iter()
        .map(|block| CertificateDer::from(block.der.to_vec()))
        .collect())
}

/// The one private key of a file.
pub(super) fn key(path: &Path, text: &[u8]) -> Result<CaKey, KeyError> {
    let text_only = String::from_utf8_lossy(text);
    if text_only.contains("BEGIN ENCRYPTED PRIVATE KEY") || text_only.contains("4,ENCRYPTED") {
        return Err(KeyError::Encrypted(path.to_owned()));
    }
    CaKey::from_pem(text).map_err(|source| KeyError::Key {
        path: path.to_owned(),
        source,
    })
}

/// What an operator wants to know of a CA certificate.
pub(super) fn describe(
    certificate: &CertificateDer<'_>,
    place: Place,
) -> Result<CaCertificate, KeyError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| KeyError::Make(format!("the {} does not parse: {error}", place.name())))?;
    Ok(CaCertificate {
        place,
        subject: parsed.subject().to_string(),
        serial: hex::encode(parsed.raw_serial()),
        not_after: parsed.validity().not_after.to_datetime(),
    })
}
