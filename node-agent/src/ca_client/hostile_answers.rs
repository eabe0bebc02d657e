//! Random and mutated bytes in what the CA says of the agent and pushes to it: its own
//! identity, entries, trust bundles.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Arc, OnceLock};

use citadel_identity::{
    SpiffeId,
    bundle::BundleSet,
    key::WorkloadKey,
    selector::{Selector, UnixFacts},
    template, verify,
};
use citadel_proto::v1;
use proptest::prelude::*;
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::{Entries, identity::AgentSvid, streams::bundle_set};
use crate::{
    mutation::{mutate, mutation},
    pods::choice::{Place, choose},
    testing::{Pki, trust_domain},
};

const AGENT: &str = "spiffe://example.org/citadel/agent/east/node-1";

struct Samples {
    pki: Pki,
    key: Vec<u8>,
    answer: v1::X509Svid,
    now: OffsetDateTime,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        citadel_identity::crypto::install_default();
        let pki = Pki::new();
        let key = WorkloadKey::generate().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let end = now + Duration::HOUR;
        let (leaf, serial) = pki.leaf_for(AGENT, &key, now - Duration::MINUTE, end);
        let answer = v1::X509Svid {
            spiffe_id: AGENT.into(),
            certificate_chain: vec![leaf],
            serial,
            ..Default::default()
        };
        Samples {
            pki,
            key: key.pkcs8_der().to_vec(),
            answer,
            now,
        }
    })
}

/// The agent's identity from an answer. Nothing but the signed one is any.
fn identity(answer: v1::X509Svid) -> bool {
    let sample = samples();
    let chain = answer.certificate_chain.clone();
    let accepted = AgentSvid::accept(
        Some(answer),
        Arc::new(WorkloadKey::from_pkcs8(&sample.key).unwrap()),
        &trust_domain(),
        &sample.pki.bundles(),
        sample.now.unix_timestamp() * 1000,
        0.5,
    );
    let Ok(accepted) = accepted else { return false };
    assert_eq!(accepted.id.to_string(), AGENT);
    assert_eq!(chain, sample.answer.certificate_chain);
    true
}

fn bundles() -> v1::TrustBundlesUpdate {
    let bundle = |trust_domain: &str, root: Vec<u8>| v1::TrustBundle {
        trust_domain: trust_domain.into(),
        x509_authorities: vec![root],
        sequence: 1,
        refresh_hint_seconds: 300,
    };
    v1::TrustBundlesUpdate {
        bundles: vec![
            bundle("example.org", samples().pki.root().to_vec()),
            bundle("other.org", Pki::new().root().to_vec()),
        ],
        server_time_ms: 0,
    }
}

/// The agent's chain verifies only where a root of its own trust domain has the real key.
fn check_bundles(set: &BundleSet) {
    let chain: Vec<_> = samples()
        .answer
        .certificate_chain
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    if verify::verify_svid(&chain, set, samples().now).is_err() {
        return;
    }
    let own = set.get(&trust_domain()).expect("no bundle of its own");
    let real = spki(&samples().pki.root()).unwrap();
    let mut keys = own.authorities.iter().filter_map(spki);
    assert!(keys.any(|key| key == real), "another root's key");
}

/// The key in a root, found by bytes that no parser of ours has looked at.
fn spki(root: &CertificateDer<'_>) -> Option<Vec<u8>> {
    // The P-256 SubjectPublicKeyInfo of 91 bytes: this head, then the point.
    const HEAD: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let at = root.windows(HEAD.len()).position(|part| part == HEAD)?;
    root.get(at..at + 91).map(<[u8]>::to_vec)
}

const SELECTORS: [&str; 10] = [
    "unix:uid:1000",
    "unix:gid:1000",
    "unix:supplementary-gid:27",
    "unix:path:/usr/bin/web",
    "unix:uid:0",
    "k8s:ns:shop",
    "k8s:sa:web",
    "k8s:pod-label:app:web",
    "k8s:container-name:app",
    "tpm:key:1",
];

fn record(number: usize, id: &str, selectors: &[&str]) -> v1::EntryRecord {
    v1::EntryRecord {
        entry_id: number.to_string(),
        spiffe_id: id.into(),
        selectors: selectors.iter().map(|&text| text.into()).collect(),
        ..Default::default()
    }
}

