//! What is read in place is what the full decoder reads, for whole and for broken entries.

use citadel_proto::log::{Caller, Entry, Issued, Origin, Revoked, entry::Kind};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::mutation::{mutate, mutation};

fn texts(count: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-zü:/\u{1F600}.-]{0,12}", count)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

/// Every field of it may have any value.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop::collection::vec(any::<i64>(), 5);
    let uses = prop::collection::vec(any::<i32>(), 4);
    let blobs = prop::collection::vec(bytes(), 6);
    (numbers, uses, blobs, texts(9), texts(11), texts(3)).prop_map(
        |(numbers, uses, blobs, origin, caller, more)| {
            let mut blobs = blobs.into_iter();
            let mut blob = || blobs.next().unwrap_or_default();
            let caller = Caller {
                method: uses[0],
                spiffe_id: caller[0].clone(),
                token_id: caller[1].clone(),
                client_serial: blob(),
                cluster: caller[2].clone(),
                namespace: caller[3].clone(),
                service_account: caller[4].clone(),
                service_account_uid: caller[5].clone(),
                pod: caller[6].clone(),
                pod_uid: caller[7].clone(),
                node: caller[8].clone(),
                node_uid: caller[9].clone(),
                address: caller[10].clone(),
            };
            let origin = Origin {
                method: uses[1],
                cluster: origin[0].clone(),
                namespace: origin[1].clone(),
                service_account: origin[2].clone(),
                service_account_uid: origin[3].clone(),
                pod: origin[4].clone(),
                pod_uid: origin[5].clone(),
                node: origin[6].clone(),
                node_uid: origin[7].clone(),
                entry_id: origin[8].clone(),
                first_authenticated_ms: numbers[0],
                authority: uses[2],
            };
            let issued = Issued {
                certificate: blob(),
                serial: blob(),
                spiffe_id: format!("spiffe://{}", more[0]),
                issuer_key_id: blob(),
                spki_sha256: blob(),
                not_before: numbers[1],
                not_after: numbers[2],
                r#use: uses[3],
                caller: Some(caller),
                origin: Some(origin),
                policy_revision: numbers[3].cast_unsigned(),
                previous_serial: blob(),
                dns_names: more[1..].to_vec(),
            };
            Entry {
                version: 1,
                time_ms: numbers[4],
                kind: Some(Kind::Issued(issued)),
            }
            .encode_to_vec()
        },
    )
}

/// The same entry with parts in another order and twice, and other kinds about it.
#[test]
fn forms_that_no_writer_of_ours_makes_mean_what_the_decoder_says() {
    let part = |issued: Issued| {
        Entry {
            kind: Some(Kind::Issued(issued)),
            ..Entry::default()
        }
        .encode_to_vec()
    };
    let first = part(Issued {
        spiffe_id: "spiffe://a/b".into(),
        not_after: 7,
        ..Issued::default()
    });
    let second = part(Issued {
        serial: vec![1],
        not_after: 8,
        ..Issued::default()
    });
    let other = Entry {
        kind: Some(Kind::Revoked(Revoked::default())),
        ..Entry::default()
    }
    .encode_to_vec();
    let unknown = [0xa2, 0x06, 1, 0];
    let parts = [&first[..], &second, &other, &unknown, &[8, 1], &[0]];
    let mut in_place = 0;
    for a in parts {
        for b in parts {
            for c in parts {
                let bytes = [a, b, c].concat();
                assert_eq!(
                    IndexRow::of(&bytes),
                    IndexRow::decoded(&bytes),
                    "{bytes:02x?}"
                );
                in_place += usize::from(super::in_place(&bytes).is_some());
            }
        }
    }
    // One `issued` and else versions.
    assert_eq!(in_place, 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_we_write_is_read_in_place_but_for_negative_uses(bytes in entries()) {
        let decoded = IndexRow::decoded(&bytes);
        prop_assert_eq!(&IndexRow::of(&bytes), &decoded);
        let negative = decoded
            .certificate
            .as_ref()
            .is_some_and(|row| row.subject.certificate_use < 0);
        prop_assert_eq!(in_place(&bytes).is_some(), !negative);
        // And back: a row's facts are the row.
        prop_assert_eq!(decoded.facts().to_row(), decoded);
    }

    #[test]
    fn broken_entries_mean_what_the_decoder_says(
        bytes in entries(),
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let bytes = mutate(&bytes, &mutations);
        prop_assert_eq!(IndexRow::of(&bytes), IndexRow::decoded(&bytes));
    }
}
