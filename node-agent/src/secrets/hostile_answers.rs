//! Random and mutated answers of a CA to a batch: taken over only where certificate, key
//! and name are the ones that belong together.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use citadel_identity::{SpiffeId, bundle::BundleSet, key::WorkloadKey, verify::ProvenIssuers};
use citadel_proto::v1;
use proptest::prelude::*;
use prost::Message as _;
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use super::svid::{Expected, Svid};
use crate::{
    mutation::{mutate, mutation},
    testing::{Pki, trust_domain},
};

const ID: &str = "spiffe://example.org/ns/shop/sa/web";

struct Samples {
    bundles: BundleSet,
    answer: v1::X509Svid,
    /// PKCS#8: an answer takes its key along.
    key: Vec<u8>,
    now: OffsetDateTime,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        citadel_identity::crypto::install_default();
        let pki = Pki::new();
        let key = WorkloadKey::generate().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (leaf, serial) = pki.leaf_for(ID, &key, now - Duration::MINUTE, now + Duration::HOUR);
        Samples {
            bundles: pki.bundles(),
            answer: v1::X509Svid {
                spiffe_id: ID.into(),
                certificate_chain: vec![leaf],
                serial,
                not_after: (now + Duration::HOUR).unix_timestamp(),
                renew_at: (now + Duration::minutes(30)).unix_timestamp(),
                pod_uid: "a-pod".into(),
                ..Default::default()
            },
            key: key.pkcs8_der().to_vec(),
            now,
        }
    })
}

fn accept(answer: v1::X509Svid, server_ms: i64, wanted: Option<&SpiffeId>) -> Option<Svid> {
    let sample = samples();
    let trust_domain = trust_domain();
    let expected = Expected {
        trust_domain: &trust_domain,
        bundles: &sample.bundles,
        issuers: &ProvenIssuers::default(),
        id: wanted,
        server_ms,
        jitter: 0.5,
        received: Instant::now(),
        received_at: sample.now,
    };
    let key = WorkloadKey::from_pkcs8(&sample.key).unwrap();
    let svid = Svid::accept(answer, key, &expected).ok()?;
    // What was signed, whatever the fields beside it say.
    let good = &sample.answer;
    assert_eq!(svid.id.to_string(), ID);
    assert!(
        svid.chain
            .iter()
            .map(AsRef::as_ref)
            .eq(good.certificate_chain.iter().map(Vec::as_slice))
    );
    assert_eq!(svid.not_after.unix_timestamp(), good.not_after);
    assert!(good.serial.ends_with(&svid.serial), "{}", svid.serial);
    // Never a loop, never beyond what a clock can count.
    assert!(svid.plan.renew_in >= std::time::Duration::from_millis(500));
    let _ = svid.expires();
    Some(svid)
}

fn server_ms() -> i64 {
    samples().now.unix_timestamp() * 1000
}

#[test]
fn the_answer_as_it_is_is_taken_over() {
    let id = SpiffeId::new(ID).unwrap();
    accept(samples().answer.clone(), server_ms(), Some(&id)).expect("a good answer");
    let other = SpiffeId::new("spiffe://example.org/ns/shop/sa/db").unwrap();
    assert!(accept(samples().answer.clone(), server_ms(), Some(&other)).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        id in ".{0,60}",
        more in any::<bool>(),
    ) {
        if let Ok(answer) = v1::X509Svid::decode(bytes.as_slice()) {
            prop_assert!(accept(answer, server_ms(), None).is_none());
        }
        let mut answer = samples().answer.clone();
        if more {
            // Behind a good leaf too: a chain is taken whole or not at all.
            answer.certificate_chain.push(bytes);
        } else {
            answer.certificate_chain = vec![bytes];
        }
        prop_assert!(accept(answer, server_ms(), None).is_none());
        let answer = v1::X509Svid { spiffe_id: id, ..samples().answer.clone() };
        prop_assert!(accept(answer, server_ms(), None).is_none());
    }

    #[test]
    fn mutated_answers(mutations in prop::collection::vec(mutation(), 1..4)) {
        let bytes = mutate(&samples().answer.encode_to_vec(), &mutations);
        if let Ok(answer) = v1::X509Svid::decode(bytes.as_slice()) {
            accept(answer, server_ms(), None);
        }
        let mut answer = samples().answer.clone();
        answer.certificate_chain[0] = mutate(&answer.certificate_chain[0], &mutations);
        accept(answer, server_ms(), None);
    }

    #[test]
    fn any_time_and_slot(server_ms in any::<i64>(), renew_at in any::<i64>(), near in any::<bool>()) {
        let server_ms = if near { server_ms % 10_000_000_000_000 } else { server_ms };
        let answer = v1::X509Svid { renew_at, ..samples().answer.clone() };
        if accept(answer, server_ms, None).is_some() {
            let end = samples().answer.not_after * 1000;
            prop_assert!(server_ms <= end + 1000, "taken over after its end");
        }
    }
}
