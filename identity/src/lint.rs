//! The linter: its own idea of a good certificate, from the SPIFFE requirements and
//! RFC 5280. It reads what is about to be signed, in strict DER, and shares with the profile
//! that built it only the reader of one DER value.

use std::time::Duration;

use rustls_pki_types::alg_id;
use spiffe::{SpiffeId, TrustDomain};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::asn1_rs::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::der;
use crate::issuer::Issuer;
use crate::limits;
use crate::profile::SvidUse;
use crate::spki;

mod extensions;
mod parts;
mod rule;
use extensions::{Extension, Extensions, KeyUsage, Name, Names};
use parts::{Parts, RawExtension};
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
    match Parts::read(certificate) {
        Ok(parts) => {
            linter.frame(&parts);
            linter.validity(&parts);
            linter.subject_and_key(&parts);
            linter.extensions(&parts);
        }
        Err(rule) => linter.demand(rule, false),
    }
    linter.broken.sort_unstable();
    linter.broken.dedup();
    if linter.broken.is_empty() {
        Ok(())
    } else {
        Err(LintError(linter.broken))
    }
}

/// The value of a Version field that says 3: INTEGER 2.
const VERSION_3: &[u8] = &[2, 1, 2];
/// A name without a single attribute.
const EMPTY_NAME: &[u8] = &[0x30, 0];

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

    fn frame(&mut self, certificate: &Parts<'_>) {
        self.demand(Rule::Version3, certificate.version == VERSION_3);
        let serial = certificate.serial;
        // The sign octet that DER puts before a set top bit counts: 20 octets in all.
        self.demand(
            Rule::Serial,
            der::magnitude(serial).is_ok() && serial.len() <= limits::SERIAL_OCTETS,
        );
        let algorithm = certificate.inner_algorithm;
        self.demand(
            Rule::SameAlgorithm,
            algorithm == certificate.outer_algorithm,
        );
        let allowed = match self.context.issuer.key_type() {
            spki::KeyType::P256 => alg_id::ECDSA_SHA256,
            spki::KeyType::P384 => alg_id::ECDSA_SHA384,
            spki::KeyType::Rsa { .. } => alg_id::RSA_PKCS1_SHA256,
        };
        self.demand(Rule::IssuerAlgorithm, algorithm == allowed.as_ref());
        self.demand(
            Rule::IssuerName,
            certificate.issuer == self.context.issuer.subject_der(),
        );
    }

    fn validity(&mut self, certificate: &Parts<'_>) {
        let time = |whole| match ASN1Time::from_der(whole) {
            Ok(([], time)) => Some(time.to_datetime()),
            _ => None,
        };
        let (Some(not_before), Some(not_after)) =
            (time(certificate.not_before), time(certificate.not_after))
        else {
            return self.demand(Rule::Parses, false);
        };
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

    fn subject_and_key(&mut self, certificate: &Parts<'_>) {
        let Parts { subject, spki, .. } = *certificate;
        self.demand(Rule::KeyType, spki::parse(spki).is_ok());
        match self.context.subject {
            LintSubject::Leaf { spki_der, .. } => {
                self.demand(Rule::EmptySubject, subject == EMPTY_NAME);
                self.demand(Rule::GrantedKey, spki == spki_der);
            }
            LintSubject::Authority => {
                let named = matches!(
                    X509Name::from_der(subject),
                    Ok(([], name)) if name.iter().next().is_some()
                );
                self.demand(Rule::AuthoritySubject, named);
            }
        }
    }

    fn extensions(&mut self, certificate: &Parts<'_>) {
        let mut extensions = Extensions::default();
        let mut list = certificate.extensions;
        while !list.is_empty() {
            let next = RawExtension::next(&mut list);
            match next.and_then(|extension| extensions.add(&extension)) {
                Ok(()) => {}
                // What the others say is of no interest any more.
                Err(Rule::MalformedExtension) => {
                    return self.demand(Rule::MalformedExtension, false);
                }
                Err(rule) => self.demand(rule, false),
            }
        }
        let empty_subject = certificate.subject == EMPTY_NAME;
        self.names(extensions.names.as_ref(), empty_subject);
        self.constraints_and_usage(extensions.constraints.as_ref(), extensions.usage.as_ref());
        if matches!(self.context.subject, LintSubject::Leaf { .. }) {
            self.purposes(extensions.purposes.as_ref());
        }
        self.key_ids(
            extensions.subject_key_id.as_ref(),
            extensions.authority_key_id.as_ref(),
            certificate.subject == certificate.issuer,
        );
    }

    fn names(&mut self, extension: Option<&Extension<Names<'_>>>, empty_subject: bool) {
        let names = extension.map_or_else(Names::default, |san| san.value);
        let critical = extension.is_some_and(|san| san.critical);
        self.demand(Rule::SanCritical, critical || !empty_subject);
        let mut uris = names.iter().filter_map(|name| match name {
            Name::Uri(uri) => Some(uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => self.id(uri),
            _ => self.demand(Rule::OneUri, false),
        }
        let others = names.iter().any(|name| matches!(name, Name::Other));
        self.demand(Rule::OtherNames, !others);
        self.dns_names(names.iter().filter_map(|name| match name {
            Name::Dns(name) => Some(name),
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
        constraints: Option<&Extension<bool>>,
        usage: Option<&Extension<KeyUsage>>,
    ) {
        let is_ca = constraints.map(|extension| extension.value);
        let critical = constraints.is_some_and(|extension| extension.critical);
        self.demand(Rule::KeyUsagePresent, usage.is_some());
        if let Some(usage) = usage {
            self.demand(Rule::KeyUsageCritical, usage.critical);
        }
        let has = |bits| usage.is_some_and(|usage| usage.value.has(bits));
        let signs = has(KeyUsage::KEY_CERT_SIGN);
        match self.context.subject {
            LintSubject::Authority => {
                self.demand(Rule::AuthorityCa, is_ca == Some(true) && critical && signs);
            }
            LintSubject::Leaf { .. } => {
                self.demand(Rule::LeafNotCa, is_ca == Some(false) && critical);
                let of_a_ca = KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN;
                if usage.is_some() {
                    let signature = has(KeyUsage::DIGITAL_SIGNATURE);
                    self.demand(Rule::LeafDigitalSignature, signature);
                }
                self.demand(Rule::LeafNoSigning, !has(of_a_ca));
                let others = has(!(KeyUsage::DIGITAL_SIGNATURE | of_a_ca));
                self.demand(Rule::LeafNoOtherUsage, !others);
            }
        }
    }

    fn purposes(&mut self, extension: Option<&Extension<bool>>) {
        let both = extension.is_some_and(|extension| extension.value);
        self.demand(Rule::ServerAndClient, both);
    }

    fn key_ids(
        &mut self,
        subject: Option<&Extension<&[u8]>>,
        authority: Option<&Extension<Option<&[u8]>>>,
        self_issued: bool,
    ) {
        let present =
            subject.is_some_and(|extension| !extension.value.is_empty() && !extension.critical);
        self.demand(Rule::SubjectKeyId, present);
        let same = authority.map_or(
            // A root need not say who signed it (RFC 5280 section 4.2.1.1).
            self_issued,
            |extension| {
                extension.value == Some(self.context.issuer.subject_key_id()) && !extension.critical
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
