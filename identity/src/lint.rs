//! The linter: its own idea of a good certificate, from the SPIFFE requirements and
//! RFC 5280. It reads what is about to be signed and shares no code with the profile
//! that built it.

use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, GeneralName, KeyIdentifier,
    KeyUsage, SubjectAlternativeName,
};
use x509_parser::nom::Parser as _;
use x509_parser::oid_registry::{
    OID_PKCS1_SHA256WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::x509::X509Version;

use crate::issuer::Issuer;
use crate::limits;
use crate::profile::SvidUse;
use crate::spki;

mod extensions;
mod rule;
use extensions::{Extension, Extensions};
pub use rule::Rule;

/// What a certificate is held against.
#[derive(Debug, Clone, Copy)]
pub struct LintContext<'a> {
    /// Whose key is to sign.
    pub issuer: &'a Issuer,
    /// The trust domain that it signs for.
    pub trust_domain: &'a TrustDomain,
    /// From `notBefore` to `notAfter` at most.
    pub max_lifetime: Duration,
    /// The time of issuance.
    pub now: OffsetDateTime,
    /// What was granted.
    pub subject: LintSubject<'a>,
}

/// What the certificate is meant to be.
#[derive(Debug, Clone, Copy)]
pub enum LintSubject<'a> {
    /// An SVID, exactly as it was granted.
    Leaf {
        /// What it is for.
        use_: SvidUse,
        /// The granted ID.
        spiffe_id: &'a SpiffeId,
        /// The granted DNS names.
        dns_names: &'a [String],
        /// The proven key, as `SubjectPublicKeyInfo` DER.
        spki_der: &'a [u8],
    },
    /// A CA certificate of the trust domain.
    Authority,
}

/// Every rule that a certificate breaks, in the order of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the certificate breaks {}", list(.0))]
pub struct LintError(pub Vec<Rule>);

fn list(rules: &[Rule]) -> String {
    rules
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Holds a certificate in DER against every rule. Its signature is not looked at, so a
/// dummy will do.
pub fn lint(certificate: &[u8], context: &LintContext<'_>) -> Result<(), LintError> {
    let mut linter = Linter {
        context,
        broken: Vec::new(),
    };
    let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
    match parser.parse(certificate) {
        Ok((rest, parsed)) => {
            linter.demand(
                Rule::NothingBehind,
                rest.is_empty() && is_tight(certificate),
            );
            linter.frame(&parsed);
            linter.validity(&parsed);
            linter.subject_and_key(&parsed);
            linter.extensions(&parsed);
        }
        Err(_) => linter.demand(Rule::Parses, false),
    }
    linter.broken.sort_unstable();
    linter.broken.dedup();
    if linter.broken.is_empty() {
        Ok(())
    } else {
        Err(LintError(linter.broken))
    }
}

/// x509-parser does not notice bytes at the end of the outer SEQUENCE, and unique IDs
/// (RFC 5280 section 4.1.2.8) are none of ours, so the fields are counted: three, and
/// eight in the part that is signed.
fn is_tight(certificate: &[u8]) -> bool {
    let fields = |sequence: &Any<'_>| {
        let mut rest = sequence.data;
        let mut count = 0;
        while !rest.is_empty() {
            let Ok((after, _)) = Any::from_der(rest) else {
                return None;
            };
            rest = after;
            count += 1;
        }
        Some(count)
    };
    let Ok((_, outer)) = Any::from_der(certificate) else {
        return false;
    };
    let Ok((_, tbs)) = Any::from_der(outer.data) else {
        return false;
    };
    outer.tag() == Tag::Sequence && fields(&outer) == Some(3) && fields(&tbs) == Some(8)
}

struct Linter<'c> {
    context: &'c LintContext<'c>,
    broken: Vec<Rule>,
}

