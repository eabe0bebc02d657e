//! The facts of an entry that the index needs, read in place.
//!
//! The indexer and the verification of a whole log read every entry, and of most they need
//! only whether it is a workload that they know: decoding the message would copy some twenty
//! texts for that. What is read here is the plain form, in which each field is known and of
//! its type; of any other form the full decoder decides ([`IndexRow::of`]).

use super::row::{CertificateRow, IndexRow, SubjectRow};

/// An [`IndexRow`] in the entry's own bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryFacts<'e> {
    pub(super) time_ms: i64,
    pub(super) certificate: Option<CertificateFacts<'e>>,
}

/// A [`CertificateRow`] in the entry's own bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CertificateFacts<'e> {
    pub(super) serial: &'e [u8],
    pub(super) spki_sha256: &'e [u8],
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    pub(super) subject: SubjectFacts<'e>,
}

/// A [`SubjectRow`] in the entry's own bytes.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct SubjectFacts<'e> {
    pub(super) trust_domain: &'e str,
    pub(super) spiffe_id: &'e str,
    pub(super) certificate_use: i32,
    pub(super) cluster: &'e str,
    pub(super) namespace: &'e str,
    pub(super) account: &'e str,
    pub(super) account_uid: &'e str,
    pub(super) pod: &'e str,
    pub(super) pod_uid: &'e str,
    pub(super) node: &'e str,
    pub(super) node_uid: &'e str,
    pub(super) issuer_key_id: &'e [u8],
}

/// Facts, wherever they stand.
pub(super) enum Facts<'e> {
    InPlace(EntryFacts<'e>),
    Decoded(IndexRow),
}

// === impl Facts ===

impl<'e> Facts<'e> {
    /// The facts of an encoded `citadel.log.v1.Entry`; without any where the bytes are none.
    pub(super) fn of(bytes: &'e [u8]) -> Self {
        in_place(bytes).map_or_else(|| Self::Decoded(IndexRow::decoded(bytes)), Self::InPlace)
    }

    pub(super) fn get(&self) -> EntryFacts<'_> {
        match self {
            Self::InPlace(facts) => *facts,
            Self::Decoded(row) => row.facts(),
        }
    }
}

// === impl EntryFacts ===

impl EntryFacts<'_> {
    pub(super) fn to_row(self) -> IndexRow {
        IndexRow {
            time_ms: self.time_ms,
            certificate: self.certificate.map(|facts| CertificateRow {
                serial: facts.serial.to_vec(),
                spki_sha256: facts.spki_sha256.to_vec(),
                not_before: facts.not_before,
                not_after: facts.not_after,
                subject: facts.subject.to_row(),
            }),
        }
    }
}

// === impl SubjectFacts ===

impl SubjectFacts<'_> {
    pub(super) fn to_row(self) -> SubjectRow {
        SubjectRow {
            trust_domain: self.trust_domain.to_owned(),
            spiffe_id: self.spiffe_id.to_owned(),
            certificate_use: self.certificate_use,
            cluster: self.cluster.to_owned(),
            namespace: self.namespace.to_owned(),
            account: self.account.to_owned(),
            account_uid: self.account_uid.to_owned(),
            pod: self.pod.to_owned(),
            pod_uid: self.pod_uid.to_owned(),
            node: self.node.to_owned(),
            node_uid: self.node_uid.to_owned(),
            issuer_key_id: self.issuer_key_id.to_vec(),
        }
    }
}

/// A field of a message, of one of the two wire types that entries have.
enum Field<'e> {
    Varint(u64),
    Bytes(&'e [u8]),
}

/// `None` where the bytes are not an issued certificate's entry in its plain form. The
/// numbers are those of `citadel/log/v1/entry.proto`.
fn in_place(mut bytes: &[u8]) -> Option<EntryFacts<'_>> {
    let mut time_ms = 0;
    let mut certificate = None;
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Varint(_)) => {}
            (2, Field::Varint(value)) => time_ms = value.cast_signed(),
            (3, Field::Bytes(value)) if certificate.is_none() => {
                certificate = Some(issued(value)?);
            }
            _ => return None,
        }
    }
    certificate.is_some().then_some(EntryFacts {
        time_ms,
        certificate,
    })
}

fn issued(mut bytes: &[u8]) -> Option<CertificateFacts<'_>> {
    let mut facts = CertificateFacts::default();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1 | 12, Field::Bytes(_)) | (11, Field::Varint(_)) => {}
            (2, Field::Bytes(value)) => facts.serial = value,
            (3, Field::Bytes(value)) => {
                facts.subject.spiffe_id = text(value)?;
                facts.subject.trust_domain = super::row::trust_domain(facts.subject.spiffe_id);
            }
            (4, Field::Bytes(value)) => facts.subject.issuer_key_id = value,
            (5, Field::Bytes(value)) => facts.spki_sha256 = value,
            (6, Field::Varint(value)) => facts.not_before = value.cast_signed(),
            (7, Field::Varint(value)) => facts.not_after = value.cast_signed(),
            (8, Field::Varint(value)) => {
                facts.subject.certificate_use = i32::try_from(value).ok()?;
            }
            (9, Field::Bytes(value)) => caller(value)?,
            (10, Field::Bytes(value)) => origin(value, &mut facts.subject)?,
            (13, Field::Bytes(value)) => {
                text(value)?;
            }
            _ => return None,
        }
    }
    Some(facts)
}

fn origin<'e>(mut bytes: &'e [u8], subject: &mut SubjectFacts<'e>) -> Option<()> {
    while !bytes.is_empty() {
        let (number, value) = match field(&mut bytes)? {
            (1 | 11 | 12, Field::Varint(_)) => continue,
            (number, Field::Bytes(value)) => (number, text(value)?),
            _ => return None,
        };
        match number {
            2 => subject.cluster = value,
            3 => subject.namespace = value,
            4 => subject.account = value,
            5 => subject.account_uid = value,
            6 => subject.pod = value,
            7 => subject.pod_uid = value,
            8 => subject.node = value,
            9 => subject.node_uid = value,
            10 => {}
            _ => return None,
        }
    }
    Some(())
}

/// The index knows nothing of the caller: only that this is one.
fn caller(mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Varint(_)) | (4, Field::Bytes(_)) => {}
            (2 | 3 | 5..=13, Field::Bytes(value)) => {
                text(value)?;
            }
            _ => return None,
        }
    }
    Some(())
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Takes a field off: its number and its value.
fn field<'e>(bytes: &mut &'e [u8]) -> Option<(u64, Field<'e>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Field::Varint(varint(bytes)?),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Field::Bytes(value)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

/// Takes a varint off: at most ten bytes, 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        if at == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *bytes = &bytes[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[path = "facts_tests.rs"]
mod tests;
