//! Loading an issuer: what is accepted, and each defect with its reason.

use citadel_identity::FactsError;
use citadel_identity::issuer::{Issuer, IssuerError};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use time::Duration;

use crate::support::{Authority, NOW, ca_params, leaf_params};

fn load(chain: &[&Authority], roots: &[&Authority]) -> Result<Issuer, IssuerError> {
    load_at(chain, roots, NOW)
}

fn load_at(
    chain: &[&Authority],
    roots: &[&Authority],
    now: time::OffsetDateTime,
) -> Result<Issuer, IssuerError> {
    let ders = |list: &[&Authority]| list.iter().map(|ca| ca.der.clone()).collect::<Vec<_>>();
    let spki = chain
        .first()
        .map(|own| own.key.subject_public_key_info())
        .unwrap_or_default();
    Issuer::from_chain(&ders(chain), &ders(roots), &spki, now)
}

fn subject(name: &str) -> String {
    format!("CN={name}")
}

#[test]
fn chains_of_every_length_in_any_order() {
    let root = Authority::root(ca_params("root"));
    let upper = root.child(ca_params("upper"));
    let lower = upper.child(ca_params("lower"));
    let other = Authority::root(ca_params("other"));

    let alone = load(&[&root], &[&other, &root]).unwrap();
    assert!(alone.chain().is_empty());
    assert_eq!(alone.root(), &root.der);

    // The root in the chain file, and a copy of the issuing certificate, do no harm.
    let issuer = load(&[&lower, &lower, &root, &upper], &[&other, &root]).unwrap();
    assert_eq!(issuer.certificate(), &lower.der);
    assert_eq!(issuer.chain(), [lower.der.clone(), upper.der.clone()]);
    assert_eq!(issuer.root(), &root.der);
    assert_eq!(issuer.spki_der(), lower.key.subject_public_key_info());
    assert_eq!(issuer.not_after(), NOW + Duration::days(30));
    assert_eq!(issuer.path_length(), None);
    assert_eq!(issuer.trust_domain(), None);
}

#[test]
fn the_key_must_be_the_certificates() {
    let root = Authority::root(ca_params("root"));
    let spki = Authority::root(ca_params("root"))
        .key
        .subject_public_key_info();
    let chain = [root.der];
    let error = Issuer::from_chain(&chain, &chain, &spki, NOW).unwrap_err();
    assert_eq!(error, IssuerError::KeyMismatch(subject("root")));
    assert!(error.to_string().contains("does not match"), "{error}");
}

#[test]
fn the_chain_must_lead_to_a_root() {
    let root = Authority::root(ca_params("root"));
    let upper = root.child(ca_params("upper"));
    let lower = upper.child(ca_params("lower"));
    let missing = IssuerError::NoPath {
        subject: subject("lower"),
        issuer: subject("upper"),
    };
    assert_eq!(load(&[&lower], &[&root]).unwrap_err(), missing);
    // A root of the right name that did not sign.
    let namesake = Authority::root(ca_params("root"));
    let error = load(&[&lower, &upper], &[&namesake]).unwrap_err();
    assert!(matches!(error, IssuerError::Signature { .. }), "{error}");
    let stranger = Authority::root(ca_params("stranger"));
    assert_eq!(
        load(&[&lower, &upper], &[&stranger]).unwrap_err(),
        IssuerError::NoPath {
            subject: subject("upper"),
            issuer: subject("root")
        }
    );
    // A self-signed CA that is no root.
    assert_eq!(
        load(&[&stranger], &[&root]).unwrap_err(),
        IssuerError::NoPath {
            subject: subject("stranger"),
            issuer: subject("stranger")
        }
    );
    assert_eq!(load(&[], &[&root]).unwrap_err(), IssuerError::Empty);
    assert_eq!(load(&[&root], &[]).unwrap_err(), IssuerError::NoRoot);
    let many = [&root; 7];
    assert_eq!(load(&many, &[&root]).unwrap_err(), IssuerError::TooMany(7));
}

#[test]
fn two_cas_that_certify_each_other_end_the_search() {
    let mut a = Authority::root(ca_params("a"));
    let b = a.child(ca_params("b"));
    a.der = b.sign(&a.params, &a.key);
    let root = Authority::root(ca_params("root"));
    assert!(matches!(
        load(&[&a, &b], &[&root]),
        Err(IssuerError::NoPath { .. })
    ));
}

