//! A certificate taken apart, for whoever verifies one: presented chains and the
//! chain of our own issuer. Strict where x509-parser is lenient (frame, duplicates).

use spiffe::{SpiffeId, SpiffeIdError};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{
    ExtendedKeyUsage, GeneralName, KeyUsage, NameConstraints, ParsedExtension,
};
use x509_parser::nom::Parser as _;
use x509_parser::oid_registry::Oid;
use x509_parser::x509::{X509Name, X509Version};

use crate::crypto::{self, SignatureError};
use crate::der;
use crate::limits;
use crate::serial::{Serial, SerialError};
use crate::spki;

/// Why bytes are not a certificate that can be judged.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FactsError {
    /// The certificate is too large.
    #[error("it has {0} bytes; at most {max} are read", max = limits::CERTIFICATE_BYTES)]
    TooLarge(usize),
    /// It is not the DER of RFC 5280.
    #[error("it is not an X.509 certificate in DER: {0}")]
    Malformed(String),
    /// An extension's content is malformed.
    #[error("its extension {0} is malformed")]
    Extension(String),
    /// An extension is there twice.
    #[error("its extension {0} is there twice")]
    Duplicate(String),
    /// The serial number is not one.
    #[error("{0}")]
    Serial(#[from] SerialError),
}

/// What a SPIFFE ID in a certificate lacks.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SpiffeIdFault {
    /// There is no URI SAN.
    #[error("it has no URI SAN, so no SPIFFE ID")]
    None,
    /// There are several URI SANs.
    #[error("it has {0} URI SANs; an SVID has exactly one")]
    Several(usize),
    /// The URI is no SPIFFE ID.
    #[error("its URI {uri:?} is not a SPIFFE ID: {error}")]
    Invalid {
        /// The URI, cut after 256 characters.
        uri: String,
        /// What is wrong with it.
        error: SpiffeIdError,
    },
    /// The ID is too long.
    #[error("its SPIFFE ID has {0} bytes; at most 2048 are supported")]
    TooLong(usize),
}

/// What a CA's name constraints are about (RFC 5280, section 4.2.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constrains {
    Nothing,
    /// Names of certificates below it, URIs not among them.
    OtherNames,
    /// Which path validation here can't judge.
    Uris,
}

/// What counts of one certificate.
pub(crate) struct Facts<'a> {
    pub(crate) subject: &'a [u8],
    pub(crate) issuer: &'a [u8],
    pub(crate) subject_text: String,
    pub(crate) issuer_text: String,
    pub(crate) common_name: Option<String>,
    pub(crate) spki: &'a [u8],
    pub(crate) serial: Serial,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) is_ca: bool,
    pub(crate) path_length: Option<u32>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) key_usage_critical: bool,
    pub(crate) extended_key_usage: Option<(bool, bool)>,
    pub(crate) subject_key_id: Option<&'a [u8]>,
    pub(crate) uris: Vec<&'a str>,
    pub(crate) dns_names: Vec<&'a str>,
    pub(crate) constrains: Constrains,
    /// A critical extension that nobody here processes.
    pub(crate) unknown_critical: Option<String>,
    signed: der::Signed<'a>,
}

/// Of several common names none counts.
fn common_name(subject: &X509Name<'_>) -> Option<String> {
    let mut names = subject.iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => name.as_str().ok().map(ToOwned::to_owned),
        _ => None,
    }
}