impl Linter<'_> {
    fn demand(&mut self, rule: Rule, holds: bool) {
        if !holds {
            self.broken.push(rule);
        }
    }

    fn frame(&mut self, certificate: &X509Certificate<'_>) {
        let tbs = &certificate.tbs_certificate;
        self.demand(Rule::Version3, tbs.version == X509Version::V3);
        let serial = certificate.raw_serial();
        // The sign octet that DER puts before a set top bit counts: 20 octets in all.
        let positive = serial.first().is_some_and(|first| *first < 0x80)
            && serial.iter().any(|octet| *octet != 0);
        self.demand(
            Rule::Serial,
            positive && serial.len() <= limits::SERIAL_OCTETS,
        );
        self.demand(
            Rule::SameAlgorithm,
            tbs.signature == certificate.signature_algorithm,
        );
        let allowed = match self.context.issuer.key_type() {
            spki::KeyType::P256 => &OID_SIG_ECDSA_WITH_SHA256,
            spki::KeyType::P384 => &OID_SIG_ECDSA_WITH_SHA384,
            spki::KeyType::Rsa { .. } => &OID_PKCS1_SHA256WITHRSA,
        };
        self.demand(Rule::IssuerAlgorithm, tbs.signature.algorithm == *allowed);
        self.demand(
            Rule::IssuerName,
            tbs.issuer.as_raw() == self.context.issuer.subject_der(),
        );
    }

    fn validity(&mut self, certificate: &X509Certificate<'_>) {
        let not_before = certificate.validity().not_before.to_datetime();
        let not_after = certificate.validity().not_after.to_datetime();
        let LintContext {
            issuer,
            max_lifetime,
            now,
            ..
        } = *self.context;
        self.demand(Rule::ValidityOrder, not_before < not_after);
        self.demand(
            Rule::ValidityInIssuer,
            not_before >= issuer.not_before() && not_after <= issuer.not_after(),
        );
        self.demand(Rule::Lifetime, not_after - not_before <= max_lifetime);
        self.demand(
            Rule::NotBeforePast,
            now - not_before <= limits::NOT_BEFORE_PAST,
        );
        self.demand(
            Rule::NotBeforeFuture,
            not_before - now <= limits::NOT_BEFORE_FUTURE,
        );
        self.demand(Rule::NotExpired, not_after > now);
    }

    fn subject_and_key(&mut self, certificate: &X509Certificate<'_>) {
        let empty = certificate.subject().iter().next().is_none();
        let spki = certificate.tbs_certificate.subject_pki.raw;
        self.demand(Rule::KeyType, spki::parse(spki).is_ok());
        match self.context.subject {
            LintSubject::Leaf { spki_der, .. } => {
                self.demand(Rule::EmptySubject, empty);
                self.demand(Rule::GrantedKey, spki == spki_der);
            }
            LintSubject::Authority => self.demand(Rule::AuthoritySubject, !empty),
        }
    }

    fn extensions(&mut self, certificate: &X509Certificate<'_>) {
        let mut extensions = Extensions::default();
        for extension in certificate.extensions() {
            match extensions.add(extension) {
                Ok(()) => {}
                // What the others say is of no interest any more.
                Err(Rule::MalformedExtension) => {
                    return self.demand(Rule::MalformedExtension, false);
                }
                Err(rule) => self.demand(rule, false),
            }
        }
        let empty_subject = certificate.subject().iter().next().is_none();
        self.names(extensions.names.as_ref(), empty_subject);
        self.constraints_and_usage(extensions.constraints.as_ref(), extensions.usage.as_ref());
        if matches!(self.context.subject, LintSubject::Leaf { .. }) {
            self.purposes(extensions.purposes.as_ref());
        }
        self.key_ids(
            extensions.subject_key_id.as_ref(),
            extensions.authority_key_id.as_ref(),
            certificate.subject().as_raw() == certificate.issuer().as_raw(),
        );
    }

    fn names(
        &mut self,
        extension: Option<&Extension<SubjectAlternativeName<'_>>>,
        empty_subject: bool,
    ) {
        let names = extension.map_or(&[][..], |san| san.value.general_names.as_slice());
        let critical = extension.is_some_and(|san| san.critical);
        self.demand(Rule::SanCritical, critical || !empty_subject);
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => self.id(uri),
            _ => self.demand(Rule::OneUri, false),
        }
        let others = names
            .iter()
            .any(|name| !matches!(name, GeneralName::URI(_) | GeneralName::DNSName(_)));
        self.demand(Rule::OtherNames, !others);
        self.dns_names(names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        }));
    }

    fn id(&mut self, uri: &str) {
        self.demand(Rule::IdLength, uri.len() <= limits::SPIFFE_ID_BYTES);
        let id = SpiffeId::new(uri).ok().filter(|id| is_written(id, uri));
        let Some(id) = id else {
            return self.demand(Rule::SpiffeId, false);
        };
        self.demand(
            Rule::TrustDomain,
            id.trust_domain() == self.context.trust_domain,
        );
        match self.context.subject {
            LintSubject::Authority => self.demand(Rule::AuthorityPath, id.path().is_empty()),
            LintSubject::Leaf {
                use_, spiffe_id, ..
            } => {
                self.demand(Rule::LeafPath, !id.path().is_empty());
                self.demand(Rule::ReservedPath, may_have(use_, id.path()));
                self.demand(Rule::GrantedId, id == *spiffe_id);
            }
        }
    }

    fn dns_names<'n>(&mut self, names: impl Iterator<Item = &'n str> + Clone) {
        for name in names.clone() {
            self.demand(Rule::Wildcard, !name.contains('*'));
            self.demand(Rule::DnsSyntax, is_host_name(&name.replace('*', "x")));
        }
        let granted = match self.context.subject {
            LintSubject::Leaf { dns_names, .. } => dns_names,
            LintSubject::Authority => &[],
        };
        self.demand(Rule::GrantedDnsNames, names.eq(granted));
    }

    fn constraints_and_usage(
        &mut self,
        constraints: Option<&Extension<BasicConstraints>>,
        usage: Option<&Extension<KeyUsage>>,
    ) {
        let is_ca = constraints.map(|extension| extension.value.ca);
        let critical = constraints.is_some_and(|extension| extension.critical);
        let flags = usage.map(|extension| &extension.value);
        self.demand(Rule::KeyUsagePresent, flags.is_some());
        if let Some(usage) = usage {
            self.demand(Rule::KeyUsageCritical, usage.critical);
        }
        let signs = flags.is_some_and(KeyUsage::key_cert_sign);
        match self.context.subject {
            LintSubject::Authority => {
                self.demand(Rule::AuthorityCa, is_ca == Some(true) && critical && signs);
            }
            LintSubject::Leaf { .. } => {
                self.demand(Rule::LeafNotCa, is_ca == Some(false) && critical);
                let Some(flags) = flags else { return };
                self.demand(Rule::LeafDigitalSignature, flags.digital_signature());
                self.demand(Rule::LeafNoSigning, !signs && !flags.crl_sign());
                let others = flags.non_repudiation()
                    || flags.key_encipherment()
                    || flags.data_encipherment()
                    || flags.key_agreement()
                    || flags.encipher_only()
                    || flags.decipher_only();
                self.demand(Rule::LeafNoOtherUsage, !others);
            }
        }
    }

    fn purposes(&mut self, extension: Option<&Extension<ExtendedKeyUsage<'_>>>) {
        let both = extension.is_some_and(|extension| {
            let usage = &extension.value;
            let others = usage.any
                || usage.code_signing
                || usage.email_protection
                || usage.time_stamping
                || usage.ocsp_signing
                || !usage.other.is_empty();
            usage.server_auth && usage.client_auth && !others
        });
        self.demand(Rule::ServerAndClient, both);
    }

    fn key_ids(
        &mut self,
        subject: Option<&Extension<KeyIdentifier<'_>>>,
        authority: Option<&Extension<AuthorityKeyIdentifier<'_>>>,
        self_issued: bool,
    ) {
        let present =
            subject.is_some_and(|extension| !extension.value.0.is_empty() && !extension.critical);
        self.demand(Rule::SubjectKeyId, present);
        let same = authority.map_or(
            // A root need not say who signed it (RFC 5280 section 4.2.1.1).
            self_issued,
            |extension| {
                let key_id = extension.value.key_identifier.as_ref().map(|id| id.0);
                key_id == Some(self.context.issuer.subject_key_id()) && !extension.critical
            },
        );
        self.demand(Rule::AuthorityKeyId, same);
    }
}

/// Whether it is the ID's own spelling: parsing forgives capital letters in the trust domain.
fn is_written(id: &SpiffeId, uri: &str) -> bool {
    let path = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.strip_prefix(id.trust_domain().as_str()));
    path == Some(id.path())
}

/// `/citadel/agent/<cluster>/<node>` for agents, `/citadel/ca` for the CA, and anything
/// that does not begin with `/citadel/` for workloads.
fn may_have(use_: SvidUse, path: &str) -> bool {
    let reserved = path == "/citadel" || path.starts_with("/citadel/");
    match use_ {
        SvidUse::Leaf => !reserved,
        SvidUse::Agent => path
            .strip_prefix("/citadel/agent/")
            .is_some_and(|rest| rest.matches('/').count() == 1),
        SvidUse::CaServer => path == "/citadel/ca",
    }
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = label.trim_matches(|c: char| c.is_ascii_alphanumeric());
        !label.is_empty()
            && label.len() < 64
            && !label.starts_with('-')
            && !label.ends_with('-')
            && inner.chars().all(|c| c == '-' || c.is_ascii_alphanumeric())
    };
    name.len() <= limits::DNS_NAME_BYTES && name.split('.').all(label)
}
