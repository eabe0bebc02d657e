//! Holds the index against the entries that it was derived from, epoch by epoch.

use std::{collections::HashMap, sync::Arc};

use citadel_proto::log::Entry;
use prost::Message as _;
use tokio::task::JoinHandle;

use super::{
    Bounds, Digest, SubjectIds, SubjectKey, digest, epoch, epoch_ends_at, key_column, run::EPOCH,
};
use crate::store::{
    AuditedEntry, IndexedEpoch, LogIndex, MAX_PAGE, Store, StoreError,
    facts::{CertificateFacts, EntryFacts, Facts, SubjectFacts},
};

/// What the rows of one epoch say.
#[derive(Debug, Default)]
pub(in crate::store) struct EpochRows {
    /// Entries that the index covers.
    pub(in crate::store) reach: u64,
    /// Subject's id, index, not before, not after.
    pub(in crate::store) issued: Vec<(i64, i64, i64, i64)>,
    /// First bytes of the key's hash, index.
    pub(in crate::store) keys: Vec<(i64, i64)>,
    pub(in crate::store) bounds: Option<Bounds>,
    /// The subjects that `issued` names, by their ids: the digest that stands in the row, and
    /// the one that its other columns yield.
    pub(in crate::store) subjects: HashMap<i64, (Vec<u8>, Digest)>,
}

/// Something beside an entry that does not say what the entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The entry.
    pub index: u64,
    /// What is wrong, as the end of a sentence that begins with the entry.
    pub what: String,
}

/// What the index should say, collected from the entries of one epoch at a time: some 3 MB,
/// and 50 bytes for each workload among them.
pub struct IndexCheck {
    /// The entry that comes next.
    next: u64,
    /// The first entry of which `entries` knows.
    first: u64,
    entries: Vec<Expected>,
    /// Of this epoch: a subject's digest, and the one over its row's columns.
    subjects: Vec<(Digest, Digest)>,
    places: HashMap<SubjectKey, usize>,
    hashers: SubjectIds,
    /// Entries that the index was found to cover.
    covered: u64,
    /// False once there turned out to be no index.
    there: bool,
    /// The rows of the epoch of `first`, read while its entries are.
    coming: Option<JoinHandle<Result<Option<IndexedEpoch>, StoreError>>>,
}

struct Expected {
    time_ms: i64,
    certificate: Option<ExpectedCertificate>,
}

struct ExpectedCertificate {
    subject: usize,
    key: i64,
    not_before: i64,
    not_after: i64,
}

// === impl IndexCheck ===

impl IndexCheck {
    /// A check that begins with this entry.
    pub fn new(first: u64) -> Self {
        Self {
            next: first,
            first,
            entries: Vec::new(),
            subjects: Vec::new(),
            places: HashMap::new(),
            hashers: SubjectIds::default(),
            covered: 0,
            there: true,
            coming: None,
        }
    }

    /// Entries up to which the index was found to say what they say; `None` without an index.
    pub fn covered(&self) -> Option<u64> {
        self.there.then_some(self.covered)
    }

    /// Takes the next entry, and holds its serial against it. At the end of an epoch the
    /// index's rows of that are compared.
    pub async fn add(
        &mut self,
        audited: &AuditedEntry,
        store: &Arc<dyn Store>,
    ) -> Result<Option<Mismatch>, StoreError> {
        if self.coming.is_none() {
            let (store, epoch) = (Arc::clone(store), epoch(self.first));
            self.coming = Some(tokio::spawn(
                async move { store.indexed_epoch(epoch).await },
            ));
        }
        let facts = Facts::of(&audited.entry.bytes);
        let facts = facts.get();
        if let Some(what) = wrong_serial(audited, facts.certificate) {
            let index = audited.entry.index.0;
            return Ok(Some(Mismatch { index, what }));
        }
        self.expect(facts, store.as_ref());
        if self.next.is_multiple_of(EPOCH) {
            return self.compare(store.as_ref()).await;
        }
        Ok(None)
    }

    /// The rest: what the last epoch's rows say, and rows that belong to no entry at all.
    pub async fn finish(&mut self, store: &dyn Store) -> Result<Option<Mismatch>, StoreError> {
        if !self.entries.is_empty()
            && let Some(mismatch) = self.compare(store).await?
        {
            return Ok(Some(mismatch));
        }
        let stray = store.stray_index_row().await?;
        Ok(stray.map(|what| Mismatch {
            index: self.next,
            what,
        }))
    }

