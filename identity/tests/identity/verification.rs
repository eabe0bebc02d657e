//! Presented chains: what is accepted, and each fault with its reason.

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::verify::{
    ProvenIssuers, VerifiedSvid, VerifyError, Which, spiffe_id, verify_svid, verify_svid_again,
};
use citadel_identity::{FactsError, SpiffeId, SpiffeIdFault, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use time::Duration;

use crate::support::{Authority, NOW, ca_params, leaf_params, td};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

fn id() -> SpiffeId {
    SpiffeId::new(ID).unwrap()
}

fn verify(
    chain: &[&CertificateDer<'static>],
    bundles: &BundleSet,
) -> Result<VerifiedSvid, VerifyError> {
    let chain: Vec<_> = chain.iter().map(|der| (*der).clone()).collect();
    let verdict = verify_svid(&chain, bundles, NOW);
    // The same with a memory, empty and not.
    let proven = ProvenIssuers::default();
    for _ in 0..2 {
        assert_eq!(verify_svid_again(&chain, bundles, NOW, &proven), verdict);
    }
    verdict
}

/// The verdict on a leaf, under a good root, whose parameters were bent.
fn bent_leaf(change: impl Fn(&mut CertificateParams)) -> Result<VerifiedSvid, VerifyError> {
    let root = Authority::root(ca_params("root"));
    let mut params = leaf_params(ID);
    change(&mut params);
    verify(&[&root.leaf(&params)], &root.bundles())
}

/// The verdict on a good leaf whose intermediate's parameters were bent.
fn bent_ca(change: impl Fn(&mut CertificateParams)) -> Result<VerifiedSvid, VerifyError> {
    let root = Authority::root(ca_params("root"));
    let mut params = ca_params("bent");
    change(&mut params);
    let ca = root.child(params);
    verify(&[&ca.leaf(&leaf_params(ID)), &ca.der], &root.bundles())
}

/// The verdict on a good leaf whose root's parameters were bent.
fn bent_root(change: impl Fn(&mut CertificateParams)) -> Result<VerifiedSvid, VerifyError> {
    let mut params = ca_params("bent");
    change(&mut params);
    let root = Authority::root(params);
    let ca = root.child(ca_params("ca"));
    verify(&[&ca.leaf(&leaf_params(ID)), &ca.der], &root.bundles())
}

fn bent() -> Which {
    Which::Intermediate("CN=bent".into())
}

#[test]
fn spiffe_req_13_a_chain_to_an_authority_of_its_trust_domain_is_accepted() {
    let root = Authority::root(ca_params("root"));
    let other = Authority::root(ca_params("other"));
    let upper = root.child(ca_params("upper"));
    let lower = upper.child(ca_params("lower"));
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params(ID);
    params
        .subject_alt_names
        .push(SanType::DnsName("web.example.org".try_into().unwrap()));
    let leaf = lower.sign(&params, &key);
    let bundles: BundleSet = Bundle::new(td(), vec![other.der.clone(), root.der.clone()]).into();
    // In any order; the root and a stranger may be there too.
    for chain in [
        vec![&leaf, &lower.der, &upper.der],
        vec![&leaf, &upper.der, &lower.der],
        vec![&leaf, &lower.der, &upper.der, &root.der],
        vec![&leaf, &other.der, &lower.der, &upper.der, &root.der],
    ] {
        let verified = verify(&chain, &bundles).unwrap();
        assert_eq!(verified.spiffe_id, id());
        assert_eq!(verified.not_before, params.not_before);
        assert_eq!(verified.not_after, params.not_after);
        assert_eq!(
            Some(verified.serial.as_bytes()),
            params.serial_number.as_ref().map(AsRef::as_ref)
        );
        assert_eq!(verified.dns_names, ["web.example.org"]);
        assert_eq!(verified.authority, root.der);
        let spki = key.subject_public_key_info();
        assert_eq!(
            verified.spki_sha256,
            citadel_identity::crypto::sha256(&spki)
        );
    }
    // An intermediate may itself be an authority of the bundle.
    let upper_only = Bundle::new(td(), vec![upper.der.clone()]).into();
    assert_eq!(
        verify(&[&leaf, &lower.der], &upper_only).unwrap().authority,
        upper.der
    );
}

#[test]
fn spiffe_req_07_exactly_one_uri_san() {
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let verdict = |names: Vec<SanType>| {
        bent_leaf(|params| params.subject_alt_names.clone_from(&names)).unwrap_err()
    };
    let dns = SanType::DnsName("web.example.org".try_into().unwrap());
    assert_eq!(
        verdict(vec![dns]),
        VerifyError::SpiffeId(SpiffeIdFault::None)
    );
    assert_eq!(verdict(vec![]), VerifyError::SpiffeId(SpiffeIdFault::None));
    let two = vec![uri(ID), uri("https://example.org/")];
    assert_eq!(
        verdict(two),
        VerifyError::SpiffeId(SpiffeIdFault::Several(2))
    );
    let web = verdict(vec![uri("https://example.org/ns/shop/sa/web")]);
    assert!(
        matches!(web, VerifyError::SpiffeId(SpiffeIdFault::Invalid { .. })),
        "{web}"
    );
    let long = format!("spiffe://example.org/{}", "x".repeat(2049 - 21));
    assert_eq!(
        verdict(vec![uri(&long)]),
        VerifyError::SpiffeId(SpiffeIdFault::TooLong(2049))
    );
}

#[test]
fn spiffe_req_04_an_id_of_2048_bytes_is_accepted() {
    let long = format!("spiffe://example.org/{}", "x".repeat(2048 - 21));
    let san = SanType::URI(long.as_str().try_into().unwrap());
    let verified = bent_leaf(|params| params.subject_alt_names = vec![san.clone()]).unwrap();
    assert_eq!(verified.spiffe_id.to_string(), long);
}

#[test]
fn spiffe_req_08_a_leaf_has_a_path() {
    let san = SanType::URI("spiffe://example.org".try_into().unwrap());
    let error = bent_leaf(|params| params.subject_alt_names = vec![san.clone()]).unwrap_err();
    assert_eq!(
        error,
        VerifyError::NoPath(SpiffeId::new("spiffe://example.org").unwrap())
    );
}

#[test]
fn spiffe_req_09_a_ca_never_authenticates_a_workload() {
    let as_ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    assert_eq!(bent_leaf(as_ca).unwrap_err(), VerifyError::CaAsLeaf);
    // Neither an authority of the bundle, nor one below it, with or without an ID.
    let root = Authority::root(ca_params("root"));
    assert_eq!(
        verify(&[&root.der], &root.bundles()).unwrap_err(),
        VerifyError::CaAsLeaf
    );
    let mut params = ca_params("ca");
    params.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    let ca = root.child(params);
    assert_eq!(
        verify(&[&ca.der], &root.bundles()).unwrap_err(),
        VerifyError::CaAsLeaf
    );
}

#[test]
fn spiffe_req_10_a_leaf_signs_neither_certificates_nor_crls() {
    let verdict = |usages: &[KeyUsagePurpose]| {
        bent_leaf(|params| params.key_usages = usages.to_vec()).unwrap_err()
    };
    let digital = KeyUsagePurpose::DigitalSignature;
    assert_eq!(
        verdict(&[digital, KeyUsagePurpose::KeyCertSign]),
        VerifyError::LeafMaySign
    );
    assert_eq!(
        verdict(&[digital, KeyUsagePurpose::CrlSign]),
        VerifyError::LeafMaySign
    );
    assert_eq!(
        verdict(&[KeyUsagePurpose::KeyAgreement]),
        VerifyError::NoDigitalSignature
    );
    assert!(bent_leaf(|p| p.key_usages = vec![digital, KeyUsagePurpose::KeyEncipherment]).is_ok());
}

#[test]
fn spiffe_req_11_the_key_usage_is_present_and_critical() {
    assert_eq!(
        bent_leaf(|p| p.key_usages.clear()).unwrap_err(),
        VerifyError::KeyUsage
    );
    let optional = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
    let verdict = bent_leaf(|params| {
        params.key_usages.clear();
        params.custom_extensions = vec![optional.clone()];
    });
    assert_eq!(verdict.unwrap_err(), VerifyError::KeyUsage);
    assert_eq!(
        bent_ca(|p| p.key_usages.clear()).unwrap_err(),
        VerifyError::NoKeyCertSign(bent())
    );
}

#[test]
fn spiffe_req_12_extended_key_usage_is_absent_or_has_both() {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};

    let verdict =
        |usages: &[ExtendedKeyUsagePurpose]| bent_leaf(|p| p.extended_key_usages = usages.to_vec());
    for wrong in [&[ServerAuth][..], &[ClientAuth], &[CodeSigning]] {
        assert_eq!(verdict(wrong).unwrap_err(), VerifyError::ExtendedKeyUsage);
    }
    assert!(verdict(&[]).is_ok());
    assert!(verdict(&[CodeSigning, ClientAuth, ServerAuth]).is_ok());
    // A CA that is limited to other purposes can't pass ours on.
    let error = bent_ca(|p| p.extended_key_usages = vec![CodeSigning]).unwrap_err();
    assert_eq!(error, VerifyError::ExtendedKeyUsage);
    assert!(bent_ca(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]).is_ok());
}

