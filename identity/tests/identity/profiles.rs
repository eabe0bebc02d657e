//! What the profile builds: held against openssl, the linter, and byte by byte.

use std::time::Duration;

use citadel_identity::csr::{ProvenKey, prove_possession};
use citadel_identity::key::{CaKey, SigningAlgorithm, WorkloadKey};
use citadel_identity::lint::{LintContext, LintSubject, lint};
use citadel_identity::profile::{
    Issuer, ProfileError, SvidRequest, SvidUse, assemble, intermediate, prepare, self_signed_root,
};
use citadel_identity::serial::Serial;
use citadel_identity::{SpiffeId, bundle, pem, template};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;

use crate::support::{NOW, OpenSsl, OwnCa, serial, td};

fn proven() -> ProvenKey {
    prove_possession(&WorkloadKey::generate().unwrap().csr().unwrap()).unwrap()
}

fn request(id: &str) -> SvidRequest {
    SvidRequest {
        spiffe_id: SpiffeId::new(id).unwrap(),
        dns_names: Vec::new(),
        not_before: NOW - time::Duration::MINUTE,
        not_after: NOW + time::Duration::HOUR,
        serial: serial(NOW),
        use_: SvidUse::Leaf,
    }
}

fn context<'a>(ca: &'a OwnCa, request: &'a SvidRequest, key: &'a ProvenKey) -> LintContext<'a> {
    LintContext {
        issuer: &ca.issuer,
        trust_domain: request.spiffe_id.trust_domain(),
        max_lifetime: Duration::from_hours(25),
        now: NOW,
        subject: LintSubject::Leaf {
            use_: request.use_,
            spiffe_id: &request.spiffe_id,
            dns_names: &request.dns_names,
            spki_der: key.spki_der(),
        },
    }
}

fn issue(ca: &OwnCa, request: &SvidRequest, key: &ProvenKey) -> Vec<u8> {
    let unsigned = prepare(request, key, &ca.issuer, ca.key.algorithm()).unwrap();
    lint(&unsigned.dummy, &context(ca, request, key)).unwrap();
    let signature = ca.key.sign(&unsigned.tbs).unwrap();
    assemble(&unsigned.tbs, ca.key.algorithm(), &signature).unwrap()
}