impl<'a> Facts<'a> {
    pub(crate) fn parse(certificate: &'a [u8]) -> Result<Self, FactsError> {
        if certificate.len() > limits::CERTIFICATE_BYTES {
            return Err(FactsError::TooLarge(certificate.len()));
        }
        let signed =
            der::signed(certificate).map_err(|error| FactsError::Malformed(error.to_string()))?;
        let (_, parsed) = X509CertificateParser::new()
            .parse(certificate)
            .map_err(|_| FactsError::Malformed("a field is malformed".to_owned()))?;
        if parsed.version() != X509Version::V3 {
            return Err(FactsError::Malformed("it is not of version 3".to_owned()));
        }
        let mut facts = Self {
            subject: within(certificate, parsed.subject().as_raw()),
            issuer: within(certificate, parsed.issuer().as_raw()),
            subject_text: parsed.subject().to_string(),
            issuer_text: parsed.issuer().to_string(),
            common_name: common_name(parsed.subject()),
            spki: parsed.tbs_certificate.subject_pki.raw,
            serial: Serial::from_bytes(parsed.raw_serial())?,
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            is_ca: false,
            path_length: None,
            key_usage: None,
            key_usage_critical: false,
            extended_key_usage: None,
            subject_key_id: None,
            uris: Vec::new(),
            dns_names: Vec::new(),
            constrains: Constrains::Nothing,
            unknown_critical: None,
            signed,
        };
        facts.read_extensions(&parsed)?;
        Ok(facts)
    }

    fn read_extensions(&mut self, certificate: &X509Certificate<'a>) -> Result<(), FactsError> {
        let mut seen: Vec<&Oid<'_>> = Vec::new();
        for extension in certificate.extensions() {
            if seen.contains(&&extension.oid) {
                return Err(FactsError::Duplicate(extension.oid.to_id_string()));
            }
            seen.push(&extension.oid);
            match extension.parsed_extension() {
                ParsedExtension::ParseError { .. } => {
                    return Err(FactsError::Extension(extension.oid.to_id_string()));
                }
                ParsedExtension::BasicConstraints(constraints) => {
                    self.is_ca = constraints.ca;
                    self.path_length = constraints.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => {
                    self.key_usage = Some(*usage);
                    self.key_usage_critical = extension.critical;
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    self.extended_key_usage = Some(server_and_client(usage));
                }
                ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0),
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => self.uris.push(uri),
                            GeneralName::DNSName(name) => self.dns_names.push(name),
                            GeneralName::Invalid(..) => {
                                return Err(FactsError::Extension(extension.oid.to_id_string()));
                            }
                            _ => {}
                        }
                    }
                }
                ParsedExtension::NameConstraints(constraints) => {
                    self.constrains = if constrains_uris(constraints) {
                        Constrains::Uris
                    } else {
                        Constrains::OtherNames
                    };
                }
                ParsedExtension::AuthorityKeyIdentifier(_) => {}
                _ if extension.critical && self.unknown_critical.is_none() => {
                    self.unknown_critical = Some(extension.oid.to_id_string());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The SPIFFE ID, of a leaf or an authority (requirement 7: exactly one URI SAN).
    pub(crate) fn spiffe_id(&self) -> Result<SpiffeId, SpiffeIdFault> {
        match self.uris.as_slice() {
            [] => Err(SpiffeIdFault::None),
            [uri] if uri.len() > limits::SPIFFE_ID_BYTES => Err(SpiffeIdFault::TooLong(uri.len())),
            [uri] => SpiffeId::new(uri).map_err(|error| SpiffeIdFault::Invalid {
                uri: uri.chars().take(256).collect(),
                error,
            }),
            several => Err(SpiffeIdFault::Several(several.len())),
        }
    }

    /// Whether the key of `issuer` made the signature.
    pub(crate) fn verify_signature(&self, issuer: &Facts<'_>) -> Result<(), SignatureError> {
        let (algorithm, bits) =
            spki::parts(issuer.spki).map_err(|_| SignatureError::Unsupported)?;
        crypto::verify_signature(
            algorithm,
            bits,
            self.signed.algorithm,
            self.signed.message,
            self.signed.signature,
        )
    }
}

fn server_and_client(usage: &ExtendedKeyUsage<'_>) -> (bool, bool) {
    (usage.server_auth, usage.client_auth)
}

fn constrains_uris(constraints: &NameConstraints<'_>) -> bool {
    [
        &constraints.permitted_subtrees,
        &constraints.excluded_subtrees,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .any(|subtree| matches!(subtree.base, GeneralName::URI(_)))
}

/// The same bytes with the lifetime of the whole: `X509Name` lends only from itself.
fn within<'a>(whole: &'a [u8], part: &[u8]) -> &'a [u8] {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    whole
        .get(start..start.wrapping_add(part.len()))
        .unwrap_or_default()
}