#[test]
fn validity_counts_on_every_level_and_the_guilty_one_is_named() {
    let expired = |p: &mut CertificateParams| p.not_after = NOW - Duration::SECOND;
    let future = |p: &mut CertificateParams| p.not_before = NOW + Duration::SECOND;
    let not_after = NOW - Duration::SECOND;
    let not_before = NOW + Duration::SECOND;
    let authority = || Which::Authority("CN=bent".into());
    assert_eq!(
        bent_leaf(expired).unwrap_err(),
        VerifyError::Expired {
            which: Which::Leaf,
            not_after
        }
    );
    assert_eq!(
        bent_ca(expired).unwrap_err(),
        VerifyError::Expired {
            which: bent(),
            not_after
        }
    );
    assert_eq!(
        bent_root(expired).unwrap_err(),
        VerifyError::Expired {
            which: authority(),
            not_after
        }
    );
    assert_eq!(
        bent_leaf(future).unwrap_err(),
        VerifyError::NotYetValid {
            which: Which::Leaf,
            not_before
        }
    );
    assert_eq!(
        bent_ca(future).unwrap_err(),
        VerifyError::NotYetValid {
            which: bent(),
            not_before
        }
    );
    assert_eq!(
        bent_root(future).unwrap_err(),
        VerifyError::NotYetValid {
            which: authority(),
            not_before
        }
    );
    let text = bent_leaf(expired).unwrap_err().to_string();
    assert_eq!(
        text,
        "the certificate expired at 2026-11-21 11:59:59.0 +00:00:00"
    );
    // The bounds themselves are inside.
    assert!(bent_leaf(|p| p.not_after = NOW).is_ok());
    assert!(bent_leaf(|p| p.not_before = NOW).is_ok());
}

