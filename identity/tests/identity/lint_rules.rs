//! Each lint rule is tripped by a certificate, made by openssl's command or by changing
//! bytes, that breaks just that rule.

use std::time::Duration;

use citadel_identity::lint::{LintContext, LintError, LintSubject, Rule, lint};
use citadel_identity::profile::{Issuer, SvidUse};
use citadel_identity::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::support::{OpenSsl, td};

mod cases;
use cases::cases;

const ID: &str = "spiffe://example.org/ns/shop/sa/web";
const DAY: Duration = Duration::from_hours(24);

/// What a test case changes of a good certificate, and of what it is held against.
#[derive(Clone)]
struct Case {
    /// Lines of openssl's extension file, by their key; an empty value leaves one out.
    extensions: Vec<(&'static str, String)>,
    subject: &'static str,
    serial: String,
    days: u32,
    digest: &'static str,
    key: &'static str,
    ca: &'static str,
    use_: Option<SvidUse>,
    id: String,
    dns_names: Vec<String>,
    granted_key: Option<&'static str>,
    max_lifetime: Duration,
    later: time::Duration,
    change: fn(Vec<u8>, OffsetDateTime) -> Vec<u8>,
}

impl Case {
    fn leaf() -> Self {
        Self {
            extensions: vec![
                ("basicConstraints", "critical,CA:FALSE".into()),
                ("keyUsage", "critical,digitalSignature".into()),
                ("extendedKeyUsage", "serverAuth,clientAuth".into()),
                ("subjectKeyIdentifier", "hash".into()),
                ("authorityKeyIdentifier", "keyid:always".into()),
                ("subjectAltName", format!("critical,URI:{ID}")),
            ],
            subject: "/",
            serial: "0x019b0c4d5e6f00112233445566778899aabb".into(),
            days: 1,
            digest: "-sha256",
            key: "leaf",
            ca: "ca",
            use_: Some(SvidUse::Leaf),
            id: ID.into(),
            dns_names: Vec::new(),
            granted_key: None,
            max_lifetime: DAY,
            later: time::Duration::ZERO,
            change: |der, _| der,
        }
    }

    fn authority() -> Self {
        Self {
            subject: "/CN=An intermediate",
            use_: None,
            days: 30,
            max_lifetime: 30 * DAY,
            ..Self::leaf()
        }
        .with("basicConstraints", "critical,CA:TRUE,pathlen:0")
        .with("keyUsage", "critical,keyCertSign,cRLSign")
        .with("extendedKeyUsage", "")
        .with("subjectAltName", "URI:spiffe://example.org")
    }

    fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.extensions.retain(|(known, _)| *known != key);
        self.extensions.push((key, value.into()));
        self
    }

    fn with_id(self, id: impl Into<String>) -> Self {
        let id = id.into();
        Self {
            id: id.clone(),
            ..self
        }
        .with("subjectAltName", format!("critical,URI:{id}"))
    }

    fn with_dns_name(mut self, name: &str) -> Self {
        self.dns_names.push(name.into());
        let san = format!("critical,URI:{ID},DNS:{name}");
        self.with("subjectAltName", san)
    }

    fn changed(self, change: fn(Vec<u8>, OffsetDateTime) -> Vec<u8>) -> Self {
        Self { change, ..self }
    }
}

struct Bench {
    openssl: OpenSsl,
    issuer: Issuer,
}

impl Bench {
    fn new() -> Self {
        let openssl = OpenSsl::new();
        for (name, kind) in [
            ("ca", "ec:P-256"),
            ("leaf", "ec:P-256"),
            ("other", "ec:P-256"),
            ("small", "rsa:1024"),
            ("large", "ec:P-521"),
            ("exponent", "rsa:2048 -pkeyopt rsa_keygen_pubexp:3"),
            ("edwards", "ed25519"),
        ] {
            openssl.key(name, kind);
        }
        openssl.write(
            "ca.cnf",
            "[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\n\
             basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier=hash\n",
        );
        let root = "req -new -x509 -key ca.key -config ca.cnf -days 365";
        openssl.run(&format!("{root} -subj /O=Others/CN=Root -out ca.pem"));
        openssl.run(&format!(
            "{root} -subj /O=Others/CN=Namesake -out namesake.pem"
        ));
        let roots = [CertificateDer::from(openssl.der("ca.pem"))];
        let now = OffsetDateTime::now_utc();
        let issuer = Issuer::from_chain(&roots, &roots, &openssl.spki("ca"), now).unwrap();
        Self { openssl, issuer }
    }