/// What is kept can be understood whole, and is for nobody that a selector leaves out.
fn check_entries(update: &v1::EntriesUpdate) {
    let alice = UnixFacts {
        uid: 1000,
        gid: 1000,
        groups: vec![27],
        path: None,
        sha256: None,
    };
    let is_alice = [
        "unix:uid:1000",
        "unix:gid:1000",
        "unix:supplementary-gid:27",
    ];
    let kept = Entries::from_update(update.clone(), &trust_domain(), false);
    let sent = |id: &str, spiffe_id: &SpiffeId| {
        let mut of_id = update.entries.iter().filter(|record| {
            record.entry_id == id
                && SpiffeId::new(&record.spiffe_id).is_ok_and(|sent| sent == *spiffe_id)
        });
        let first = of_id.next().expect("an entry that nobody sent").clone();
        // Two of one name can't be told apart here.
        of_id.next().is_none().then_some(first)
    };
    for entry in &kept.list {
        assert!(entry.spiffe_id.is_member_of(&trust_domain()));
        assert!(!template::is_reserved(&entry.spiffe_id));
        let Some(sent) = sent(&entry.entry_id, &entry.spiffe_id) else {
            continue;
        };
        assert!(!sent.selectors.is_empty());
        for text in &sent.selectors {
            text.parse::<Selector>().expect("a selector left aside");
            assert!(!text.contains("container"), "{text}");
        }
        let candidate = |in_pod| {
            let place = if in_pod {
                Place::Pod {
                    may_be_known: false,
                }
            } else {
                Place::Host
            };
            choose(&kept, place, &alice).entries.contains(&entry)
        };
        if candidate(false) {
            // Numbers have more than one spelling; their meaning is the parser's test.
            let of_others = |text: &&String| {
                let selector: Selector = text.parse().unwrap();
                !is_alice.contains(&selector.to_string().as_str())
            };
            assert_eq!(sent.selectors.iter().find(of_others), None, "{sent:?}");
        }
        if candidate(true) {
            let text = sent.selectors.join(" ");
            assert!(text.contains("k8s:"), "{text}");
        }
    }
}

#[test]
fn good_answers_are_taken() {
    assert!(identity(samples().answer.clone()));
    let set = bundle_set(bundles().bundles);
    check_bundles(&set);
    assert_eq!(
        set.get(&trust_domain()).unwrap().authorities,
        [samples().pki.root()]
    );
    let good = record(1, "spiffe://example.org/a", &SELECTORS[..3]);
    let update = v1::EntriesUpdate {
        entries: vec![good],
        revision: 1,
    };
    assert_eq!(
        Entries::from_update(update.clone(), &trust_domain(), true)
            .list
            .len(),
        1
    );
    check_entries(&update);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), name in ".{0,40}") {
        if let Ok(answer) = v1::X509Svid::decode(bytes.as_slice()) {
            prop_assert!(!identity(answer));
        }
        let mut answer = samples().answer.clone();
        answer.certificate_chain = vec![bytes.clone()];
        prop_assert!(!identity(answer));
        let answer = v1::X509Svid { spiffe_id: name.clone(), ..samples().answer.clone() };
        prop_assert!(!identity(answer));
        if let Ok(update) = v1::TrustBundlesUpdate::decode(bytes.as_slice()) {
            check_bundles(&bundle_set(update.bundles));
        }
        if let Ok(update) = v1::EntriesUpdate::decode(bytes.as_slice()) {
            check_entries(&update);
        }
        let mut update = bundles();
        update.bundles[0].x509_authorities = vec![bytes];
        update.bundles[1].trust_domain = name;
        check_bundles(&bundle_set(update.bundles));
    }

    #[test]
    fn mutated_identities_and_bundles(mutations in prop::collection::vec(mutation(), 1..4)) {
        let bytes = mutate(&samples().answer.encode_to_vec(), &mutations);
        if let Ok(answer) = v1::X509Svid::decode(bytes.as_slice()) {
            identity(answer);
        }
        let mut answer = samples().answer.clone();
        answer.certificate_chain[0] = mutate(&answer.certificate_chain[0], &mutations);
        identity(answer);
        let name = mutate(AGENT.as_bytes(), &mutations);
        let spiffe_id = String::from_utf8_lossy(&name).into_owned();
        identity(v1::X509Svid { spiffe_id, ..samples().answer.clone() });
        let bytes = mutate(&bundles().encode_to_vec(), &mutations);
        if let Ok(update) = v1::TrustBundlesUpdate::decode(bytes.as_slice()) {
            check_bundles(&bundle_set(update.bundles));
        }
        let mut update = bundles();
        let root = &mut update.bundles[0].x509_authorities[0];
        *root = mutate(root, &mutations);
        check_bundles(&bundle_set(update.bundles));
    }

    #[test]
    fn mutated_entries(
        chosen in prop::collection::vec(prop::collection::vec(0_usize..SELECTORS.len(), 0..4), 1..4),
        mutations in prop::collection::vec(mutation(), 0..4),
    ) {
        let ids = ["spiffe://example.org/a", "spiffe://example.org/citadel/ca", "spiffe://other.org/a"];
        let entries = chosen.iter().enumerate().map(|(number, selectors)| {
            let selectors: Vec<_> = selectors.iter().map(|&at| SELECTORS[at]).collect();
            record(number, ids[number % ids.len()], &selectors)
        });
        let update = v1::EntriesUpdate { entries: entries.collect(), revision: 1 };
        check_entries(&update);
        let bytes = mutate(&update.encode_to_vec(), &mutations);
        if let Ok(update) = v1::EntriesUpdate::decode(bytes.as_slice()) {
            check_entries(&update);
        }
    }
}