#[test]
fn only_cas_that_may_sign_make_a_chain() {
    assert_eq!(
        bent_ca(|p| p.is_ca = IsCa::ExplicitNoCa).unwrap_err(),
        VerifyError::NotCa(bent())
    );
    assert_eq!(
        bent_ca(|p| p.is_ca = IsCa::NoCa).unwrap_err(),
        VerifyError::NotCa(bent())
    );
    let no_sign = |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::CrlSign];
    assert_eq!(
        bent_ca(no_sign).unwrap_err(),
        VerifyError::NoKeyCertSign(bent())
    );
    let authority = Which::Authority("CN=bent".into());
    assert_eq!(
        bent_root(no_sign).unwrap_err(),
        VerifyError::NoKeyCertSign(authority.clone())
    );
    assert_eq!(
        bent_root(|p| p.is_ca = IsCa::ExplicitNoCa).unwrap_err(),
        VerifyError::NotCa(authority)
    );
    // A workload that signs another one.
    let root = Authority::root(ca_params("root"));
    let mut params = leaf_params(ID);
    params.distinguished_name = ca_params("workload").distinguished_name;
    let workload = root.child(params);
    let forged = workload.leaf(&leaf_params("spiffe://example.org/admin"));
    assert_eq!(
        verify(&[&forged, &workload.der], &root.bundles()).unwrap_err(),
        VerifyError::NotCa(Which::Intermediate("CN=workload".into()))
    );
}

#[test]
fn path_lengths_count() {
    let constrained = |name: &str, length: u8| {
        let mut params = ca_params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params
    };
    let root = Authority::root(ca_params("root"));
    let zero = root.child(constrained("zero", 0));
    assert!(verify(&[&zero.leaf(&leaf_params(ID)), &zero.der], &root.bundles()).is_ok());
    let below = zero.child(ca_params("below"));
    let chain = [&below.leaf(&leaf_params(ID)), &below.der, &zero.der];
    assert_eq!(
        verify(&chain, &root.bundles()).unwrap_err(),
        VerifyError::PathLength(Which::Intermediate("CN=zero".into()))
    );
    // webpki does not look at the authority's own; we do.
    let root = Authority::root(constrained("root", 0));
    assert!(verify(&[&root.leaf(&leaf_params(ID))], &root.bundles()).is_ok());
    let ca = root.child(ca_params("ca"));
    assert_eq!(
        verify(&[&ca.leaf(&leaf_params(ID)), &ca.der], &root.bundles()).unwrap_err(),
        VerifyError::PathLength(Which::Authority("CN=root".into()))
    );
}