    fn lint(&self, case: &Case) -> Result<(), LintError> {
        let lines: Vec<String> = case
            .extensions
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        self.openssl.write("ext.cnf", lines.join("\n"));
        let Case {
            subject,
            key,
            ca,
            serial,
            days,
            digest,
            ..
        } = case;
        self.openssl
            .write("csr.cnf", "[req]\ndistinguished_name=dn\n[dn]\n");
        let subject = subject.replace(' ', "_");
        self.openssl.run(&format!(
            "req -new -key {key}.key -subj {subject} -config csr.cnf -out leaf.csr"
        ));
        let der = self.openssl.run(&format!(
            "x509 -req -in leaf.csr -CA {ca}.pem -CAkey ca.key -set_serial {serial} \
             -days {days} {digest} -extfile ext.cnf -outform DER"
        ));
        let parsed = x509_parser::parse_x509_certificate(&der).unwrap().1;
        let now = parsed.validity().not_before.to_datetime();
        let certificate = (case.change)(der.clone(), now);
        let spiffe_id = SpiffeId::new(&case.id).unwrap();
        let spki_der = self.openssl.spki(case.granted_key.unwrap_or(key));
        let trust_domain: TrustDomain = td();
        let subject = match case.use_ {
            None => LintSubject::Authority,
            Some(use_) => LintSubject::Leaf {
                use_,
                spiffe_id: &spiffe_id,
                dns_names: &case.dns_names,
                spki_der: &spki_der,
            },
        };
        let context = LintContext {
            issuer: &self.issuer,
            trust_domain: &trust_domain,
            max_lifetime: case.max_lifetime,
            now: now + case.later,
            subject,
        };
        lint(&certificate, &context)
    }
}

#[test]
fn spiffe_req_06_to_12_each_rule_is_tripped_by_a_certificate_that_breaks_just_it() {
    let bench = Bench::new();
    for good in [
        Case::leaf(),
        Case::authority(),
        Case::leaf().with_dns_name("web.shop.example.org"),
    ] {
        assert_eq!(bench.lint(&good), Ok(()));
    }
    let mut tripped = Vec::new();
    let mut wrong = Vec::new();
    for (at, (rule, case)) in cases().into_iter().enumerate() {
        let verdict = bench.lint(&case);
        if verdict != Err(LintError(vec![rule])) {
            wrong.push(format!("case {at}, for {rule:?}: {verdict:?}"));
        }
        tripped.push(rule);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for rule in Rule::ALL {
        assert!(tripped.contains(rule), "no certificate breaks {rule:?}");
    }
}

#[test]
fn agents_and_the_ca_may_have_their_own_ids() {
    let bench = Bench::new();
    let agent = Case {
        use_: Some(SvidUse::Agent),
        ..Case::leaf()
    };
    let agent = agent.with_id("spiffe://example.org/citadel/agent/east/node-1");
    assert_eq!(bench.lint(&agent), Ok(()));
    let ca = Case {
        use_: Some(SvidUse::CaServer),
        ..Case::leaf()
    };
    assert_eq!(
        bench.lint(&ca.with_id("spiffe://example.org/citadel/ca")),
        Ok(())
    );
}

#[test]
fn several_faults_are_all_named_with_their_numbers() {
    let bench = Bench::new();
    let case = Case::leaf()
        .with("keyUsage", "critical,keyCertSign")
        .with("basicConstraints", "critical,CA:TRUE")
        .with(
            "subjectAltName",
            "URI:spiffe://example.org/a,URI:spiffe://example.org/b",
        );
    let error = bench.lint(&case).unwrap_err();
    let expected = [
        Rule::OneUri,
        Rule::SanCritical,
        Rule::LeafNotCa,
        Rule::LeafDigitalSignature,
        Rule::LeafNoSigning,
    ];
    assert_eq!(error.0, expected);
    let text = error.to_string();
    for number in ["requirement 7", "requirement 8", "requirement 10"] {
        assert!(text.contains(number), "{text}");
    }
}
