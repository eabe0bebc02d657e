//! The log's bytes, read back: random and mutated ones are an origin that says all that
//! they say, or none. What a renewal rests on is never less than what was recorded.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::mutation::{mutate, mutation};
use crate::store::IndexRow;

fn object(name: &str) -> ObjectRef {
    ObjectRef {
        name: name.into(),
        uid: format!("{name}-uid"),
    }
}

/// A pod's, a unix workload's, an unbound account's, the CA's own.
fn origins() -> [Origin; 4] {
    let pod = Origin {
        method: Method::Jwks,
        subject: Some(Arc::new(Subject {
            cluster: "default".into(),
            namespace: "shop".into(),
            account: object("web"),
            pod: Some(object("web-1")),
            node: Some(object("node-1")),
        })),
        node: None,
        entry_id: Some("/ns/shop#1".into()),
        first_authenticated: OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap(),
        authority: Authority::Agent,
    };
    let unix = Origin {
        subject: None,
        node: Some(("default".into(), object("node-1"))),
        ..pod.clone()
    };
    let mut unbound = pod.clone();
    let subject = Arc::make_mut(unbound.subject.as_mut().unwrap());
    (subject.pod, subject.node) = (None, None);
    let itself = Origin {
        method: Method::Itself,
        subject: None,
        entry_id: None,
        authority: Authority::Itself,
        ..pod.clone()
    };
    [pod, unix, unbound, itself]
}

fn entry(origin: &Origin) -> Vec<u8> {
    let issued = log::Issued {
        certificate: vec![0x30; 40],
        serial: vec![7; 18],
        spiffe_id: "spiffe://example.org/ns/shop/sa/web".into(),
        r#use: log::CertificateUse::Workload.into(),
        origin: Some(origin.to_record()),
        ..Default::default()
    };
    let entry = log::Entry {
        version: 1,
        time_ms: 1_800_000_000_000,
        kind: Some(log::entry::Kind::Issued(issued)),
    };
    entry.encode_to_vec()
}

/// As the authenticator of client certificates reads an entry.
fn read(bytes: &[u8]) -> Option<(log::Origin, Origin)> {
    let Ok(log::Entry {
        kind: Some(log::entry::Kind::Issued(issued)),
        ..
    }) = log::Entry::decode(bytes)
    else {
        return None;
    };
    let record = issued.origin?;
    let origin = Origin::from_record(&record)?;
    Some((record, origin))
}

/// Whatever the record names, the origin rests on.
fn check(record: &log::Origin, origin: &Origin) {
    assert_eq!(&origin.to_record(), record, "{origin:?}");
    let names_account = !(record.service_account.is_empty()
        && record.service_account_uid.is_empty()
        && record.namespace.is_empty());
    let names_pod = !(record.pod.is_empty() && record.pod_uid.is_empty());
    let names_node = !(record.node.is_empty() && record.node_uid.is_empty());
    let subject = origin.subject.as_ref();
    assert_eq!(subject.is_some(), names_account || names_pod);
    assert_eq!(subject.is_some_and(|s| s.pod.is_some()), names_pod);
    let node = subject.and_then(|s| s.node.as_ref());
    assert_eq!(node.is_some() || origin.node.is_some(), names_node);
}

#[test]
fn records_are_read_back_whole() {
    for origin in origins() {
        let (record, back) = read(&entry(&origin)).unwrap();
        assert_eq!(back, origin);
        check(&record, &back);
    }
}

#[test]
fn a_record_that_lost_a_field_is_no_record_of_something_weaker() {
    let [pod, unix, _, itself] = origins().map(|origin| origin.to_record());
    let lost: [fn(&mut log::Origin); 9] = [
        |r| r.service_account_uid.clear(),
        |r| r.service_account.clear(),
        |r| r.pod_uid.clear(),
        |r| r.pod.clear(),
        |r| r.node_uid.clear(),
        |r| r.node.clear(),
        |r| r.method = 99,
        |r| r.authority = 99,
        |r| r.first_authenticated_ms = i64::MAX,
    ];
    for (number, lose) in lost.iter().enumerate() {
        let mut record = pod.clone();
        lose(&mut record);
        assert_eq!(Origin::from_record(&record), None, "{number}: {record:?}");
    }
    let mut record = unix;
    record.node_uid.clear();
    assert_eq!(Origin::from_record(&record), None);
    // An account's namespace is its own: none without it.
    let mut record = itself;
    record.namespace = "shop".into();
    assert_eq!(Origin::from_record(&record), None);
}

fn clear(record: &mut log::Origin, field: u8) {
    match field {
        0 => record.cluster.clear(),
        1 => record.namespace.clear(),
        2 => record.service_account.clear(),
        3 => record.service_account_uid.clear(),
        4 => record.pod.clear(),
        5 => record.pod_uid.clear(),
        6 => record.node.clear(),
        7 => record.node_uid.clear(),
        _ => record.entry_id.clear(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some((record, origin)) = read(&bytes) {
            check(&record, &origin);
        }
        if let Ok(record) = log::Origin::decode(bytes.as_slice())
            && let Some(origin) = Origin::from_record(&record)
        {
            check(&record, &origin);
        }
        let _ = IndexRow::of(&bytes);
    }

    #[test]
    fn records_without_any_of_their_fields(
        which in 0_usize..4,
        fields in prop::collection::vec(0_u8..9, 1..6),
    ) {
        let mut record = origins()[which].to_record();
        for field in fields {
            clear(&mut record, field);
        }
        if let Some(origin) = Origin::from_record(&record) {
            check(&record, &origin);
        }
    }

    #[test]
    fn mutated_entries(
        which in 0_usize..4,
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let bytes = mutate(&entry(&origins()[which]), &mutations);
        if let Some((record, origin)) = read(&bytes) {
            check(&record, &origin);
        }
        // The index shows what the entry says, or nothing of it.
        let row = IndexRow::of(&bytes);
        let decoded = log::Entry::decode(bytes.as_slice());
        prop_assert_eq!(row.time_ms, decoded.as_ref().map_or(0, |entry| entry.time_ms));
        let issued = decoded.ok().and_then(|entry| entry.kind);
        prop_assert_eq!(row.certificate.is_some(), issued.is_some());
    }
}