#[test]
fn signatures_and_names_must_chain() {
    let root = Authority::root(ca_params("root"));
    let ca = root.child(ca_params("ca"));
    let leaf = ca.leaf(&leaf_params(ID));
    // The intermediate is missing.
    assert_eq!(
        verify(&[&leaf], &root.bundles()).unwrap_err(),
        VerifyError::UnknownAuthority {
            subject: String::new(),
            issuer: "CN=ca".into(),
            trust_domain: td()
        }
    );
    // Another root.
    let stranger = Authority::root(ca_params("stranger"));
    assert_eq!(
        verify(&[&leaf, &ca.der, &root.der], &stranger.bundles()).unwrap_err(),
        VerifyError::UnknownAuthority {
            subject: "CN=ca".into(),
            issuer: "CN=root".into(),
            trust_domain: td()
        }
    );
    // A root of the right name with another key.
    let namesake = Authority::root(ca_params("root"));
    assert_eq!(
        verify(&[&leaf, &ca.der], &namesake.bundles()).unwrap_err(),
        VerifyError::Signature
    );
    // A changed byte in what the root signed, and in what the CA signed.
    for changed in 0..2 {
        let mut ders = [leaf.to_vec(), ca.der.to_vec()];
        let last = ders[changed].len() - 1;
        ders[changed][last] ^= 1;
        let [leaf, ca] = ders.map(CertificateDer::from);
        assert_eq!(
            verify(&[&leaf, &ca], &root.bundles()).unwrap_err(),
            VerifyError::Signature
        );
    }
}

#[test]
fn a_bad_path_does_not_hide_a_good_one() {
    // Cross-signed: one CA key under an expired root and under a good one.
    let mut old = ca_params("root");
    old.not_after = NOW - Duration::DAY;
    let old = Authority::root(old);
    let fresh = Authority::root(ca_params("fresh"));
    let ca = old.child(ca_params("ca"));
    let cross = fresh.sign(&ca.params, &ca.key);
    let leaf = ca.leaf(&leaf_params(ID));
    let bundles = Bundle::new(td(), vec![old.der.clone(), fresh.der.clone()]).into();
    let verified = verify(&[&leaf, &ca.der, &cross], &bundles).unwrap();
    assert_eq!(verified.authority, fresh.der);
    // The same key as an expired authority and as a fresh one.
    let mut renewed = old.params.clone();
    renewed.not_after = NOW + Duration::DAY;
    let renewed = renewed.self_signed(&old.key).unwrap().der().clone();
    let bundles = Bundle::new(td(), vec![old.der, renewed.clone()]).into();
    assert_eq!(
        verify(&[&leaf, &ca.der], &bundles).unwrap().authority,
        renewed
    );
}

#[test]
fn a_path_is_valid_while_each_of_its_certificates_is() {
    // The narrowest is the leaf, the intermediate, the authority.
    for narrowest in 0..3 {
        let bounds = |params: &mut CertificateParams, at: usize| {
            let width = if at == narrowest { 1 } else { 2 };
            params.not_before = NOW - Duration::hours(width);
            params.not_after = NOW + Duration::hours(width);
        };
        let (mut root, mut ca, mut leaf) = (ca_params("root"), ca_params("ca"), leaf_params(ID));
        bounds(&mut leaf, 0);
        bounds(&mut ca, 1);
        bounds(&mut root, 2);
        let root = Authority::root(root);
        let ca = root.child(ca);
        let valid = verify(&[&ca.leaf(&leaf), &ca.der], &root.bundles()).unwrap();
        let valid = valid.path_valid;
        let (from, until) = (NOW - Duration::HOUR, NOW + Duration::HOUR);
        assert!(valid.contains(from) && valid.contains(until), "{narrowest}");
        assert!(!valid.contains(from - Duration::SECOND), "{narrowest}");
        assert!(!valid.contains(until + Duration::SECOND), "{narrowest}");
    }
}

#[test]
fn unknown_critical_extensions_are_refused_everywhere() {
    let unknown = |critical: bool| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(critical);
        move |params: &mut CertificateParams| params.custom_extensions = vec![extension.clone()]
    };
    let refused = |which| VerifyError::UnknownCritical {
        which,
        oid: "1.2.3.4".into(),
    };
    assert_eq!(bent_leaf(unknown(true)).unwrap_err(), refused(Which::Leaf));
    assert_eq!(bent_ca(unknown(true)).unwrap_err(), refused(bent()));
    assert_eq!(
        bent_root(unknown(true)).unwrap_err(),
        refused(Which::Authority("CN=bent".into()))
    );
    assert!(bent_leaf(unknown(false)).is_ok());
    assert!(bent_ca(unknown(false)).is_ok());
}

