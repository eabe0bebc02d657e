//! Random and mutated answers of a Workload API: read or refused, never a panic, and
//! never taken for good unless they are.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::OnceLock;

use citadel_proto::workload::{X509svid, X509svidResponse};
use proptest::prelude::*;
use prost::Message as _;
use time::OffsetDateTime;

use super::update::{Svid, Update};
use crate::mutation::{mutate, mutation};
use crate::testing::TestCa;

const ID: &str = "spiffe://example.org/user/alice";

struct Samples {
    svid: Svid,
    message: X509svid,
    foreign: Vec<u8>,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let svid = TestCa::new().svid(ID);
        Samples {
            message: X509svid {
                spiffe_id: ID.into(),
                x509_svid: svid.chain.concat(),
                x509_svid_key: svid.key.to_vec(),
                bundle: svid.authorities.concat(),
                hint: "internal".into(),
            },
            svid,
            foreign: TestCa::new().root,
        }
    })
}

fn answer(svid: X509svid) -> X509svidResponse {
    X509svidResponse {
        svids: vec![svid],
        federated_bundles: [("spiffe://example.com".to_owned(), samples().foreign.clone())].into(),
        ..Default::default()
    }
}

/// Reads an answer and shows it. Whether it is good: no problem in any of its SVIDs.
fn taken(response: X509svidResponse) -> Option<Update> {
    let update = Update::parse(response).ok()?;
    let now = OffsetDateTime::now_utc();
    assert!(!update.svids.is_empty());
    serde_json::to_string(&update.json(now)).expect("JSON");
    let _ = update.text(now);
    update.problem(now).is_none().then_some(update)
}

/// A good answer holds the one certificate that was signed, for its own name. The key is
/// that certificate's, in whatever encoding.
fn assert_real(update: &Update) {
    for svid in &update.svids {
        assert_eq!(svid.chain, samples().svid.chain);
        // Scheme and trust domain ignore case (requirement 5), the path does not.
        assert!(
            svid.spiffe_id.eq_ignore_ascii_case(ID),
            "{}",
            svid.spiffe_id
        );
        assert!(
            svid.spiffe_id.ends_with("/user/alice"),
            "{}",
            svid.spiffe_id
        );
        svid.key_belongs().unwrap();
    }
}

#[test]
fn the_answer_as_it_is_is_taken() {
    assert_real(&taken(answer(samples().message.clone())).expect("a good answer"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(
        id in ".{0,60}",
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        field in 0_usize..4,
    ) {
        if let Ok(response) = X509svidResponse::decode(bytes.as_slice()) {
            prop_assert!(taken(response).is_none());
        }
        let mut svid = samples().message.clone();
        match field {
            0 => svid.x509_svid = bytes,
            1 => svid.x509_svid_key = bytes,
            2 => svid.bundle = bytes,
            _ => svid.spiffe_id = id,
        }
        prop_assert!(taken(answer(svid)).is_none());
    }

    #[test]
    fn mutated_fields_are_taken_only_where_nothing_signed_was_changed(
        mutations in prop::collection::vec(mutation(), 1..4),
        field in 0_usize..5,
    ) {
        let mut svid = samples().message.clone();
        let text = |good: &str| {
            String::from_utf8_lossy(&mutate(good.as_bytes(), &mutations)).into_owned()
        };
        let mut response = answer(svid.clone());
        match field {
            0 => svid.x509_svid = mutate(&svid.x509_svid, &mutations),
            1 => svid.x509_svid_key = mutate(&svid.x509_svid_key, &mutations),
            2 => svid.bundle = mutate(&svid.bundle, &mutations),
            3 => svid.spiffe_id = text(&svid.spiffe_id),
            _ => {
                response.federated_bundles = [(
                    text("spiffe://example.com"),
                    mutate(&samples().foreign, &mutations),
                )].into();
            }
        }
        response.svids = vec![svid];
        if let Some(update) = taken(response) {
            assert_real(&update);
        }
    }

    #[test]
    fn mutated_messages(mutations in prop::collection::vec(mutation(), 1..4)) {
        let bytes = mutate(&answer(samples().message.clone()).encode_to_vec(), &mutations);
        if let Ok(response) = X509svidResponse::decode(bytes.as_slice())
            && let Some(update) = taken(response)
        {
            assert_real(&update);
        }
    }
}
