//! What a run of entries adds to the index.

use std::collections::{BTreeMap, HashMap};

use super::{SubjectIds, SubjectKey};
use crate::store::{StoreError, SubjectRow, facts::Facts};

/// Log entries of one epoch, as a shift: 65,536. See `migrations/sqlite/index`.
const EPOCH_BITS: u32 = 16;

/// Log entries of one epoch.
pub(super) const EPOCH: u64 = 1 << EPOCH_BITS;

/// The epoch of a log index.
pub(in crate::store) fn epoch(index: u64) -> i64 {
    (index >> EPOCH_BITS).cast_signed()
}

/// The index after the last one of an epoch.
pub(in crate::store) fn epoch_ends_at(epoch: i64) -> u64 {
    (epoch.unsigned_abs() + 1) * EPOCH
}

/// The column that finds a key: the first 8 bytes of its SHA-256.
pub(in crate::store) fn key_column(spki_sha256: &[u8]) -> i64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(spki_sha256) {
        *to = *from;
    }
    i64::from_be_bytes(first)
}

/// (epoch, id of the subject, index, not before, not after)
pub(super) type Issued = (i64, i64, i64, i64, i64);

/// Bounds as a row has them: least and greatest time, least `not_before`, least and greatest
/// `not_after`.
pub(in crate::store) type BoundsRow = (i64, i64, Option<i64>, Option<i64>, Option<i64>);

/// (epoch, first bytes of the key's hash, index)
pub(super) type Key = (i64, i64, i64);

/// What one run of entries adds to the index.
#[derive(Default)]
pub(in crate::store) struct Run {
    issued: Vec<(i64, Subject, i64, i64, i64)>,
    keys: Vec<Key>,
    epochs: BTreeMap<i64, Bounds>,
    /// Subjects whose id is not in memory.
    unknown: HashMap<SubjectKey, SubjectRow>,
}

/// A subject by its id where it is in memory. Which one is fixed when the entry is
/// read: the ids in memory may be dropped before it is written.
#[derive(Clone, Copy)]
enum Subject {
    Known(i64),
    Unknown(SubjectKey),
}

/// Bounds over entries of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Bounds {
    pub(in crate::store) min_time_ms: i64,
    pub(in crate::store) max_time_ms: i64,
    /// Least `not_before`, least and greatest `not_after`.
    pub(in crate::store) validity: Option<(i64, i64, i64)>,
}

// === impl Run ===

impl Run {
    /// Adds the entry at this index.
    pub(in crate::store) fn add(&mut self, index: u64, bytes: &[u8], known: &SubjectIds) {
        let facts = Facts::of(bytes);
        let facts = facts.get();
        let epoch = epoch(index);
        let index = index.cast_signed();
        let mut validity = None;
        if let Some(certificate) = facts.certificate {
            let key = known.key(&certificate.subject);
            let subject = known.id(&key).map_or(Subject::Unknown(key), Subject::Known);
            if matches!(subject, Subject::Unknown(_)) {
                self.unknown
                    .entry(key)
                    .or_insert_with(|| certificate.subject.to_row());
            }
            let (not_before, not_after) = (certificate.not_before, certificate.not_after);
            self.issued
                .push((epoch, subject, index, not_before, not_after));
            self.keys
                .push((epoch, key_column(certificate.spki_sha256), index));
            validity = Some((not_before, not_after));
        }
        let bounds = Bounds::of(facts.time_ms, validity);
        self.epochs
            .entry(epoch)
            .and_modify(|known| *known = known.with(bounds))
            .or_insert(bounds);
    }

    /// The subjects that [`SubjectIds`] has to know before the rows can be written, in the
    /// order in which most of their table's indexes have them.
    pub(in crate::store) fn take_unknown(&mut self) -> Vec<(SubjectKey, SubjectRow)> {
        let mut unknown: Vec<_> = std::mem::take(&mut self.unknown).into_iter().collect();
        unknown.sort_unstable_by(|(_, a), (_, b)| {
            (&a.spiffe_id, &a.node).cmp(&(&b.spiffe_id, &b.node))
        });
        unknown
    }

    /// The rows of issued certificates, sorted.
    pub(in crate::store) fn issued(&self, known: &SubjectIds) -> Result<Vec<Issued>, StoreError> {
        let mut rows = Vec::with_capacity(self.issued.len());
        for (epoch, subject, index, not_before, not_after) in &self.issued {
            let subject = match subject {
                Subject::Known(id) => Some(*id),
                Subject::Unknown(key) => known.id(key),
            };
            let subject =
                subject.ok_or_else(|| StoreError::Corrupt("a subject was not inserted".into()))?;
            rows.push((*epoch, subject, *index, *not_before, *not_after));
        }
        rows.sort_unstable();
        Ok(rows)
    }

    /// The rows of keys, sorted, and the bounds of each epoch.
    pub(in crate::store) fn into_keys_and_epochs(mut self) -> (Vec<Key>, BTreeMap<i64, Bounds>) {
        self.keys.sort_unstable();
        (self.keys, self.epochs)
    }
}

// === impl Bounds ===

impl Bounds {
    /// Of one entry, made at this time; its certificate's validity.
    pub(super) fn of(time_ms: i64, validity: Option<(i64, i64)>) -> Self {
        Self {
            min_time_ms: time_ms,
            max_time_ms: time_ms,
            validity: validity.map(|(not_before, not_after)| (not_before, not_after, not_after)),
        }
    }

    /// From an index's row.
    pub(in crate::store) fn from_row(row: BoundsRow) -> Self {
        let (min_time_ms, max_time_ms, min_not_before, min_not_after, max_not_after) = row;
        let validity = match (min_not_before, min_not_after, max_not_after) {
            (None, None, None) => None,
            // A NULL among them is as wrong as any value that no entry has.
            (a, b, c) => Some((
                a.unwrap_or(i64::MAX),
                b.unwrap_or(i64::MAX),
                c.unwrap_or(i64::MIN),
            )),
        };
        Self {
            min_time_ms,
            max_time_ms,
            validity,
        }
    }

    /// Over both.
    pub(super) fn with(self, other: Self) -> Self {
        let validity = match (self.validity, other.validity) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.min(b.1), a.2.max(b.2))),
            (a, b) => a.or(b),
        };
        Self {
            min_time_ms: self.min_time_ms.min(other.min_time_ms),
            max_time_ms: self.max_time_ms.max(other.max_time_ms),
            validity,
        }
    }
}
