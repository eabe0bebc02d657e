//! What our certificates look like: SVIDs, and the CA certificates of the self-signed
//! mode. The latter are built with rcgen and a key that captures the bytes to be signed.

mod tbs;

use std::cell::RefCell;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey, string::Ia5String,
};
use spiffe::{SpiffeId, TrustDomain};
use thiserror::Error;
use time::OffsetDateTime;

use self::tbs::Tbs;
use crate::crypto;
use crate::csr::ProvenKey;
use crate::der::{self, DerError, Reader};
pub use crate::issuer::{Issuer, IssuerError};
use crate::key::{CaKey, KeyError, SigningAlgorithm};
use crate::limits;
use crate::serial::Serial;
use crate::template;

/// What an SVID is for. It decides which IDs it may have, not how it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SvidUse {
    /// A workload: any ID outside `/citadel/`.
    Leaf,
    /// A node's agent: `/citadel/agent/<cluster>/<node>`.
    Agent,
    /// The CA server itself: `/citadel/ca`.
    CaServer,
}

/// What a new SVID is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidRequest {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// DNS names beside the SPIFFE ID, in the order in which they are to appear.
    pub dns_names: Vec<String>,
    /// Start of validity; fractions of a second are cut off.
    pub not_before: OffsetDateTime,
    /// End of validity; fractions of a second are cut off.
    pub not_after: OffsetDateTime,
    /// The serial number.
    pub serial: Serial,
    /// What it is for.
    pub use_: SvidUse,
}

/// A certificate before its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    /// The bytes to be signed (`TBSCertificate`).
    pub tbs: Vec<u8>,
    /// The same bytes in a certificate whose signature is a dummy, for the linter.
    pub dummy: Vec<u8>,
}

/// Why a certificate can't be built.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// The ID has no path, or is not one of this use.
    #[error("{0} is not an ID for this use")]
    Id(SpiffeId),
    /// The ID is too long.
    #[error("the SPIFFE ID has {0} bytes; at most 2048 are allowed")]
    IdTooLong(usize),
    /// A DNS name is malformed.
    #[error("{0:?} is not a DNS name that a certificate may have")]
    DnsName(String),
    /// There are too many DNS names.
    #[error("{0} DNS names are too many for a certificate; at most {max} are allowed", max = limits::DNS_NAMES)]
    DnsNames(usize),
    /// The validity is empty or reversed.
    #[error("the validity ends before it begins")]
    Validity,
    /// The certificate would be valid before its issuer.
    #[error("the validity begins at {0}, before the issuer's")]
    PredatesIssuer(OffsetDateTime),
    /// The certificate would outlive its issuer.
    #[error("the validity ends at {0}, after the issuer's")]
    OutlivesIssuer(OffsetDateTime),
    /// rcgen refuses.
    #[error("the certificate could not be built: {0}")]
    Build(String),
    /// The key does not sign.
    #[error("the certificate could not be signed: {0}")]
    Sign(#[from] KeyError),
    /// What came out does not hold what went in.
    #[error("the signed certificate does not hold the bytes that were to be signed")]
    Changed,
}

impl From<rcgen::Error> for ProfileError {
    fn from(error: rcgen::Error) -> Self {
        Self::Build(error.to_string())
    }
}

impl From<DerError> for ProfileError {
    fn from(error: DerError) -> Self {
        Self::Build(error.to_string())
    }
}

impl Unsigned {
    fn new(tbs: Vec<u8>, algorithm: SigningAlgorithm) -> Self {
        let dummy = encode(&tbs, algorithm, DUMMY_SIGNATURE);
        Self { tbs, dummy }
    }
}

/// Builds an SVID for a proven key, as bytes to be signed by `algorithm`.
///
/// The subject is empty. Extensions: the SPIFFE ID and DNS names (critical), key usage
/// digitalSignature (critical), server and client authentication, cA=false (critical),
/// SKI, and the issuer's SKI as AKI.
pub fn prepare(
    request: &SvidRequest,
    key: &ProvenKey,
    issuer: &Issuer,
    algorithm: SigningAlgorithm,
) -> Result<Unsigned, ProfileError> {
    check_id(request)?;
    check_dns_names(&request.dns_names)?;
    let (not_before, not_after) = validity(request.not_before, request.not_after, Some(issuer))?;
    let id = &request.spiffe_id;
    let tbs = Tbs {
        serial: request.serial.as_bytes(),
        algorithm,
        issuer: issuer.subject_der(),
        not_before,
        not_after,
        spki: key.spki_der(),
        key_id: &key.spki_sha256()[..KEY_ID],
        issuer_key_id: issuer.subject_key_id(),
        spiffe_id: (id.trust_domain_name(), id.path()),
        dns_names: &request.dns_names,
    };
    Ok(Unsigned::new(tbs.encode()?, algorithm))
}

