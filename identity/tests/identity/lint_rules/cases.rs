//! The table: for each rule at least one certificate that breaks it, and nothing else.

use std::time::Duration;

use citadel_identity::lint::Rule;
use citadel_identity::profile::SvidUse;

use super::{Case, DAY, ID};
use crate::support::{children, content, tlv, with_validity};

/// Puts a value behind the last field of the certificate's outer SEQUENCE.
fn append_inside(der: &[u8], more: &[u8]) -> Vec<u8> {
    tlv(0x30, &[content(der), more].concat())
}

/// Changes the content of the part that is signed.
fn change_tbs(der: &[u8], change: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let parts = children(content(der));
    let tbs = tlv(0x30, &change(content(parts[0])));
    tlv(0x30, &[&tbs, parts[1], parts[2]].concat())
}

/// Changes the list of its extensions.
fn change_extensions(der: &[u8], change: impl Fn(&[&[u8]]) -> Vec<u8>) -> Vec<u8> {
    change_tbs(der, |tbs| {
        let fields = children(tbs);
        let list = content(content(fields[7]));
        let list = tlv(0x30, &change(&children(list)));
        [fields[..7].concat(), tlv(0xa3, &list)].concat()
    })
}

/// Puts the first extension behind the last one again.
fn repeat_extension(der: &[u8]) -> Vec<u8> {
    change_extensions(der, |list| [&list.concat(), list[0]].concat())
}

/// The place of the last occurrence.
fn last(der: &[u8], pattern: &[u8]) -> usize {
    (0..der.len())
        .rev()
        .find(|at| der[*at..].starts_with(pattern))
        .unwrap()
}

