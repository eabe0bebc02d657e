//! Random and mutated bytes into every parser: an answer or an error, never a panic,
//! and never a wrong yes.

use std::sync::OnceLock;
use std::time::Duration;

use citadel_identity::bundle::{Bundle, BundleSet};
use citadel_identity::csr::{pem_to_der, prove_possession};
use citadel_identity::issuer::Issuer;
use citadel_identity::key::{CaKey, WorkloadKey};
use citadel_identity::lint::{LintContext, LintSubject, lint};
use citadel_identity::profile::{SvidUse, assemble};
use citadel_identity::verify::{spiffe_id, verify_svid};
use citadel_identity::{SpiffeId, pem};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use crate::mutation::{mutate, mutation};
use crate::support::{Authority, NOW, OwnCa, ca_params, leaf_params, td};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

struct Samples {
    csr: Vec<u8>,
    spki: Vec<u8>,
    ca: OwnCa,
    chain: Vec<CertificateDer<'static>>,
    bundles: BundleSet,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let key = WorkloadKey::generate().unwrap();
        let root = Authority::root(ca_params("root"));
        let ca = root.child(ca_params("ca"));
        Samples {
            csr: key.csr().unwrap(),
            spki: key.spki_der().to_vec(),
            ca: OwnCa::new(),
            chain: vec![ca.leaf(&leaf_params(ID)), ca.der.clone()],
            bundles: root.bundles(),
        }
    })
}

fn lint_it(der: &[u8]) -> bool {
    let Samples { ca, spki, .. } = samples();
    let id = SpiffeId::new(ID).unwrap();
    let context = |subject| LintContext {
        issuer: &ca.issuer,
        trust_domain: id.trust_domain(),
        max_lifetime: Duration::from_hours(1),
        now: NOW,
        subject,
    };
    let leaf = LintSubject::Leaf {
        use_: SvidUse::Leaf,
        spiffe_id: &id,
        dns_names: &[],
        spki_der: spki,
    };
    [leaf, LintSubject::Authority]
        .map(|subject| lint(der, &context(subject)).is_ok())
        .contains(&true)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let certificate = CertificateDer::from(bytes.clone());
        prop_assert!(prove_possession(&bytes).is_err());
        prop_assert!(pem_to_der(&bytes).is_err());
        prop_assert!(WorkloadKey::from_pkcs8(&bytes).is_err());
        prop_assert!(CaKey::from_pkcs8(&bytes).is_err());
        prop_assert!(CaKey::from_pem(&bytes).is_err());
        prop_assert!(Bundle::from_pem(td(), &bytes).is_err());
        prop_assert!(Bundle::from_jwks(td(), &bytes).is_err());
        prop_assert!(BundleSet::from_json_map(&bytes).is_err());
        prop_assert!(spiffe_id(&bytes).is_err());
        prop_assert!(!lint_it(&bytes));
        let list = [certificate];
        prop_assert!(verify_svid(&list, &samples().bundles, NOW).is_err());
        prop_assert!(Issuer::from_chain(&list, &list, &bytes, NOW).is_err());
        let _ = assemble(&bytes, citadel_identity::key::SigningAlgorithm::EcdsaP256Sha256, &bytes);
    }

    #[test]
    fn mutated_requests_never_prove_another_key(mutations in prop::collection::vec(mutation(), 1..4)) {
        let Samples { csr, spki, .. } = samples();
        let mutated = mutate(csr, &mutations);
        if let Ok(proven) = prove_possession(&mutated) {
            prop_assert_eq!(proven.spki_der(), spki.as_slice());
        }
        let text = pem::encode("CERTIFICATE REQUEST", csr);
        let _ = pem_to_der(&mutate(text.as_bytes(), &mutations)).map(|der| prove_possession(&der).is_ok());
    }

    #[test]
    fn mutated_chains_verify_only_where_nothing_signed_was_changed(
        mutations in prop::collection::vec(mutation(), 1..4),
        which in 0_usize..2,
    ) {
        let Samples { chain, bundles, .. } = samples();
        let mut list = chain.clone();
        list[which] = CertificateDer::from(mutate(&chain[which], &mutations));
        if verify_svid(&list, bundles, NOW).is_ok() {
            prop_assert_eq!(&list, chain);
        }
        let _ = spiffe_id(&list[which]);
        let _ = lint_it(&list[which]);
        let _ = Issuer::from_chain(&list[1..], &list[1..], &samples().spki, NOW);
        // As an authority, a mutated certificate is refused or useless, never a panic.
        let bundle = Bundle::new(td(), vec![list[which].clone()]);
        let _ = bundle.to_jwks();
        let _ = verify_svid(chain, &bundle.into(), NOW);
    }

    #[test]
    fn mutated_bundles_and_keys(mutations in prop::collection::vec(mutation(), 1..4)) {
        let Samples { ca, .. } = samples();
        let bundle = Bundle::new(td(), vec![ca.root.clone()]);
        let set = ca.bundles();
        let _ = Bundle::from_pem(td(), &mutate(bundle.to_pem().as_bytes(), &mutations));
        let _ = Bundle::from_jwks(td(), &mutate(bundle.to_jwks().unwrap().as_bytes(), &mutations));
        let _ = BundleSet::from_json_map(&mutate(set.to_json_map().unwrap().as_bytes(), &mutations));
        let pem = ca.key.to_pkcs8_pem();
        let _ = CaKey::from_pem(&mutate(pem.as_bytes(), &mutations));
        let der = pem::decode(pem.as_bytes(), 1 << 16).unwrap().remove(0).der;
        let _ = CaKey::from_pkcs8(&mutate(&der, &mutations));
        let _ = WorkloadKey::from_pkcs8(&mutate(&der, &mutations));
    }
}