/// A certificate from its bytes to be signed and their signature. Fails unless exactly
/// those bytes are what the result holds.
pub fn assemble(
    tbs: &[u8],
    algorithm: SigningAlgorithm,
    signature: &[u8],
) -> Result<Vec<u8>, ProfileError> {
    let certificate = encode(tbs, algorithm, signature);
    let signed = der::signed(&certificate).map_err(|_| ProfileError::Changed)?;
    if signed.message != tbs || signed.signature != signature || signature.is_empty() {
        return Err(ProfileError::Changed);
    }
    Ok(certificate)
}

/// A self-signed root in DER, for the mode in which Citadel makes its own CA. Its
/// subject holds its key ID, its SPIFFE ID is the trust domain's.
pub fn self_signed_root(
    key: &CaKey,
    trust_domain: &TrustDomain,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: &Serial,
) -> Result<Vec<u8>, ProfileError> {
    let mut params = authority("Citadel root CA", key, trust_domain, serial)?;
    (params.not_before, params.not_after) = validity(not_before, not_after, None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let unsigned = build(
        &mut params,
        key,
        Parent {
            subject: None,
            key_id: None,
        },
        key.algorithm(),
    )?;
    assemble(&unsigned.tbs, key.algorithm(), &key.sign(&unsigned.tbs)?)
}

/// An intermediate in DER, with path length 0, for `key`, signed by `parent_key`, whose
/// certificate is `parent`.
pub fn intermediate(
    key: &CaKey,
    trust_domain: &TrustDomain,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: &Serial,
    parent: &Issuer,
    parent_key: &CaKey,
) -> Result<Vec<u8>, ProfileError> {
    let mut params = authority("Citadel CA", key, trust_domain, serial)?;
    (params.not_before, params.not_after) = validity(not_before, not_after, Some(parent))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let names = Parent {
        subject: Some(parent.subject_der()),
        key_id: Some(parent.subject_key_id()),
    };
    let unsigned = build(&mut params, key, names, parent_key.algorithm())?;
    assemble(
        &unsigned.tbs,
        parent_key.algorithm(),
        &parent_key.sign(&unsigned.tbs)?,
    )
}

fn authority(
    name: &str,
    key: &CaKey,
    trust_domain: &TrustDomain,
    serial: &Serial,
) -> Result<CertificateParams, ProfileError> {
    let digest = crypto::sha256(key.spki_der());
    let mut params = blank();
    // The key ID makes the subject unique, so that a rotated CA is never mistaken for
    // the one before it. With it the name still fits RFC 5280's 64 characters.
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Citadel");
    subject.push(
        DnType::CommonName,
        format!("{name} {}", hex::encode(&digest[..KEY_ID])),
    );
    params.distinguished_name = subject;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.subject_alt_names = vec![SanType::URI(ia5(&trust_domain.id_string())?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = key_id(&digest);
    Ok(params)
}

/// Octets in a key identifier (RFC 7093 section 2 cuts SHA-256 to these).
const KEY_ID: usize = 20;

fn key_id(digest: &[u8; 32]) -> KeyIdMethod {
    KeyIdMethod::PreSpecified(digest[..KEY_ID].to_vec())
}

/// Certificates count whole seconds, so fractions are cut off before anything is compared.
fn validity(
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    issuer: Option<&Issuer>,
) -> Result<(OffsetDateTime, OffsetDateTime), ProfileError> {
    let not_before = not_before.truncate_to_second();
    let not_after = not_after.truncate_to_second();
    if not_after <= not_before {
        return Err(ProfileError::Validity);
    }
    match issuer {
        Some(issuer) if not_before < issuer.not_before() => {
            Err(ProfileError::PredatesIssuer(not_before))
        }
        Some(issuer) if not_after > issuer.not_after() => {
            Err(ProfileError::OutlivesIssuer(not_after))
        }
        _ => Ok((not_before, not_after)),
    }
}

fn check_id(request: &SvidRequest) -> Result<(), ProfileError> {
    let id = &request.spiffe_id;
    let length = "spiffe://".len() + id.trust_domain_name().len() + id.path().len();
    if length > limits::SPIFFE_ID_BYTES {
        return Err(ProfileError::IdTooLong(length));
    }
    let fits = match request.use_ {
        SvidUse::Leaf => !id.path().is_empty() && !template::is_reserved(id),
        SvidUse::Agent => template::parse_agent_id(id).is_some(),
        SvidUse::CaServer => *id == template::ca_id(id.trust_domain()),
    };
    if fits {
        Ok(())
    } else {
        Err(ProfileError::Id(id.clone()))
    }
}

fn check_dns_names(names: &[String]) -> Result<(), ProfileError> {
    if names.len() > limits::DNS_NAMES {
        return Err(ProfileError::DnsNames(names.len()));
    }
    match names.iter().find(|name| !is_dns_name(name)) {
        Some(name) => Err(ProfileError::DnsName(name.chars().take(256).collect())),
        None => Ok(()),
    }
}

/// RFC 1123 section 2.1: labels of letters, digits and inner hyphens. No wildcard.
fn is_dns_name(name: &str) -> bool {
    name.len() <= limits::DNS_NAME_BYTES
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn ia5(text: &str) -> Result<Ia5String, ProfileError> {
    Ia5String::try_from(text).map_err(|error| ProfileError::Build(error.to_string()))
}

/// Nothing but an empty name. rcgen's default has a name of its own.
fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

/// Whose name and key ID stand in the issuer fields; `None` is the certificate itself.
#[derive(Clone, Copy)]
struct Parent<'a> {
    subject: Option<&'a [u8]>,
    key_id: Option<&'a [u8]>,
}

/// One pass of rcgen. It writes an empty issuer name, which is then replaced by the
/// issuer's own bytes: rcgen's type for names can't hold every name that a CA from
/// elsewhere may have (several values of one kind, other string types).
fn build(
    params: &mut CertificateParams,
    key: &impl PublicKeyData,
    parent: Parent<'_>,
    algorithm: SigningAlgorithm,
) -> Result<Unsigned, ProfileError> {
    let capture = CapturingKey {
        algorithm,
        captured: RefCell::default(),
    };
    let mut names = blank();
    if let Some(key_id) = parent.key_id {
        names.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
        params.use_authority_key_identifier_extension = true;
    }
    params.signed_by(key, &rcgen::Issuer::from_params(&names, &capture))?;
    let tbs = with_issuer(&capture.captured.take(), parent.subject)?;
    Ok(Unsigned::new(tbs, algorithm))
}

const DUMMY_SIGNATURE: &[u8] = b"not signed yet";

/// Puts the issuer's name in its place, or the subject's own.
fn with_issuer(tbs: &[u8], name: Option<&[u8]>) -> Result<Vec<u8>, DerError> {
    let mut fields = Reader::new(der::single(tbs, der::SEQUENCE)?.content);
    let version = fields.expect(der::CONTEXT_0)?.whole;
    let serial = fields.expect(der::INTEGER)?.whole;
    let algorithm = fields.expect(der::SEQUENCE)?.whole;
    fields.expect(der::SEQUENCE)?;
    let validity = fields.expect(der::SEQUENCE)?.whole;
    let subject = fields.expect(der::SEQUENCE)?.whole;
    let issuer = name.unwrap_or(subject);
    let rest = fields.rest();
    Ok(der::value(
        der::SEQUENCE,
        &[version, serial, algorithm, issuer, validity, subject, rest],
    ))
}

fn encode(tbs: &[u8], algorithm: SigningAlgorithm, signature: &[u8]) -> Vec<u8> {
    let algorithm = der::value(der::SEQUENCE, &[algorithm.identifier()]);
    let signature = der::value(der::BIT_STRING, &[&[0], signature]);
    der::value(der::SEQUENCE, &[tbs, &algorithm, &signature])
}

/// Takes what rcgen wants signed, and signs nothing.
struct CapturingKey {
    algorithm: SigningAlgorithm,
    captured: RefCell<Vec<u8>>,
}

impl PublicKeyData for CapturingKey {
    fn der_bytes(&self) -> &[u8] {
        &[]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm.rcgen()
    }
}

impl SigningKey for CapturingKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.captured.replace(message.to_vec());
        Ok(Vec::new())
    }
}