#[test]
fn a_roots_cross_certificate_travels_with_the_chain() {
    let old = Authority::root(ca_params("old"));
    let new = Authority::root(ca_params("new"));
    let issuing = new.child(ca_params("issuing"));
    let crossed = |params: CertificateParams| Authority {
        der: old.sign(&params, &new.key),
        key: rcgen::KeyPair::generate().unwrap(),
        params,
    };
    let cross = crossed(ca_params("new"));
    let with_cross = [issuing.der.clone(), cross.der.clone()];

    // In any order, and beside the root itself.
    for chain in [[&issuing, &cross, &new], [&issuing, &new, &cross]] {
        let issuer = load(&chain, &[&old, &new]).unwrap();
        assert_eq!(issuer.chain(), with_cross);
        assert_eq!(issuer.root(), &new.der);
    }
    // The root itself issues.
    let lone = load(&[&new, &cross], &[&new, &old]).unwrap();
    assert_eq!(lone.chain(), std::slice::from_ref(&cross.der));
    assert_eq!(lone.root(), &new.der);
    // Where the new root is not trusted by itself, it is an intermediate of the old one.
    let below = load(&[&issuing, &cross], &[&old]).unwrap();
    assert_eq!(below.chain(), with_cross);
    assert_eq!(below.root(), &old.der);

    // Useless ones: the other root is gone, another key, too short, expired, no CA.
    let of_another_key = old.child(ca_params("new"));
    let short = crossed(ca_with(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    }));
    let expired = crossed(ca_with(|params| params.not_after = NOW - Duration::HOUR));
    let no_ca = crossed(ca_with(|params| params.is_ca = IsCa::ExplicitNoCa));
    let alone = [issuing.der.clone()];
    for (useless, roots) in [
        (&cross, &[&new] as &[_]),
        (&of_another_key, &[&old, &new]),
        (&short, &[&old, &new]),
        (&expired, &[&old, &new]),
        (&no_ca, &[&old, &new]),
    ] {
        let issuer = load(&[&issuing, useless], roots).unwrap();
        assert_eq!(issuer.chain(), alone);
        assert_eq!(issuer.root(), &new.der);
    }
}

fn ca_with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = ca_params("new");
    change(&mut params);
    params
}

#[test]
fn validity_counts_on_every_level() {
    let mut late = ca_params("late");
    late.not_before = NOW + Duration::SECOND;
    let mut early = ca_params("early");
    early.not_after = NOW - Duration::SECOND;
    let not_yet = |error: IssuerError| matches!(error, IssuerError::NotYetValid { subject, .. } if subject == "CN=late");
    let expired = |error: IssuerError| matches!(error, IssuerError::Expired { subject, .. } if subject == "CN=early");
    let good = Authority::root(ca_params("root"));
    let (late_root, early_root) = (
        Authority::root(late.clone()),
        Authority::root(early.clone()),
    );
    assert!(not_yet(load(&[&late_root], &[&late_root]).unwrap_err()));
    assert!(expired(load(&[&early_root], &[&early_root]).unwrap_err()));
    assert!(not_yet(
        load(&[&late_root.child(ca_params("ca"))], &[&late_root]).unwrap_err()
    ));
    assert!(expired(
        load(&[&early_root.child(ca_params("ca"))], &[&early_root]).unwrap_err()
    ));
    assert!(not_yet(load(&[&good.child(late)], &[&good]).unwrap_err()));
    let early = good.child(early);
    assert!(expired(load(&[&early], &[&good]).unwrap_err()));
    // notAfter's own second still counts.
    assert!(load_at(&[&early], &[&good], NOW - Duration::SECOND).is_ok());
}

#[test]
fn path_lengths_count() {
    let with = |name: &str, length: u8| {
        let mut params = ca_params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params
    };
    let root = Authority::root(with("root", 1));
    let zero = root.child(with("zero", 0));
    assert!(load(&[&zero], &[&root]).is_ok());
    let below = zero.child(ca_params("below"));
    assert_eq!(
        load(&[&below, &zero], &[&root]).unwrap_err(),
        IssuerError::PathLength {
            subject: subject("zero"),
            allowed: 0,
            below: 1
        }
    );
    let root = Authority::root(with("root", 0));
    let ca = root.child(ca_params("ca"));
    assert_eq!(
        load(&[&ca], &[&root]).unwrap_err(),
        IssuerError::PathLength {
            subject: subject("root"),
            allowed: 0,
            below: 1
        }
    );
}

