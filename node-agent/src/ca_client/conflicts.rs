//! Entries that stand in each other's way, whoever asks: found once for a set of entries,
//! so that an operator hears of it before a workload wonders.

use std::collections::{BTreeSet, HashMap};

use citadel_identity::selector::Selector;

use super::NodeEntry;

/// The most conflicts that are told of.
const MAX_CONFLICTS: usize = 100;

/// The most entries with one identity or one hint that are compared with each other.
const MAX_GROUP: usize = 500;

/// What is wrong with an entry beside another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// Whoever it is for has the same identity by the other entry already.
    Shadowed,
    /// Whoever it is for has two identities of one hint: who chooses by hint can't.
    Ambiguous,
}

/// An entry and the one that is in its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What is wrong.
    pub kind: ConflictKind,
    /// The CA's name of the entry.
    pub entry_id: String,
    /// The CA's name of the other one, which comes to all that the entry is for.
    pub beside: String,
}

/// The conflicts in a node's entries.
pub(super) fn find(entries: &[NodeEntry]) -> Vec<Conflict> {
    let mut by_id: HashMap<String, Vec<&NodeEntry>> = HashMap::new();
    let mut by_hint: HashMap<&str, Vec<&NodeEntry>> = HashMap::new();
    for entry in entries {
        let id = entry.spiffe_id.to_string();
        by_id.entry(id).or_default().push(entry);
        if !entry.hint.is_empty() {
            by_hint.entry(&entry.hint).or_default().push(entry);
        }
    }
    let mut found = Vec::new();
    for group in by_id.values() {
        compare(group, ConflictKind::Shadowed, |_, _| true, &mut found);
    }
    for group in by_hint.values() {
        let other_id = |a: &NodeEntry, b: &NodeEntry| a.spiffe_id != b.spiffe_id;
        compare(group, ConflictKind::Ambiguous, other_id, &mut found);
    }
    // Maps have no order, and the same entries have to give the same list.
    found.sort_by(|a, b| (&a.entry_id, &a.beside).cmp(&(&b.entry_id, &b.beside)));
    found.truncate(MAX_CONFLICTS);
    found
}

fn compare(
    group: &[&NodeEntry],
    kind: ConflictKind,
    counts: impl Fn(&NodeEntry, &NodeEntry) -> bool,
    found: &mut Vec<Conflict>,
) {
    let group: Vec<(&NodeEntry, BTreeSet<&Selector>)> = group
        .iter()
        .take(MAX_GROUP)
        .map(|entry| (*entry, entry.selectors().iter().collect()))
        .collect();
    for (at, (entry, selectors)) in group.iter().enumerate() {
        let wider = group
            .iter()
            .enumerate()
            .find(|(other_at, (other, others))| {
                // Of two for the same ones, the later is in the way.
                let same = others.len() == selectors.len();
                *other_at != at
                    && (!same || *other_at < at)
                    && others.is_subset(selectors)
                    && counts(entry, other)
            });
        if let Some((_, (other, _))) = wider {
            found.push(Conflict {
                kind,
                entry_id: entry.entry_id.clone(),
                beside: other.entry_id.clone(),
            });
        }
    }
}

impl ConflictKind {
    pub(super) fn explain(self) -> &'static str {
        match self {
            Self::Shadowed => {
                "every workload that it is for has the same identity by the other entry: \
                 remove one of them, or select apart"
            }
            Self::Ambiguous => {
                "every workload that it is for has another identity with the same hint: \
                 give them hints of their own"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use citadel_identity::TrustDomain;
    use citadel_proto::v1::{EntriesUpdate, EntryRecord};

    use super::*;
    use crate::ca_client::Entries;

    fn conflicts(all: &[(&str, &str, &str, &[&str])]) -> Vec<(ConflictKind, String, String)> {
        let record =
            |(entry_id, path, hint, selectors): &(&str, &str, &str, &[&str])| EntryRecord {
                entry_id: (*entry_id).to_owned(),
                spiffe_id: format!("spiffe://example.org/{path}"),
                hint: (*hint).to_owned(),
                selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
                ..EntryRecord::default()
            };
        let update = EntriesUpdate {
            entries: all.iter().map(record).collect(),
            revision: 1,
        };
        let domain = TrustDomain::new("example.org").unwrap();
        let found = Entries::from_update(update, &domain, true).conflicts;
        let tuple = |c: Conflict| (c.kind, c.entry_id, c.beside);
        found.into_iter().map(tuple).collect()
    }

    #[test]
    fn an_entry_is_shadowed_by_a_wider_one_of_the_same_identity() {
        let found = conflicts(&[
            ("narrow", "web", "", &["k8s:ns:shop", "k8s:sa:web"]),
            ("wide", "web", "", &["k8s:ns:shop"]),
            ("apart", "web", "", &["k8s:ns:other"]),
            ("else", "db", "", &["k8s:ns:shop", "k8s:sa:web"]),
        ]);
        let shadowed = (ConflictKind::Shadowed, "narrow".into(), "wide".into());
        assert_eq!(found, [shadowed]);
    }

    #[test]
    fn of_two_for_the_same_ones_the_later_is_shadowed() {
        let found = conflicts(&[
            ("first", "web", "", &["k8s:ns:shop", "k8s:sa:web"]),
            ("second", "web", "", &["k8s:sa:web", "k8s:ns:shop"]),
        ]);
        let shadowed = (ConflictKind::Shadowed, "second".into(), "first".into());
        assert_eq!(found, [shadowed]);
    }

    #[test]
    fn two_identities_of_one_hint_are_ambiguous_where_one_workload_has_both() {
        let found = conflicts(&[
            ("a", "web", "main", &["k8s:ns:shop"]),
            ("b", "db", "main", &["k8s:ns:shop", "k8s:sa:web"]),
            // Nobody has both of these, for all that can be told.
            ("c", "x", "main", &["k8s:ns:other"]),
            // No hint, nothing to choose by.
            ("d", "y", "", &["k8s:ns:shop"]),
            ("e", "z", "", &["k8s:ns:shop"]),
        ]);
        let ambiguous = (ConflictKind::Ambiguous, "b".into(), "a".into());
        assert_eq!(found, [ambiguous]);
    }
}