    fn expect(&mut self, facts: EntryFacts<'_>, store: &dyn Store) {
        let certificate = facts.certificate.map(|certificate| ExpectedCertificate {
            key: key_column(certificate.spki_sha256),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            subject: self.subject(certificate.subject, store),
        });
        self.entries.push(Expected {
            time_ms: facts.time_ms,
            certificate,
        });
        self.next += 1;
    }

    fn subject(&mut self, subject: SubjectFacts<'_>, store: &dyn Store) -> usize {
        let key = self.hashers.key(&subject);
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        let subject = subject.to_row();
        let full = digest(&subject);
        self.subjects
            .push((full, digest(&store.indexed_subject(subject))));
        let place = self.subjects.len() - 1;
        self.places.insert(key, place);
        place
    }

    async fn compare(&mut self, store: &dyn Store) -> Result<Option<Mismatch>, StoreError> {
        let epoch = epoch(self.first);
        let rows = match self.coming.take() {
            // It ends without an answer only with the runtime.
            Some(coming) => coming.await.map_err(|_| StoreError::Closed)?,
            None => store.indexed_epoch(epoch).await,
        };
        let Some(rows) = rows? else {
            self.there = false;
            self.forget();
            return Ok(None);
        };
        let rows = rows.0;
        let end = epoch_ends_at(epoch);
        // What was recorded since may be in the index already.
        while self.next < rows.reach.min(end) {
            let limit = usize::try_from(rows.reach.min(end) - self.next).unwrap_or(MAX_PAGE);
            let more = store.read(LogIndex(self.next), limit.min(MAX_PAGE)).await?;
            if more.first().is_none_or(|entry| entry.index.0 != self.next) {
                return Ok(Some(Mismatch {
                    index: self.next,
                    what: "is in the index, and not in the log".into(),
                }));
            }
            for entry in more {
                self.expect(Facts::of(&entry.bytes).get(), store);
            }
        }
        let found = Comparison {
            check: self,
            rows: &rows,
            covered: usize::try_from(rows.reach.saturating_sub(self.first))
                .unwrap_or(usize::MAX)
                .min(self.entries.len()),
        }
        .first_mismatch();
        self.covered = rows.reach.min(self.next);
        self.forget();
        Ok(found)
    }

    fn forget(&mut self) {
        self.first = self.next;
        self.entries.clear();
        self.subjects.clear();
        self.places.clear();
    }
}

/// What is wrong with the serial beside an entry.
fn wrong_serial(
    audited: &AuditedEntry,
    certificate: Option<CertificateFacts<'_>>,
) -> Option<String> {
    let beside = audited.serial.as_deref();
    match (certificate.map(|known| known.serial), beside) {
        (Some(own), Some(beside)) if own != beside => {
            return Some(format!(
                "records the serial {}, and {} stands beside it",
                hex::encode(own),
                hex::encode(beside)
            ));
        }
        (Some(own), None) => {
            let own = hex::encode(own);
            return Some(format!(
                "records the serial {own}, and none stands beside it"
            ));
        }
        // Kinds of a newer version may have one.
        (None, Some(beside)) if is_known(&audited.entry.bytes) => {
            let beside = hex::encode(beside);
            return Some(format!("has no serial, and {beside} stands beside it"));
        }
        _ => {}
    }
    let beside = beside?;
    match audited.found {
        Some(found) if found == audited.entry.index => None,
        Some(other) => Some(format!(
            "has the serial {}, by which entry {other} is found",
            hex::encode(beside)
        )),
        None => Some(format!(
            "is not found by its serial {}",
            hex::encode(beside)
        )),
    }
}

fn is_known(bytes: &[u8]) -> bool {
    Entry::decode(bytes).is_ok_and(|entry| entry.kind.is_some())
}

struct Comparison<'c> {
    check: &'c IndexCheck,
    rows: &'c EpochRows,
    /// How many of the collected entries the index covers.
    covered: usize,
}

// === impl Comparison ===

