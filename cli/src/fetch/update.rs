//! One full answer of the Workload API: SVIDs, bundles, and what is wrong with them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem;

use citadel_identity::SpiffeId;
use citadel_identity::bundle::BundleSet;
use citadel_proto::workload::X509svidResponse;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::certificate::{self, Facts};
use crate::output::{instant, remaining};
use crate::trust;

/// Everything that the endpoint holds for this process; each update replaces the last.
pub(crate) struct Update {
    pub(crate) svids: Vec<Svid>,
    pub(crate) bundles: Vec<Authorities>,
}

/// One identity with its key.
pub(crate) struct Svid {
    pub(crate) spiffe_id: String,
    pub(crate) hint: String,
    /// DER, leaf first.
    pub(crate) chain: Vec<Vec<u8>>,
    /// Unencrypted PKCS#8.
    pub(crate) key: Zeroizing<Vec<u8>>,
    /// The authorities of its own trust domain, DER.
    pub(crate) authorities: Vec<Vec<u8>>,
    facts: Vec<Facts>,
}

/// The authorities of one trust domain.
pub(crate) struct Authorities {
    pub(crate) trust_domain: String,
    pub(crate) certificates: Vec<Vec<u8>>,
    facts: Vec<Facts>,
}

impl Authorities {
    fn parse(trust_domain: &str, der: &[u8]) -> Result<Self, String> {
        // The map's keys are SPIFFE IDs of trust domains.
        let trust_domain = trust_domain
            .strip_prefix("spiffe://")
            .unwrap_or(trust_domain);
        let in_bundle = |error| format!("the bundle of {trust_domain}: {error}");
        let certificates = certificate::split_der(der).map_err(in_bundle)?;
        let facts = all_facts(&certificates).map_err(in_bundle)?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            certificates,
            facts,
        })
    }
}

impl Update {
    /// Reads an answer. The error says which part breaks the standard.
    pub(crate) fn parse(response: X509svidResponse) -> Result<Self, String> {
        if response.svids.is_empty() {
            return Err("an answer without an SVID (requirement 30)".into());
        }
        let mut svids = Vec::new();
        let mut bundles: BTreeMap<String, Authorities> = BTreeMap::new();
        for mut svid in response.svids {
            let id = mem::take(&mut svid.spiffe_id);
            let key = Zeroizing::new(mem::take(&mut svid.x509_svid_key));
            let chain = certificate::split_der(&svid.x509_svid)
                .map_err(|error| format!("{id}: {error}"))?;
            let facts = all_facts(&chain).map_err(|error| format!("{id}: {error}"))?;
            let trust_domain = id
                .strip_prefix("spiffe://")
                .and_then(|rest| rest.split('/').next())
                .ok_or_else(|| format!("{id:?} is no SPIFFE ID"))?
                .to_owned();
            let bundle = Authorities::parse(&trust_domain, &svid.bundle)?;
            svids.push(Svid {
                spiffe_id: id,
                hint: mem::take(&mut svid.hint),
                chain,
                key,
                authorities: bundle.certificates.clone(),
                facts,
            });
            bundles.entry(trust_domain).or_insert(bundle);
        }
        for (trust_domain, der) in response.federated_bundles {
            let bundle = Authorities::parse(&trust_domain, &der)?;
            bundles.entry(bundle.trust_domain.clone()).or_insert(bundle);
        }
        Ok(Self {
            svids,
            bundles: bundles.into_values().collect(),
        })
    }

    /// What is wrong with the first SVID that is not valid, if any: a client that
    /// takes what it gets would hide a broken agent.
    pub(crate) fn problem(&self, now: OffsetDateTime) -> Option<String> {
        self.svids.iter().find_map(|svid| {
            svid.problem(now)
                .err()
                .map(|problem| format!("{}: {problem}", svid.spiffe_id))
        })
    }

    /// The update as JSON.
    pub(crate) fn json(&self, now: OffsetDateTime) -> impl Serialize {
        UpdateJson {
            svids: self.svids.iter().map(|svid| svid.json(now)).collect(),
            bundles: self
                .bundles
                .iter()
                .map(|bundle| BundleJson {
                    trust_domain: bundle.trust_domain.clone(),
                    authorities: bundle.facts.clone(),
                })
                .collect(),
        }
    }