#[test]
fn duplicate_extensions_are_refused() {
    let again = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 0]);
    let error = bent_leaf(|params| params.custom_extensions = vec![again.clone()]).unwrap_err();
    let duplicate = FactsError::Duplicate("2.5.29.17".into());
    assert_eq!(
        error,
        VerifyError::Certificate {
            position: 1,
            error: duplicate
        }
    );
}

#[test]
fn name_constraints_hold() {
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
        excluded_subtrees: Vec::new(),
    });
    let root = Authority::root(ca_params("root"));
    let mut params = ca_params("ca");
    params.name_constraints = constraints;
    let ca = root.child(params);
    let verdict = |name: &str| {
        let mut params = leaf_params(ID);
        params.subject_alt_names.push(dns(name));
        verify(&[&ca.leaf(&params), &ca.der], &root.bundles())
    };
    assert!(verdict("web.example.org").is_ok());
    assert_eq!(
        verdict("web.example.com").unwrap_err(),
        VerifyError::NameConstraints
    );
    // URI constraints can't be judged, so they are refused: permitted and excluded.
    for kind in [0xa0, 0xa1] {
        let subtrees = [
            0x30, 0x0b, kind, 0x09, 0x30, 0x07, 0x86, 0x05, b'a', b'.', b'o', b'r', b'g',
        ];
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], subtrees.to_vec());
        extension.set_criticality(true);
        let change = |params: &mut CertificateParams| {
            params.custom_extensions = vec![extension.clone()];
        };
        assert_eq!(bent_ca(change).unwrap_err(), VerifyError::NameConstraints);
        assert_eq!(bent_root(change).unwrap_err(), VerifyError::NameConstraints);
    }
}

#[test]
fn spiffe_req_36_a_bundle_speaks_for_its_own_trust_domain_alone() {
    let root = Authority::root(ca_params("root"));
    let foreign = leaf_params("spiffe://other.org/ns/shop/sa/web");
    let other = TrustDomain::new("other.org").unwrap();
    // Our own CA signs an ID of another trust domain.
    assert_eq!(
        verify(&[&root.leaf(&foreign)], &root.bundles()).unwrap_err(),
        VerifyError::UnknownTrustDomain(other.clone())
    );
    let stranger = Authority::root(ca_params("stranger"));
    let mut bundles = root.bundles();
    bundles.insert(Bundle::new(other, vec![stranger.der.clone()]));
    assert!(verify(&[&stranger.leaf(&foreign)], &bundles).is_ok());
    for wrong in [root.leaf(&foreign), stranger.leaf(&leaf_params(ID))] {
        let error = verify(&[&wrong], &bundles).unwrap_err();
        assert!(
            matches!(error, VerifyError::UnknownAuthority { .. }),
            "{error}"
        );
    }
}

#[test]
fn spiffe_req_18_an_empty_or_unusable_bundle_means_distrust() {
    let root = Authority::root(ca_params("root"));
    let leaf = root.leaf(&leaf_params(ID));
    for authorities in [vec![], vec![CertificateDer::from(vec![1, 2, 3])]] {
        let bundles = Bundle::new(td(), authorities).into();
        assert_eq!(
            verify(&[&leaf], &bundles).unwrap_err(),
            VerifyError::NoAuthority(td())
        );
    }
    assert_eq!(
        verify(&[&leaf], &BundleSet::default()).unwrap_err(),
        VerifyError::UnknownTrustDomain(td())
    );
}

#[test]
fn sizes_and_garbage() {
    let root = Authority::root(ca_params("root"));
    let leaf = root.leaf(&leaf_params(ID));
    assert_eq!(
        verify(&[], &root.bundles()).unwrap_err(),
        VerifyError::Empty
    );
    assert_eq!(
        verify(&[&leaf; 7], &root.bundles()).unwrap_err(),
        VerifyError::TooMany(7)
    );
    let junk = CertificateDer::from(vec![0x30, 0]);
    let error = verify(&[&leaf, &junk], &root.bundles()).unwrap_err();
    assert!(matches!(
        error,
        VerifyError::Certificate { position: 2, .. }
    ));
    let trailing = CertificateDer::from([leaf.as_ref(), &[0]].concat());
    let error = verify(&[&trailing], &root.bundles()).unwrap_err();
    assert!(matches!(
        error,
        VerifyError::Certificate { position: 1, .. }
    ));
    let huge = CertificateDer::from(vec![0x30; 16 * 1024 + 1]);
    assert_eq!(
        verify(&[&huge], &root.bundles()).unwrap_err(),
        VerifyError::Certificate {
            position: 1,
            error: FactsError::TooLarge(16 * 1024 + 1)
        }
    );
    assert_eq!(spiffe_id(&leaf).unwrap(), id());
}