#[test]
fn spiffe_req_07_to_12_openssl_verifies_an_svid_strictly_and_shows_the_profile() {
    let now = OffsetDateTime::now_utc();
    let ca = OwnCa::at(now);
    let mut wanted = request("spiffe://example.org/ns/shop/sa/web");
    wanted.not_before = now - time::Duration::MINUTE;
    wanted.not_after = now + time::Duration::HOUR;
    wanted.dns_names = vec!["web.shop.svc".into(), "web".into()];
    let key = proven();
    let unsigned = prepare(&wanted, &key, &ca.issuer, ca.key.algorithm()).unwrap();
    let leaf = assemble(
        &unsigned.tbs,
        ca.key.algorithm(),
        &ca.key.sign(&unsigned.tbs).unwrap(),
    )
    .unwrap();

    let openssl = OpenSsl::new();
    openssl.write("leaf.pem", bundle::certificate_pem(&leaf));
    openssl.write("ca.pem", bundle::certificate_pem(ca.issuer.certificate()));
    openssl.write("root.pem", bundle::certificate_pem(&ca.root));
    for purpose in ["sslserver", "sslclient"] {
        openssl.run(&format!(
            "verify -x509_strict -purpose {purpose} -CAfile root.pem -untrusted ca.pem leaf.pem"
        ));
    }
    let text = String::from_utf8(openssl.run("x509 -in leaf.pem -noout -text")).unwrap();
    for line in [
        "Version: 3",
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical\n                \
         URI:spiffe://example.org/ns/shop/sa/web, DNS:web.shop.svc, DNS:web\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    let shown = openssl.run("x509 -in leaf.pem -noout -serial");
    let shown = String::from_utf8(shown).unwrap();
    let shown: Serial = shown.trim().trim_start_matches("serial=").parse().unwrap();
    assert_eq!(shown, wanted.serial);
}

#[test]
fn spiffe_req_06_what_is_signed_is_what_was_linted() {
    let ca = OwnCa::new();
    let key = proven();
    let wanted = request("spiffe://example.org/web");
    let unsigned = prepare(&wanted, &key, &ca.issuer, ca.key.algorithm()).unwrap();
    let certificate = issue(&ca, &wanted, &key);
    let parsed = |der: &[u8]| {
        let (rest, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
        assert!(rest.is_empty());
        parsed.tbs_certificate.as_ref().to_vec()
    };
    assert_eq!(parsed(&certificate), unsigned.tbs);
    assert_eq!(parsed(&unsigned.dummy), unsigned.tbs);
    // ID and key lie inside the signed part.
    let holds = |needle: &[u8]| {
        unsigned
            .tbs
            .windows(needle.len())
            .any(|window| window == needle)
    };
    assert!(holds(b"spiffe://example.org/web") && holds(key.spki_der()));
    // Bytes that are not one value, or an empty signature, are never assembled.
    let algorithm = SigningAlgorithm::EcdsaP256Sha256;
    for tbs in [
        &unsigned.tbs[1..],
        &[unsigned.tbs.as_slice(), &[5, 0]].concat(),
        &[],
    ] {
        assert_eq!(
            assemble(tbs, algorithm, &[1; 64]),
            Err(ProfileError::Changed)
        );
    }
    assert_eq!(
        assemble(&unsigned.tbs, algorithm, &[]),
        Err(ProfileError::Changed)
    );
}

#[test]
fn every_kind_of_key_is_certified_byte_for_byte() {
    let ca = OwnCa::new();
    let openssl = OpenSsl::new();
    for kind in ["ec:P-256", "ec:P-384", "rsa:2048", "rsa:3072", "rsa:4096"] {
        openssl.key("leaf", kind);
        openssl.run("req -new -key leaf.key -subj / -out leaf.csr");
        let key = prove_possession(&openssl.der("leaf.csr")).unwrap();
        let certificate = issue(&ca, &request("spiffe://example.org/web"), &key);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        assert_eq!(
            parsed.tbs_certificate.subject_pki.raw,
            openssl.spki("leaf"),
            "{kind}"
        );
    }
}

#[test]
fn issuers_of_every_kind_with_any_name_are_copied_byte_for_byte() {
    let openssl = OpenSsl::new();
    // Two values of one kind, several values in one RDN, and other string types: more
    // than rcgen's own type for names can hold.
    openssl.write(
        "ca.cnf",
        "[req]\ndistinguished_name=dn\nprompt=no\nutf8=yes\nstring_mask=MASK:0x0002\n\
         x509_extensions=ext\n\
         [dn]\n0.DC=org\n1.DC=example\n0.OU=one\n1.OU=two\nO=Ex\n+CN=Strange, \"quoted\" CA\n\
         [ext]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
         subjectKeyIdentifier=hash\n",
    );
    for (kind, algorithm) in [
        ("ec:P-256", SigningAlgorithm::EcdsaP256Sha256),
        ("ec:P-384", SigningAlgorithm::EcdsaP384Sha384),
        ("rsa:2048", SigningAlgorithm::RsaPkcs1Sha256),
    ] {
        openssl.key("ca", kind);
        openssl.run("req -new -x509 -key ca.key -config ca.cnf -days 30 -out ca.pem");
        let key = CaKey::from_pem(&openssl.read("ca.key")).unwrap();
        assert_eq!(key.algorithm(), algorithm);
        let roots = [CertificateDer::from(openssl.der("ca.pem"))];
        let now = OffsetDateTime::now_utc();
        let issuer = Issuer::from_chain(&roots, &roots, key.spki_der(), now).unwrap();
        assert!(issuer.chain().is_empty());
        let mut wanted = request("spiffe://example.org/web");
        wanted.not_before = issuer.not_before();
        wanted.not_after = now + time::Duration::HOUR;
        let unsigned = prepare(&wanted, &proven(), &issuer, algorithm).unwrap();
        let signature = key.sign(&unsigned.tbs).unwrap();
        let leaf = assemble(&unsigned.tbs, algorithm, &signature).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        assert_eq!(parsed.issuer().as_raw(), issuer.subject_der());
        openssl.write("leaf.pem", bundle::certificate_pem(&leaf));
        openssl.run("verify -x509_strict -CAfile ca.pem leaf.pem");
    }
}

#[test]
fn spiffe_req_09_11_own_cas_pass_openssl_and_the_linter() {
    let now = OffsetDateTime::now_utc();
    let ca = OwnCa::at(now);
    let openssl = OpenSsl::new();
    openssl.write("root.pem", bundle::certificate_pem(&ca.root));
    openssl.write("ca.pem", bundle::certificate_pem(ca.issuer.certificate()));
    openssl.run("verify -x509_strict -CAfile root.pem ca.pem");
    let text = String::from_utf8(openssl.run("x509 -in ca.pem -noout -text")).unwrap();
    let key_id = hex::encode(ca.issuer.subject_key_id());
    assert!(
        text.contains(&format!("CN = Citadel CA {key_id}")),
        "{text}"
    );
    for line in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
        "URI:spiffe://example.org\n",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    let roots = [ca.root.clone()];
    let parent = Issuer::from_chain(&roots, &roots, ca.root_key.spki_der(), now).unwrap();
    for certificate in [ca.issuer.certificate(), &ca.root] {
        let context = LintContext {
            issuer: &parent,
            trust_domain: &td(),
            max_lifetime: Duration::from_hours(24 * 366),
            // Their validity began an hour ago.
            now: now - time::Duration::HOUR,
            subject: LintSubject::Authority,
        };
        assert_eq!(lint(certificate, &context), Ok(()));
    }
    assert_eq!(ca.issuer.path_length(), Some(0));
    assert_eq!(ca.issuer.trust_domain(), Some(&td()));
    assert_eq!(ca.issuer.chain(), [ca.issuer.certificate().clone()]);
    assert_eq!(ca.issuer.root(), &ca.root);
}

#[test]
fn requests_that_are_refused() {
    let ca = OwnCa::new();
    let key = proven();
    let refused = |change: &dyn Fn(&mut SvidRequest)| {
        let mut wanted = request("spiffe://example.org/web");
        change(&mut wanted);
        prepare(&wanted, &key, &ca.issuer, ca.key.algorithm()).unwrap_err()
    };
    let id = |id: &str| SpiffeId::new(id).unwrap();
    for (use_, wrong) in [
        (SvidUse::Leaf, "spiffe://example.org"),
        (SvidUse::Leaf, "spiffe://example.org/citadel"),
        (SvidUse::Leaf, "spiffe://example.org/citadel/ca"),
        (SvidUse::Agent, "spiffe://example.org/web"),
        (SvidUse::Agent, "spiffe://example.org/citadel/ca"),
        (
            SvidUse::CaServer,
            "spiffe://example.org/citadel/agent/east/node",
        ),
    ] {
        let error = refused(&|wanted| {
            wanted.spiffe_id = id(wrong);
            wanted.use_ = use_;
        });
        assert_eq!(error, ProfileError::Id(id(wrong)));
    }
    let long = format!("spiffe://example.org/{}", "x".repeat(2049 - 21));
    assert_eq!(
        refused(&|wanted| wanted.spiffe_id = id(&long)),
        ProfileError::IdTooLong(2049)
    );
    for name in [
        "*.example.org",
        "",
        ".",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "ä",
        "a b",
        "a.",
        &"x".repeat(64),
    ] {
        let error = refused(&|wanted| wanted.dns_names = vec!["ok".into(), name.into()]);
        assert_eq!(error, ProfileError::DnsName(name.into()));
    }
    assert_eq!(
        refused(&|wanted| wanted.dns_names = vec!["x".into(); 65]),
        ProfileError::DnsNames(65)
    );
    assert_eq!(
        refused(&|wanted| wanted.not_after = wanted.not_before),
        ProfileError::Validity
    );
    let late = ca.issuer.not_after() + time::Duration::SECOND;
    assert_eq!(
        refused(&|wanted| wanted.not_after = late),
        ProfileError::OutlivesIssuer(late)
    );
    let early = ca.issuer.not_before() - time::Duration::SECOND;
    assert_eq!(
        refused(&|wanted| wanted.not_before = early),
        ProfileError::PredatesIssuer(early)
    );
}

#[test]
fn agents_and_the_ca_get_theirs() {
    let ca = OwnCa::new();
    for (use_, id) in [
        (
            SvidUse::Agent,
            template::agent_id(&td(), "east", "node-1").unwrap(),
        ),
        (SvidUse::CaServer, template::ca_id(&td())),
    ] {
        let mut wanted = request("spiffe://example.org/web");
        wanted.use_ = use_;
        wanted.spiffe_id = id;
        wanted.dns_names = vec!["citadel-ca.citadel-system.svc".into()];
        issue(&ca, &wanted, &proven());
    }
}

#[test]
fn cas_that_outlive_their_parent_or_never_begin_are_not_made() {
    let ca = OwnCa::new();
    let roots = [ca.root.clone()];
    let parent = Issuer::from_chain(&roots, &roots, ca.root_key.spki_der(), NOW).unwrap();
    let late = parent.not_after() + time::Duration::SECOND;
    let made = intermediate(
        &ca.key,
        &td(),
        NOW,
        late,
        &serial(NOW),
        &parent,
        &ca.root_key,
    );
    assert_eq!(made, Err(ProfileError::OutlivesIssuer(late)));
    let made = self_signed_root(&ca.root_key, &td(), NOW, NOW, &serial(NOW));
    assert_eq!(made, Err(ProfileError::Validity));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_leaf_that_the_profile_accepts_passes_the_linter(
        path in "(/[a-zA-Z0-9._-]{1,12}){1,6}|/citadel(/ca|/x|/agent/[a-z]{1,4}/[a-z.]{1,4})?|/x{0,2100}",
        dns_names in prop::collection::vec("[a-z0-9-]{1,6}(\\.[a-zA-Z0-9-]{1,5}){0,3}|\\*\\.x|[a-z_.]{1,5}", 0..5),
        use_ in prop::sample::select(vec![SvidUse::Leaf, SvidUse::Agent, SvidUse::CaServer]),
        backdate in 0_i64..=600,
        lifetime in -5_i64..=86_400,
        ms in any::<u64>(),
    ) {
        let ca = OwnCa::new();
        let key = proven();
        let Ok(spiffe_id) = SpiffeId::new(format!("spiffe://example.org{path}")) else {
            return Ok(());
        };
        let wanted = SvidRequest {
            spiffe_id,
            dns_names,
            not_before: NOW - time::Duration::seconds(backdate),
            not_after: NOW + time::Duration::seconds(lifetime),
            serial: Serial::new(ms),
            use_,
        };
        let Ok(unsigned) = prepare(&wanted, &key, &ca.issuer, ca.key.algorithm()) else {
            return Ok(());
        };
        let verdict = lint(&unsigned.dummy, &context(&ca, &wanted, &key));
        // The profile has no clock: only whether it has expired is beyond it.
        prop_assert_eq!(verdict.is_ok(), lifetime > 0, "{:?}", verdict);
    }
}

/// The linter reads the frame by itself: what it lets pass is read the same by others.
#[test]
fn spiffe_req_06_to_12_a_changed_bit_passes_the_linter_only_where_the_ca_is_free() {
    let ca = OwnCa::new();
    let key = proven();
    let mut wanted = request("spiffe://example.org/ns/shop/sa/web");
    wanted.dns_names = vec!["web.shop.svc".into()];
    let good = prepare(&wanted, &key, &ca.issuer, ca.key.algorithm())
        .unwrap()
        .dummy;
    let context = context(&ca, &wanted, &key);
    lint(&good, &context).unwrap();
    // All but serial, validity, subject key identifier and signature.
    let fixed = |der: &[u8]| {
        let (rest, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
        assert!(rest.is_empty());
        let tbs = &certificate.tbs_certificate;
        let extensions: Vec<_> = tbs
            .extensions()
            .iter()
            .filter(|extension| {
                !matches!(
                    extension.parsed_extension(),
                    ParsedExtension::SubjectKeyIdentifier(_)
                )
            })
            .map(|extension| format!("{extension:?}"))
            .collect();
        let names = [tbs.issuer.as_raw(), tbs.subject.as_raw()].map(<[u8]>::to_vec);
        let algorithms = format!("{:?} {:?}", tbs.signature, certificate.signature_algorithm);
        let spki = tbs.subject_pki.raw.to_vec();
        (tbs.version, names, algorithms, spki, extensions)
    };
    let expected = fixed(&good);
    let mut passed = 0;
    for bit in 0..good.len() * 8 {
        let mut changed = good.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        if lint(&changed, &context).is_ok() {
            assert_eq!(fixed(&changed), expected, "bit {bit}");
            passed += 1;
        }
    }
    // Serial and identifier have 126 and 160 bits or so, the signature as many as it has.
    assert!((280..good.len() * 8 / 4).contains(&passed), "{passed}");
}

#[test]
fn certificates_are_pem_of_one_block() {
    let ca = OwnCa::new();
    let text = bundle::certificate_pem(&ca.root);
    let blocks = pem::decode(text.as_bytes(), 1 << 16).unwrap();
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].der.as_slice(), ca.root.as_ref());
}
