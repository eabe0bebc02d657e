//! Certificates as people and programs want to read them, and the two encodings
//! that they come in. Only reads: whether one may be trusted is for
//! `citadel_identity::verify` to say.

use citadel_identity::pem;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::output;

/// More certificates than any chain or bundle has; input beyond it is refused.
const MAX_CERTIFICATES: usize = 256;

/// Why bytes are not certificates.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("there is no certificate in it")]
    None,
    #[error("certificate {0} can't be parsed")]
    Malformed(usize),
    #[error("a PEM block is damaged: {0}")]
    Pem(String),
    #[error("it has more than {MAX_CERTIFICATES} certificates")]
    TooMany,
}

/// What one certificate says of itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// Lowercase hex, without leading zeros of the encoding.
    pub(crate) serial: String,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) not_before: OffsetDateTime,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) not_after: OffsetDateTime,
    /// `EC P-256`, `RSA 2048`, …
    pub(crate) key_type: String,
    /// SHA-256 of the DER, lowercase hex.
    pub(crate) sha256: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) uris: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) dns_names: Vec<String>,
}

impl Facts {
    /// Reads one certificate. `place` counts from 1 and names it in an error.
    pub(crate) fn of(der: &[u8], place: usize) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed(place))?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed(place));
        }
        let mut uris = Vec::new();
        let mut dns_names = Vec::new();
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                    _ => {}
                }
            }
        }
        let serial = hex::encode(certificate.raw_serial());
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: match serial.strip_prefix("00") {
                Some(positive) if !positive.is_empty() => positive.to_owned(),
                _ => serial,
            },
            not_before: certificate.validity().not_before.to_datetime(),
            not_after: certificate.validity().not_after.to_datetime(),
            key_type: key_type(&certificate),
            sha256: hex::encode(citadel_identity::crypto::sha256(der)),
            uris,
            dns_names,
        })
    }
}

fn key_type(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.public_key();
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = key
                .algorithm
                .parameters
                .as_ref()
                .and_then(|parameters| parameters.as_oid().ok())
                .map(|oid| oid.to_id_string());
            match curve.as_deref() {
                Some("1.2.840.10045.3.1.7") => "EC P-256".to_owned(),
                Some("1.3.132.0.34") => "EC P-384".to_owned(),
                Some("1.3.132.0.35") => "EC P-521".to_owned(),
                Some(other) => format!("EC {other}"),
                None => "EC".to_owned(),
            }
        }
        _ => match key.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => "Ed25519".to_owned(),
            other => other.to_owned(),
        },
    }
}

/// Splits the concatenated DER certificates that the Workload API sends.
pub(crate) fn split_der(mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes)
            .map_err(|_| CertificateError::Malformed(certificates.len() + 1))?;
        let (one, _) = bytes.split_at(bytes.len() - rest.len());
        certificates.push(one.to_vec());
        if certificates.len() > MAX_CERTIFICATES {
            return Err(CertificateError::TooMany);
        }
        bytes = rest;
    }
    if certificates.is_empty() {
        Err(CertificateError::None)
    } else {
        Ok(certificates)
    }
}

/// Reads certificates from a file's bytes: PEM, or DER one after another.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    if !is_pem(bytes) {
        return split_der(bytes);
    }
    let mut certificates = Vec::new();
    for block in CertificateDer::pem_slice_iter(bytes) {
        let block = block.map_err(|error| CertificateError::Pem(error.to_string()))?;
        certificates.push(block.to_vec());
        if certificates.len() > MAX_CERTIFICATES {
            return Err(CertificateError::TooMany);
        }
    }
    if certificates.is_empty() {
        Err(CertificateError::None)
    } else {
        Ok(certificates)
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN ";
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN)
}

/// Certificates as PEM, one block after another.
pub(crate) fn to_pem(certificates: &[Vec<u8>]) -> String {
    certificates
        .iter()
        .map(|der| pem::encode(pem::CERTIFICATE, der).to_string())
        .collect()
}

/// For serde: an instant as RFC 3339.
pub(crate) fn rfc3339<S: Serializer>(at: &OffsetDateTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&output::instant(*at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn facts_are_read_from_a_certificate() {
        let ca = TestCa::new();
        let svid = ca.svid("spiffe://example.org/user/alice");
        let facts = Facts::of(&svid.chain[0], 1).unwrap();
        assert_eq!(facts.uris, ["spiffe://example.org/user/alice"]);
        assert_eq!(facts.key_type, "EC P-256");
        assert_eq!(facts.sha256.len(), 64);
        assert!(facts.not_before < facts.not_after);
        assert!(!facts.serial.starts_with("00"));
    }

    #[test]
    fn pem_and_concatenated_der_give_the_same_certificates() {
        let ca = TestCa::new();
        let svid = ca.svid("spiffe://example.org/a");
        let both = vec![svid.chain[0].clone(), ca.root.clone()];
        assert_eq!(read(to_pem(&both).as_bytes()).unwrap(), both);
        assert_eq!(read(&both.concat()).unwrap(), both);
    }

    #[test]
    fn damaged_input_is_named() {
        let ca = TestCa::new();
        let svid = ca.svid("spiffe://example.org/a");
        assert_eq!(read(b"").unwrap_err(), CertificateError::None);
        assert_eq!(read(b"hello").unwrap_err(), CertificateError::Malformed(1));
        let mut two = [svid.chain[0].clone(), ca.root.clone()].concat();
        two.pop();
        assert_eq!(read(&two).unwrap_err(), CertificateError::Malformed(2));
        let key = pem::encode(pem::PRIVATE_KEY, b"no certificate here");
        assert_eq!(read(key.as_bytes()).unwrap_err(), CertificateError::None);
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_reading_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = read(&bytes);
            let _ = Facts::of(&bytes, 1);
        }
    }
}