impl Comparison<'_> {
    fn first_mismatch(&self) -> Option<Mismatch> {
        [self.issued(), self.keys(), self.bounds()]
            .into_iter()
            .flatten()
            .min_by_key(|mismatch| mismatch.index)
    }

    fn issued(&self) -> Option<Mismatch> {
        let mut worst = Worst::default();
        let mut seen = vec![false; self.covered];
        for (subject, index, not_before, not_after) in &self.rows.issued {
            if self.is_leaving(*index) {
                continue;
            }
            let Some((place, expected)) = self.certificate(*index, "a row", &mut worst) else {
                continue;
            };
            seen[place] = true;
            if (expected.not_before, expected.not_after) != (*not_before, *not_after) {
                worst.offer(*index, "is in the index with another validity");
            }
            let (full, columns) = self.check.subjects[expected.subject];
            match self.rows.subjects.get(subject) {
                None => worst.offer(*index, "is in the index without its subject's row"),
                Some((beside, _)) if beside.as_slice() != full => {
                    worst.offer(*index, "is in the index with another subject");
                }
                Some((_, found)) if *found != columns => {
                    worst.offer(
                        *index,
                        "is in the index with a subject's row that was changed",
                    );
                }
                Some(_) => {}
            }
        }
        self.all_seen(&seen, "is missing in the index", &mut worst);
        worst.0
    }

    fn keys(&self) -> Option<Mismatch> {
        let mut worst = Worst::default();
        let mut seen = vec![false; self.covered];
        for (key, index) in &self.rows.keys {
            if self.is_leaving(*index) {
                continue;
            }
            let Some((place, expected)) = self.certificate(*index, "a key", &mut worst) else {
                continue;
            };
            if std::mem::replace(&mut seen[place], true) || expected.key != *key {
                worst.offer(*index, "is in the index with another key");
            }
        }
        self.all_seen(&seen, "is missing among the index's keys", &mut worst);
        worst.0
    }

    /// A row of an entry below the minimum index: retention is about to take it away too.
    fn is_leaving(&self, index: i64) -> bool {
        let first = self.check.first;
        let epoch = first - first % EPOCH;
        (epoch..first).contains(&index.unsigned_abs()) && index >= 0
    }

    /// The certificate that a row is about.
    fn certificate(
        &self,
        index: i64,
        row: &str,
        worst: &mut Worst,
    ) -> Option<(usize, &ExpectedCertificate)> {
        let place = index
            .checked_sub(self.check.first.cast_signed())
            .and_then(|place| usize::try_from(place).ok())
            .filter(|place| *place < self.covered);
        let Some(place) = place else {
            worst.offer(
                index,
                &format!("has {row} in the index that should not be there"),
            );
            return None;
        };
        let certificate = self.check.entries[place].certificate.as_ref();
        if certificate.is_none() {
            worst.offer(
                index,
                &format!("records no certificate, and has {row} in the index"),
            );
        }
        Some((place, certificate?))
    }

    fn all_seen(&self, seen: &[bool], what: &str, worst: &mut Worst) {
        let missing = self
            .check
            .entries
            .iter()
            .zip(seen)
            .position(|(entry, seen)| entry.certificate.is_some() && !seen);
        if let Some(place) = missing {
            let index = self.check.first + place as u64;
            worst.offer(index.cast_signed(), what);
        }
    }

    fn bounds(&self) -> Option<Mismatch> {
        let expected = self.check.entries[..self.covered]
            .iter()
            .map(Expected::bounds)
            .reduce(Bounds::with);
        // Where retention took entries away, the bounds may be wider than what is left.
        let pruned = !self.check.first.is_multiple_of(EPOCH);
        let good = match (expected, self.rows.bounds) {
            (Some(expected), Some(found)) if pruned => found.with(expected) == found,
            (expected, found) => expected == found,
        };
        (!good).then(|| Mismatch {
            index: self.check.first,
            what: "begins an epoch whose bounds in the index are wrong".into(),
        })
    }
}

impl Expected {
    fn bounds(&self) -> Bounds {
        Bounds::of(
            self.time_ms,
            self.certificate
                .as_ref()
                .map(|known| (known.not_before, known.not_after)),
        )
    }
}

/// The first by the order of the entries.
#[derive(Default)]
struct Worst(Option<Mismatch>);

impl Worst {
    fn offer(&mut self, index: i64, what: &str) {
        let index = u64::try_from(index).unwrap_or(0);
        if self.0.as_ref().is_none_or(|known| index < known.index) {
            let what = what.to_owned();
            self.0 = Some(Mismatch { index, what });
        }
    }
}