/// What loading says of a CA, under a good root, whose parameters were bent.
fn bent(change: impl Fn(&mut CertificateParams)) -> IssuerError {
    let root = Authority::root(ca_params("root"));
    let mut params = ca_params("bent");
    change(&mut params);
    load(&[&root.child(params)], &[&root]).unwrap_err()
}

#[test]
fn spiffe_req_09_11_what_is_no_ca_does_not_issue() {
    let name = subject("bent");
    assert_eq!(
        bent(|p| p.is_ca = IsCa::ExplicitNoCa),
        IssuerError::NotCa(name.clone())
    );
    assert_eq!(
        bent(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        IssuerError::NoKeyCertSign(name.clone())
    );
    assert_eq!(
        bent(|p| p.key_usages.clear()),
        IssuerError::NoKeyCertSign(name.clone())
    );
    let optional = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 1, 6]);
    let error = bent(|p| {
        p.key_usages.clear();
        p.custom_extensions = vec![optional.clone()];
    });
    assert_eq!(error, IssuerError::KeyUsageNotCritical(name.clone()));
    let id = |id: &str| vec![SanType::URI(id.try_into().unwrap())];
    assert_eq!(
        bent(|p| p.subject_alt_names = id("spiffe://example.org/ca")),
        IssuerError::IdWithPath("spiffe://example.org/ca".into())
    );
    let error = bent(|p| p.subject_alt_names = id("https://example.org"));
    assert!(matches!(error, IssuerError::Id { .. }), "{error}");
    let root = Authority::root(ca_params("root"));
    let mut params = ca_params("ca");
    params.subject_alt_names = id("spiffe://example.org");
    let issuer = load(&[&root.child(params)], &[&root]).unwrap();
    assert_eq!(issuer.trust_domain().unwrap().as_str(), "example.org");
}

#[test]
fn what_a_leaf_could_not_repeat_or_a_verifier_not_judge_is_refused() {
    assert_eq!(
        bent(|p| p.distinguished_name = DistinguishedName::new()),
        IssuerError::NoSubject
    );
    let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    unknown.set_criticality(true);
    let error = bent(|p| p.custom_extensions = vec![unknown.clone()]);
    assert!(matches!(error, IssuerError::UnknownCritical { oid, .. } if oid == "1.2.3.4"));
    // permittedSubtrees with one URI constraint; rcgen has no type for it.
    let subtrees = [
        0x30, 0x0b, 0xa0, 0x09, 0x30, 0x07, 0x86, 0x05, b'a', b'.', b'o', b'r', b'g',
    ];
    let mut uris = CustomExtension::from_oid_content(&[2, 5, 29, 30], subtrees.to_vec());
    uris.set_criticality(true);
    let error = bent(|p| p.custom_extensions = vec![uris.clone()]);
    assert_eq!(error, IssuerError::NameConstraints(subject("bent")));
    // Constraints on DNS names are judged by whoever verifies, and say nothing of IDs.
    let root = Authority::root(ca_params("root"));
    let mut params = ca_params("ca");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
        excluded_subtrees: Vec::new(),
    });
    assert!(load(&[&root.child(params)], &[&root]).is_ok());
}

#[test]
fn a_subject_key_identifier_is_needed() {
    // By rcgen a CA always has one; a leaf made to look like a CA has none.
    let root = Authority::root(ca_params("root"));
    let mut params = leaf_params("spiffe://example.org");
    params.distinguished_name = ca_params("bare").distinguished_name;
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages.clear();
    let mut constraints =
        CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
    constraints.set_criticality(true);
    params.custom_extensions = vec![constraints];
    let error = load(&[&root.child(params)], &[&root]).unwrap_err();
    assert_eq!(error, IssuerError::NoSubjectKeyId(subject("bare")));
}

#[test]
fn garbage_is_named_by_its_place() {
    let root = Authority::root(ca_params("root"));
    let spki = root.key.subject_public_key_info();
    let junk = CertificateDer::from(vec![1, 2, 3]);
    let good = root.der;
    let error = Issuer::from_chain(
        &[good.clone(), junk.clone()],
        std::slice::from_ref(&good),
        &spki,
        NOW,
    )
    .unwrap_err();
    assert!(matches!(
        error,
        IssuerError::Certificate {
            part: "CA chain",
            position: 2,
            error: FactsError::Malformed(_)
        }
    ));
    let error = Issuer::from_chain(&[good], &[junk], &spki, NOW).unwrap_err();
    assert!(matches!(
        error,
        IssuerError::Certificate {
            part: "roots",
            position: 1,
            ..
        }
    ));
}
