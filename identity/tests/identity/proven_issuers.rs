//! Verification with a memory of issuers: the same verdicts as without.

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::verify::{ProvenIssuers, VerifyError, Which, verify_svid, verify_svid_again};
use rcgen::{GeneralSubtree, NameConstraints, SanType};
use rustls_pki_types::CertificateDer;
use time::Duration;

use crate::support::{Authority, NOW, ca_params, leaf_params, td};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

#[test]
fn spiffe_req_13_a_proven_issuer_vouches_for_nothing_but_what_it_signed() {
    let root = Authority::root(ca_params("root"));
    let other = Authority::root(ca_params("other"));
    let mut params = ca_params("ca");
    params.not_after = NOW + Duration::MINUTE * 30;
    let ca = root.child(params.clone());
    let namesake = root.child(params);
    let stranger = other.child(ca_params("ca"));
    let leaf = |by: &Authority| by.leaf(&leaf_params(ID));
    let mut shorter = leaf_params(ID);
    shorter.not_after = NOW + Duration::MINUTE;
    let both: BundleSet = Bundle::new(td(), vec![root.der.clone(), other.der.clone()]).into();

    let proven = ProvenIssuers::default();
    let first = [leaf(&ca), ca.der.clone()];
    let again = |chain: &[CertificateDer<'static>], bundles: &BundleSet, later: Duration| {
        // By what a whole search remembers, whatever was asked meanwhile.
        verify_svid_again(&first, &root.bundles(), NOW, &proven).unwrap();
        let verdict = verify_svid_again(chain, bundles, NOW + later, &proven);
        assert_eq!(verdict, verify_svid(chain, bundles, NOW + later));
        verdict
    };
    let bundles = root.bundles();
    let now = Duration::ZERO;
    // Another leaf of the same issuer.
    let verified = again(&[leaf(&ca), ca.der.clone()], &bundles, now).unwrap();
    assert_eq!(verified.authority, root.der);
    assert!(!verified.path_valid.contains(NOW + Duration::MINUTE * 45));
    let short = ca.leaf(&shorter);
    let verified = again(&[short.clone(), ca.der.clone()], &bundles, now).unwrap();
    assert!(!verified.path_valid.contains(NOW + Duration::MINUTE * 2));
    // It signed neither of these, whatever their issuer is called.
    for by in [&namesake, &stranger] {
        assert!(again(&[leaf(by), ca.der.clone()], &bundles, now).is_err());
    }
    assert!(again(&[leaf(&namesake), namesake.der.clone()], &bundles, now).is_ok());
    assert!(again(&[leaf(&stranger), stranger.der.clone()], &bundles, now).is_err());
    assert!(again(&[leaf(&stranger), stranger.der.clone()], &both, now).is_ok());
    // Who was sent the leaf alone could not show it to anybody.
    assert!(again(&[leaf(&ca)], &bundles, now).is_err());
    // The root is trusted no more, by anyone or in this trust domain.
    assert!(again(&first, &other.bundles(), now).is_err());
    let elsewhere = Bundle::new("elsewhere.org".try_into().unwrap(), vec![root.der.clone()]);
    assert!(again(&first, &elsewhere.into(), now).is_err());
    // Time goes on for the leaf and for the issuer.
    assert!(again(&[short, ca.der.clone()], &bundles, Duration::MINUTE * 2).is_err());
    assert!(matches!(
        again(&first, &bundles, Duration::MINUTE * 45),
        Err(VerifyError::Expired {
            which: Which::Intermediate(_),
            ..
        })
    ));
}

#[test]
fn spiffe_req_13_a_proven_issuer_does_not_outgrow_name_constraints_above_it() {
    let mut params = ca_params("upper");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
        excluded_subtrees: vec![],
    });
    let root = Authority::root(ca_params("root"));
    let upper = root.child(params);
    let ca = upper.child(ca_params("ca"));
    let named = |name: &str| {
        let mut params = leaf_params(ID);
        let name = SanType::DnsName(name.try_into().unwrap());
        params.subject_alt_names.push(name);
        [ca.leaf(&params), ca.der.clone(), upper.der.clone()]
    };
    let proven = ProvenIssuers::default();
    let verdict = |name: &str| verify_svid_again(&named(name), &root.bundles(), NOW, &proven);
    for _ in 0..2 {
        assert!(verdict("web.example.org").is_ok());
        let refused = verdict("web.example.com").unwrap_err();
        assert_eq!(refused, VerifyError::NameConstraints);
    }
}