#[expect(clippy::too_many_lines, reason = "one line or two for each rule")]
pub(super) fn cases() -> Vec<(Rule, Case)> {
    let leaf = Case::leaf;
    let authority = Case::authority;
    let second = time::Duration::SECOND;
    let san = "subjectAltName";
    vec![
        (
            Rule::Parses,
            leaf().changed(|_, _| b"no certificate".to_vec()),
        ),
        (
            Rule::Parses,
            leaf().changed(|der, _| der[..der.len() - 1].to_vec()),
        ),
        (
            Rule::NothingBehind,
            leaf().changed(|der, _| [der.as_slice(), &[0]].concat()),
        ),
        (
            Rule::NothingBehind,
            leaf().changed(|der, _| append_inside(&der, &[5, 0])),
        ),
        (
            Rule::NothingBehind,
            leaf().changed(|der, _| change_tbs(&der, |tbs| [tbs, &[0x84, 0]].concat())),
        ),
        (
            // A unique ID of its subject, before the extensions.
            Rule::Parses,
            leaf().changed(|der, _| {
                change_tbs(&der, |tbs| {
                    let fields = children(tbs);
                    [&fields[..7].concat(), &[0x82, 2, 0, 1][..], fields[7]].concat()
                })
            }),
        ),
        (
            Rule::Parses,
            leaf().changed(|der, _| {
                change_tbs(&der, |tbs| {
                    let fields = children(tbs);
                    let validity = tlv(0x30, &[0x17, 1, b'Z', 0x17, 1, b'Z']);
                    [fields[..4].concat(), validity, fields[5..].concat()].concat()
                })
            }),
        ),
        (
            Rule::Version3,
            leaf().changed(|mut der, _| {
                let at = (0..der.len())
                    .find(|at| der[*at..].starts_with(&[0xa0, 3, 2, 1, 2]))
                    .unwrap();
                der[at + 4] = 1;
                der
            }),
        ),
        (
            Rule::Serial,
            Case {
                serial: "0".into(),
                ..leaf()
            },
        ),
        (
            Rule::Serial,
            Case {
                serial: "-5".into(),
                ..leaf()
            },
        ),
        (
            Rule::Serial,
            Case {
                serial: format!("0x01{}", "ab".repeat(20)),
                ..leaf()
            },
        ),
        (
            Rule::Serial,
            Case {
                serial: format!("0x{}", "ab".repeat(20)),
                ..leaf()
            },
        ),
        (
            Rule::SameAlgorithm,
            leaf().changed(|mut der, _| {
                let at = last(&der, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
                der[at + 7] = 3;
                der
            }),
        ),
        (
            Rule::IssuerAlgorithm,
            Case {
                digest: "-sha384",
                ..leaf()
            },
        ),
        (
            Rule::IssuerName,
            Case {
                ca: "namesake",
                ..leaf()
            },
        ),
        (
            Rule::ValidityOrder,
            leaf().changed(|der, now| {
                with_validity(
                    &der,
                    now + 8 * time::Duration::SECOND,
                    now + 5 * time::Duration::SECOND,
                )
            }),
        ),
        (
            Rule::ValidityOrder,
            leaf().changed(|der, now| {
                with_validity(
                    &der,
                    now + time::Duration::SECOND,
                    now + time::Duration::SECOND,
                )
            }),
        ),
        (
            Rule::ValidityInIssuer,
            Case {
                days: 400,
                max_lifetime: 400 * DAY,
                ..leaf()
            },
        ),
        (
            Rule::ValidityInIssuer,
            leaf().changed(|der, now| {
                with_validity(
                    &der,
                    now - time::Duration::MINUTE,
                    now + time::Duration::HOUR,
                )
            }),
        ),
        (
            Rule::Lifetime,
            Case {
                max_lifetime: Duration::from_secs(24 * 3600 - 1),
                ..leaf()
            },
        ),
        (
            Rule::NotBeforePast,
            Case {
                later: 601 * second,
                ..leaf()
            },
        ),
        (
            Rule::NotBeforeFuture,
            Case {
                later: -11 * second,
                ..leaf()
            },
        ),
        (
            Rule::NotExpired,
            Case {
                later: 60 * second,
                ..leaf()
            }
            .changed(|der, now| with_validity(&der, now, now + time::Duration::MINUTE)),
        ),
        (
            Rule::EmptySubject,
            Case {
                subject: "/CN=web",
                ..leaf()
            },
        ),
        (
            Rule::AuthoritySubject,
            Case {
                subject: "/",
                ..authority()
            }
            .with(san, "critical,URI:spiffe://example.org"),
        ),
        (
            Rule::KeyType,
            Case {
                key: "small",
                ..leaf()
            },
        ),
        (
            Rule::KeyType,
            Case {
                key: "large",
                ..leaf()
            },
        ),
        (
            Rule::KeyType,
            Case {
                key: "exponent",
                ..leaf()
            },
        ),
        (
            Rule::KeyType,
            Case {
                key: "edwards",
                ..leaf()
            },
        ),
        (
            Rule::GrantedKey,
            Case {
                granted_key: Some("other"),
                ..leaf()
            },
        ),
        (
            Rule::OneUri,
            leaf().with(san, format!("critical,URI:{ID},URI:{ID}")),
        ),
        (
            Rule::OneUri,
            Case {
                dns_names: vec!["web".into()],
                ..leaf()
            }
            .with(san, "critical,DNS:web"),
        ),
        (
            Rule::SpiffeId,
            leaf().with(san, "critical,URI:https://example.org/ns/shop/sa/web"),
        ),
        (
            Rule::SpiffeId,
            leaf().with(san, "critical,URI:SPIFFE://example.org/ns/shop/sa/web"),
        ),
        (
            Rule::SpiffeId,
            leaf().with(san, format!("critical,URI:{ID}/")),
        ),
        (
            Rule::IdLength,
            leaf().with_id(format!("spiffe://example.org/{}", "x".repeat(2049 - 21))),
        ),
        (
            Rule::TrustDomain,
            leaf().with_id("spiffe://other.org/ns/shop/sa/web"),
        ),
        (Rule::LeafPath, leaf().with_id("spiffe://example.org")),
        (Rule::SanCritical, leaf().with(san, format!("URI:{ID}"))),
        (
            Rule::AuthorityPath,
            authority().with(san, "URI:spiffe://example.org/ca"),
        ),
        (
            Rule::ReservedPath,
            leaf().with_id("spiffe://example.org/citadel/agent/east/node-1"),
        ),
        (
            Rule::ReservedPath,
            leaf().with_id("spiffe://example.org/citadel/ca"),
        ),
        (
            Rule::ReservedPath,
            leaf().with_id("spiffe://example.org/citadel"),
        ),
        (
            Rule::ReservedPath,
            Case {
                use_: Some(SvidUse::Agent),
                ..leaf()
            },
        ),
        (
            Rule::ReservedPath,
            Case {
                use_: Some(SvidUse::Agent),
                ..leaf()
            }
            .with_id("spiffe://example.org/citadel/ca"),
        ),
        (
            Rule::ReservedPath,
            Case {
                use_: Some(SvidUse::CaServer),
                ..leaf()
            }
            .with_id("spiffe://example.org/citadel/agent/east/node-1"),
        ),
        (
            Rule::GrantedId,
            Case {
                id: format!("{ID}-2"),
                ..leaf()
            },
        ),
        (
            Rule::OtherNames,
            leaf().with(san, format!("critical,URI:{ID},email:a@example.org")),
        ),
        (
            Rule::OtherNames,
            leaf().with(san, format!("critical,URI:{ID},IP:127.0.0.1")),
        ),
        (Rule::Wildcard, leaf().with_dns_name("*.example.org")),
        (Rule::DnsSyntax, leaf().with_dns_name("-web.example.org")),
        (Rule::DnsSyntax, leaf().with_dns_name("web..example.org")),
        (Rule::DnsSyntax, leaf().with_dns_name("we_b.example.org")),
        (
            Rule::GrantedDnsNames,
            leaf().with(san, format!("critical,URI:{ID},DNS:web.example.org")),
        ),
        (
            Rule::GrantedDnsNames,
            Case {
                dns_names: vec!["web".into()],
                ..leaf()
            },
        ),
        (
            Rule::AuthorityCa,
            authority().with("keyUsage", "critical,cRLSign"),
        ),
        (
            Rule::AuthorityCa,
            authority().with("basicConstraints", "critical,CA:FALSE"),
        ),
        (
            Rule::AuthorityCa,
            authority().with("basicConstraints", "CA:TRUE"),
        ),
        (
            Rule::LeafNotCa,
            leaf().with("basicConstraints", "critical,CA:TRUE"),
        ),
        (Rule::LeafNotCa, leaf().with("basicConstraints", "CA:FALSE")),
        (Rule::LeafNotCa, leaf().with("basicConstraints", "")),
        (
            Rule::LeafDigitalSignature,
            leaf().with("keyUsage", "critical,DER:03:01:00"),
        ),
        (
            Rule::LeafNoSigning,
            leaf().with("keyUsage", "critical,digitalSignature,keyCertSign"),
        ),
        (
            Rule::LeafNoSigning,
            leaf().with("keyUsage", "critical,digitalSignature,cRLSign"),
        ),
        (
            Rule::LeafNoOtherUsage,
            leaf().with("keyUsage", "critical,digitalSignature,keyEncipherment"),
        ),
        (Rule::KeyUsagePresent, leaf().with("keyUsage", "")),
        (
            Rule::KeyUsageCritical,
            leaf().with("keyUsage", "digitalSignature"),
        ),
        (
            Rule::KeyUsageCritical,
            authority().with("keyUsage", "keyCertSign,cRLSign"),
        ),
        (
            Rule::ServerAndClient,
            leaf().with("extendedKeyUsage", "serverAuth"),
        ),
        (
            Rule::ServerAndClient,
            leaf().with("extendedKeyUsage", "clientAuth"),
        ),
        (Rule::ServerAndClient, leaf().with("extendedKeyUsage", "")),
        (
            Rule::ServerAndClient,
            leaf().with("extendedKeyUsage", "serverAuth,clientAuth,codeSigning"),
        ),
        (
            Rule::ServerAndClient,
            leaf().with(
                "extendedKeyUsage",
                "serverAuth,clientAuth,anyExtendedKeyUsage",
            ),
        ),
        (
            Rule::ServerAndClient,
            leaf().with("extendedKeyUsage", "serverAuth,clientAuth,1.2.3.4"),
        ),
        (
            Rule::SubjectKeyId,
            leaf().with("subjectKeyIdentifier", "none"),
        ),
        (
            Rule::SubjectKeyId,
            leaf().with("subjectKeyIdentifier", "critical,hash"),
        ),
        (
            Rule::AuthorityKeyId,
            leaf().with("authorityKeyIdentifier", "none"),
        ),
        (
            Rule::AuthorityKeyId,
            leaf().with("authorityKeyIdentifier", "DER:30:04:80:02:01:02"),
        ),
        (
            Rule::AuthorityKeyId,
            leaf().with("authorityKeyIdentifier", "critical,keyid:always"),
        ),
        (
            Rule::DuplicateExtension,
            leaf().changed(|der, _| repeat_extension(&der)),
        ),
        (
            Rule::UnknownCritical,
            leaf().with("1.2.3.4", "critical,DER:05:00"),
        ),
        (
            Rule::UnexpectedExtension,
            leaf().with("1.2.3.4", "DER:05:00"),
        ),
        (
            Rule::UnexpectedExtension,
            leaf().with("crlDistributionPoints", "URI:http://example.org/"),
        ),
        (
            Rule::MalformedExtension,
            leaf().with("basicConstraints", "critical,DER:04:00"),
        ),
        (
            // Something behind its value.
            Rule::MalformedExtension,
            leaf().with("basicConstraints", "critical,DER:30:00:05:00"),
        ),
        (
            // FALSE, which DER leaves out.
            Rule::MalformedExtension,
            leaf().changed(|der, _| {
                change_extensions(&der, |list| {
                    let first = content(list[0]);
                    let (oid, value) = (children(first)[0], *children(first).last().unwrap());
                    let spelled = tlv(0x30, &[oid, &[1, 1, 0], value].concat());
                    [spelled, list[1..].concat()].concat()
                })
            }),
        ),
    ]
}