    /// The update as text.
    pub(crate) fn text(&self, now: OffsetDateTime) -> String {
        let mut text = String::new();
        for svid in &self.svids {
            svid.text(&mut text, now);
        }
        for bundle in &self.bundles {
            bundle.text(&mut text, now);
        }
        text
    }
}

impl Svid {
    #[cfg(test)]
    pub(crate) fn new(
        spiffe_id: &str,
        chain: Vec<Vec<u8>>,
        key: Zeroizing<Vec<u8>>,
        authorities: Vec<Vec<u8>>,
    ) -> Self {
        let facts = all_facts(&chain).unwrap_or_default();
        let (spiffe_id, hint) = (spiffe_id.to_owned(), String::new());
        Self {
            spiffe_id,
            hint,
            chain,
            key,
            authorities,
            facts,
        }
    }

    fn problem(&self, now: OffsetDateTime) -> Result<(), String> {
        let id = SpiffeId::new(&self.spiffe_id).map_err(|error| error.to_string())?;
        let bundles = BundleSet::from(trust::of(id.trust_domain(), &self.authorities));
        let chain: Vec<CertificateDer<'_>> = self
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let verified = citadel_identity::verify::verify_svid(&chain, &bundles, now)
            .map_err(|error| error.to_string())?;
        if verified.spiffe_id != id {
            return Err(format!("the certificate is for {}", verified.spiffe_id));
        }
        self.key_belongs()
    }

    /// The key must be the one that the leaf certifies.
    pub(crate) fn key_belongs(&self) -> Result<(), String> {
        let provider = citadel_identity::crypto::provider();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.as_slice())).clone_key();
        let chain = self
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect();
        rustls::sign::CertifiedKey::from_der(chain, key, &provider)
            .map(drop)
            .map_err(|error| format!("the private key does not fit the certificate: {error}"))
    }

    fn leaf(&self) -> &Facts {
        // `parse` refuses an empty chain.
        &self.facts[0]
    }

    fn json(&self, now: OffsetDateTime) -> SvidJson {
        let leaf = self.leaf();
        SvidJson {
            spiffe_id: self.spiffe_id.clone(),
            hint: self.hint.clone(),
            serial: leaf.serial.clone(),
            key_type: leaf.key_type.clone(),
            dns_names: leaf.dns_names.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            remaining_seconds: (leaf.not_after - now).whole_seconds(),
            chain: self.facts.clone(),
        }
    }

    fn text(&self, text: &mut String, now: OffsetDateTime) {
        let leaf = self.leaf();
        line(text, "SPIFFE ID", &self.spiffe_id);
        if !self.hint.is_empty() {
            line(text, "  hint", &self.hint);
        }
        line(text, "  serial", &leaf.serial);
        line(text, "  valid", &validity(leaf, now));
        line(text, "  key", &leaf.key_type);
        if !leaf.dns_names.is_empty() {
            line(text, "  DNS", &leaf.dns_names.join(", "));
        }
        line(text, "  issuer", &leaf.issuer);
        for facts in self.facts.iter().skip(1) {
            line(
                text,
                "  via",
                &format!("{}, {}", facts.subject, validity(facts, now)),
            );
        }
        text.push('\n');
    }
}

impl Authorities {
    fn text(&self, text: &mut String, now: OffsetDateTime) {
        line(text, "Bundle", &self.trust_domain);
        for facts in &self.facts {
            line(
                text,
                "  authority",
                &format!("{}, {}", facts.subject, facts.key_type),
            );
            line(text, "    valid", &validity(facts, now));
            line(text, "    SHA-256", &facts.sha256);
        }
        text.push('\n');
    }
}

#[derive(Serialize)]
struct UpdateJson {
    svids: Vec<SvidJson>,
    bundles: Vec<BundleJson>,
}

#[derive(Serialize)]
struct SvidJson {
    spiffe_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hint: String,
    serial: String,
    key_type: String,
    dns_names: Vec<String>,
    #[serde(serialize_with = "certificate::rfc3339")]
    not_before: OffsetDateTime,
    #[serde(serialize_with = "certificate::rfc3339")]
    not_after: OffsetDateTime,
    remaining_seconds: i64,
    chain: Vec<Facts>,
}

#[derive(Serialize)]
struct BundleJson {
    trust_domain: String,
    authorities: Vec<Facts>,
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{name:<13}{value}");
}

/// `until 2026-01-01T01:00:00Z (59m 12s left), from …`
fn validity(facts: &Facts, now: OffsetDateTime) -> String {
    format!(
        "until {} ({}), from {}",
        instant(facts.not_after),
        remaining(facts.not_before, facts.not_after, now),
        instant(facts.not_before)
    )
}

fn all_facts(certificates: &[Vec<u8>]) -> Result<Vec<Facts>, certificate::CertificateError> {
    certificates
        .iter()
        .enumerate()
        .map(|(place, der)| Facts::of(der, place + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use citadel_proto::workload::X509svid;
    use time::Duration;

    use super::*;
    use crate::testing::TestCa;

    fn message(svid: &Svid, hint: &str) -> X509svid {
        X509svid {
            spiffe_id: svid.spiffe_id.clone(),
            x509_svid: svid.chain.concat(),
            x509_svid_key: svid.key.to_vec(),
            bundle: svid.authorities.concat(),
            hint: hint.into(),
        }
    }

    fn response(svids: Vec<X509svid>) -> X509svidResponse {
        X509svidResponse {
            svids,
            ..Default::default()
        }
    }

    #[test]
    fn a_full_answer_is_read_and_shown() {
        let (ca, foreign) = (TestCa::new(), TestCa::new());
        let one = ca.svid("spiffe://example.org/user/alice");
        let two = ca.svid("spiffe://example.org/user/bob");
        let mut response = response(vec![message(&one, ""), message(&two, "other")]);
        response
            .federated_bundles
            .insert("spiffe://example.com".into(), foreign.root.clone());
        let update = Update::parse(response).unwrap();
        let now = OffsetDateTime::now_utc();
        assert_eq!(update.problem(now), None);
        let json = serde_json::to_value(update.json(now)).unwrap();
        assert_eq!(
            json["svids"][0]["spiffe_id"],
            "spiffe://example.org/user/alice"
        );
        assert_eq!(json["svids"][1]["hint"], "other");
        assert_eq!(json["svids"][0]["key_type"], "EC P-256");
        assert!(json["svids"][0]["remaining_seconds"].as_i64().unwrap() > 3_500);
        let domains: Vec<_> = update
            .bundles
            .iter()
            .map(|it| it.trust_domain.as_str())
            .collect();
        assert_eq!(domains, ["example.com", "example.org"]);
        let root = hex::encode(citadel_identity::crypto::sha256(&ca.root));
        assert_eq!(json["bundles"][1]["authorities"][0]["sha256"], root);
        let text = update.text(now);
        for shown in [
            "spiffe://example.org/user/alice",
            "59m",
            "EC P-256",
            &root,
            "example.com",
        ] {
            assert!(text.contains(shown), "{shown} in\n{text}");
        }
    }

    #[test]
    fn no_key_is_ever_shown() {
        let svid = TestCa::new().svid("spiffe://example.org/a");
        let key = svid.key.clone();
        let update = Update::parse(response(vec![message(&svid, "")])).unwrap();
        let now = OffsetDateTime::now_utc();
        let shown = update.text(now) + &serde_json::to_string(&update.json(now)).unwrap();
        assert!(!shown.contains(&hex::encode(&key[40..60])));
        assert!(!shown.contains("PRIVATE"));
    }

    #[test]
    fn spiffe_req_30_an_answer_without_an_svid_is_refused() {
        assert!(
            Update::parse(response(vec![]))
                .err()
                .unwrap()
                .contains("without an SVID")
        );
    }

    #[test]
    fn what_is_wrong_with_an_svid_is_found() {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let id = "spiffe://example.org/a";
        let good = ca.svid(id);
        let problem = |svid: X509svid| {
            let update = Update::parse(response(vec![svid])).unwrap();
            update
                .problem(OffsetDateTime::now_utc())
                .unwrap_or_default()
        };
        assert_eq!(problem(message(&good, "")), "");
        let expired = ca.altered(id, |params| {
            params.not_after = OffsetDateTime::now_utc() - Duration::minutes(1);
        });
        assert!(problem(message(&expired, "")).contains("expired"));
        let mut foreign_root = message(&good, "");
        foreign_root.bundle = other.root;
        assert!(problem(foreign_root).starts_with(id));
        let mut other_key = message(&good, "");
        other_key.x509_svid_key = ca.svid(id).key.to_vec();
        assert!(problem(other_key).contains("does not fit"));
        let mut other_id = message(&good, "");
        other_id.spiffe_id = "spiffe://example.org/b".into();
        assert!(problem(other_id).contains("the certificate is for"));
    }
}
